"""What each number of the report means, in words; how it is written down, numbers.py says.

An estimate is a dict with the fields of `intervals.Estimate`. A measure that is not listed here still appears in the
report's full table, under its own name.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Entry: TypeAlias = dict[str, Any]  # Estimate.as_dict()


@dataclass(frozen=True)
class Measure:
    """One measure: its name for people, what it says, its unit, and which direction is good."""

    label: str
    meaning: str
    unit: Literal["score", "share", "nats", "tokens", "words"]
    good: Literal["higher", "lower", "neither"]
    difference: str | None = None  # the name of the paired difference of this level


_GOLD = "The true score of the recipe's own world, which no trained model ever sees. The fairest judge there is."
_REWARD = "Score from the reward model that the policy was trained to please. It flatters: read it last."
_HELDOUT = "Score from a second reward model, trained on other pairs with another seed. The policy never saw it."

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
    "heldout_reward_spread": Measure(
        "Spread of the held-out reward", "Standard deviation over the start's own replies.", "score", "neither"
    ),
    "reward_spread": Measure("Spread of the training reward", "The same of the training reward.", "score", "neither"),
    "win_rate": Measure(
        "Win rate",
        "How often the trained policy's reply scores higher than the other one to the same prompt, ties counting half. "
        "At 50\u00a0% neither is preferred.",
        "share",
        "higher",
    ),
    "length_controlled_win_rate": Measure(
        "Win rate at equal length",
        "What the win rate would be if both replies were equally long: the part that length does not explain.",
        "share",
        "higher",
    ),
    "repetition": Measure(
        "Repetition",
        "Share of 4-grams in a reply that stood in it before. A policy that has lost its language repeats itself.",
        "share",
        "neither",
    ),
    "distinct_2": Measure(
        "Distinct 2-grams", "Distinct pairs of tokens over all pairs, in a reply.", "share", "neither"
    ),
    "loops": Measure("Replies that loop", "Share of replies that say one thing over and over.", "share", "lower"),
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
    "over_refusal_corrected": Measure(
        "Over-refusal, corrected",
        "The same without the detector's own errors, as far as labelled replies of other models show them.",
        "share",
        "lower",
    ),
    "refusal_harmful_corrected": Measure(
        "Refusal of harmful requests, corrected", "The same without the detector's own errors.", "share", "higher"
    ),
    "reward_accuracy": Measure(
        "Reward-model accuracy",
        "How often the model scores the reply that was preferred above the other one. People agree with each other on "
        "about 63 to 75 % of real pairs.",
        "share",
        "higher",
    ),
    "longer_reply_accuracy": Measure(
        "Longer reply",
        "Accuracy of simply preferring the longer reply. A reward model that is not above it may have learnt length.",
        "share",
        "neither",
    ),
    "shorter_reply_accuracy": Measure("Shorter reply", "Accuracy of preferring the shorter one.", "share", "neither"),
    "unrefused_reply_accuracy": Measure(
        "Not refusing",
        "Accuracy of preferring the reply that does not open with a refusal; half where both or neither do.",
        "share",
        "neither",
    ),
    "accuracy_over_refusing": Measure(
        "Accuracy less that of refusing",
        "Against preferring the reply that refuses, pair by pair; below 0 the rule is better than the model.",
        "share",
        "higher",
    ),
    "accuracy_over_not_refusing": Measure(
        "Accuracy less that of not refusing", "Against preferring the reply that does not refuse.", "share", "higher"
    ),
    "accuracy_over_longer": Measure(
        "Accuracy less that of the longer reply", "Against preferring the longer reply.", "share", "higher"
    ),
    "accuracy_over_shorter": Measure(
        "Accuracy less that of the shorter reply", "Against preferring the shorter reply.", "share", "higher"
    ),
    "accuracy_over_coin": Measure("Accuracy less that of a coin", "Against one half.", "share", "higher"),
    "chance_accuracy": Measure("Chance", "Accuracy of a coin.", "share", "neither"),
    "calibration_error": Measure(
        "Calibration error", "How far the claimed probabilities are from what came true, on average over the pairs.",
        "share",
        "lower",
    ),
    "brier": Measure("Brier score", "Mean squared error of the claim; a coin has 0.25.", "score", "lower"),
    "log_loss": Measure("Log loss", "The training loss on held-out pairs; a coin has 0.693.", "nats", "lower"),
    "doubt_auroc": Measure(
        "Doubt as a sign of error",
        "How often a pair that the ensemble gets wrong has more disagreement than one it gets right. 0.5: its doubt "
        "says nothing.",
        "score",
        "higher",
    ),
    "margin_auroc": Measure(
        "Small margin as a sign of error",
        "The same of a small difference of the mean scores, which needs no ensemble.",
        "score",
        "higher",
    ),
    "score_length_correlation": Measure(
        "Score and length of a reply", "Correlation over all replies, of whatever prompt.", "score", "neither"
    ),
    "margin_length_correlation": Measure(
        "Difference of scores and of lengths",
        "Correlation over pairs, the two replies to one prompt: how far preferring a reply is preferring a longer one.",
        "score",
        "neither",
    ),
    "hhh_accuracy": Measure(
        "Knows the better reply",
        "How often the better of two given replies is the one a policy finds more probable per token, or a reward "
        "model scores higher. The log-probability of a whole reply would mostly name the shorter one.",
        "share",
        "higher",
        "hhh_accuracy_change",
    ),
    "hhh_accuracy_total": Measure(
        "Knows the better reply, by whole log-probability",
        "The same by the log-probability of the whole reply, as BIG-bench grades. Each token costs some, so that it "
        "leans to the shorter reply.",
        "share",
        "neither",
        "hhh_accuracy_total_change",
    ),
    "hhh_longer_reply_accuracy": Measure(
        "Longer reply", "How often the better of two given replies is the longer one.", "share", "neither"
    ),
    "truthfulqa_mc1": Measure(
        "Best answer most probable",
        "MC1: share of questions whose best answer a policy finds more probable than every false one.",
        "share",
        "higher",
        "truthfulqa_mc1_change",
    ),
    "truthfulqa_mc2": Measure(
        "Probability of true answers",
        "MC2: probability of the true answers over that of all the answers given, on average.",
        "share",
        "higher",
        "truthfulqa_mc2_change",
    ),
    "bbq_ambiguous_accuracy": Measure(
        "Accuracy, ambiguous",
        "Where the context does not tell: share of questions answered by saying so.",
        "share",
        "higher",
        "bbq_ambiguous_accuracy_change",
    ),
    "bbq_ambiguous_bias": Measure(
        "Bias, ambiguous",
        "Answers with a stereotype less those against it, over all: 0 is unbiased, 100 all with it, \u2212100 all "
        "against it.",
        "share",
        "neither",
        "bbq_ambiguous_bias_change",
    ),
    "bbq_disambiguated_accuracy": Measure(
        "Accuracy, disambiguated",
        "Where the context tells: share of questions answered by what it says.",
        "share",
        "higher",
        "bbq_disambiguated_accuracy_change",
    ),
    "bbq_disambiguated_bias": Measure(
        "Bias, disambiguated",
        "The same as above, over the answers that name somebody.",
        "share",
        "neither",
        "bbq_disambiguated_bias_change",
    ),
    "reward_bench_2_score": Measure(
        "Score", "The mean over the subsets, ties among them, as the leaderboard has it.", "share", "higher"
    ),
    "reward_bench_2_accuracy": Measure(
        "Best of four", "Share of prompts whose right reply scores above all three wrong ones.", "share", "higher"
    ),
    "reward_bench_2_ties": Measure(
        "Ties",
        "Where several replies are right: whether they all score above the wrong ones, and by more than they differ.",
        "share",
        "higher",
    ),
    "rm_bench_average": Measure("Average", "Right above wrong replies, over all pairs of styles.", "share", "higher"),
    "rm_bench_easy": Measure("Easy", "The right reply has the fancier style.", "share", "higher"),
    "rm_bench_normal": Measure("Normal", "Both have the same style.", "share", "higher"),
    "rm_bench_hard": Measure(
        "Hard",
        "The wrong reply has the fancier style: a model that goes by looks is below one half.",
        "share",
        "higher",
    ),
    "perplexity": Measure(
        "Perplexity of held-out replies",
        "Of replies that people preferred and nobody trained on: among how many tokens the policy wavers, on average. "
        "Much higher than before means language lost.",
        "score",
        "lower",
    ),
    "token_logprob": Measure(
        "Log-probability of a held-out token",
        "Mean over the tokens of the same replies, in nats; the logarithm of the perplexity with its sign turned.",
        "nats",
        "higher",
        "token_logprob_change",
    ),
    "kl": Measure(
        "KL divergence",
        "How far the policy has moved from what it is compared with, per reply, in nats. The price of the gain: at the "
        "same gain, less is better.",
        "nats",
        "neither",
    ),
    "response_length": Measure(
        "Reply length", "Tokens in a reply. A gain that comes with much longer replies deserves suspicion.",
        "tokens",
        "neither",
        "response_length_change",
    ),
    "response_words": Measure(
        "Reply length",
        "Words in a reply: an endpoint's tokens are not known. A gain that comes with much longer replies deserves "
        "suspicion.",
        "words",
        "neither",
        "response_words_change",
    ),
    "eos_rate": Measure(
        "Replies that end", "Share of replies that stop by themselves instead of being cut off.", "share", "higher",
        "eos_rate_change",
    ),
}  # fmt: skip

_LEVEL_OF = {measure.difference: name for name, measure in MEASURES.items() if measure.difference}

# The standard deviation of the start's scores: the unit of the margins by which a side may not have lost (sides.py).
SPREADS = {"heldout_reward": "heldout_reward_spread", "reward": "reward_spread"}
# Measures of the user's own suites, while the report that has them is printed.
_own: ContextVar[dict[str, Measure]] = ContextVar("own", default={})  # noqa: B039 - never changed in place


@contextlib.contextmanager
def with_own(own: dict[str, dict[str, Any]]) -> Iterator[None]:
    """While a page is printed, the measures of a report's `own` suites are known by name, too."""
    measures = {
        name: Measure(
            name.replace("_", " ").capitalize(),
            f"By {known['function']}, on {known['prompts']:,} prompts of its own"
            + ("." if known["good"] == "neither" else f"; {known['good']} is better."),
            known["unit"],
            known["good"],
            f"{name}_gain",
        )
        for name, known in own.items()
    }
    token = _own.set(measures)
    try:
        yield
    finally:
        _own.reset(token)


def own_names() -> list[str]:
    return list(_own.get())


def measure_of(name: str) -> Measure:
    """The measure behind a level's or a difference's name; an unknown name gets a plain stand-in."""
    own = _own.get().get(name.removesuffix("_gain"))
    if own is not None:
        return own
    return MEASURES.get(level_name(name), Measure(name.replace("_", " "), "", "score", "neither"))


def within(label: str) -> str:
    """A measure's label as it stands within a sentence."""
    return label if label[:2].isupper() else label[0].lower() + label[1:]


def level_name(name: str) -> str:
    """The level that a difference is of; a level's own name, and that of a measure not listed here, as it stands."""
    return name.removesuffix("_gain") if name.removesuffix("_gain") in _own.get() else _LEVEL_OF.get(name, name)


def is_difference(entry: Entry) -> bool:
    """True for a paired difference, which is shown with its sign; a win rate is a level though it has a reference."""
    return str(entry["name"]).endswith(("_gain", "_change"))


def contest(estimates: Iterable[Entry]) -> tuple[str, str]:
    """The policy that is judged and the one it is compared with: those of the first paired difference."""
    for entry in estimates:
        if entry["reference"] is not None and is_difference(entry):
            return str(entry["subject"]), str(entry["reference"])
    return "ppo", "sft"


def find(
    estimates: Iterable[Entry], name: str, subject: str | None = None, splits: Sequence[str] | None = None
) -> Entry | None:
    """The estimate called `name`, of `subject`, from the first of `splits` that has one; None where there is none."""
    found = [e for e in estimates if e["name"] == name and (subject is None or e["subject"] == subject)]
    if splits is None:
        return found[0] if found else None
    return next((e for split in splits for e in found if e["split"] == split), None)
