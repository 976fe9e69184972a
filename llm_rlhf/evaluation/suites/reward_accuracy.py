"""How often a reward model agrees with people, beside what needs no model at all, and what its scores are made of."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_rlhf.data.rows import Preference
from llm_rlhf.evaluation.reward_checks import CALLED, over_rules, refusals_of
from llm_rlhf.statistics.association import pearson
from llm_rlhf.statistics.calibration import calibrate, ensemble_agreement
from llm_rlhf.statistics.intervals import RESAMPLES, Array, Estimate, Values, accuracy, numbered

OBJECTIVES = ("helpful", "harmless")

# How replies that refuse begin, in the first words. A baseline, no judge: it reads an opening and nothing else. What
# takes white space takes all of it for good (`*+`, `++`): to try less of it would take quadratic time, and no letter
# that follows is white space.
_REFUSAL = re.compile(
    r"\W*+(?:(?:oh|well|no|hmm|um|look|ok|okay|hey|unfortunately)\W++)?"
    r"(?:(?:i\s*+[’']?\s*+a?m\s++)?(?:(?:so|very|really|terribly)\s++)?sorry\b|i\s++apologi[sz]e|my\s++apologies"
    r"|i\s++(?:really\s++)?(?:can\s?not|can[’']?t|won[’']?t|will\s++not|refuse|must\s++decline)"
    r"|i(?:\s*+[’']m|\s++am)\s++(?:not\s++(?:able|going|comfortable)|unable)"
    r"|as\s++an?\s++(?:ai|language\s++model|assistant))\b",
    re.IGNORECASE,
)


def opens_with_refusal(reply: str) -> bool:
    """Whether a reply begins as refusals do: "I'm sorry", "I can't", "As an AI" and the like (English only)."""
    return _REFUSAL.match(reply) is not None


def accuracy_estimates(subject: str, pairs: Sequence[Preference], chosen: Values, rejected: Values) -> list[Estimate]:
    """Accuracy of a reward model on held-out pairs, and of "the longer reply is better" and of chance, by objective.

    Args:
        subject: "reward" or "heldout".
        pairs: what people said; several may share a prompt, and prompts are then resampled whole.
        chosen, rejected: the model's scores of the two replies, in the pairs' order.
    """
    estimates = []
    lengths = _lengths(pairs)
    for split, rows in _by_objective(pairs).items():
        clusters = _clusters(pairs, rows)
        found = accuracy(np.asarray(chosen)[rows], np.asarray(rejected)[rows], clusters)
        longer = accuracy(lengths[rows, 0], lengths[rows, 1], clusters)
        estimates += [
            found.named("reward_accuracy", subject, None, split),
            longer.named("longer_reply_accuracy", subject, None, split),
            Estimate("chance_accuracy", subject, None, split, 0.5, None, None, len(rows), "a coin"),
        ]
    return estimates


def reward_report(
    pairs: Sequence[Preference],
    scores: Mapping[str, tuple[Values, Values]],
    ensembles: Mapping[str, Sequence[str]] | None = None,
    lengths: tuple[Values, Values] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything the report says about reward models, from their scores of held-out pairs; ready for JSON.

    Args:
        pairs: what people said, none of them trained on; rows of one prompt are resampled together.
        scores: by name of the model, its scores as trained of the chosen and of the rejected replies.
        ensembles: by name, the models (keys of `scores`) that are its members, two or more.
        lengths: of the chosen and of the rejected replies, in tokens; None: in characters.

    Returns:
        estimates: as `accuracy_estimates` gives them, of every model (dicts of `Estimate`, as in the next three).
        breakdown: `reward_accuracy` of every model by number of user turns ("1 turn", "2 turns", "3 turns or more") and
            by which reply is longer and by how much ("chosen much longer": more than the median difference).
        baselines: `longer_reply_accuracy`, `shorter_reply_accuracy`, `unrefused_reply_accuracy` (the better reply is
            the one that does not open with a refusal, ties where both or neither do) and `chance_accuracy`, of subject
            "baseline", by objective.
        over_rules: what `reward_checks.over_rules` says of "reward" and "heldout": accuracy less the rules', paired.
        length: `margin_length_correlation` of every model, of score and length differences within pairs, and
            `score_length_correlation`, of the scores and lengths of all replies.
        calibration: by model, what `calibration.calibrate` says; None where all its scores are equal.
        cross_objective: by model and objective, {"estimate", "low", "high", "n"} of its accuracy there. A model trained
            on one objective may be below chance on the other (Bai et al. 2022).
        ensembles: by name, what `calibration.ensemble_agreement` says.
    """
    if not pairs:
        raise ValueError("There are no held-out pairs to measure a reward model on.")
    by_name = {name: _two_arrays(name, both, len(pairs)) for name, both in scores.items()}
    prompts = numbered(repr(pair.prompt) for pair in pairs)
    sizes = _lengths(pairs) if lengths is None else np.stack(_two_arrays("lengths", lengths, len(pairs)), axis=1)
    refuses = refusals_of(pairs)
    report: dict[str, Any] = {
        "estimates": [],
        "breakdown": [],
        "baselines": [e.as_dict() for e in baseline_estimates(pairs, sizes)],
        "over_rules": [],
        "length": [],
        "calibration": {},
        "cross_objective": {},
        "ensembles": {},
    }
    for name, (chosen, rejected) in by_name.items():
        own = accuracy_estimates(name, pairs, chosen, rejected)
        report["estimates"] += [e.as_dict() for e in own]
        report["breakdown"] += [e.as_dict() for e in _breakdown(name, pairs, sizes, chosen, rejected)]
        if name in CALLED:
            over = over_rules(name, pairs, chosen, rejected, sizes, refuses, resamples, seed)
            report["over_rules"] += [e.as_dict() for e in over]
        report["length"] += [e.as_dict() for e in _length_correlations(name, pairs, sizes, chosen, rejected)]
        margins = chosen - rejected
        report["calibration"][name] = calibrate(margins, prompts, resamples, seed) if np.any(margins) else None
        report["cross_objective"][name] = {
            e.split: {"estimate": e.estimate, "low": e.low, "high": e.high, "n": e.n}
            for e in own
            if e.name == "reward_accuracy" and e.split != "all"
        }
    for name, members in (ensembles or {}).items():
        margins = np.stack([by_name[member][0] - by_name[member][1] for member in members], axis=1)
        report["ensembles"][name] = ensemble_agreement(margins, prompts, resamples=resamples, seed=seed)
    return report


def baseline_estimates(pairs: Sequence[Preference], lengths: Array | None = None) -> list[Estimate]:
    """What rules without a model score, by objective: see `reward_report`."""
    sizes = _lengths(pairs) if lengths is None else lengths
    refused = np.array([[opens_with_refusal(pair.chosen), opens_with_refusal(pair.rejected)] for pair in pairs])
    rules = {
        "longer_reply_accuracy": sizes,
        "shorter_reply_accuracy": -sizes,
        "unrefused_reply_accuracy": -refused.astype(float),
    }
    estimates = []
    for split, rows in _by_objective(pairs).items():
        clusters = _clusters(pairs, rows)
        for name, preferred in rules.items():
            found = accuracy(preferred[rows, 0], preferred[rows, 1], clusters)
            if name == "unrefused_reply_accuracy":
                decided = int((refused[rows, 0] != refused[rows, 1]).sum())
                found = found._replace(
                    method=f"{found.method}; {decided} pairs in which exactly one opens with a refusal"
                )
            estimates.append(found.named(name, "baseline", None, split))
        estimates.append(Estimate("chance_accuracy", "baseline", None, split, 0.5, None, None, len(rows), "a coin"))
    return estimates


def _breakdown(name: str, pairs: Sequence[Preference], sizes: Array, chosen: Array, rejected: Array) -> list[Estimate]:
    turns = np.array([sum(message["role"] == "user" for message in pair.prompt) for pair in pairs])
    gap = sizes[:, 0] - sizes[:, 1]
    much = np.median(np.abs(gap))
    splits = {
        "1 turn": turns == 1,
        "2 turns": turns == 2,
        "3 turns or more": turns >= 3,
        "chosen much shorter": gap < -much,
        "chosen shorter": (gap < 0) & (gap >= -much),
        "same length": gap == 0,
        "chosen longer": (gap > 0) & (gap <= much),
        "chosen much longer": gap > much,
    }
    estimates = []
    for split, mask in splits.items():
        rows = np.flatnonzero(mask).tolist()
        if rows:
            found = accuracy(chosen[rows], rejected[rows], _clusters(pairs, rows))
            estimates.append(found.named("reward_accuracy", name, None, split))
    return estimates


def _length_correlations(
    name: str, pairs: Sequence[Preference], sizes: Array, chosen: Array, rejected: Array
) -> list[Estimate]:
    """None where scores or lengths are all equal: there is nothing to correlate."""
    prompts = numbered(repr(pair.prompt) for pair in pairs)
    shared = prompts if len(set(prompts.tolist())) < len(prompts) else None
    gap, margin = sizes[:, 0] - sizes[:, 1], chosen - rejected
    every, scores = np.concatenate([sizes[:, 0], sizes[:, 1]]), np.concatenate([chosen, rejected])
    estimates = []
    if np.ptp(gap) and np.ptp(margin):
        estimates.append(pearson(margin, gap, shared).named("margin_length_correlation", name))
    if np.ptp(every) and np.ptp(scores):
        both = pearson(scores, every, np.concatenate([prompts, prompts]))  # two replies of a prompt are not independent
        estimates.append(both.named("score_length_correlation", name))
    return estimates


def _two_arrays(name: str, both: tuple[Values, Values], n: int) -> tuple[Array, Array]:
    first, second = (np.asarray(values, dtype=np.float64) for values in both)
    if first.shape != (n,) or second.shape != (n,):
        raise ValueError(
            f"{name}: shapes {first.shape} and {second.shape} for {n} pairs; give one number for each reply."
        )
    return first, second


def _lengths(pairs: Sequence[Preference]) -> Array:
    return np.array([[len(pair.chosen), len(pair.rejected)] for pair in pairs], dtype=np.float64)


def _clusters(pairs: Sequence[Preference], rows: Sequence[int]) -> np.ndarray[Any, Any] | None:
    """The prompt of each row, where several rows share one."""
    prompts = numbered(repr(pairs[i].prompt) for i in rows)
    return prompts if len(set(prompts.tolist())) < len(rows) else None


def _by_objective(pairs: Sequence[Preference]) -> dict[str, list[int]]:
    """Row numbers of all pairs and of each objective that occurs."""
    groups = {"all": list(range(len(pairs)))}
    for objective in OBJECTIVES:
        if rows := [i for i, pair in enumerate(pairs) if pair.objective == objective]:
            groups[objective] = rows
    return groups
