"""Reward against distance from the start: the curve's shape, its peak, and where two reward models part.

d = sqrt(KL) is the policy's distance from the model it started from, in square roots of nats. The gold reward first
grows with d and then falls, R(d) = d (alpha - beta d) for best-of-n and R(d) = d (alpha - beta ln d) for reinforcement
learning; R(0) = 0, so R is a gain over the start. Source: Gao, Schulman and Hilton 2022, section 3.1.

Scores come as a matrix, a row for each checkpoint in the order of training, the start first, and a column for each
prompt: checkpoints that answered the same prompts are paired, and their errors go together. Prompts of one wording move
together too: `clusters` gives each prompt's, and None takes each for one of its own.
"""

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llm_rlhf.statistics.clustered import spread_of, student_quantile
from llm_rlhf.statistics.intervals import LEVEL, Array, Interval, Labels, Values, by_cluster, finite_arrays, numbered

Form: TypeAlias = Literal["best_of_n", "rl"]
RESAMPLES = 2000
ALARM = 0.05  # the alarm's rate where the held-out reward is flat, whatever the training reward does


class Fit(NamedTuple):
    """R(d) = d (alpha - beta d) or d (alpha - beta ln d), fitted by least squares."""

    form: Form
    alpha: Interval  # score a unit of d: how fast the reward grows at first
    beta: Interval  # how fast that is lost
    peak: Interval | None  # the d of the highest reward; None where beta <= 0: the curve never turns
    peak_gain: float | None  # the curve's height there, in units of the score
    residual: float  # root mean square distance of the points from the curve, in units of the score

    def at(self, d: Values) -> Array:
        """The curve's height at each d >= 0, in units of the score."""
        alpha, beta = self.alpha.estimate, self.beta.estimate
        return _terms(np.asarray(d, dtype=np.float64), self.form) @ np.array([alpha, beta])


class Parting(NamedTuple):
    """Where the held-out reward stopped following the training reward, and whether that it fell is shown."""

    alarm: bool
    p: float  # chance of a fall as clear as this one if the held-out reward had been flat
    checkpoint: int  # the row at which the held-out reward stood highest; the last row: they did not part
    distance: Interval  # d there; the interval is that of the highest row over resampled prompts
    training_rise: Interval  # from that row to the last, in units of the training score
    heldout_change: Interval  # the same of the held-out score: negative is a fall
    message: str


def fit_curve(d: Values, gains: NDArray[Any] | Values, form: Form, clusters: Labels | None = None) -> Fit:
    """Least squares of the gains on d and -d^2 (best_of_n) or -d ln d (rl), through R(0) = 0; with intervals.

    `gains` is either (checkpoints, prompts), each prompt's score less its score at the start, or (checkpoints,), means.
    With prompts the errors are those of the prompts, which all checkpoints share: how the curve would move on other
    prompts, of other wordings where these are given. With means alone they are those of the points about the curve, for
    the points less two. Student's t in both. Rows at d = 0 say nothing and do not count. The peak is alpha / (2 beta),
    or exp(alpha / beta - 1); its interval is Fieller's for the ratio, and has no bounds where beta might be 0. Errors
    of d itself are not included.

    Raises:
        ValueError: fewer than two checkpoints with d > 0, fewer than four without prompts.
    """
    x, y, drawn = _points(d, gains, form)
    pseudo = np.asarray(np.linalg.pinv(x), dtype=np.float64)
    mean = y.mean(axis=1) if drawn else y[:, 0]
    coefficients = pseudo @ mean
    residuals = mean - x @ coefficients
    if drawn:
        n = y.shape[1]
        covariance, critical = _covariance(pseudo @ y, _labels(clusters, n))
        method = f"least squares; errors over {_units(clusters)}, which checkpoints share"
    else:
        n, critical = len(mean), student_quantile(len(mean) - 2)
        covariance = np.linalg.inv(x.T @ x) * float(residuals @ residuals) / (n - 2)
        method = f"least squares; errors of {n} points about the curve, Student's t"
    half = critical * np.sqrt(np.diag(covariance))  # infinite where all prompts are of one wording
    alpha, beta = (
        Interval(float(c), *_bounds(float(c), float(h)), n, method) for c, h in zip(coefficients, half, strict=True)
    )
    peak = _peak(alpha, beta, covariance, critical, form)
    height = None if peak is None else float((_terms(np.array([peak.estimate]), form) @ coefficients)[0])
    return Fit(form, alpha, beta, peak, height, math.sqrt(float((residuals**2).mean())))


def _covariance(own: Array, labels: Labels) -> tuple[Array, float]:
    """Of the means of each prompt's own two coefficients, (2, prompts), and Student's quantile."""
    spreads = [spread_of(values, labels) for values in (own[0], own[1], own[0] + own[1])]
    first, second, both = (math.inf if spread is None else spread.variance for spread in spreads)
    if math.isinf(both):
        return np.array([[math.inf, 0.0], [0.0, math.inf]]), 1.0
    cross = (both - first - second) / 2  # the variance is a square of the values
    return np.array([[first, cross], [cross, second]]), student_quantile(spreads[0].freedom)  # type: ignore[union-attr]


def _bounds(estimate: float, half: float) -> tuple[float | None, float | None]:
    return (None, None) if math.isinf(half) else (estimate - half, estimate + half)


def _labels(clusters: Labels | None, n: int) -> NDArray[np.intp]:
    """The number of each prompt's wording."""
    return np.arange(n) if clusters is None else numbered(clusters)


def _units(clusters: Labels | None) -> str:
    return "prompts" if clusters is None or len(np.unique(clusters)) == len(clusters) else "wordings of prompts"


def fitted(d: Values, fit: Fit) -> dict[str, Any]:
    """The fit as plain values: its coefficients and peak with their intervals, and 41 points of the curve up to d."""
    xs = np.linspace(0, float(np.max(d)), 41)
    return {
        "form": fit.form,
        "alpha": fit.alpha._asdict(),
        "beta": fit.beta._asdict(),
        "peak": None if fit.peak is None else fit.peak._asdict(),
        "curve": [[float(x), float(y)] for x, y in zip(xs, fit.at(xs), strict=True)],
    }


def _points(d: Values, gains: NDArray[Any] | Values, form: Form) -> tuple[Array, Array, bool]:
    """The design (m, 2), the gains (m, prompts or 1), and whether they are given by prompt; rows at d = 0 left out."""
    if form not in ("best_of_n", "rl"):
        raise ValueError(f"fit_curve: form is {form!r}; it must be best_of_n or rl.")
    (distance,) = finite_arrays("fit_curve", d=d)
    y: Array = np.asarray(gains, dtype=np.float64)
    drawn = y.ndim == 2
    y = y if drawn else y[:, None]
    if y.ndim != 2 or len(y) != len(distance):
        raise ValueError(f"fit_curve: {len(distance)} distances but gains of shape {np.shape(gains)}; give a row each.")
    if drawn and y.shape[1] < 2:
        raise ValueError(f"fit_curve: {y.shape[1]} prompts; errors over prompts need two.")
    if not np.isfinite(y).all():
        raise ValueError("fit_curve: some gains are not finite; leave out and count what could not be scored.")
    if distance.min() < 0:
        raise ValueError(f"fit_curve: d is {distance.min()} at its least; a square root of KL is not negative.")
    there = distance > 0
    least = 2 if drawn else 4
    if len(np.unique(distance[there])) < least:
        raise ValueError(
            f"fit_curve: {len(np.unique(distance[there]))} different distances above 0; two coefficients need {least}"
            f"{'' if drawn else ' when gains are means, or two with the gains of each prompt'}."
        )
    return _terms(distance[there], form), y[there], drawn


def _terms(d: Array, form: Form) -> Array:
    """(m, 2): the factors of alpha and beta. d ln d is 0 at 0."""
    if form == "best_of_n":
        return np.column_stack([d, -(d**2)])
    return np.column_stack([d, -d * np.log(np.where(d > 0, d, 1.0))])


def _peak(alpha: Interval, beta: Interval, covariance: Array, critical: float, form: Form) -> Interval | None:
    """Where the curve is highest, with Fieller's interval for alpha / beta; None where it only rises or only falls."""
    a, b = alpha.estimate, beta.estimate
    if b <= 0 or (form == "best_of_n" and a <= 0):
        return None

    def place(ratio: float) -> float:
        return max(ratio, 0.0) / 2 if form == "best_of_n" else math.exp(min(ratio - 1, 700.0))

    # The ratios r for which alpha - r beta may be 0: (a - r b)^2 <= t^2 (v_aa - 2 r v_ab + r^2 v_bb).
    t2 = critical**2
    square, cross = b * b - t2 * covariance[1, 1], a * b - t2 * covariance[0, 1]
    if square <= 0:
        return Interval(place(a / b), None, None, alpha.n, f"peak; beta may be 0, so it has no bounds; {beta.method}")
    root = math.sqrt(max(cross**2 - square * (a * a - t2 * covariance[0, 0]), 0.0))
    low, high = float((cross - root) / square), float((cross + root) / square)
    return Interval(place(a / b), place(low), place(high), alpha.n, f"peak, Fieller's interval; {beta.method}")


def parting(
    d: Values,
    training: NDArray[Any],
    heldout: NDArray[Any],
    resamples: int = RESAMPLES,
    seed: int = 0,
    judge: str = "held-out reward",
    clusters: Labels | None = None,
) -> Parting:
    """Where training and held-out reward part, and an alarm when the one rises while the other falls.

    Both matrices are (checkpoints, prompts), the start first. Of the last checkpoint and those from which the training
    reward rises to it (by 1.645 of its errors), they part at the one where the held-out reward stands highest. Taking
    the highest of several makes any fall from it look large, so falls are judged by how far they exceed the largest
    one that chance makes of a flat curve, on which a wording's change is as likely to be a rise as the fall that was
    seen: from each of those checkpoints, the fall to the last over the root of the wordings' squared changes; the
    largest of them, against the largest where every wording's changes have a sign drawn at random, the same for all
    checkpoints. The alarm is raised where at most 5 % of those are as large: of fewer than five wordings never, and of
    five hardly where the reward rose before it fell, as all signs turned are a fall from the start; six can show it.
    Source: Canay, Romano and Shaikh 2017, Econometrica 85(3), tests by signs of few clusters.

    Raises:
        ValueError: fewer than two checkpoints or fewer than 20 prompts, too few for their errors to be known.
    """
    distance, rewards, gold = _curves(d, training, heldout)
    n, last = gold.shape[1], len(distance) - 1
    labels = _labels(clusters, n)
    rng = np.random.default_rng(seed)
    totals = np.stack([by_cluster("parting", row, labels)[0] for row in gold])  # (checkpoints, wordings)
    changes = totals[-1] - totals[:-1]
    size = np.maximum(np.sqrt((changes**2).sum(axis=1)), 1e-12)  # nothing changed: no fall, not an undefined one
    rises = np.array([row.mean() > 1.645 * _error(row, labels) for row in rewards[-1] - rewards[:-1]])
    falls = (-changes / size[:, None])[rises]
    clearest = float(falls.sum(axis=1).max(initial=-np.inf))
    p = 1.0
    if clearest > 0:
        signs = rng.choice([-1.0, 1.0], size=(resamples, changes.shape[1]))
        # as large but for rounding: where every wording has its own sign, it is the same sum in another order
        p = float((1 + ((signs @ falls.T).max(axis=1) >= clearest - 1e-9).sum()) / (1 + resamples))

    candidates = np.append(rises, True)
    heights = np.where(candidates, gold.mean(axis=1), -np.inf)
    top = int(heights.argmax())
    counts = np.bincount(labels)
    drawn = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=resamples)
    means = (drawn @ totals.T) / (drawn @ counts)[:, None]
    tops = distance[np.where(candidates, means, -np.inf).argmax(axis=1)]
    low, high = np.quantile(tops, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], method="inverted_cdf")
    method = f"highest held-out reward; bootstrap over {_units(clusters)}, {resamples} resamples, seed {seed}"
    where = Interval(float(distance[top]), float(low), float(high), n, method)
    rise, change = _difference(rewards, top, labels), _difference(gold, top, labels)
    alarm = p <= ALARM
    return Parting(alarm, p, top, where, rise, change, _message(judge, alarm, top, last, where, rise, change, p))


def _curves(d: Values, training: NDArray[Any], heldout: NDArray[Any]) -> tuple[Array, Array, Array]:
    (distance,) = finite_arrays("parting", d=d)
    rewards, gold = np.asarray(training, dtype=np.float64), np.asarray(heldout, dtype=np.float64)
    for name, matrix in (("training", rewards), ("heldout", gold)):
        if matrix.ndim != 2 or len(matrix) != len(distance):
            raise ValueError(f"parting: {len(distance)} distances but {name} of shape {matrix.shape}; give a row each.")
        if not np.isfinite(matrix).all():
            raise ValueError(f"parting: some {name} scores are not finite; leave out and count those prompts.")
    if rewards.shape != gold.shape:
        raise ValueError(f"parting: training is {rewards.shape} and heldout {gold.shape}; both need the same prompts.")
    if len(distance) < 2 or gold.shape[1] < 20:
        raise ValueError(f"parting: {len(distance)} checkpoints, {gold.shape[1]} prompts; it needs 2 and 20.")
    return distance, rewards, gold


def _error(values: Array, labels: Labels) -> float:
    """Standard error of the mean; infinite where all are of one wording."""
    spread = spread_of(values, labels)
    return math.inf if spread is None else math.sqrt(spread.variance)


def _difference(scores: Array, top: int, labels: Labels) -> Interval:
    """Mean change from row `top` to the last, its prompts paired; 0 without an interval where they are one."""
    n = scores.shape[1]
    if top == len(scores) - 1:
        return Interval(0.0, None, None, n, "the last checkpoint itself")
    values = scores[-1] - scores[top]
    mean, spread = float(values.mean()), spread_of(values, labels)
    assert spread is not None  # of one wording no rise is known, and the last row is the highest there is
    half = spread.half_width
    method = "paired difference, cluster-robust t interval; its first row was chosen by its height"
    return Interval(mean, mean - half, mean + half, n, method)


def _message(
    judge: str, alarm: bool, top: int, last: int, where: Interval, rise: Interval, change: Interval, p: float
) -> str:
    if top == last:
        return f"The {judge} is highest at the last checkpoint: nothing shows over-optimisation."
    there = f"since sqrt(KL) = {where.estimate:.2f} (between {where.low:.2f} and {where.high:.2f})"
    changed = f"changed by {change.estimate:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"
    if alarm:
        chance = "p < .001" if p < 0.001 else f"p = {p:.3f}"
        return (
            f"Over-optimisation: {there} the training reward rose by {rise.estimate:.2f} while the {judge} {changed} "
            f"({chance}). Keep the checkpoint there, or raise ppo.kl_coef."
        )
    return f"The {judge} {changed} {there}: that it fell is not shown (p = {p:.2f})."
