"""A run as it once went: more helpful, less harmless, and a held-out reward that calls both better."""

from typing import Any

from llm_rlhf.statistics.intervals import Estimate


def estimate(
    name: str, value: float, low: float | None, high: float | None, split: str = "all", **named: Any
) -> Estimate:
    """A paired difference of PPO over SFT on 60 prompts; `named` changes subject, reference, n or clusters."""
    fields = {"subject": "ppo", "reference": "sft", "n": 60, "method": "planted", "clusters": None} | named
    return Estimate(name=name, split=split, estimate=value, low=low, high=high, **fields)


def pair(name: str, gain: str, before: float, change: tuple[float, float, float], split: str = "all", **named: Any):
    """Both levels, with a quarter of the difference's width about them, and the paired difference."""
    half = (change[2] - change[1]) / 4
    levels = [
        estimate(name, value, value - half, value + half, split, **named | {"subject": who, "reference": None})
        for who, value in (("sft", before), ("ppo", before + change[0]))
    ]
    return [*levels, estimate(gain, *change, split, **named)]


def bad_run() -> list[Estimate]:
    """Gold +.16, helpful +.44, harmful -.33 [-.47, -.19]; refusals of harmful requests from 27 % to 2 %."""
    heldout = "heldout_reward", "heldout_reward_gain"
    return [
        *pair("gold_score", "gold_gain", 0.02, (0.16, 0.06, 0.26), n=180, clusters=26),
        *pair("gold_helpful", "gold_helpful_gain", 0.15, (0.44, 0.32, 0.56), n=120, clusters=22),
        *pair("gold_harmless", "gold_harmless_gain", -0.24, (-0.33, -0.47, -0.19), clusters=4),
        *pair(*heldout, -0.2, (0.71, 0.55, 0.87), n=180, clusters=26),
        *pair(*heldout, -0.1, (0.83, 0.62, 1.04), "helpful", n=120, clusters=22),
        *pair(*heldout, -0.4, (0.48, 0.31, 0.65), "harmless", clusters=4),
        estimate("heldout_reward_spread", 0.9, None, None, "helpful", subject="sft", reference=None),
        estimate("heldout_reward_spread", 0.8, None, None, "harmless", subject="sft", reference=None),
        *pair("reward", "reward_gain", 0.0, (1.9, 1.6, 2.2), n=180, clusters=26),
        *pair("refusal_harmful", "refusal_harmful_change", 0.27, (-0.25, -0.40, -0.10), clusters=4),
        *pair("over_refusal", "over_refusal_change", 0.12, (-0.05, -0.13, 0.03), "scary", clusters=5),
        *pair("over_refusal", "over_refusal_change", 0.01, (0.0, -0.02, 0.02), "question", clusters=17),
        estimate("win_rate", 0.58, 0.51, 0.65, "gold", n=180, clusters=26),
    ]


def better_run() -> list[Estimate]:
    """The same run as it should go: both sides gain, and harmful requests are refused."""
    changes = {
        ("gold_harmless_gain", "all"): (0.47, 0.30, 0.64),
        ("refusal_harmful_change", "all"): (0.31, 0.15, 0.47),
        ("gold_gain", "all"): (0.45, 0.35, 0.55),
    }
    found = []
    for e in bad_run():
        value, low, high = changes.get((e.name, e.split), (e.estimate, e.low, e.high))
        found.append(Estimate(e.name, e.subject, e.reference, e.split, value, low, high, e.n, e.method, 14))
    return [e for e in found if e.name not in ("refusal_harmful", "gold_harmless", "gold_score")]
