"""One evaluation: any policy against any start, with any judges, on one page.

1. What is asked is read and cut to what every policy has room for (material.py).
2. The policies answer, and read given replies; reward models score what they said (ask.py, rewards.py).
3. Suites measure: gains, refusals, the distance of a run's snapshots, given replies, functions of the user's own.
4. A judge, where one is named, compares the replies in both orders, when no other model is in memory.
5. Paired estimates with intervals, curves and chosen samples become one report.

A recipe's `evaluate` stage and `llm-rlhf evaluate` differ in what they ask (request.py) and in what else their report
holds: a run's own has the curves of its stages (run_report.py).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm_rlhf.data.checks import write_quarantine
from llm_rlhf.data.rows import Prompt
from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation import refusal_detector
from llm_rlhf.evaluation.answers import Answers, of_a_world, write_replies
from llm_rlhf.evaluation.ask import Curve, Found, ask
from llm_rlhf.evaluation.benchmarks import check_possible, measure_benchmarks, records
from llm_rlhf.evaluation.judges import Comparisons
from llm_rlhf.evaluation.judges.naming import check_judge, judge_of, judge_record, judge_replies, judged_estimates
from llm_rlhf.evaluation.material import OWN, REFUSALS, Material, gather
from llm_rlhf.evaluation.report.alarms import account_lines
from llm_rlhf.evaluation.report.assembly import archive_report, assemble, check_output
from llm_rlhf.evaluation.report.measures import Entry
from llm_rlhf.evaluation.report.samples import choose_samples
from llm_rlhf.evaluation.report.schema import write_report
from llm_rlhf.evaluation.request import Both, Evaluation, check_names
from llm_rlhf.evaluation.reward_evaluation import of_the_run, preferences
from llm_rlhf.evaluation.reward_gates import report_lines
from llm_rlhf.evaluation.rewards import ROLES, Rewards
from llm_rlhf.evaluation.subjects import trained_by
from llm_rlhf.evaluation.suites import refusals as refusal_suite
from llm_rlhf.evaluation.suites.best_of_n import best_of_n
from llm_rlhf.evaluation.suites.gains import compare
from llm_rlhf.evaluation.suites.hhh import hhh_estimates
from llm_rlhf.evaluation.suites.own import Scored, score_replies, suite_estimates, suite_record, write_suite_replies
from llm_rlhf.evaluation.suites.perplexity import perplexity_estimates, same_tokens
from llm_rlhf.evaluation.suites.snapshot_curve import JUDGES, LEAST_PROMPTS, snapshot_curve
from llm_rlhf.evaluation.wordings import Wordings
from llm_rlhf.launch import processes
from llm_rlhf.recipe.values import plain
from llm_rlhf.run_folder import RunFolder, write_json
from llm_rlhf.statistics.intervals import Estimate
from llm_rlhf.unchanged import check_unchanged

SAMPLING = {"top_p": 1.0, "top_k": 0}  # how replies are always drawn


@dataclass
class Measured:
    """All that an evaluation found. Empty where there is no policy to evaluate."""

    estimates: list[Estimate] = field(default_factory=list)
    of_judges: list[Entry] = field(default_factory=list)  # estimates of the reward models themselves
    reward_model: dict[str, Any] = field(default_factory=dict)  # what is known of them beside
    overoptimization: dict[str, Any] | None = None
    judged: Comparisons | None = None  # by the judge that was named
    scored: dict[str, dict[str, Scored]] = field(default_factory=dict)  # by suite of the user's and policy's name
    own: dict[str, dict[str, Any]] = field(default_factory=dict)  # what the report says of these suites
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)  # likewise, of public suites
    samples: list[dict[str, Any]] = field(default_factory=list)
    instruments: dict[str, Any] = field(default_factory=dict)  # what measured, and its version
    notes: list[str] = field(default_factory=list)  # what a reader must know
    computed: dict[str, str] = field(default_factory=dict)  # by what no key names, for the manifest and the report
    material: Material = field(default_factory=lambda: Material({}))
    answers: dict[str, dict[str, Answers]] = field(default_factory=dict)  # by list of prompts and policy's name


def evaluate(asked: Evaluation) -> dict[str, Any]:
    """What `llm-rlhf evaluate` does: measure, and write report.html, report.md, report.json and the replies.

    Returns:
        The report, as `report/schema.py` describes it.

    Raises:
        RecipeError, DataError: where it cannot be done as asked.
    """
    started = time.monotonic()
    check_output(asked.output)
    found = measure(asked)
    report = assemble(
        name=_title(asked),
        recipe=str(asked.run / "recipe.yaml") if asked.run else "none",
        base=asked.policy.url or asked.policy.base,
        seconds={"evaluate": round(time.monotonic() - started, 3)},
        estimates=[estimate.as_dict() for estimate in found.estimates] + found.of_judges,
        reward_model=found.reward_model,
        own=found.own,
        benchmarks=found.benchmarks,
        overoptimization=found.overoptimization,
        samples=found.samples,
        data={"prompts": len(found.material.prompts[OWN]), **found.material.counts},
        provenance={
            "recipe": {
                "policy": {**asked.identities.policy, "method": trained_by(asked.policy)},
                "reference": asked.identities.start,
                **_options(asked),
            },
            **({"computed": {"evaluate": found.computed}} if found.computed else {}),
            "seed": asked.seed,
            "decoding": asked.decoding | SAMPLING,
            "instruments": found.instruments,
            "hashes": found.material.digests(),
        },
    )
    if asked.recipe is not None and asked.recipe.reward is not None and asked.run is not None and not asked.rewards:
        report["alarms"] = report_lines(asked.recipe, RunFolder(asked.run, written=False), report["alarms"])
    report["alarms"] += found.notes + account_lines(found.material.counts)
    if processes().is_main_process:
        archive_report(asked.output)
        write(asked, found, report)
    return report


def _title(asked: Evaluation) -> str:
    run = asked.policy.run
    return ("" if run is None else f"{run.resolve().name}: ") + f"{asked.policy.name} against {asked.start.name}"


def measure(asked: Evaluation) -> Measured:
    """Ask, judge and compare.

    Raises:
        RecipeError, DataError: where it cannot be done as asked.
    """
    rewards = Rewards.of(asked)
    _check(asked, rewards)
    if not asked.in_recipe:  # whose run has looked at its stages
        check_unchanged([*rewards.places(asked.local), *asked.snapshots.values()])
    rewards.identify()
    material = gather(asked)
    found = ask(asked, material, rewards)
    measured = Measured(material=material, answers=found.answers, notes=found.notes)
    measured.computed = {name: " and ".join(sorted(values)) for name, values in found.computed.items()}
    names, prompts = asked.names, material.prompts[OWN]
    policy, start = (found.answers[OWN][name] for name in names)
    measured.estimates = compare(prompts, policy, start, asked.resamples, asked.seed, names)
    if REFUSALS in material.prompts:
        refusing = [found.answers[REFUSALS][name] for name in names]
        measured.estimates += refusal_suite.estimates(material.prompts[REFUSALS], refusing[0], refusing[1], names)
    elif not of_a_world(prompts):
        measured.estimates += refusal_suite.corrected(prompts, policy, start, names)
    if found.curve is not None:
        measured.overoptimization = _overoptimization(asked, found.curve, policy, prompts)
    elif asked.snapshots:
        measured.notes.append(f"No curve of the snapshots: {len(prompts)} prompts are fewer than {LEAST_PROMPTS}.")
    _read_given(asked, material, found, measured)
    for suite in asked.own:
        asked_of, of_list = material.prompts[suite.name], found.answers[suite.name]
        scored = {name: score_replies(suite, asked_of, of_list[name].texts) for name in reversed(names)}
        measured.scored[suite.name] = scored
        measured.estimates += suite_estimates(suite, asked_of, scored, names)
        measured.own[suite.name] = suite_record(suite, scored)
    of_suites, notes = measure_benchmarks(asked, material, found)
    measured.estimates, measured.notes = measured.estimates + of_suites, measured.notes + notes
    measured.benchmarks = records(asked, material)
    measured.instruments = {"refusal_detector": refusal_detector.VERSION, **rewards.identities}
    if asked.judge is not None:
        _judge(asked, asked.judge, measured, prompts, Both(policy, start))
    if material.pairs:
        scores = found.pair_scores["pairs"]
        measured.of_judges, measured.reward_model, material.counts["pairs"]["fitted"] = preferences(
            rewards, material.pairs, scores, asked.resamples, asked.seed
        )
    else:
        measured.of_judges, measured.reward_model = of_the_run(rewards, asked.run)
    measured.samples = choose_samples(prompts, policy, start, asked.samples, names)
    return measured


def _check(asked: Evaluation, rewards: Rewards) -> None:
    """What cannot be done as asked, before anything is loaded."""
    check_names(asked.names, [name for role in ROLES for name in rewards.names(role)])
    if asked.judge is not None:
        check_judge(asked.judge, asked.judge_key_variable)
    scored = any(rewards.folders.values())
    if asked.pairs and not scored:
        raise RecipeError(f"{asked.key('pairs')} test reward models, and there is none; name one: --reward MODEL.")
    if asked.hhh and not scored and not asked.local:
        raise RecipeError(
            f"{asked.key('hhh')}: endpoints tell no log-probabilities of given replies; name a --reward model."
        )
    check_possible(asked, scored)
    if not asked.in_recipe:
        _check_curve(asked, rewards)


def _check_curve(asked: Evaluation, rewards: Rewards) -> None:
    """RecipeError where snapshots are asked for by name and there is no curve to be had."""
    key, least = asked.key("snapshot_prompts"), LEAST_PROMPTS
    if asked.best_of_n > 1 and not asked.snapshot_prompts:
        raise RecipeError(f"{asked.key('best_of_n')} is asked of the prompts of {key}, and there are none.")
    if not asked.snapshot_prompts:
        return
    for option in ("snapshot_prompts", "limit"):
        if (number := getattr(asked, option)) < least:
            raise RecipeError(f"{asked.key(option)} is {number}; a curve takes {least} prompts or more.")
    if not asked.snapshots:
        raise RecipeError(f"{key}: {asked.policy.name} is no policy of a run that kept snapshots; name one that is.")
    if not rewards.folders["reward"]:
        raise RecipeError(f"{key}: the curve is of rewards, and there is no reward model; name one: --reward MODEL.")
    if not asked.decoding["temperature"] > 0:
        raise RecipeError(f"{key}: replies at temperature 0 are no sample, so that no distance is known of them.")


def _overoptimization(asked: Evaluation, curve: Curve, policy: Answers, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What reward was bought at what distance, and what choosing among replies would have given without training."""
    measured = [_scores(answers) for answers in curve.answers]
    ids = Wordings(prompts).of(curve.rows)
    found = snapshot_curve(curve.steps, curve.kl, measured, asked.seed, ids) | {"start": asked.origin.name}
    if curve.best_of is not None:
        shape = len(curve.rows), asked.best_of_n
        of_base = {name: np.reshape(values, shape) for name, values in _scores(curve.best_of).items()}
        of_policy = {name: [values[i] for i in curve.rows] for name, values in _scores(policy).items()}
        found["best_of_n"] = best_of_n(of_base, of_policy, ids)
    return found


def _scores(answers: Answers) -> dict[str, list[float]]:
    """What is known of the replies: "reward" and of JUDGES those that there are."""
    return {name: values for name in ("reward", *JUDGES) if (values := getattr(answers, name))}


def _read_given(asked: Evaluation, material: Material, found: Found, measured: Measured) -> None:
    """Estimates from replies that were given to the models, and notes on what could not be measured."""
    names = asked.names
    if material.hhh:
        mute = [name for name in names if name not in found.hhh]
        if mute:
            measured.notes.append(
                f"hhh was not asked of {' and '.join(mute)}: an endpoint tells no log-probabilities of replies."
            )
        scores = found.pair_scores["hhh"]
        measured.estimates += hhh_estimates(material.hhh, found.hhh, scores, names, asked.resamples, asked.seed)
    if len(found.losses) == len(names):
        if same_tokens(found.losses):
            rows = material.demonstrations
            measured.estimates += perplexity_estimates(rows, found.losses, names, asked.resamples, asked.seed)
        else:
            measured.notes.append("Perplexities were not compared: the two policies split text into different tokens.")


def _judge(asked: Evaluation, named: str, measured: Measured, prompts: Sequence[Prompt], both: Both[Answers]) -> None:
    judge = judge_of(named, asked.how, asked.cache_file("judge.jsonl"), asked.judge_key_variable, asked.batch_size)
    found = judge_replies(judge, prompts, both.policy, both.start, list(asked.identities))
    measured.estimates += judged_estimates(found, prompts, *both, asked.names, asked.resamples, asked.seed)
    measured.instruments["judge"] = judge_record(found)
    measured.judged = found


def write(asked: Evaluation, found: Measured, report: dict[str, Any]) -> None:
    """The report and every reply behind it."""
    folder, material = asked.output, found.material
    for name, by_policy in found.answers.items():
        answers = {who: by_policy[who] for who in reversed(asked.names)}  # the start's first
        path = folder / (f"replies_{name}.jsonl" if name else "replies.jsonl")
        if name in found.scored:
            texts = {who: given.texts for who, given in answers.items()}
            write_suite_replies(path, material.prompts[name], texts, found.scored[name])
        else:
            write_replies(path, material.prompts[name], answers)
    for account in material.accounts:
        account.write(folder)
    if material.set_aside:
        write_quarantine(material.set_aside, folder / "set_aside.jsonl")
    if found.judged is not None:
        write_json(folder / "judge.json", found.judged.as_dict())
    write_report(report, folder)


def _options(asked: Evaluation) -> dict[str, Any]:
    sources = [source.source for source in asked.prompts]
    return {"prompts": sources, "rewards": asked.rewards, "heldout": asked.heldout, "judge": asked.judge,
            "limit": asked.limit, "own": [plain(suite) for suite in asked.own],
            "hhh": [s.source for s in asked.hhh], "benchmarks": [plain(suite) for suite in asked.benchmarks],
            "pairs": [s.source for s in asked.pairs],
            "snapshot_prompts": asked.snapshot_prompts, "best_of_n": asked.best_of_n}  # fmt: skip
