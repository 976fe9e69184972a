"""Intervals where prompts come in families: made from one template, or nearly the same text.

What a policy does to one wording it mostly does to all prompts of it, so that a wording is one draw, not as many as it
has prompts. Drawing few wordings with replacement gives intervals that are too narrow (docs/statistics.md has both, by
simulation), so they are not drawn. The variance of a mean of N rows in G clusters is the sum over clusters of
s^2 / (1 - n / N), over N^2, with s the sum of a cluster's deviations from the mean and n its rows; the quantile is
Student's, with the degrees of freedom that match the variance's own spread: G - 1 where clusters are equally large,
fewer where one outweighs the others.

Where every cluster is one row, means have Student's interval over rows (a bootstrap's is too narrow for a few dozen),
and shares what `intervals` gives for single rows, to the last bit.

Sources: Bell and McCaffrey 2002, Survey Methodology 28 (the variance, "CR2", and its degrees of freedom); Cameron and
Miller 2015, Journal of Human Resources 50, section VI (why few clusters need them); Korn and Graubard 1998, Survey
Methodology 24 (proportions by their effective number of rows).
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from llm_rlhf.statistics.intervals import (
    LEVEL,
    RESAMPLES,
    Array,
    Interval,
    Labels,
    Values,
    Z,
    all_equal,
    binary_arrays,
    bootstrap_share,
    by_cluster,
    finite_arrays,
    paired_proportions,
    wilson,
    wilson_bounds,
)

_GRID = 40_001  # points of the integral behind `student_quantile`; its error is below 1e-5 up to _LARGE
_LARGE = 500.0  # degrees of freedom from which the expansion in their inverse is exact to 1e-7


class Spread(NamedTuple):
    """How sure a mean is whose rows come in clusters."""

    variance: float  # of the mean
    freedom: float  # degrees of freedom of that variance
    clusters: int

    @property
    def half_width(self) -> float:
        """Of the mean's interval, by Student's t."""
        return student_quantile(self.freedom) * math.sqrt(self.variance)


class Effective(NamedTuple):
    """The rows of a proportion that clusters leave."""

    rows: float
    quantile: float  # half-width of an interval, in standard errors
    clusters: int
    text: str  # both in words


def clustered_mean(values: Values, clusters: Labels) -> Interval:
    """Mean of `values`, in their unit; n counts rows, `clusters` of the result their families (None: single rows)."""
    (x,) = finite_arrays("clustered_mean", values=values)
    return _t_interval(x, clusters, "mean")


def clustered_difference(a: Values, b: Values, clusters: Labels) -> Interval:
    """Mean of a - b in their unit, where a[i] and b[i] answer the same prompt; positive when `a` is higher.

    No interval where all differences are equal: what is rare and large, a loss on one prompt of thirty, would stand
    beside an interval of no width.
    """
    x, y = finite_arrays("clustered_difference", a=a, b=b)
    found = _t_interval(x - y, clusters, "paired difference")
    if found.low is None or not all_equal(x - y, of=np.abs([x, y]).max()):
        return found
    how = "paired difference; all are equal, which does not show how far others lie"
    return found._replace(low=None, high=None, method=how)


def clustered_proportion(yes: Values, clusters: Labels) -> Interval:
    """The share of `yes`, 0 or 1 a row: Wilson's interval for the effective number of rows, with Student's quantile."""
    (x,) = binary_arrays("clustered_proportion", yes=yes)
    if _single("clustered_proportion", x, clusters):
        return wilson(int(x.sum()), len(x))
    return _wilson(x, clusters, "Wilson score interval")


def clustered_share(values: Values, clusters: Labels, what: str, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of values in [0, 1] such as outcomes with ties, called `what`; Wilson's interval as of a proportion."""
    (x,) = finite_arrays("clustered_share", values=values)
    if _single("clustered_share", x, clusters):
        return bootstrap_share("clustered_share", x, clusters, resamples, seed, what)
    return _wilson(x, clusters, f"{what}; Wilson score interval")


def clustered_change(a: Values, b: Values, clusters: Labels) -> Interval:
    """Share of yes in `a` minus share of yes in `b`, 0 or 1 each and paired: Agresti and Min for the effective number.

    Half a row is added to each of the four cells of a table that has as many rows as the clusters leave effective.
    """
    x, y = binary_arrays("clustered_change", a=a, b=b)
    if _single("clustered_change", x, clusters):
        return paired_proportions(x, y)
    difference = x - y
    known = effective_rows(difference, clusters)
    apart, mean, rows = float((difference != 0).mean()), float(difference.mean()), known.rows
    if known.clusters == 1:
        return _alone(mean, len(x), "paired difference of proportions")
    centre = mean * rows / (rows + 2)
    half = known.quantile * math.sqrt(((apart * rows + 1) / (rows + 2) - centre**2) / (rows + 2))
    method = f"paired difference of proportions, Agresti-Min interval, {known.text}"
    return Interval(mean, max(-1.0, centre - half), min(1.0, centre + half), len(x), method, known.clusters)


def effective_rows(values: Array, clusters: Labels) -> Effective:
    """How many independent rows would know the mean as well; at most as many as there are.

    Where all rows are alike nothing shows how far clusters differ, and each counts as one row.
    """
    n = len(values)
    if _single("effective_rows", values, clusters):
        return Effective(n, Z, n, "single rows")
    spread = spread_of(values, clusters)
    if spread is None:
        return Effective(1, Z, 1, "one wording")
    alone, rows = float(values.var()) / n, float(n)
    if alone == 0:
        rows = float(spread.clusters)
    elif spread.variance > alone:
        rows *= alone / spread.variance
    text = f"{rows:.0f} effective rows in {_words(spread)}"
    return Effective(rows, student_quantile(spread.freedom), spread.clusters, text)


def spread_of(values: Array, clusters: Labels) -> Spread | None:
    """The variance of the mean of `values` and its degrees of freedom; None where there is one cluster alone.

    The degrees of freedom are Satterthwaite's, 2 E(V)^2 / Var(V) as they are where rows of a cluster are independent.
    """
    sums, counts = by_cluster("spread_of", values, clusters)
    n, units = float(len(values)), len(sums)
    if units == 1:
        return None
    deviation = sums - counts * values.mean()
    variance = float((deviation**2 / (1 - counts / n)).sum()) / n**2
    return Spread(variance, _freedom(counts), units)


def _freedom(omega: Array) -> float:
    """tr(A W)^2 / tr(A W A W) for V = T'AT and normal cluster sums T of variance W = diag(omega), each cluster's rows.

    A = (I - 1 p') D (I - p 1') with p the clusters' shares and D = diag(1 / (1 - p)): the entries are
    D[i] [i = j] - q[i] - q[j] + c with q = D p and c = p'D p, so that both traces are sums over clusters.
    """
    share = omega / omega.sum()
    d = 1 / (1 - share)
    q = d * share
    c = float((share * q).sum())
    diagonal = d - 2 * q + c
    w, wq, wqq = float(omega.sum()), float((omega * q).sum()), float((omega * q * q).sum())
    off = c**2 * w**2 + 2 * w * wqq + 2 * wq**2 - 4 * c * w * wq
    squares = off + float((omega**2 * (diagonal**2 - (c - 2 * q) ** 2)).sum())
    return float((omega * diagonal).sum()) ** 2 / squares


def student_quantile(freedom: float, level: float = LEVEL) -> float:
    """The half-width in standard errors that holds `level` of Student's t, of any positive degrees of freedom.

    With t = sqrt(v) tan(u) the density is proportional to cos(u)^(v - 1): its integral is summed on a grid. From 500
    on, the first two terms of the expansion in 1 / v (Abramowitz and Stegun 1964, 26.7.5).
    """
    if freedom <= 0:
        raise ValueError(f"student_quantile: {freedom} degrees of freedom; they must be positive.")
    if freedom >= _LARGE:
        z = Z
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    angle = np.linspace(0.0, math.pi / 2, _GRID)
    middles = (angle[1:] + angle[:-1]) / 2
    mass = np.r_[0.0, np.cumsum(np.cos(middles) ** (freedom - 1))]
    return math.sqrt(freedom) * math.tan(float(np.interp(level * mass[-1], mass, angle)))


def student_tail(t: float, freedom: float) -> float:
    """P(T > t) of Student's t, of any positive degrees of freedom; by the integral of `student_quantile`.

    From 500 degrees of freedom on, the normal distribution at t (1 - 1 / 4v) / sqrt(1 + t^2 / 2v) (Abramowitz and
    Stegun 1964, 26.7.8).
    """
    if freedom <= 0:
        raise ValueError(f"student_tail: {freedom} degrees of freedom; they must be positive.")
    if t < 0:
        return 1.0 - student_tail(-t, freedom)
    if freedom >= _LARGE:
        return NormalDist().cdf(-t * (1 - 1 / (4 * freedom)) / math.sqrt(1 + t**2 / (2 * freedom)))
    angle = np.linspace(0.0, math.pi / 2, _GRID)
    rest = np.linspace(math.atan(t / math.sqrt(freedom)), math.pi / 2, _GRID)
    whole, beyond = (
        float((np.cos((of[1:] + of[:-1]) / 2) ** (freedom - 1)).sum() * (of[1] - of[0])) for of in (angle, rest)
    )
    return beyond / whole / 2


def _single(caller: str, values: Array, clusters: Labels) -> bool:
    """Whether every row is a cluster of its own."""
    labels = np.asarray(clusters)
    if labels.shape != values.shape:
        raise ValueError(f"{caller}: {len(values)} values but clusters of shape {labels.shape}; give one id per value.")
    return len(np.unique(labels)) == len(labels)


def _t_interval(values: Array, clusters: Labels, what: str) -> Interval:
    estimate, n, spread = float(values.mean()), len(values), spread_of(values, clusters)
    if spread is None:
        return _alone(estimate, n, what)
    low, high = estimate - spread.half_width, estimate + spread.half_width
    if spread.clusters == n:  # CR2 is s^2 / n then, of n - 1 degrees of freedom
        return Interval(estimate, low, high, n, f"{what}, Student's t over prompts")
    return Interval(estimate, low, high, n, f"{what}, cluster-robust t interval over {_words(spread)}", spread.clusters)


def _wilson(values: Array, clusters: Labels, what: str) -> Interval:
    estimate, known = float(values.mean()), effective_rows(values, clusters)
    if known.clusters == 1:
        return _alone(estimate, len(values), what)
    low, high = wilson_bounds(estimate, known.rows, known.quantile)
    return Interval(estimate, low, high, len(values), f"{what}, {known.text}", known.clusters)


def _alone(estimate: float, n: int, what: str) -> Interval:
    return Interval(estimate, None, None, n, f"{what}; all rows are of one wording, which alone has no interval", 1)


def _words(spread: Spread) -> str:
    return f"{spread.clusters} wordings (CR2, {spread.freedom:.1f} degrees of freedom)"
