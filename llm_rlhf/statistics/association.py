"""How far two quantities go together, with intervals: correlations of values and of ranks, and the area under a ROC."""

import math

import numpy as np

from llm_rlhf.statistics.intervals import (
    RESAMPLES,
    Array,
    Interval,
    Labels,
    Values,
    Z,
    bootstrap,
    finite_arrays,
)


def pearson(
    x: Values, y: Values, clusters: Labels | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Linear correlation of x and y, in [-1, 1], e.g. of a reply's score and its length in tokens.

    Interval by Fisher's z: atanh(r) +- 1.96 / sqrt(n - 3), none for n < 4; with `clusters`, a bootstrap over prompts.
    A constant input has no correlation and is an error. Source: Fisher 1921, Metron 1.
    """
    x_values, y_values = finite_arrays("pearson", x=x, y=y)
    alone = _correlation("pearson", x_values, y_values, "Pearson, Fisher z", bonett_wright=False)
    if clusters is None:
        return alone
    x_values, y_values = x_values - x_values.mean(), y_values - y_values.mean()  # the sums below then round little
    products = [np.ones_like(x_values), x_values, y_values, x_values**2, y_values**2, x_values * y_values]

    def correlations(weights: Array) -> Array:
        n, sx, sy, sxx, syy, sxy = (weights @ product for product in products)
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Array = (n * sxy - sx * sy) / np.sqrt((n * sxx - sx**2) * (n * syy - sy**2))
        return found

    return bootstrap(correlations, len(x_values), clusters, resamples, seed, "Pearson")


def auroc(
    scores: Values, positive: Labels, clusters: Labels | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Probability that a random positive row scores higher than a random negative one, ties 1/2; 0.5 knows nothing.

    Bootstrap over rows, or over prompts where `clusters` gives them; rows of one class only are an error. Source: the
    Mann-Whitney U statistic over the number of pairs (Hanley and McNeil 1982, Radiology 143).
    """
    (values,) = finite_arrays("auroc", scores=scores)
    truth = np.asarray(positive, dtype=bool)
    if truth.shape != values.shape:
        raise ValueError(f"auroc: {len(values)} scores but labels of shape {truth.shape}; give one for each.")
    if truth.all() or not truth.any():
        raise ValueError(f"auroc: all {len(truth)} rows are {'positive' if truth.all() else 'negative'}.")
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))  # of each run of equal scores
    up = truth[order]

    def areas(weights: Array) -> Array:
        sorted_weights = weights[:, order]
        high = np.add.reduceat(sorted_weights * up, starts, axis=1)
        low = np.add.reduceat(sorted_weights * ~up, starts, axis=1)
        below = np.cumsum(low, axis=1) - low / 2
        with np.errstate(invalid="ignore"):
            found: Array = (high * below).sum(axis=1) / (high.sum(axis=1) * low.sum(axis=1))
        return found

    return bootstrap(areas, len(values), clusters, resamples, seed, "area under the ROC curve, ties 1/2")


def spearman(x: Values, y: Values) -> Interval:
    """Correlation of the ranks of x and y, ties sharing their mean rank, in [-1, 1]: any monotone relation counts.

    Interval: atanh(r) +- 1.96 sqrt((1 + r^2/2) / (n - 3)). Source: Bonett and Wright 2000, Psychometrika 65.
    """
    x_values, y_values = finite_arrays("spearman", x=x, y=y)
    return _correlation("spearman", _ranks(x_values), _ranks(y_values), "Spearman, Bonett-Wright", bonett_wright=True)


def _correlation(caller: str, x: Array, y: Array, method: str, bonett_wright: bool) -> Interval:
    n = len(x)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError(
            f"{caller}: all values of {'x' if np.ptp(x) == 0 else 'y'} are equal; correlation is undefined."
        )
    x, y = x - x.mean(), y - y.mean()
    r = float(np.clip((x @ y) / math.sqrt((x @ x) * (y @ y)), -1.0, 1.0))
    if n < 4:
        return Interval(r, None, None, n, f"{method}; fewer than 4 points have no interval")
    if abs(r) == 1.0:
        return Interval(r, r, r, n, method)
    half = Z * math.sqrt((1 + (r**2 / 2 if bonett_wright else 0.0)) / (n - 3))
    return Interval(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half), n, method)


def _ranks(x: Array) -> Array:
    """Ranks from 1; equal values share the mean of theirs."""
    _, index, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[index]
