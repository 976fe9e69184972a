"""Estimates with their uncertainty: plain numpy functions, no models, no files.

Every function returns an `Interval` (or a plain number where there is no interval to give); `Interval.named` makes it
an `Estimate`, one entry of the report. Three rules hold throughout:

1. Two policies that answered the same prompts are paired: resample prompts, never the two sides apart.
2. Several replies to one prompt are not independent: pass the prompt ids as `clusters` and they are drawn together.
3. Nothing to measure is an error. An empty input, a value that is not finite, or lists of unequal length raise
   ValueError; none of them becomes 0.0.

Intervals are 95 %. Where n is too small for one, `low` and `high` are None and `method` says why.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = Sequence[float] | NDArray[Any]
Labels: TypeAlias = Sequence[Any] | NDArray[Any]
Array: TypeAlias = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
CHUNK = 1_000_000  # resampled indices held at once: 8 MB, and as much again for the values they pick
Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)  # 1.960
Z_POWER = NormalDist().inv_cdf(0.80)  # 0.842


@dataclass(frozen=True)
class Estimate:
    """One measured number of the report: what it is, of whom, compared with whom, on which rows, and how sure."""

    name: str  # e.g. "gold_gain"
    subject: str  # who was measured: "sft", "ppo", "reward", "heldout"
    reference: str | None  # the other side of a paired difference; None for a level
    split: str  # which rows: "all", "helpful", "harmless", "scary", ...
    estimate: float
    low: float | None  # 95 % interval; None where there is none to give, and `method` says why
    high: float | None
    n: int  # prompts or pairs, not replies
    method: str
    clusters: int | None = None  # wordings that the prompts come in; None where each stands alone

    def as_dict(self) -> dict[str, Any]:
        """The fields under their own names, ready for JSON."""
        return asdict(self)


class Interval(NamedTuple):
    """A number with its 95 % interval, not yet told what it is a measure of."""

    estimate: float
    low: float | None
    high: float | None
    n: int
    method: str
    clusters: int | None = None

    def named(self, name: str, subject: str, reference: str | None = None, split: str = "all") -> Estimate:
        """This interval as an entry of the report."""
        return Estimate(name, subject, reference, split, *self)


def wilson(successes: int, n: int) -> Interval:
    """The proportion successes / n with Wilson's score interval.

    Centre (p + z^2/2n) / (1 + z^2/n), half-width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n), z = 1.96. Unlike the
    textbook interval it stays inside [0, 1] and keeps a width at 0 and at n successes. Source: Wilson 1927, JASA 22.
    """
    if n < 1:
        raise ValueError(f"wilson: n is {n}; a proportion needs at least one observation.")
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n}; they must lie between 0 and n.")
    low, high = wilson_bounds(successes / n, n)
    return Interval(successes / n, low, high, n, "Wilson score interval")


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p-value that two paired yes/no outcomes have the same rate.

    b pairs said yes only on the first side, c only on the second; pairs that agree carry no information. Under the
    null b is binomial(b + c, 1/2), so p = min(1, 2 P(X <= min(b, c))), computed in integers. No discordant pair at
    all gives 1.0. Source: McNemar 1947, Psychometrika 12; the exact form is the sign test.
    """
    if b < 0 or c < 0:
        raise ValueError(f"mcnemar: counts are {b} and {c}; they cannot be negative.")
    n, tail, term = b + c, 0, 1
    for k in range(min(b, c) + 1):
        tail += term
        term = term * (n - k) // (k + 1)  # C(n, k+1) from C(n, k), exact
    return min(1.0, 2 * tail / 2**n)


def bootstrap_mean(
    values: Values, clusters: Labels | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean of `values`, in their unit, with a percentile bootstrap interval.

    `clusters` gives each value's prompt id; prompts are then resampled whole, and n counts prompts. For a plain
    yes/no outcome use `wilson`, which keeps a width when every answer is the same.
    Source: Efron and Tibshirani 1993, chapter 13; Field and Welsh 2007 for the cluster bootstrap.
    """
    return _bootstrap(
        "bootstrap_mean", finite_arrays("bootstrap_mean", values=values)[0], clusters, resamples, seed, "mean"
    )


def paired_bootstrap(
    a: Values, b: Values, clusters: Labels | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """mean(a) - mean(b), in their unit, where a[i] and b[i] answer the same prompt; percentile bootstrap of a - b.

    Positive when `a` is higher. Pairing removes how hard the prompts are from the error: the interval is that of the
    differences, and much narrower than two separate intervals suggest.
    """
    a_values, b_values = finite_arrays("paired_bootstrap", a=a, b=b)
    return _bootstrap("paired_bootstrap", a_values - b_values, clusters, resamples, seed, "paired difference")


def paired_proportions(a: Values, b: Values) -> Interval:
    """Share of yes in `a` minus share of yes in `b`, both 0/1 and on the same prompts, one answer each.

    With b = pairs where only `a` says yes and c = only `b`, half an observation is added to each of the four cells:
    d = (b - c) / (n + 2), variance ((b + c + 1) / (n + 2) - d^2) / (n + 2); the interval is d +- 1.96 sd. It keeps a
    width when no pair differs, where a bootstrap would claim certainty. The estimate given is the plain (b - c) / n.
    Source: Agresti and Min 2005, Statistics in Medicine 24.
    """
    a_values, b_values = binary_arrays("paired_proportions", a=a, b=b)
    return _agresti_min(a_values - b_values, "paired difference of proportions")


def paired_shares(a: Values, b: Values) -> Interval:
    """mean(a) - mean(b) where both are shares in [0, 1] of the same rows, such as one judge's choice and the others'.

    `paired_proportions` where not all are 0 or 1: the same interval, with the squared differences in the place of the
    discordant pairs.
    """
    a_values, b_values = finite_arrays("paired_shares", a=a, b=b)
    for label, values in (("a", a_values), ("b", b_values)):
        if values.min() < 0 or values.max() > 1:
            raise ValueError(f"paired_shares: {label} holds values outside 0 to 1; use paired_bootstrap.")
    return _agresti_min(a_values - b_values, "paired difference of shares")


def agresti_min(differences: Array) -> tuple[float, float]:
    """Centre and standard error of the mean of paired differences in [-1, 1]: half a +1, half a -1 and a 0 added."""
    n = len(differences)
    centre = float(differences.sum()) / (n + 2)
    return centre, math.sqrt(((float((differences**2).sum()) + 1) / (n + 2) - centre**2) / (n + 2))


def _agresti_min(differences: Array, what: str) -> Interval:
    centre, error = agresti_min(differences)
    low, high = max(-1.0, centre - Z * error), min(1.0, centre + Z * error)
    return Interval(float(differences.mean()), low, high, len(differences), f"{what}, Agresti-Min interval")


def median(values: Values) -> Interval:
    """Median, in the values' unit, between two of the values themselves: any distribution, 95 % or a little more.

    The l-th from either end, l the largest with P(Bin(n, 1/2) < l) <= 2.5 % (above 1,000 values by the normal
    distribution); fewer than 6 values have none. Source: David and Nagaraja 2003, Order Statistics, section 7.1.
    """
    (x,) = finite_arrays("median", values=values)
    x = np.sort(x)
    n, ends = len(x), _ends(len(x))
    if ends == 0:
        return Interval(float(np.median(x)), None, None, n, "median; fewer than 6 values have no interval")
    low, high = float(x[ends - 1]), float(x[n - ends])
    return Interval(float(np.median(x)), low, high, n, "median, interval by order statistics")


def _ends(n: int) -> int:
    """The largest l with P(Bin(n, 1/2) < l) <= 2.5 %; 0 where there is none."""
    if n > 1000:
        return int(n / 2 + 0.5 - Z * math.sqrt(n) / 2)
    found, tail, term = 0, 1, 1
    while 40 * tail <= 2**n:
        term = term * (n - found) // (found + 1)  # C(n, k + 1) from C(n, k), exact
        tail, found = tail + term, found + 1
    return found


def outcomes(a: Values, b: Values, same: Sequence[bool] | None = None) -> Array:
    """1 where a > b, 1/2 where they tie, 0 where a < b.

    Args:
        same: where both scores are of one and the same reply. That is a tie: a score moves by its last bits with the
            batch it was read in, and they must not decide.
    """
    a_values, b_values = finite_arrays("outcomes", a=a, b=b)
    found = (a_values > b_values) + 0.5 * (a_values == b_values)
    return found if same is None else np.where(same, 0.5, found)


def win_rate(
    a: Values, b: Values, clusters: Labels | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Share of comparisons that `a` wins, mean of 1[a > b] + ties / 2, in [0, 1]; 0.5 is no difference.

    Bootstrap over prompts. When every comparison comes out alike there is no spread to resample, and Wilson's
    interval over the prompts takes its place: ten wins of ten are not certainty.
    """
    return bootstrap_share("win_rate", outcomes(a, b), clusters, resamples, seed, "win rate, ties 1/2")


def accuracy(
    chosen: Values, rejected: Values, clusters: Labels | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Share of pairs in which the chosen reply scores higher, ties counting 1/2, in [0, 1].

    Wilson's interval when each pair has its own prompt (ties make it slightly too wide, never too narrow); with
    `clusters`, a bootstrap over prompts. A model that ties everything gets 0.5, not 0 or 1.
    """
    if clusters is not None:
        return bootstrap_share("accuracy", outcomes(chosen, rejected), clusters, resamples, seed, "accuracy, ties 1/2")
    right = outcomes(chosen, rejected)
    low, high = wilson_bounds(float(right.mean()), len(right))
    return Interval(float(right.mean()), low, high, len(right), "accuracy, ties 1/2; Wilson score interval")


def bootstrap(
    statistic: Callable[[Array], Array],
    n: int,
    clusters: Labels | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    what: str = "statistic",
) -> Interval:
    """Any statistic of n rows with a percentile bootstrap interval; rows of one cluster are drawn together.

    Args:
        statistic: takes how often each row counts, (r, n), and gives r numbers. A resample that cannot be measured
            gives NaN; such resamples are left out and counted in `method`.
    """
    if resamples < 100:
        raise ValueError(f"bootstrap: resamples is {resamples}; fewer than 100 cannot place a 2.5 % point.")
    index = np.arange(n) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    if index.shape != (n,):
        raise ValueError(f"bootstrap: {n} rows but clusters of shape {index.shape}; give one id per row.")
    units = int(index.max()) + 1
    estimate = float(statistic(np.ones((1, n)))[0])
    if units == 1:
        return Interval(estimate, None, None, 1, f"{what}; one unit alone has no interval")
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // max(n, units))
    found = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        picked = rng.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        counts = np.bincount(picked.ravel(), minlength=rows * units).reshape(rows, units)
        found.append(statistic(counts[:, index].astype(np.float64)))
    values = np.concatenate(found)
    kept = values[np.isfinite(values)]
    left_out = len(values) - len(kept)
    unit = "values" if clusters is None else "prompts"
    method = f"{what}, percentile bootstrap over {unit}, {resamples} resamples, seed {seed}"
    if left_out > resamples / 20:
        return Interval(estimate, None, None, units, f"{what}; too few rows for an interval")
    method += f", {left_out} of them without a value" if left_out else ""
    low, high = np.quantile(kept, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Interval(estimate, float(low), float(high), units, method)


def detectable_difference(n: int, spread: float = 0.5) -> float:
    """The true difference that n observations find with 80 % power, two-sided at the 5 % level, in units of `spread`.

    (1.960 + 0.842) spread / sqrt(n), where `spread` is the standard deviation of one observation: 0.5 for a
    proportion near one half, the standard deviation of the paired differences for a score. 785 decisive comparisons
    tell 55 % from 50 %.
    """
    if n < 1:
        raise ValueError(f"detectable_difference: n is {n}; it must be at least 1.")
    if not (math.isfinite(spread) and spread >= 0):
        raise ValueError(f"detectable_difference: spread is {spread}; it must be finite and not negative.")
    return (Z + Z_POWER) * spread / math.sqrt(n)


def detectable_from_interval(low: float, high: float) -> float:
    """`detectable_difference` read off a 95 % interval: its half-width times (1.960 + 0.842) / 1.960, same unit."""
    return (high - low) / 2 * (Z + Z_POWER) / Z


def bootstrap_share(
    caller: str, values: Array, clusters: Labels | None, resamples: int, seed: int, what: str
) -> Interval:
    """Bootstrap of values in [0, 1]; Wilson's interval over the prompts where all of them are equal."""
    interval = _bootstrap(caller, values, clusters, resamples, seed, what)
    if np.ptp(values) > 0:
        return interval
    low, high = wilson_bounds(interval.estimate, interval.n)
    return interval._replace(low=low, high=high, method=f"{what}; Wilson score interval")


def _bootstrap(caller: str, values: Array, clusters: Labels | None, resamples: int, seed: int, what: str) -> Interval:
    """Mean of `values` and the 2.5 and 97.5 percentiles of the mean over resampled clusters."""
    if resamples < 100:
        raise ValueError(f"{caller}: resamples is {resamples}; fewer than 100 cannot place a 2.5 % point.")
    sums, counts = by_cluster(caller, values, clusters)
    units, estimate = len(sums), float(values.mean())
    unit = "values" if clusters is None else "prompts"
    method = f"{what}, percentile bootstrap over {unit}, {resamples} resamples, seed {seed}"
    if units == 1:
        return Interval(estimate, None, None, 1, f"{what}; one unit alone has no interval")
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, CHUNK // units)
    for start in range(0, resamples, rows):
        picked = rng.integers(units, size=(min(rows, resamples - start), units))
        means[start : start + rows] = sums[picked].sum(axis=1) / counts[picked].sum(axis=1)
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Interval(estimate, float(low), float(high), units, method)


def all_equal(values: Array, of: float) -> bool:
    """Whether numbers are equal but for rounding, where they are differences, or means, of numbers up to `of`."""
    return bool(np.ptp(values) <= 1e-12 * of)  # some thousand times float64's rounding of a number


def numbered(labels: Iterable[Any]) -> NDArray[np.intp]:
    """A number for each label, in the order that the labels themselves have: as clusters the same, and no longer.

    An array of texts takes four bytes times its longest one for every row: one prompt of 100,000 characters makes a
    thousand of them take 400 MB.
    """
    rows = list(labels)
    numbers = {label: number for number, label in enumerate(sorted(set(rows)))}
    return np.array([numbers[label] for label in rows], dtype=np.intp)


def by_cluster(caller: str, values: Array, clusters: Labels | None) -> tuple[Array, Array]:
    """Sum and count of the values of each cluster; without clusters each value stands alone."""
    if clusters is None:
        return values, np.ones_like(values)
    labels = np.asarray(clusters)
    if labels.shape != values.shape:
        raise ValueError(f"{caller}: {len(values)} values but clusters of shape {labels.shape}; give one id per value.")
    _, index = np.unique(labels, return_inverse=True)
    sums: Array = np.bincount(index, weights=values).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)


def wilson_bounds(p: float, n: float, z: float = Z) -> tuple[float, float]:
    """Wilson's interval of a share `p` of `n` rows, which need not be a whole number, at the quantile `z`."""
    shrink = 1 + z**2 / n
    centre = (p + z**2 / (2 * n)) / shrink
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / shrink
    # At p = 0 and p = 1 one bound is exactly p; rounding must not push it past the estimate.
    return 0.0 if p == 0 else centre - half, 1.0 if p == 1 else centre + half


def binary_arrays(caller: str, **named: Values) -> list[Array]:
    """`finite_arrays` that hold nothing but 0 and 1; otherwise ValueError naming which."""
    arrays = finite_arrays(caller, **named)
    for label, values in zip(named, arrays, strict=True):
        if not np.isin(values, (0.0, 1.0)).all():
            raise ValueError(f"{caller}: {label} holds values other than 0 and 1; use paired_bootstrap.")
    return arrays


def finite_arrays(caller: str, **named: Values) -> list[Array]:
    """The inputs as 1-D float arrays, all of one length, not empty and finite; otherwise ValueError naming which."""
    arrays = []
    for label, raw in named.items():
        values = np.asarray(raw, dtype=np.float64)
        if values.ndim != 1:
            raise ValueError(f"{caller}: {label} has shape {values.shape}; give a flat list of numbers.")
        if values.size == 0:
            raise ValueError(f"{caller}: {label} is empty; there is nothing to measure.")
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise ValueError(
                f"{caller}: {bad.size} of {values.size} values of {label} are not finite (the first, {values[bad[0]]}, "
                f"at position {bad[0]}); leave out and count what could not be scored."
            )
        arrays.append(values)
    if len({len(values) for values in arrays}) > 1:
        lengths = ", ".join(f"{label} {len(values)}" for label, values in zip(named, arrays, strict=True))
        raise ValueError(f"{caller}: unequal lengths ({lengths}); paired inputs need one value a prompt on each side.")
    return arrays
