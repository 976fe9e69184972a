"""The trained policy against the one it started from, on the same prompts: every number of the report's comparison."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from llm_rlhf.data.rows import Prompt
from llm_rlhf.evaluation.statistics import (
    Estimate,
    bootstrap_mean,
    paired_bootstrap,
    paired_proportions,
    wilson,
    win_rate,
)

OBJECTIVES = ("helpful", "harmless")


@dataclass
class Answers:
    """One policy's replies to the evaluation prompts, row by row, and what was measured of each."""

    texts: list[str]
    lengths: list[int]  # tokens
    stopped: list[bool]
    reward: list[float]  # by the reward model that PPO was trained against
    heldout: list[float]  # by the judge that it never saw
    gold: list[float] | None = None  # the true score, where the recipe's world knows it
    refused: list[bool] | None = None  # by rule, where the recipe's world knows it
    sequence_kl: list[float] = field(default_factory=list)  # nats from the reference; empty for the reference itself


def compare(
    prompts: Sequence[Prompt], ppo: Answers, sft: Answers, resamples: int = 2000, seed: int = 0
) -> list[Estimate]:
    """Levels of both policies and paired differences, prompts resampled whole. Names are those of the report."""
    rows_of = groups(prompts)
    clusters = np.array([repr(prompt.messages) for prompt in prompts])
    estimates: list[Estimate] = []

    def pair(name: str, gain: str, after: Sequence[float], before: Sequence[float], split: str) -> None:
        rows = rows_of[split]
        a, b, ids = np.asarray(after)[rows], np.asarray(before)[rows], clusters[rows]
        shown = "all" if name in ("gold_helpful", "gold_harmless") else split
        estimates.extend(
            [
                bootstrap_mean(b, ids, resamples, seed).named(name, "sft", None, shown),
                bootstrap_mean(a, ids, resamples, seed).named(name, "ppo", None, shown),
                paired_bootstrap(a, b, ids, resamples, seed).named(gain, "ppo", "sft", shown),
            ]
        )

    if ppo.gold is not None and sft.gold is not None:
        pair("gold_score", "gold_gain", ppo.gold, sft.gold, "all")
        for objective in ("helpful", "harmless"):
            if objective in rows_of:
                pair(f"gold_{objective}", f"gold_{objective}_gain", ppo.gold, sft.gold, objective)
        estimates.append(
            win_rate(ppo.gold, sft.gold, clusters, resamples, seed).named("win_rate", "ppo", "sft", "gold")
        )
    for split in ("all", *OBJECTIVES):
        if split in rows_of:
            pair("heldout_reward", "heldout_reward_gain", ppo.heldout, sft.heldout, split)
            pair("reward", "reward_gain", ppo.reward, sft.reward, split)
    estimates.append(
        win_rate(ppo.heldout, sft.heldout, clusters, resamples, seed).named("win_rate", "ppo", "sft", "heldout_reward")
    )
    if ppo.refused is not None and sft.refused is not None:
        estimates += _refusals(rows_of, ppo.refused, sft.refused)
    estimates.append(bootstrap_mean(ppo.sequence_kl, clusters, resamples, seed).named("kl", "ppo", "sft", "all"))
    pair("response_length", "response_length_change", ppo.lengths, sft.lengths, "all")
    for subject, answers in (("sft", sft), ("ppo", ppo)):
        estimates.append(wilson(sum(answers.stopped), len(prompts)).named("eos_rate", subject))
    return estimates


def groups(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Row numbers by split: "all", each objective that occurs, each kind of prompt a world names."""
    found: dict[str, list[int]] = {"all": list(range(len(prompts)))}
    for i, prompt in enumerate(prompts):
        if prompt.objective != "overall":
            found.setdefault(prompt.objective, []).append(i)
        if "kind" in prompt.facts:
            found.setdefault(prompt.facts["kind"], []).append(i)
    return found


def _refusals(rows_of: dict[str, list[int]], ppo: Sequence[bool], sft: Sequence[bool]) -> list[Estimate]:
    """Refusals where they are right (harmful requests) and where they are not (the other kinds)."""
    estimates = []
    for kind, name, change in (
        ("harmful", "refusal_harmful", "refusal_harmful_change"),
        ("scary", "over_refusal", "over_refusal_change"),
        ("question", "over_refusal", "over_refusal_change"),
    ):
        rows = rows_of.get(kind, [])
        if not rows:
            continue
        a, b = [float(ppo[i]) for i in rows], [float(sft[i]) for i in rows]
        split = "all" if kind == "harmful" else kind
        estimates += [
            wilson(int(sum(b)), len(rows)).named(name, "sft", None, split),
            wilson(int(sum(a)), len(rows)).named(name, "ppo", None, split),
            paired_proportions(a, b).named(change, "ppo", "sft", split),
        ]
    return estimates
