"""How far reward models can be believed, on labelled pairs: beside a policy, in a run, or by themselves."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_rlhf.data.checks import write_quarantine
from llm_rlhf.data.rows import Preference
from llm_rlhf.data.sources import Loaded
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.evaluation.answers import rows_digest
from llm_rlhf.evaluation.benchmarks import of_scores, record
from llm_rlhf.evaluation.material import load_pairs, what
from llm_rlhf.evaluation.report.alarms import account_lines
from llm_rlhf.evaluation.report.assembly import archive_report, assemble, check_output
from llm_rlhf.evaluation.report.measures import Entry
from llm_rlhf.evaluation.report.reward_sections import judge_estimates
from llm_rlhf.evaluation.report.schema import write_report
from llm_rlhf.evaluation.rewards import ROLES, PairScores, Rewards, score
from llm_rlhf.evaluation.suites.benchmarks.loading import load_benchmark
from llm_rlhf.evaluation.suites.benchmarks.scoring import as_pairs
from llm_rlhf.evaluation.suites.reward_accuracy import reward_report
from llm_rlhf.launch import processes
from llm_rlhf.recipe.sections import Benchmark, Source, stage_options
from llm_rlhf.recipe.values import plain
from llm_rlhf.run_folder import read_json
from llm_rlhf.unchanged import check_unchanged


def preferences(
    rewards: Rewards, pairs: Sequence[Preference], scores: Mapping[str, np.ndarray], resamples: int, seed: int
) -> tuple[list[Entry], dict[str, Any], dict[str, int]]:
    """How far the reward models can be believed, on labelled pairs that all of them can read.

    Returns:
        Estimates (accuracy, calibration, habits), the report's `reward_model`, and how many pairs were kept.
    """
    read = np.flatnonzero(~np.isnan(np.stack([both[:, 0] for both in scores.values()])).any(axis=0)).tolist()
    counts = {"kept": len(read), "too_long": len(pairs) - len(read)}
    if not len(read):
        raise DataError(f"None of {len(pairs)} pairs to test reward models on fits into what the reward models read.")
    several = [role for role in ROLES if len(rewards.folders[role]) > 1]
    if rewards.trained is not None and stage_options(rewards.trained, "reward").ensemble == 1:
        several = [role for role in several if role != "reward"]  # one adapter for each objective: no ensemble
    ensembles = {role: rewards.names(role) for role in several}
    by_name = {name: (both[read, 0], both[read, 1]) for name, both in scores.items()}
    found = reward_report([pairs[i] for i in read], by_name, ensembles, resamples=resamples, seed=seed)
    return *as_sections(found), counts


def of_the_run(rewards: Rewards, run: Path | None) -> tuple[list[Entry], dict[str, Any]]:
    """What the run's reward stage measured on its held-out pairs, where the reward model is the run's own."""
    path = run / "reward" / "accuracy.json" if run is not None else None
    if rewards.trained is None or path is None or not path.is_file():
        return [], {"calibration": {}, "agreement": None}
    return as_sections(read_json(path))


def as_sections(found: dict[str, Any]) -> tuple[list[Entry], dict[str, Any]]:
    """What `reward_report` found, as the report has it: estimates, and its `reward_model`."""
    calibration = {name: known for name, known in found["calibration"].items() if known is not None}
    return judge_estimates(found), {"calibration": calibration, "agreement": found["ensembles"].get("reward")}


def evaluate_rewards(
    rewards: Rewards,
    sources: list[Source],
    output: Path,
    benchmarks: Sequence[Benchmark] = (),
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """The report of reward models without a policy: report.html, report.md and report.json in `output`.

    Args:
        sources: of labelled pairs; none: public suites alone.
        benchmarks: public suites that go by reward models' scores.

    Raises:
        RecipeError, DataError: where it cannot be done as asked.
        RunFolderError: where a model of a run is not as it was written.
    """
    started = time.monotonic()
    check_output(output)
    if not rewards.folders["reward"]:
        raise RecipeError("Without a policy there is nothing to evaluate but a reward model; name one: --reward MODEL.")
    loaded = load_pairs(sources, "--pairs") if sources else Loaded[Preference]()
    suites = {benchmark.name: load_benchmark(benchmark, "--benchmarks") for benchmark in benchmarks}
    check_unchanged(rewards.places([]))
    rewards.identify()
    rows = {"pairs": list(loaded.rows)} | {name: as_pairs(suite.rows) for name, suite in suites.items()}
    scores = {name: PairScores() for name in rows}
    score(rewards, rewards.loaded(), [], rows, scores)
    entries: list[Entry] = []
    of_rewards: dict[str, Any] = {"calibration": {}, "agreement": None}
    data, hashes = {}, {name: rows_digest(suite.rows) for name, suite in suites.items()}
    if sources:
        entries, of_rewards, fitted = preferences(rewards, rows["pairs"], scores["pairs"], resamples, seed)
        data["pairs"], hashes["pairs"] = loaded.counts() | {"fitted": fitted}, rows_digest(rows["pairs"])
    for name, suite in suites.items():
        found, fitted = of_scores(name, suite.rows, scores[name], resamples, seed)
        entries += [estimate.as_dict() for estimate in found]
        data[what(name)] = suite.counts() | {"fitted": fitted}
    on = "labelled pairs" if sources else "public suites"
    report = assemble(
        name=f"{', '.join(Path(folder).name for folder in rewards.folders['reward'])} on {on}",
        recipe="none",
        base=", ".join(rewards.folders["reward"]),
        seconds={"evaluate": round(time.monotonic() - started, 3)},
        estimates=entries,
        reward_model=of_rewards,
        benchmarks={b.name: record(b, len(suites[b.name].rows)) for b in benchmarks},
        data=data,
        provenance={
            "recipe": {"pairs": [s.source for s in sources], "benchmarks": [plain(suite) for suite in benchmarks]},
            "seed": seed,
            "decoding": {},
            "instruments": rewards.identities,
            "hashes": hashes,
        },
    )
    report["alarms"] += account_lines(report["data"])
    if processes().is_main_process:
        archive_report(output)
        write_report(report, output)
        set_aside = [*loaded.set_aside, *(item for suite in suites.values() for item in suite.set_aside)]
        if set_aside:
            write_quarantine(set_aside, output / "set_aside.jsonl")
    return report
