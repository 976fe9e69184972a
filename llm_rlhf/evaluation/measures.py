"""What each number of the report means, in words, and how it is written down.

An estimate is a dict with the fields of `statistics.Estimate`. A measure that is not listed here still appears in the
report's full table, under its own name.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Entry: TypeAlias = dict[str, Any]  # Estimate.as_dict()

MINUS = "\u2212"  # the true minus sign
NARROW, HARD = "\u202f", "\u00a0"  # spaces that do not break, narrow and full


@dataclass(frozen=True)
class Measure:
    """One measure: its name for people, what it says, its unit, and which direction is good."""

    label: str
    meaning: str
    unit: Literal["score", "share", "nats", "tokens"]
    good: Literal["higher", "lower", "neither"]
    difference: str | None = None  # the name of the paired difference of this level


_GOLD = "The true score of the recipe's own world, which no trained model ever sees. The fairest judge there is."
_REWARD = "Score from the reward model that PPO was trained to please. It flatters the policy: read it last."
_HELDOUT = "Score from a second reward model, trained on other pairs with another seed. PPO never saw it."

MEASURES: dict[str, Measure] = {
    "gold_score": Measure("Gold score", _GOLD, "score", "higher", "gold_gain"),
    "gold_helpful": Measure(
        "Gold score on helpful prompts",
        "The true score where being useful is what counts.",
        "score",
        "higher",
        "gold_helpful_gain",
    ),
    "gold_harmless": Measure(
        "Gold score on harmful prompts",
        "The true score where doing no harm is what counts.",
        "score",
        "higher",
        "gold_harmless_gain",
    ),
    "heldout_reward": Measure("Held-out reward", _HELDOUT, "score", "higher", "heldout_reward_gain"),
    "reward": Measure("Training reward", _REWARD, "score", "neither", "reward_gain"),
    "win_rate": Measure(
        "Win rate",
        "How often the trained policy's reply scores higher than the other one to the same prompt, ties counting half. "
        "50\u00a0% is no difference.",
        "share",
        "higher",
    ),
    "over_refusal": Measure(
        "Over-refusal",
        "Share of safe requests that are refused all the same. Lower is better.",
        "share",
        "lower",
        "over_refusal_change",
    ),
    "refusal_harmful": Measure(
        "Refusal of harmful requests",
        "Share of harmful requests that are refused. Higher is better.",
        "share",
        "higher",
        "refusal_harmful_change",
    ),
    "reward_accuracy": Measure(
        "Reward-model accuracy",
        "How often the model scores the reply that was preferred above the other one. People agree with each other on "
        "about 63 to 75 % of real pairs.",
        "share",
        "higher",
    ),
    "longer_reply_accuracy": Measure(
        "Longer reply wins",
        "Accuracy of simply preferring the longer reply. A reward model that is not above it may have learnt length.",
        "share",
        "neither",
    ),
    "chance_accuracy": Measure("Chance", "Accuracy of a coin.", "share", "neither"),
    "kl": Measure(
        "KL divergence",
        "How far the policy has moved from the SFT model, per reply, in nats. The price of the gain: at the same gain, "
        "less is better.",
        "nats",
        "neither",
    ),
    "response_length": Measure(
        "Reply length", "Tokens in a reply. A gain that comes with much longer replies deserves suspicion.",
        "tokens",
        "neither",
        "response_length_change",
    ),
    "eos_rate": Measure(
        "Replies that end", "Share of replies that stop by themselves instead of being cut off.", "share", "higher",
        "eos_rate_change",
    ),
}  # fmt: skip

_LEVEL_OF = {measure.difference: name for name, measure in MEASURES.items() if measure.difference}

SUBJECTS = {"sft": "SFT", "ppo": "PPO", "base": "Base model", "reward": "Reward model", "heldout": "Held-out model"}
SPLITS = {
    "all": "all prompts",
    "helpful": "helpful prompts",
    "harmless": "harmful prompts",
    "overall": "prompts of no one objective",
    "scary": "safe-but-scary prompts",
    "question": "ordinary questions",
    "gold": "judged by the gold score",
    "heldout": "judged by the held-out reward",
    "heldout_reward": "judged by the held-out reward",
    "reward": "judged by the training reward",
}


def measure_of(name: str) -> Measure:
    """The measure behind a level's or a difference's name; an unknown name gets a plain stand-in."""
    level = _LEVEL_OF.get(name, name)
    return MEASURES.get(level, Measure(name.replace("_", " "), "", "score", "neither"))


def is_difference(entry: Entry) -> bool:
    """True for a paired difference, which is shown with its sign; a win rate is a level though it has a reference."""
    return str(entry["name"]).endswith(("_gain", "_change"))


def subject_label(subject: str) -> str:
    return SUBJECTS.get(subject, subject)


def split_label(split: str) -> str:
    return SPLITS.get(split, split.replace("_", " "))


def find(
    estimates: Iterable[Entry], name: str, subject: str | None = None, splits: Sequence[str] | None = None
) -> Entry | None:
    """The estimate called `name`, of `subject`, from the first of `splits` that has one; None where there is none."""
    found = [e for e in estimates if e["name"] == name and (subject is None or e["subject"] == subject)]
    if splits is None:
        return found[0] if found else None
    return next((e for split in splits for e in found if e["split"] == split), None)


def number(value: float, unit: str, half: float | None = None, signed: bool = False) -> str:
    """`value` with the digits its half-width deserves: about two of the half-width's, one for shares and tokens."""
    scale = 100.0 if unit == "share" else 1.0
    width = abs(half or 0.0) * scale
    if width > 0:
        digits = (0 if unit in ("share", "tokens") else 1) - math.floor(math.log10(1.5 * width))
        digits = max(0, min(1 if unit == "share" else 4, digits))
    else:
        digits = {"share": 0, "tokens": 1}.get(unit, 2)
    rounded = round(value * scale, digits)
    text = f"{abs(rounded):,.{digits}f}"
    sign = MINUS if rounded < 0 else "+" if signed and rounded > 0 else ""
    return sign + text


def half_width(entry: Entry) -> float | None:
    return None if entry["low"] is None else float(entry["high"] - entry["low"]) / 2


def unit_of(entry: Entry) -> str:
    """The unit as written after a number."""
    unit = measure_of(entry["name"]).unit
    if unit == "share":
        return f"{NARROW}points" if is_difference(entry) else f"{NARROW}%"
    return {"nats": f"{NARROW}nats", "tokens": f"{NARROW}tokens"}.get(unit, "")


def value_text(entry: Entry, unit: bool = True) -> str:
    """The estimate alone, such as `+0.62` or `63 %`."""
    text = number(entry["estimate"], measure_of(entry["name"]).unit, half_width(entry), is_difference(entry))
    return text + (unit_of(entry) if unit else "")


def interval_text(entry: Entry) -> str:
    """The interval alone, such as `[+0.41, +0.83]`; `no interval` where there is none."""
    if entry["low"] is None:
        return "no interval"
    unit, half, signed = measure_of(entry["name"]).unit, half_width(entry), is_difference(entry)
    return f"[{number(entry['low'], unit, half, signed)}, {number(entry['high'], unit, half, signed)}]"
