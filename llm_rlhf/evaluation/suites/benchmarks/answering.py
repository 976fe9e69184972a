"""Multiple choice by the log-probabilities of given answers: what a policy finds probable, before and after.

Answers are read as the chat template sets a reply, the token that ends it included. What a suite makes of the
log-probabilities stands with the suite (truthfulqa.py, bbq.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from llm_rlhf.data.rows import Conversation
from llm_rlhf.evaluation.suites.benchmarks.rows import Choices
from llm_rlhf.evaluation.suites.perplexity import read_replies
from llm_rlhf.models.encoding import encode_reply
from llm_rlhf.models.fitting import Fitted
from llm_rlhf.statistics.clustered import (
    clustered_change,
    clustered_difference,
    clustered_mean,
    clustered_proportion,
    clustered_share,
)
from llm_rlhf.statistics.intervals import Array, Estimate, Interval, numbered


class Read(NamedTuple):
    """How probable a policy finds the replies of each row."""

    total: list[Array]  # nats
    tokens: list[Array]


@dataclass(frozen=True)
class Measured:
    """A number for each row, NaN where the row has none.

    Attributes:
        kind: 0 or 1; in [0, 1]; or in [-1, 1].
        chance: what a guess would have on average, row by row.
    """

    name: str
    kind: Literal["yes", "share", "signed"]
    values: Array
    chance: Array | None = None


def fit_choices(tokenizer: Any, rows: Sequence[Choices], account: Fitted) -> list[Choices]:
    """The rows of which every reply fits behind the same, possibly shortened, prompt."""
    fitted = []
    for row in rows:

        def longest(prompt: Conversation, row: Choices = row) -> int:
            return max(len(encode_reply(tokenizer, prompt, reply).ids) for reply in row.replies)

        prompt = account.fit(row.prompt, longest, row.origin)
        if prompt is not None:
            fitted.append(replace(row, prompt=prompt))
    return fitted


def read_choices(model: Any, tokenizer: Any, adapters: list[str], rows: Sequence[Choices], size: int) -> Read:
    """Every reply of every row under the base with these adapters, `size` replies at once."""
    prompts = [row.prompt for row in rows for _ in row.replies]
    found = read_replies(model, tokenizer, adapters, prompts, [reply for row in rows for reply in row.replies], size)
    ends = np.cumsum([len(row.replies) for row in rows])[:-1]
    tokens = np.array([len(ids) for ids in found.tokens], np.float64)
    return Read(np.split(np.array(found.logprobs, np.float64), ends), np.split(tokens, ends))


def splits_of(suite: str, rows: Sequence[Choices]) -> dict[str, tuple[list[int], np.ndarray]]:
    """Row numbers and their clusters of the whole suite and, where there are several, of each category.

    Rows of one family are a cluster; where all rows are of one family, each prompt is.
    """
    parts = {suite: list(range(len(rows)))}
    categories = dict.fromkeys(row.category for row in rows)
    for category in categories if len(categories) > 1 else ():
        parts[f"{suite}/{category}"] = [i for i, row in enumerate(rows) if row.category == category]
    return {split: (chosen, _clusters([rows[i] for i in chosen])) for split, chosen in parts.items()}


def _clusters(rows: Sequence[Choices]) -> np.ndarray:
    families = numbered(row.family for row in rows)
    return families if len(np.unique(families)) > 1 else numbered(repr(row.prompt) for row in rows)


def answering(
    splits: Mapping[str, tuple[list[int], np.ndarray]],
    measured: Mapping[str, Sequence[Measured]],
    names: tuple[str, str],
    families: str,
    resamples: int,
    seed: int,
) -> list[Estimate]:
    """Levels of both policies, what a guess would have, and paired differences, on the suite and by category.

    Args:
        measured: by policy, the same measures in the same order; a policy that nobody can ask is left out.
        names: of the policy and of its start.
    """
    subject, reference = names
    read = [who for who in (reference, subject) if who in measured]
    found: list[Estimate] = []
    for split, (rows, ids) in splits.items():
        for first, *others in zip(*(measured[who] for who in read), strict=True):
            known = {who: one.values[rows] for who, one in zip(read, (first, *others), strict=True)}
            known = {who: values for who, values in known.items() if np.isfinite(values).any()}
            for who, values in known.items():
                there = np.isfinite(values)
                level = _level(first.kind, values[there], ids[there], resamples, seed)
                found.append(level.named(first.name, who, None, split))
            if known and first.chance is not None:
                guess = first.chance[rows][np.isfinite(first.values[rows])]
                found.append(
                    Estimate(
                        first.name, "baseline", None, split, float(guess.mean()), None, None, len(guess), "a guess"
                    )
                )
            if len(known) == 2:
                change = _difference(first.kind, known[subject], known[reference], ids)
                found.append(change.named(f"{first.name}_change", subject, reference, split))
    return [replace(e, method=e.method.replace("wordings", families)) for e in found]


def _level(kind: str, values: Array, ids: np.ndarray, resamples: int, seed: int) -> Interval:
    if kind == "yes":
        return clustered_proportion(values, ids)
    if kind == "share":
        return clustered_share(values, ids, "mean", resamples, seed)
    # In [-1, 1]: twice a share less one, so that the interval keeps a width where all rows are alike.
    share = clustered_share((values + 1) / 2, ids, "mean", resamples, seed)
    low, high = (None if bound is None else 2 * bound - 1 for bound in (share.low, share.high))
    return share._replace(estimate=2 * share.estimate - 1, low=low, high=high)


def _difference(kind: str, a: Array, b: Array, ids: np.ndarray) -> Interval:
    of_a, of_b = np.isfinite(a), np.isfinite(b)
    if (of_a != of_b).any():
        return difference_of_means(a, b, ids)
    a, b, ids = a[of_a], b[of_a], ids[of_a]
    return clustered_change(a, b, ids) if kind == "yes" else clustered_difference(a, b, ids)


def difference_of_means(a: Array, b: Array, ids: np.ndarray) -> Interval:
    """Mean of `a` less mean of `b`, each over the rows where it is a number, which need not be the same rows.

    Each mean is a ratio R = sum y / sum x of two sums over rows, x 1 where there is a number. n counts the rows where
    either has one. The interval is that
    of the mean of its linearised values, R + (y - R x) / mean(x). Source: Cochran 1977, Sampling Techniques, section
    6.4 (the variance of a ratio).
    """
    rows = np.isfinite(a) | np.isfinite(b)
    found = clustered_mean(_linearised(a[rows]) - _linearised(b[rows]), ids[rows])
    low, high = (None if bound is None else min(2.0, max(-2.0, bound)) for bound in (found.low, found.high))
    return found._replace(low=low, high=high, method=f"difference of two means; {found.method}")


def _linearised(values: Array) -> Array:
    x = np.isfinite(values).astype(np.float64)
    y = np.nan_to_num(values)
    ratio = y.sum() / x.sum()
    linear: Array = ratio + (y - ratio * x) / x.mean()
    return linear
