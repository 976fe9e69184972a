"""The win rate two policies would have if their replies were equally long.

Judges, people and reward models alike, prefer longer replies whatever they say (GPT-4's shipped verdicts: the longer
answer wins 68 %), so that a policy can win by talking more. The remedy is a regression: how much of the preference goes
with the length difference, and what is left where that difference is zero.
Source: Dubois et al. 2024, "Length-Controlled AlpacaEval", without its term for the prompt's difficulty.
"""

import math
from typing import NamedTuple

import numpy as np

from llm_rlhf.statistics.clustered import student_quantile
from llm_rlhf.statistics.intervals import Array, Interval, Labels, Values, Z, bootstrap_share, by_cluster, finite_arrays

APART = 0.10  # raw and controlled win rate further apart than this: length explains much of what was won
INFLATION = 100.0  # of the variance; beyond it lengths and policies cannot be told apart
ONE_SIDED = 0.10  # fewer replies than this on one side of equal length: the prediction there is extrapolated
NEWTON_STEPS = 100


class LengthsDoNotOverlapError(ValueError):
    """The replies differ in length by nearly the same everywhere, so that nothing shows what equal lengths would do."""


class LengthControlled(NamedTuple):
    """Win rate as it was and as it would be at equal length, of the first policy."""

    controlled: Interval  # in [0, 1]
    raw: Interval  # in [0, 1]
    length_effect: Interval  # phi, in logits; a reply one standard deviation longer gains tanh(1) = .76 of it
    longer: float  # mean length difference, in the unit of the lengths; positive where the first policy is longer
    warning: str | None  # set when raw and controlled differ by more than 10 points; says so if it is extrapolated


def length_controlled_win_rate(
    outcome: Values, length: Values, reference_length: Values, clusters: Labels | None = None, seed: int = 0
) -> LengthControlled:
    """P(win) at length difference 0, from logit P(win) = theta + phi tanh(difference / its standard deviation).

    outcome[k] is 1 where the policy's reply beat the reference's, 0 where it lost, 1/2 for a tie, or a judge's
    probability; the two lengths are those of the two replies, in tokens or any one unit. theta is the policy's
    advantage, sigma(theta) the controlled win rate.

    One tie for each of the two coefficients is spread over the comparisons (Clogg et al. 1991, JASA 86, towards 1/2),
    so that ten wins of ten, or wins that go exactly with length, give finite numbers. The interval is Wald's on the
    logit scale with errors clustered by prompt; the ties given count as the half wins and half losses they are, which
    keeps a width where every comparison comes out alike. Where all replies are equally long, nothing is controlled.

    Raises:
        LengthsDoNotOverlapError: lengths that differ by nearly the same everywhere. No regression can say what would
            happen at equal length if no comparison comes near it.
        ValueError: an outcome outside [0, 1], or inputs of unequal length.
    """
    caller = "length_controlled_win_rate"
    y, own, other = finite_arrays(caller, outcome=outcome, length=length, reference_length=reference_length)
    if y.min() < 0 or y.max() > 1:
        raise ValueError(f"{caller}: outcomes run from {y.min()} to {y.max()}; they must lie in [0, 1].")
    raw = bootstrap_share(caller, y, clusters, 2000, seed, "win rate, ties 1/2")
    difference = own - other
    if not difference.any():
        none = Interval(0.0, None, None, raw.n, "all replies are equally long")
        return LengthControlled(raw, raw, none, 0.0, None)
    x = _design(difference)
    coefficients, covariance = _fit(x, y, clusters)
    errors, quantile = np.sqrt(np.diag(covariance)), Z
    if 1 < raw.n < len(y):  # prompts that are shared: few of them show their spread less surely (clustered.py)
        errors, quantile = errors * math.sqrt(raw.n / (raw.n - 1)), student_quantile(raw.n - 1)
    method = f"logistic regression on tanh(length difference / sd), two ties given; errors clustered, {raw.n} clusters"
    theta, phi = (
        Interval(float(b), float(b - quantile * s), float(b + quantile * s), raw.n, method)
        for b, s in zip(coefficients, errors, strict=True)
    )
    controlled = Interval(_sigma(theta.estimate), _sigma(theta.low or 0.0), _sigma(theta.high or 0.0), raw.n, method)
    return LengthControlled(controlled, raw, phi, float(difference.mean()), _warning(raw, controlled, difference))


def _design(difference: Array) -> Array:
    """(n, 2): the policy's indicator and the squashed length difference."""
    spread = float(difference.std())
    scaled = np.tanh(difference / spread) if spread > 0 else np.sign(difference)
    varies = float(scaled.var())
    if varies == 0 or 1 + float(scaled.mean()) ** 2 / varies > INFLATION:
        raise LengthsDoNotOverlapError(
            f"length_controlled_win_rate: lengths differ by {difference.mean():.1f} +- {spread:.1f} everywhere, so "
            "nothing shows what would happen at equal length. Compare policies whose lengths overlap, or report the "
            "raw win rate with the lengths beside it."
        )
    return np.column_stack([np.ones_like(scaled), scaled])


def _fit(x: Array, y: Array, clusters: Labels | None) -> tuple[Array, Array]:
    """The penalised estimate of the coefficients and its covariance: bread (X'WX)^-1, meat from scores by prompt.

    Newton's method; with M the widest change of a logit, t = ln(1 + M) / M of the step can only raise the likelihood.
    """
    n, coefficients = x.shape
    given = coefficients / n  # of a tie, at each comparison
    beta = np.zeros(coefficients)
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-x @ beta))
        information = x.T @ (x * (p * (1 - p) * (1 + given))[:, None])
        step = np.linalg.solve(information, x.T @ (y - p + given * (0.5 - p)))
        widest = float(np.abs(x @ step).max())
        if widest < 1e-9:
            break
        beta = beta + step * (math.log1p(widest) / widest)
    else:
        raise RuntimeError(f"length_controlled_win_rate: not converged after {NEWTON_STEPS} Newton steps.")
    bread = np.linalg.inv(information)
    scores = x * (y - p)[:, None]
    by_prompt = np.column_stack([by_cluster("length_controlled_win_rate", s, clusters)[0] for s in scores.T])
    halves = given / 2 * ((1 - p) ** 2 + p**2)  # the squared scores of half a win and half a loss
    covariance: Array = bread @ (by_prompt.T @ by_prompt + x.T @ (x * halves[:, None])) @ bread
    return beta, covariance


def _warning(raw: Interval, controlled: Interval, difference: Array) -> str | None:
    gap = raw.estimate - controlled.estimate
    if abs(gap) <= APART:
        return None
    longer, shorter = float((difference > 0).mean()), float((difference < 0).mean())
    words = (
        f"The raw win rate is {raw.estimate:.1%}, at equal length it is {controlled.estimate:.1%}: replies are "
        f"{abs(difference.mean()):.0f} {'longer' if difference.mean() > 0 else 'shorter'} on average, and length "
        f"explains {abs(gap) * 100:.0f} points."
    )
    if min(longer, shorter) < ONE_SIDED:
        rare = "shorter" if shorter < longer else "longer"
        words += f" Only {min(longer, shorter):.0%} of the replies are the {rare} ones, so this is extrapolated."
    return words


def _sigma(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))
