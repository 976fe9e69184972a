"""Whether something is shown of somebody, and not merely seen: exact tails of shares, and many questions at once.

A question has a margin, so that a bias too small to matter is not shown by asking often enough: "chooses the left more
than 60 times in a hundred" is asked, not "more than 50".
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from llm_rlhf.statistics.intervals import Values, agresti_min, finite_arrays


def at_least(successes: int, n: int, share: float) -> float:
    """P(X >= successes) for X ~ Bin(n, share): the exact one-sided p-value that a share is above `share`."""
    return at_most(n - successes, n, 1 - share)


def at_most(successes: int, n: int, share: float) -> float:
    """P(X <= successes) for X ~ Bin(n, share): the exact one-sided p-value that a share is below `share`."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"at_most: {successes} successes of {n}; they must lie between 0 and n, and n above 0.")
    if not 0 < share < 1:
        raise ValueError(f"at_most: share is {share}; it must lie between 0 and 1, ends excluded.")
    if successes == n:
        return 1.0
    yes, no = math.log(share), math.log1p(-share)
    terms = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * yes + (n - k) * no
        for k in range(successes + 1)
    )
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def paired_above(a: Values, b: Values, margin: float) -> float:
    """One-sided p-value that the mean of a - b is above `margin`; a[i] and b[i] are shares of one and the same row.

    Normal, with Agresti and Min's centre and error, which keep a width where all differences are alike.
    """
    a_values, b_values = finite_arrays("paired_above", a=a, b=b)
    centre, error = agresti_min(a_values - b_values)
    return NormalDist().cdf((margin - centre) / error)


def holm(p: Sequence[float]) -> list[float]:
    """p-values that hold for all questions at once, in the order given: none true, all stay above x with 1 - x.

    The i-th smallest of m times (m - i + 1), never below a smaller one's, at most 1. No independence is asked for.
    Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    if not p:
        return []
    (values,) = finite_arrays("holm", p=p)
    if values.min() < 0 or values.max() > 1:
        raise ValueError("holm: p-values must lie between 0 and 1.")
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return [float(value) for value in adjusted]
