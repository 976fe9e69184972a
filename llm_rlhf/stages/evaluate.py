"""Evaluation: is the trained policy better than the one it started from, and by how much?

1. The SFT model and the PPO policy answer the same held-out prompts, decoded as in training, from one base in memory.
2. Every reply is scored by the training reward model, by the held-out judge, and, where the recipe's world knows the
   truth, by rule.
3. Paired estimates with intervals, the curves of all stages and chosen samples become one report.

Writes: report.html report.md report.json replies.jsonl lengths.json
"""

import json
from pathlib import Path
from typing import Any

from llm_rlhf.data.checks import DataError, prompt_share
from llm_rlhf.data.gold_world import judge
from llm_rlhf.data.rows import Prompt
from llm_rlhf.evaluation.alarms import alarm_lines
from llm_rlhf.evaluation.policies import Answers, compare
from llm_rlhf.evaluation.report import verdict_lines, write_report
from llm_rlhf.evaluation.samples import choose_samples
from llm_rlhf.evaluation.statistics import Estimate
from llm_rlhf.models.base import context_limit, load_tokenizer
from llm_rlhf.models.inference import Reply, load_roles, reply_logprobs, sample_replies, score_ids
from llm_rlhf.models.roles import POLICY
from llm_rlhf.recipe import EvaluateSection, Recipe, trainer_config
from llm_rlhf.run_folder import RunFolder, git_state, versions
from llm_rlhf.stages.inputs import Fitted, fit_prompts, splits, starting_model
from llm_rlhf.stages.progress import read_metrics

JUDGES = {"reward": "joint", "heldout": "heldout"}


def run(recipe: Recipe, run_folder: RunFolder, folder: Path) -> None:
    """Sample, score, compare and write the report. `folder` becomes `evaluate/`."""
    section = recipe.evaluate
    assert section is not None
    ppo = trainer_config(recipe, "ppo", folder / "trainer")
    length = section.response_length or ppo.response_length
    temperature = section.temperature or ppo.temperature
    base = starting_model(recipe, run_folder, before="evaluate")
    tokenizer = load_tokenizer(base, recipe.model)
    model = load_roles(
        base,
        recipe.model,
        tokenizer,
        {name: run_folder / "reward" / adapter for name, adapter in JUDGES.items()},
        policy=run_folder / "ppo" / "policy",
        temperature=temperature,
    )
    prompts, account = _prompts(recipe, run_folder, tokenizer, model, length)
    answers = {}
    for subject, adapters in (("sft", []), ("ppo", [POLICY])):
        replies = sample_replies(
            model,
            tokenizer,
            [p.messages for p in prompts],
            adapters,
            response_length=length,
            temperature=temperature,
            seed=recipe.seed,
            batch_size=section.batch_size,
            progress=f"evaluate: {subject} answers",
        )
        answers[subject] = _measured(model, tokenizer, prompts, replies, adapters, section)
    if not run_folder.state.is_main_process:
        return
    account.write(folder)
    _write_replies(folder / "replies.jsonl", prompts, answers)
    estimates = compare(prompts, answers["ppo"], answers["sft"], section.resamples, recipe.seed)
    decoding = {"temperature": temperature, "response_length": length, "top_p": 1.0, "top_k": 0}
    write_report(_report(recipe, run_folder, prompts, answers, estimates, decoding), folder)


def _prompts(
    recipe: Recipe, run_folder: RunFolder, tokenizer: Any, model: Any, length: int
) -> tuple[list[Prompt], Fitted]:
    section = recipe.evaluate
    assert section is not None
    room = context_limit(recipe.model, model.config) - length
    account = Fitted(room, "evaluation_prompts")
    found = fit_prompts(tokenizer, splits(recipe, run_folder).evaluation_prompts, account) if room > 0 else []
    if not found:
        raise DataError(f"No evaluation prompt leaves room for a reply of {length} tokens; lower it or add prompts.")
    chosen = sorted(range(len(found)), key=lambda i: prompt_share(found[i].messages))[: section.prompts]
    return [found[i] for i in sorted(chosen)], account


def _measured(
    model: Any,
    tokenizer: Any,
    prompts: list[Prompt],
    replies: list[Reply],
    adapters: list[str],
    section: EvaluateSection,
) -> Answers:
    pad, size = tokenizer.pad_token_id, section.batch_size
    scores = {
        name: score_ids(model, name, [r.prompt_ids + r.ids for r in replies], pad, size).tolist() for name in JUDGES
    }
    answers = Answers(
        texts=[r.text for r in replies],
        lengths=[len(r.ids) for r in replies],
        stopped=[r.stopped for r in replies],
        **scores,
    )
    if all("kind" in p.facts for p in prompts):
        verdicts = [judge(p.facts, r.text) for p, r in zip(prompts, replies, strict=True)]
        answers.gold = [v.score for v in verdicts]
        answers.refused = [v.refused for v in verdicts]
    if adapters:
        own = reply_logprobs(model, adapters, replies, pad, size)
        reference = reply_logprobs(model, [], replies, pad, size)
        answers.sequence_kl = [a - b for a, b in zip(own, reference, strict=True)]
    return answers


def _write_replies(path: Path, prompts: list[Prompt], answers: dict[str, Answers]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i, prompt in enumerate(prompts):
            row: dict[str, Any] = {
                "prompt": prompt.messages,
                "objective": prompt.objective,
                "origin": str(prompt.origin),
            }
            for subject, given in answers.items():
                row[subject] = {
                    "reply": given.texts[i],
                    "stopped": given.stopped[i],
                    "reward": given.reward[i],
                    "heldout": given.heldout[i],
                    **({"gold": given.gold[i]} if given.gold is not None else {}),
                }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _report(
    recipe: Recipe,
    run_folder: RunFolder,
    prompts: list[Prompt],
    answers: dict[str, Answers],
    estimates: list[Estimate],
    decoding: dict[str, Any],
) -> dict[str, Any]:
    assert recipe.evaluate is not None
    done = [s for s in ("world", "sft", "reward", "ppo") if (run_folder / s).exists()]
    manifests = {stage: run_folder.manifest(stage) for stage in done}
    accuracy = json.loads((run_folder / "reward" / "accuracy.json").read_text(encoding="utf-8"))["estimates"]
    base = "made by the gold world" if recipe.world is not None else str(recipe.model.base)
    report: dict[str, Any] = {
        "schema": 1,
        "run": {
            "name": recipe.name,
            "recipe": str(run_folder / "recipe.yaml"),
            "base": base,
            "device": str(run_folder.state.device),
            "processes": run_folder.state.num_processes,
            "seconds": {stage: manifest["seconds"] for stage, manifest in manifests.items()},
        },
        "estimates": [estimate.as_dict() for estimate in estimates] + accuracy,
        "curves": {
            "sft": _curve(run_folder / "sft", ("loss", "mean_token_accuracy")),
            "reward": _curve(run_folder / "reward" / "joint", ("loss", "accuracy")),
            "heldout": _curve(run_folder / "reward" / "heldout", ("loss", "accuracy")),
            "ppo": _curve(run_folder / "ppo", PPO_CURVES),
        },
        "samples": choose_samples(prompts, answers["ppo"], answers["sft"], recipe.evaluate.samples),
        "data": _data_counts(run_folder),
        "provenance": {
            "recipe": recipe.as_dict(),
            "versions": versions(),
            "seed": recipe.seed,
            "decoding": decoding,
            "hashes": {f"{stage}/{n}": f["sha256"] for stage, m in manifests.items() for n, f in _weights(m)},
            "git": git_state() or "not in a repository",
        },
    }
    report["verdict"] = verdict_lines(report)
    report["alarms"] = alarm_lines([Estimate(**entry) for entry in report["estimates"]])
    return report


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
    for stage in ("sft", "reward", "ppo"):
        path = run_folder / stage / "lengths.json"
        if path.is_file():
            counts[f"lengths in {stage}"] = json.loads(path.read_text(encoding="utf-8"))
    return counts


def _weights(manifest: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, entry) for name, entry in manifest["files"].items() if name.endswith((".safetensors", ".jsonl"))]
