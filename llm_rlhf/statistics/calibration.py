"""Whether a reward model's certainty can be believed: margins of scores read as probabilities.

A margin is score(chosen) - score(rejected). Bradley and Terry's model reads it as the logarithm of the odds that people
prefer the chosen reply: probability sigma(margin / temperature), and the certainty of the model, whichever reply it
prefers, is sigma(|margin| / temperature), between 1/2 and 1. Plain numpy functions, no models, no files.

Rows of one prompt are not independent: `prompts` gives each row's, and they are then drawn and split together.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_rlhf.statistics.association import auroc
from llm_rlhf.statistics.intervals import Array, Interval, Labels, Values, accuracy, bootstrap, bootstrap_mean

BINS = 10  # of equal width between 1/2 and 1
FLOOR_DRAWS = 200
LEAST, MOST = 1e-3, 1e3  # bounds of a fitted temperature, in units of the mean |margin|
BOUND = 1 + 1e-6  # a temperature within this factor of a bound is the bound: Newton's method stops at 1e-12


def fit_temperature(margins: Values) -> float:
    """The temperature that makes the margins most likely: argmin over T of the mean of ln(1 + exp(-margin / T)).

    Newton's method in 1 / T, in which the loss is convex, inside a bracket that halves where a step leaves it. Where no
    finite optimum exists it is a bound: a thousandth of the mean |margin| where every margin is right (any greater
    certainty is better still), a thousand times it where the model is no better than chance. Source: Guo et al. 2017.

    Raises:
        ValueError: where margins are empty, not finite, or all zero, so that no temperature changes anything.
    """
    m = _margins(margins)
    unit = float(np.abs(m).mean())
    if unit == 0:
        raise ValueError("fit_temperature: every margin is 0; the model tells no reply from the other.")
    m = m / unit

    def slope(x: float) -> float:
        return float(-(m * _sigma(-x * m)).mean())

    low, high = 1 / MOST, 1 / LEAST
    if slope(low) >= 0:
        return MOST * unit
    if slope(high) <= 0:
        return LEAST * unit
    x = 1.0
    for _ in range(100):
        gradient = slope(x)
        low, high = (x, high) if gradient < 0 else (low, x)
        p = _sigma(x * m)
        curvature = float((m**2 * p * (1 - p)).mean())
        step = x - gradient / curvature if curvature > 0 else math.inf
        before, x = x, step if low < step < high else (low + high) / 2
        if abs(x - before) <= 1e-12 * x:
            break
    return unit / x


def reliability_curve(margins: Values, bins: int = BINS) -> list[dict[str, Any]]:
    """Accuracy against certainty: for each bin that holds rows `low`, `high`, `n`, `certainty` (its mean), `accuracy`.

    Certainty is sigma(|margin|); give margins over a temperature to read them so. `accuracy_low` and `accuracy_high`
    are Wilson's 95 % interval. A tie has certainty 1/2 and counts half right.
    """
    m = _margins(margins)
    certainty, right, place = _binned(m, bins)
    curve = []
    for b in np.unique(place):
        rows = place == b
        found = accuracy(m[rows], np.zeros(rows.sum()))
        curve.append(
            {
                "low": 0.5 + 0.5 * float(b) / bins,
                "high": 0.5 + 0.5 * float(b + 1) / bins,
                "n": int(rows.sum()),
                "certainty": float(certainty[rows].mean()),
                "accuracy": float(right[rows].mean()),
                "accuracy_low": found.low,
                "accuracy_high": found.high,
            }
        )
    return curve


def calibration_error(
    margins: Values, prompts: Labels | None = None, bins: int = BINS, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Expected calibration error: mean over rows of |accuracy - certainty| of the row's bin, in [0, 1].

    A bootstrap resample has the noise of the sample and its own, so that its error is too large by about as much as the
    sample's: the interval is the basic one (twice the estimate less the percentiles), cut at 0. Even a perfect model
    has an error above 0 in a finite sample; `calibration_floor` says how large. Source: Naeini et al. 2015.
    """
    m = _margins(margins)
    certainty, right, place = _binned(m, bins)
    gaps = np.zeros((len(m), bins))
    gaps[np.arange(len(m)), place] = right - certainty

    def error(weights: Array) -> Array:
        found: Array = np.abs(weights @ gaps).sum(axis=1) / weights.sum(axis=1)
        return found

    found = bootstrap(error, len(m), prompts, resamples, seed, f"expected calibration error, {bins} bins")
    if found.low is None or found.high is None:
        return found
    low, high = (max(0.0, 2 * found.estimate - bound) for bound in (found.high, found.low))
    return found._replace(low=low, high=high, method=found.method.replace("percentile", "basic"))


def calibration_floor(margins: Values, bins: int = BINS, seed: int = 0) -> float:
    """The mean calibration error of a model with these certainties of which every one is exactly true."""
    certainty, _, place = _binned(_margins(margins), bins)
    rng = np.random.default_rng(seed)
    right = rng.random((FLOOR_DRAWS, len(certainty))) < certainty
    by_bin = np.zeros((len(certainty), bins))
    by_bin[np.arange(len(certainty)), place] = 1.0
    return float(np.abs((right - certainty) @ by_bin).sum(axis=1).mean() / len(certainty))


def brier(margins: Values, prompts: Labels | None = None, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean squared error of the probability that people prefer the chosen reply, (1 - sigma(margin))^2; a coin: 1/4."""
    errors = _sigma(-_margins(margins)) ** 2
    return bootstrap_mean(errors, prompts, resamples, seed)._replace(method="Brier score, percentile bootstrap")


def log_loss(margins: Values, prompts: Labels | None = None, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of ln(1 + exp(-margin)), in nats: the reward model's loss on these pairs; a coin has ln 2 = 0.693."""
    losses = np.logaddexp(0.0, -_margins(margins))
    return bootstrap_mean(losses, prompts, resamples, seed)._replace(method="log loss, percentile bootstrap")


def calibrate(margins: Values, prompts: Labels, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """What `calibration.json` holds: the temperature of held-out pairs, and the errors before it and with it.

    The errors with it are honest: the pairs are split in two by a hash of their prompt, and each half is read with the
    temperature fitted on the other. `temperature` itself is fitted on all of them.

    Args:
        margins: of pairs that the model was not trained on, of its scores as trained (before normalisation).

    Returns:
        temperature, n (prompts), pairs; `ece`, `brier`, `log_loss`, each `_before` and `_after` with its `_low` and
        `_high`; `ece_floor` (see `calibration_floor`); `curve_before` and `curve_after`; `halves`: the temperatures
        of the two halves. Where one half has no pair, or nothing but ties, the keys of `after` are None. Where all
        pairs or those of a half have no best temperature (see `fit_temperature`), what was fitted is a bound and no
        calibration: `temperature` and the keys of `after` are None, and `no_temperature` says why; else it is None.
    """
    m, labels = _margins(margins), np.asarray(prompts)
    if labels.shape != m.shape:
        raise ValueError(f"calibrate: {len(m)} margins but prompts of shape {labels.shape}; give one per pair.")
    first = _first_half(labels)
    halves = [fit_temperature(m[rows]) if np.any(m[rows]) else None for rows in (first, ~first)]
    temperature, why = fit_temperature(m), _no_temperature(m, first)
    after = None
    if why is None and halves[0] is not None and halves[1] is not None:
        after = m / np.where(first, halves[1], halves[0])
    found: dict[str, Any] = {"temperature": None if why else temperature, "no_temperature": why}
    found |= {"n": len(np.unique(labels)), "pairs": len(m)}
    clusters = labels if found["n"] < len(m) else None
    for name, measure in (("ece", calibration_error), ("brier", brier), ("log_loss", log_loss)):
        for when, read in (("before", m), ("after", after)):
            value = None if read is None else measure(read, clusters, resamples=resamples, seed=seed)
            for suffix, field in (("", "estimate"), ("_low", "low"), ("_high", "high")):
                found[f"{name}_{when}{suffix}"] = None if value is None else getattr(value, field)
    found["ece_floor"] = None if after is None else calibration_floor(after)
    found["curve_before"] = reliability_curve(m)
    found["curve_after"] = None if after is None else reliability_curve(after)
    found["halves"] = halves
    found["method"] = "errors after: each half of the prompts with the temperature fitted on the other"
    return found


def ensemble_agreement(
    margins: NDArray[Any], prompts: Labels, bins: int = 4, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Whether an ensemble's doubt means anything: does it single out the pairs that the ensemble gets wrong?

    Args:
        margins: of each pair by each member, (pairs, members), two members at least.

    Returns:
        members, n (pairs; ties of the mean are left out of the areas), `unanimous` (share of pairs on which all agree
        about the better reply) with `accuracy_unanimous` and `accuracy_split`; `auroc_doubt`: the area under the ROC
        curve of doubt as a sign of error. Doubt is the members' standard deviation over the |mean margin|: how far the
        members disagree for so large a claim. `auroc_spread` is of the deviation alone, which grows with the margin
        and so tells little; `auroc_margin` of a small |mean margin| alone, which needs no ensemble. `by_doubt`:
        accuracy in bins of like size, from the least doubt to the most. Each area and accuracy is a dict of Interval's
        fields; None where it cannot be measured (no errors, or no rows).
    """
    values = np.asarray(margins, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(f"ensemble_agreement: margins have shape {values.shape}; give (pairs, members), two or more.")
    labels = np.asarray(prompts)
    mean = _margins(values.mean(axis=1))
    spread = values.std(axis=1, ddof=1)
    doubt = spread / np.maximum(np.abs(mean), np.finfo(float).tiny)
    wrong, told = mean < 0, mean != 0
    clusters = labels if len(np.unique(labels)) < len(labels) else None

    def area(sign: Array) -> dict[str, Any] | None:
        if wrong[told].all() or not wrong[told].any():
            return None
        return auroc(sign[told], wrong[told], None if clusters is None else clusters[told], resamples, seed)._asdict()

    def right(rows: NDArray[Any]) -> dict[str, Any] | None:
        if not rows.any():
            return None
        own = None if clusters is None else clusters[rows]
        return accuracy(mean[rows], np.zeros(int(rows.sum())), own, resamples, seed)._asdict()

    same: NDArray[np.bool_] = np.abs(np.sign(values).sum(axis=1)) == values.shape[1]
    order = np.argsort(doubt, kind="stable")
    quantiles = []
    for rows in np.array_split(order, min(bins, len(order))):
        chosen = np.zeros(len(mean), dtype=bool)
        chosen[rows] = True
        quantiles.append({"doubt": float(doubt[rows].mean()), "n": len(rows), "accuracy": right(chosen)})
    return {
        "members": values.shape[1],
        "n": len(mean),
        "unanimous": float(same.mean()),
        "accuracy_unanimous": right(same),
        "accuracy_split": right(~same),
        "auroc_doubt": area(doubt),
        "auroc_spread": area(spread),
        "auroc_margin": area(-np.abs(mean)),
        "by_doubt": quantiles,
    }


def _no_temperature(m: Array, first: NDArray[np.bool_]) -> str | None:
    """Why no temperature is the best for these margins, or for those of one half of them; None where one is."""
    for rows, half in ((np.ones_like(first), ""), (first, "in one half"), (~first, "in one half")):
        known = m[rows]
        if not np.any(known):
            continue
        at = fit_temperature(known) / float(np.abs(known).mean())
        pairs = f"the {len(known)} held-out pairs {half}".rstrip()
        if at <= LEAST * BOUND:
            return f"every one of {pairs} is right, so that no certainty is too great"
        if at >= MOST / BOUND:
            return f"it is not more often right than wrong on {pairs}, so that no certainty is too small"
    return None


def _binned(m: Array, bins: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """Certainty, whether it was right (a tie: 1/2), and the bin of each margin; a bin includes its lower bound."""
    certainty = _sigma(np.abs(m))
    right = (m > 0) + 0.5 * (m == 0)
    place = np.minimum((2 * (certainty - 0.5) * bins).astype(np.int64), bins - 1)
    return certainty, right, place


def _first_half(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """True for the rows of half the prompts: those whose hash is among the lower half."""
    different, index = np.unique(labels, return_inverse=True)
    digests = [hashlib.sha256(f"calibration\n{label}".encode()).digest() for label in different.tolist()]
    rank = np.argsort(np.argsort(digests))
    found: NDArray[np.bool_] = (rank < len(different) // 2)[index]
    return found


def _sigma(x: Array) -> Array:
    found: Array = np.exp(-np.logaddexp(0.0, -x))
    return found


def _margins(values: Values | Sequence[float]) -> Array:
    m = np.asarray(values, dtype=np.float64)
    if m.ndim != 1 or m.size == 0:
        raise ValueError(f"margins have shape {m.shape}; give a flat list of at least one number.")
    if not np.isfinite(m).all():
        at = int(np.flatnonzero(~np.isfinite(m))[0])
        raise ValueError(
            f"margins: the value at position {at} is {m[at]}; leave out and count what could not be scored."
        )
    return m
