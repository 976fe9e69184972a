"""The report of a run as plain values: what the evaluation found beside what the earlier stages left."""

import json
import time
from pathlib import Path
from typing import Any

from llm_rlhf.checkpoints import PARTIAL, RESUMED_WITHOUT, without
from llm_rlhf.evaluation.evaluate import Measured
from llm_rlhf.evaluation.report.alarms import account_lines
from llm_rlhf.evaluation.report.assembly import assemble
from llm_rlhf.evaluation.report.labels import WORLDS_BASE
from llm_rlhf.evaluation.report.watch_section import CURVES as WATCHED_CURVES
from llm_rlhf.evaluation.report.watch_section import watch_alarms
from llm_rlhf.evaluation.reward_gates import report_lines
from llm_rlhf.finite import BATCHES
from llm_rlhf.models.roles import HELDOUT
from llm_rlhf.ppo.alarms import ALARMS
from llm_rlhf.ppo.preview import PREVIEW
from llm_rlhf.ppo.watch import SUMMARY
from llm_rlhf.provenance import machine
from llm_rlhf.recipe.sections import METHODS, OFFLINE, Recipe, method_options, stage_options, trains_reward
from llm_rlhf.reward.adapters import reward_folders, whole_rewards
from llm_rlhf.run_folder import MANIFEST, RunFolder, read_json
from llm_rlhf.training import read_metrics


def build_report(
    recipe: Recipe, run_folder: RunFolder, found: Measured, decoding: dict[str, Any], started: float
) -> dict[str, Any]:
    """The report of a run: what its evaluation found, and what its earlier stages left.

    Args:
        started: when the evaluation began, in seconds of `time.monotonic`; it counts up to here, without writing.
    """
    done = [s for s in ("world", "collect", "sft", "reward", *METHODS) if (run_folder / s).exists()]
    manifests = {stage: run_folder.manifest(stage) for stage in done}
    weights = {f"{stage}/{n}": f["sha256"] for stage, m in manifests.items() for n, f in _weights(m)}
    report = assemble(
        name=recipe.name,
        recipe=str(run_folder / "recipe.yaml"),
        base=WORLDS_BASE if recipe.world is not None else str(recipe.model.base),
        seconds={stage: manifest["seconds"] for stage, manifest in manifests.items()}
        | {"evaluate": round(time.monotonic() - started, 3)},
        estimates=[estimate.as_dict() for estimate in found.estimates] + found.of_judges,
        reward_model=found.reward_model,
        own=found.own,
        benchmarks=found.benchmarks,
        overoptimization=found.overoptimization,
        watch=_watch(run_folder),
        curves={
            "sft": _curve(run_folder / "sft", ("loss", "mean_token_accuracy")),
            **_reward_curves(recipe, run_folder),
            **_method_curve(recipe, run_folder),
        },
        samples=found.samples,
        data=_data_counts(run_folder) | found.material.counts,
        **_feedback(run_folder),
        provenance={
            "recipe": {key: value for key, value in recipe.as_dict().items() if key != "output_dir"},
            "elsewhere": {s: m["machine"] for s, m in manifests.items() if m.get("machine", machine()) != machine()},
            "computed": {stage: m["computed"] for stage, m in manifests.items() if "computed" in m}
            | ({"evaluate": found.computed} if found.computed else {}),
            "seed": recipe.seed,
            "decoding": decoding,
            "instruments": found.instruments,
            "hashes": found.material.digests() | weights,
        },
    )
    report["alarms"] = watch_alarms(report["watch"]) + report_lines(recipe, run_folder, report["alarms"])
    report["alarms"] += found.notes + account_lines(found.material.counts)
    report["alarms"] += _about_rewards(recipe) + skipped_steps(manifests) + _resumed_without(run_folder)
    return report


def _feedback(run_folder: RunFolder) -> dict[str, Any]:
    """Who stands behind what was collected, as the run's manifest says it; nothing where nothing was."""
    manifest = read_json(run_folder / MANIFEST) or {}
    of = manifest if (run_folder / "collect").exists() else manifest.get("round") or {}
    known = of.get("feedback")
    return {} if known is None else {"feedback": known}


def skipped_steps(manifests: dict[str, dict[str, Any]]) -> list[str]:
    """A sentence for each stage in which optimizer steps were skipped, because their gradient was not finite."""
    lines = []
    for stage, manifest in manifests.items():
        steps = {name.rpartition("-process-")[0] for name in manifest["files"] if BATCHES in name}
        if steps:
            counted = "1 optimizer step was" if len(steps) == 1 else f"{len(steps)} optimizer steps were"
            lines.append(
                f"{stage}: {counted} skipped, as the gradient was not finite; what they were to learn from is kept in "
                f"{stage}/ ({BATCHES}*)."
            )
    return lines


def _resumed_without(run_folder: RunFolder) -> list[str]:
    """A sentence for each checkpoint that a training went on from though it was not whole."""
    return [
        f"{path.relative_to(run_folder.path).parent.as_posix()} was trained on from a checkpoint of step {one['step']} "
        f"{without(one['lacks'])}, as {PARTIAL} allowed: not as it would have been without an interruption."
        for stage in ("sft", "reward", *METHODS)
        for path in sorted((run_folder / stage).rglob(RESUMED_WITHOUT))
        for one in read_json(path) or []
    ]


def _about_rewards(recipe: Recipe) -> list[str]:
    """What was not measured of the reward model, and what else PPO was rewarded by than the report shows."""
    lines = []
    finished = stage_options(recipe, "reward").model
    if finished is not None and not (recipe.evaluate and recipe.evaluate.pairs):
        lines.append(
            f"The reward model is {finished}, which this run did not train; how far it can be believed was not "
            "measured (evaluate.pairs would)."
        )
    shown = whole_rewards(recipe) if recipe.reward is None else []
    functions = [name for name in method_options(recipe).reward_funcs if name not in shown]
    method = METHODS[recipe.method or "ppo"]
    if functions and recipe.reward is None and not shown:
        lines.append(f"{method} was rewarded by {', '.join(functions)} alone; no training reward is shown here.")
    elif functions:
        lines.append(f"{method} was rewarded by {', '.join(functions)} too; the training reward shown here is without.")
    if recipe.method in OFFLINE and recipe.reward is not None:
        lines.append(
            f"{method} was not trained against the reward model, which learned from the same pairs: what is called the "
            "training reward here is its opinion."
        )
    return lines


PPO_CURVES = (
    "objective/scores",
    "eval_objective/scores",
    "eval_heldout/scores",
    "eval_objective/kl",
    "objective/kl",
    "objective/rlhf_reward",
    "objective/entropy",
    "policy/approxkl",
    "policy/clipfrac",
    "val/explained_variance",
    "loss/policy",
    "loss/value",
    "response_length",
    "eos_rate",
)


METHOD_CURVES = {  # of the others, under TRL's names
    **dict.fromkeys(("grpo", "rloo"), ("reward", "reward_std", "kl", "entropy", "loss", "completions/mean_length")),
    "dpo": ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"),
    "kto": ("loss", "kl", "rewards/margins", "logps/chosen", "logps/rejected"),
    "best_of_n": ("loss", "mean_token_accuracy"),
}


def _method_curve(recipe: Recipe, run_folder: RunFolder) -> dict[str, list[dict[str, Any]]]:
    """By the method's name; a run without one has an empty curve of PPO."""
    method = recipe.method or "ppo"
    names = METHOD_CURVES.get(method, (*PPO_CURVES, *WATCHED_CURVES))
    return {method: _curve(run_folder / method, names)}


def _watch(run_folder: RunFolder) -> dict[str, Any]:
    """What PPO foresaw and saw of each side, and of its own training."""
    names = {"guard": SUMMARY, "preview": PREVIEW, "training": ALARMS}
    files = {key: run_folder / "ppo" / name for key, name in names.items()}
    return {name: known for name, path in files.items() if (known := read_json(path)) is not None}


def _reward_curves(recipe: Recipe, run_folder: RunFolder) -> dict[str, list[dict[str, Any]]]:
    """`reward` and `heldout`, or `reward/NAME` for each of several adapters."""
    folders = reward_folders(recipe, run_folder) if trains_reward(recipe) else {}
    named = {f"reward/{name}" if len(folders) > 1 else "reward": folder for name, folder in folders.items()}
    named[HELDOUT] = run_folder / "reward" / HELDOUT
    curves = {name: _curve(folder, ("loss", "accuracy")) for name, folder in named.items()}
    return {name: points for name, points in curves.items() if points}


def _curve(folder: Path, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The logged points of a stage that hold at least one of these metrics."""
    points = []
    for line in read_metrics(folder):
        known = {name: line[name] for name in names if line.get(name) is not None}
        if known:
            points.append({"step": line["step"], **known})
    return points


def _data_counts(run_folder: RunFolder) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads((run_folder / "data" / "counts.json").read_text(encoding="utf-8"))
    for stage in ("sft", "reward", *METHODS):
        path = run_folder / stage / "lengths.json"
        if path.is_file():
            counts[f"lengths in {stage}"] = json.loads(path.read_text(encoding="utf-8"))
    return counts


def _weights(manifest: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    files = manifest["files"].items()
    return [(name, of) for name, of in files if name.endswith((".safetensors", ".jsonl")) and BATCHES not in name]
