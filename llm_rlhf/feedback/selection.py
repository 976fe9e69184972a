"""Which candidates people are asked about, chosen by chance, each with a probability that is known beforehand.

1. A strategy gives every candidate a weight: the same (`random`, `diverse`), the variance of reward models' opinions of
   it (`disagreement`), or of the label that they expect (`margin`), largest where the two answers are close.
2. Weights become inclusion probabilities that add up to the number wanted: proportional to the weight, 1 at most.
3. A sample of that size is drawn by the pivotal method, in which two candidates at a time settle which of them goes on;
   every one is in it with just its probability. Where those two are neighbours, alike ones drive each other out and the
   sample is spread (`diverse`, `mixed`); where they are any two, it is not.
4. `mixed` weighs by both variances, spreads, and keeps a slice drawn uniformly.

Known probabilities are what makes chosen data honest: weighed by their inverse, labels tell of all candidates without
bias, whatever the strategy preferred (`weighted_mean`).

Sources: Horvitz and Thompson 1952, A generalization of sampling without replacement from a finite universe; Deville and
Tillé 1998, Unequal probability sampling without replacement through a splitting method (the pivotal method); Grafström,
Lundström and Schelin 2012, Spatially balanced sampling through the pivotal method.

Layout: N candidates, n chosen of them, M reward models, D dimensions of a prompt.
"""

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]

STRATEGIES = ("random", "disagreement", "margin", "diverse", "mixed")
RANDOM_SHARE = 0.2  # of what `mixed` chooses, at least
LEAST = 0.1  # of the mean weight, that every candidate has: no label counts more than tenfold when weighed back
NEIGHBOURS = 2000  # candidates among which the nearest is looked for; of more, as many drawn at random
RANDOM = "random"


class Chosen(NamedTuple):
    """Candidates that were drawn, in the order of their places."""

    places: list[int]
    propensities: Array  # (n,), of having been drawn, in (0, 1]
    strategies: list[str]  # (n,), "random" for those of the uniform slice
    slice_propensity: float | None  # of every candidate, of being in the uniform slice; None where there is none


def choose(
    strategy: str,
    number: int,
    candidates: int,
    seed: int,
    disagreement: ArrayLike | None = None,
    margin: ArrayLike | None = None,
    prompts: ArrayLike | None = None,
) -> Chosen:
    """Draw `number` of the candidates, all where there are no more.

    Args:
        disagreement: (N,), at least 0: the models' spread; for `disagreement`, and `mixed` where it is known.
        margin: (N,), by how much one answer is better, in log-odds; for `margin`, and `mixed` where it is known.
        prompts: (N, D), unit vectors, for `diverse`, and `mixed` where they are known.

    Raises:
        ValueError: for an unknown strategy, or where what it goes by is not given.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"The strategy is {strategy!r}; it is one of {', '.join(STRATEGIES)}.")
    needed = {"disagreement": disagreement, "margin": margin, "diverse": prompts}
    if strategy in needed and needed[strategy] is None:
        raise ValueError(f"The strategy {strategy} goes by what is not known here: {strategy} of the candidates.")
    if number < 1 or candidates < 1:
        raise ValueError(f"{number} of {candidates} candidates cannot be drawn.")
    number, rng = min(number, candidates), np.random.default_rng(seed)
    vectors = None if prompts is None else np.asarray(prompts, np.float32)
    if strategy == "mixed":
        return _mixed(number, _weights(candidates, disagreement, margin), vectors, rng)
    weights = _weights(
        candidates,
        disagreement if strategy == "disagreement" else None,
        margin if strategy == "margin" else None,
    )
    of_each = inclusion_probabilities(weights, number)
    places = pivotal_sample(of_each, rng, vectors if strategy == "diverse" else None)
    uniform = number / candidates if strategy == RANDOM else None
    return Chosen(places.tolist(), of_each[places], [strategy] * len(places), uniform)


def disagreement_of(margins: ArrayLike) -> Array:
    """How far models are apart about which answer is better: the deviation of their probabilities, (N,), 0 to 0.5.

    Args:
        margins: (N, M), in log-odds of each model.
    """
    return _sigmoid(np.asarray(margins, float)).std(axis=1)


def uncertainty_of(margin: ArrayLike) -> Array:
    """The variance of a label that Bradley and Terry's model expects, 1 where the answers are equal to it, 0 far apart.

    Args:
        margin: (N,), in log-odds.
    """
    probability = _sigmoid(np.asarray(margin, float))
    return 4 * probability * (1 - probability)


def inclusion_probabilities(weights: ArrayLike, number: int) -> Array:
    """min(1, c w) with the c for which they add up to `number`, (N,).

    Args:
        weights: (N,), all above 0.
    """
    weights = np.asarray(weights, float)
    if not (weights > 0).all() or not np.isfinite(weights).all():
        raise ValueError("A weight is not above 0: no candidate may be left without a chance.")
    if not 0 <= number <= len(weights):
        raise ValueError(f"{number} of {len(weights)} cannot be drawn.")
    certain = np.zeros(len(weights), bool)
    while True:  # those beyond 1 are certain, and the rest share what is left: fewer rounds than candidates
        left = number - certain.sum()
        found = np.where(certain, 1.0, weights * (left / max(weights[~certain].sum(), np.finfo(float).tiny)))
        beyond = (found > 1) & ~certain
        if not beyond.any():
            return np.minimum(found, 1.0)
        certain |= beyond


def pivotal_sample(
    probabilities: Array, rng: np.random.Generator, vectors: NDArray[np.float32] | None = None
) -> NDArray[np.intp]:
    """The places of a sample in which every candidate is with just its probability, sorted.

    Their number is the sum of the probabilities, where that is whole.

    Args:
        vectors: (N, D), unit: nearest neighbours compete, so that the sample is spread; None: any two compete.
    """
    left = np.array(probabilities, float)
    near = 1e-9  # of 0 and 1, where rounding ends
    undecided = rng.permutation(np.flatnonzero((left > near) & (left < 1 - near))).tolist()
    while len(undecided) > 1:
        one = undecided[-1]
        place = len(undecided) - 2 if vectors is None else _nearest(vectors, one, undecided, rng)
        other = undecided[place]
        left[one], left[other] = _duel(left[one], left[other], rng)
        for at in (len(undecided) - 1, place):  # the last one first: the other's place stays
            if not near < left[undecided[at]] < 1 - near:
                undecided[at] = undecided[-1]
                undecided.pop()
        if undecided:  # whoever is left of the two meets somebody else next
            swap = int(rng.integers(len(undecided)))
            undecided[-1], undecided[swap] = undecided[swap], undecided[-1]
    if undecided:  # what rounding, or a sum that is not whole, has left
        left[undecided[0]] = float(rng.random() < left[undecided[0]])
    return np.flatnonzero(left > 0.5)


def weighted_mean(values: ArrayLike, propensities: ArrayLike, candidates: int) -> float:
    """The mean over all candidates, from those that were drawn: the sum of value / propensity, over N. It is unbiased.

    Source: Horvitz and Thompson 1952, equation 8.
    """
    return float((np.asarray(values, float) / np.asarray(propensities, float)).sum() / candidates)


def _weights(candidates: int, disagreement: ArrayLike | None, margin: ArrayLike | None) -> Array:
    """Of each candidate, above 0: the variance between models, times that of the label; 1 where neither is known.

    What models disagree about, more data can settle. What all of them find even may be even, and a label a coin's: the
    second alone would ask about that first.
    """
    weights = np.ones(candidates)
    if disagreement is not None:
        weights = weights * np.asarray(disagreement, float) ** 2
    if margin is not None:
        weights = weights * uncertainty_of(margin)
    if not weights.any():
        return np.ones(candidates)
    return np.maximum(weights, LEAST * weights.mean())


def _mixed(number: int, weights: Array, vectors: NDArray[np.float32] | None, rng: np.random.Generator) -> Chosen:
    """By weight and spread, then others uniformly; and of the first as many as the uniform slice would have met.

    Of N candidates `wanted` are drawn with probabilities b by weight. Of the N - wanted others `extra` are drawn
    uniformly: each with q = extra / (N - wanted). Of the first, wanted q are drawn uniformly into the slice too,
    rounded up or down by chance. So every candidate is in the slice with probability q, whatever its weight; and in
    the whole with b + (1 - b) q.
    """
    extra = math.ceil(RANDOM_SHARE * number)
    wanted, candidates = number - extra, len(weights)
    by_weight = inclusion_probabilities(weights, wanted)
    first = pivotal_sample(by_weight, rng, vectors)
    others = np.setdiff1d(np.arange(candidates), first)
    uniform = extra / len(others)
    shared = math.floor(wanted * uniform + rng.random())
    in_slice = {*rng.choice(others, extra, replace=False).tolist(), *rng.permutation(first)[:shared].tolist()}
    places = sorted({*first.tolist(), *in_slice})
    whole = by_weight + (1 - by_weight) * uniform
    return Chosen(places, whole[places], [RANDOM if p in in_slice else "mixed" for p in places], uniform)


def _duel(one: float, other: float, rng: np.random.Generator) -> tuple[float, float]:
    """One of two becomes 0 or 1, the other takes what is left of their sum; each keeps its expectation."""
    both = one + other
    if both < 1:
        return (both, 0.0) if rng.random() * both < one else (0.0, both)
    return (1.0, both - 1) if rng.random() * (2 - both) < 1 - other else (both - 1, 1.0)


def _nearest(vectors: NDArray[np.float32], one: int, undecided: list[int], rng: np.random.Generator) -> int:
    """Where in `undecided`, whose last is `one`, its nearest neighbour stands; the first met of several."""
    count = len(undecided) - 1
    among = np.arange(count) if count <= NEIGHBOURS else rng.integers(count, size=NEIGHBOURS)
    likeness = vectors[np.asarray(undecided)[among]] @ vectors[one]
    return int(among[int(likeness.argmax())])


def _sigmoid(values: Array) -> Array:
    return 1 / (1 + np.exp(-np.clip(values, -500, 500)))
