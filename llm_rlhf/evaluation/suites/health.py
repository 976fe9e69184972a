"""Is the language still sound? Length, repetition, variety and endings of replies, from token ids or words.

A reply is a list of token ids or of words (`words`). Every measure gives one value a reply (`*_of`), so that two
policies on the same prompts can be compared by `intervals.paired_bootstrap`, and `health` gives the means with their
intervals. A reply too short to hold an n-gram has no value: NaN, left out of the mean, and n says how many are in.
"""

import math
import re
from collections import Counter
from collections.abc import Container, Hashable, Sequence
from typing import TypeAlias

import numpy as np

from llm_rlhf.statistics.intervals import Array, Interval, Labels, Z, bootstrap_mean, wilson

Reply: TypeAlias = Sequence[Hashable]
REPEATED = 4  # tokens of the n-gram whose return counts as repetition; phrases of three recur in sound prose
LOOP_COPIES = 3  # a block counts as a loop when it stands so often in a row ...
LOOP_TOKENS = 24  # ... and the copies together are this long: laughter, dashes and table rules are shorter


def words(text: str) -> list[str]:
    """Lower-case words and single punctuation marks, for texts whose token ids are not at hand.

    Scripts that set no spaces between words come out as one long word a clause; use token ids there.
    """
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def ngrams(reply: Reply, n: int) -> list[tuple[Hashable, ...]]:
    """All runs of n tokens, in order: len(reply) - n + 1 of them, or none."""
    if n < 1:
        raise ValueError(f"ngrams: n is {n}; it must be at least 1.")
    return list(zip(*(reply[k:] for k in range(n)), strict=False))


def distinct_of(reply: Reply, n: int) -> float:
    """Distinct n-grams over n-grams of one reply, in (0, 1]; NaN where it has none. Falls with length by itself."""
    grams = ngrams(reply, n)
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition_of(reply: Reply, n: int = REPEATED) -> float:
    """Share of n-grams that stood earlier in the same reply, in [0, 1): 1 - distinct. NaN where it has none."""
    return 1 - distinct_of(reply, n)


def loops(reply: Reply) -> bool:
    """True when some block of tokens stands three times or more in a row, 24 tokens or more in all.

    A block of p tokens that repeats makes token k equal token k - p over a stretch; the stretch and the first block
    are the loop.
    """
    index: dict[Hashable, int] = {}
    codes = np.array([index.setdefault(token, len(index)) for token in reply])
    for period in range(1, len(codes) // LOOP_COPIES + 1):
        differs = np.flatnonzero(codes[period:] != codes[:-period])
        edges = np.r_[-1, differs, len(codes) - period]
        longest = int(np.diff(edges).max()) - 1 + period
        if longest >= max(LOOP_COPIES * period, LOOP_TOKENS):
            return True
    return False


def ended(reply: Sequence[int], eos_token_ids: Container[int]) -> bool:
    """True when the reply's last token id is one of the stop tokens: it stopped by itself."""
    return len(reply) > 0 and reply[-1] in eos_token_ids


def distinct_across(replies: Sequence[Reply], n: int) -> Interval:
    """Distinct n-grams over n-grams of all replies together, in (0, 1]: low when all replies sound the same.

    It falls as replies are added, so compare only policies with equally many replies to the same prompts. Interval:
    estimate +- 1.96 jackknife errors, each reply left out once; a bootstrap would count its own copies as repeats.
    Sources: Li et al. 2016, distinct-n; Efron and Tibshirani 1993, chapter 11.
    """
    grams = [ngrams(reply, n) for reply in replies]
    total = sum(len(own) for own in grams)
    if total == 0:
        raise ValueError(f"distinct_across: none of {len(replies)} replies has {n} tokens; nothing to measure.")
    holders: Counter[tuple[Hashable, ...]] = Counter()
    for own in grams:
        holders.update(set(own))
    estimate, count = len(holders) / total, len(replies)
    method = f"distinct {n}-grams of all replies; jackknife over replies"
    lengths = np.array([len(own) for own in grams])
    if count < 2 or lengths.max() == total:
        return Interval(estimate, None, None, count, "distinct n-grams of one reply alone have no interval")
    alone = np.array([sum(holders[gram] == 1 for gram in set(own)) for own in grams])
    without = (len(holders) - alone) / (total - lengths)
    if np.ptp(without) == 0:
        return Interval(estimate, None, None, count, f"distinct {n}-grams of all replies; all add alike, no interval")
    half = Z * math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    return Interval(estimate, max(0.0, estimate - half), min(1.0, estimate + half), count, method)


def health(
    replies: Sequence[Reply], stopped: Sequence[bool] | None = None, clusters: Labels | None = None, seed: int = 0
) -> dict[str, Interval]:
    """Means over replies, by name, each with its interval.

    length (tokens), empty, distinct_1, distinct_2 (of one reply), repetition (4-grams seen before), loops, and with
    `stopped`, one True or False a reply, eos_rate. A measure that no reply is long enough for is absent. `clusters`
    gives each reply's prompt.
    """
    if not len(replies):
        raise ValueError("health: no replies; there is nothing to measure.")
    for name, given in (("stopped", stopped), ("clusters", clusters)):
        if given is not None and len(given) != len(replies):
            raise ValueError(f"health: {len(replies)} replies but {len(given)} entries of {name}; give one a reply.")
    lengths = np.array([len(reply) for reply in replies], dtype=np.float64)
    measured = {
        "length": _mean(lengths, clusters, seed),
        "empty": _rate(lengths == 0, clusters, seed),
        "loops": _rate(np.array([loops(reply) for reply in replies]), clusters, seed),
    }
    per_reply = {
        "distinct_1": [distinct_of(reply, 1) for reply in replies],
        "distinct_2": [distinct_of(reply, 2) for reply in replies],
        "repetition": [repetition_of(reply) for reply in replies],
    }
    for name, values in per_reply.items():
        if not np.isnan(values).all():
            measured[name] = _mean(np.array(values), clusters, seed)
    if stopped is not None:
        measured["eos_rate"] = _rate(np.asarray(stopped, dtype=bool), clusters, seed)
    return measured


def _mean(values: Array, clusters: Labels | None, seed: int) -> Interval:
    """Mean of the values that exist, and how many replies had none."""
    there = ~np.isnan(values)
    interval = bootstrap_mean(values[there], None if clusters is None else np.asarray(clusters)[there], seed=seed)
    missing = int((~there).sum())
    if not missing:
        return interval
    return interval._replace(method=f"{interval.method}; {missing} replies too short for an n-gram left out")


def _rate(flags: Array, clusters: Labels | None, seed: int) -> Interval:
    """Wilson where each reply has its own prompt; a bootstrap over prompts otherwise."""
    if clusters is None or len(np.unique(np.asarray(clusters))) == len(flags) or np.ptp(flags.astype(float)) == 0:
        prompts = len(flags) if clusters is None else len(np.unique(np.asarray(clusters)))
        share = float(flags.mean())
        return wilson(round(share * prompts), prompts)
    return bootstrap_mean(flags.astype(np.float64), clusters, seed=seed)
