"""Ratings of several policies from comparisons two at a time: Bradley-Terry on the Elo scale, with intervals and ranks.

Player i beats player j with probability 1 / (1 + 10^(-(r_i - r_j) / 400)), a tie counting as half a win for each. The
reference's rating is 0. Sources: Bradley and Terry 1952, Biometrika 39; Elo 1978; Hunter 2004, Annals of Statistics 32.

Three choices, each made for how its intervals cover (`docs/statistics.md` has the numbers):

- A player who won or lost everything has no finite maximum-likelihood rating. So each pair that met is given a part of
  a tie, h = n R, where n is how often it met and R its effective resistance in the graph of comparisons: between 0 and
  1, 1 where that pair alone connects its two sides, and P - 1 ties in all. With one opponent for everybody it is the
  customary half a win and half a loss (Haldane 1955; Firth 1993), which also removes the estimate's first-order bias.
  `prior_ties=0` turns it off, and then such a player is an error.
- Resamples weight every prompt by a draw from Exp(1) (Rubin 1981, Annals of Statistics 9) instead of drawing prompts
  with replacement: no pair ever drops out, so no resample falls into parts. The ties given get random weights as well,
  Gamma(h / 2) a side, so that ten wins of ten keep a width. For one opponent and independent games the percentiles
  are then those of Beta(wins + 1/2, losses + 1/2), Jeffreys' interval.
- Ranks come from the differences between two players, not from the spread of the rank itself.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_rlhf.statistics.intervals import (
    LEVEL,
    Array,
    Interval,
    Labels,
    Values,
    Z,
    bootstrap_share,
    finite_arrays,
    numbered,
)

ELO = 400 / math.log(10)  # points a logit: 173.7
RESAMPLES = 1000
CELLS = 2_000_000  # pairs, or pairs of players, times resamples held at once: 16 MB an array
NEWTON_STEPS = 200
LEAST = 1e-6  # of a win that chance may leave to a side: its rating is then some 3,000 points off, and finite
Index = NDArray[np.intp]


class Rated(NamedTuple):
    """One player of the table."""

    player: str
    rating: Interval  # Elo points above the reference
    rank: int  # 1 is best
    rank_low: int  # 1 + how many players are surely better
    rank_high: int  # the number of players less those that are surely worse
    win_rate: Interval  # points over comparisons, whoever they were against; ties 1/2, no prior
    games: int


class Ratings(NamedTuple):
    """The table, best first, and who met whom: matrices (P, P) in the table's order."""

    table: list[Rated]
    reference: str
    points: Array  # points[i, j]: what i won against j, ties 1/2
    games: Array  # games[i, j]: how often they met
    expected: Array  # expected[i, j]: the fitted probability that i beats j; 1/2 on the diagonal


class _Graph(NamedTuple):
    """Who met whom: P players, E pairs that met, n comparisons."""

    players: list[str]
    reference: int
    first: Index  # (E,) the pair's player of lower index
    second: Index  # (E,)
    pair: Index  # (n,) the pair of each comparison
    outcome: Array  # (n,) 1 where the pair's first player won
    cluster: Index  # (n,) the prompt
    ties: Array  # (E,) the ties given to each pair


def bradley_terry(
    first: Sequence[str],
    second: Sequence[str],
    outcome: Values,
    reference: str,
    clusters: Labels | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    prior_ties: float = 1.0,
) -> Ratings:
    """Ratings of everyone in `first` and `second`, in Elo points above `reference`, with 95 % intervals and ranks.

    outcome[k] is 1 where first[k] beat second[k], 0 where it lost, 1/2 for a tie; a judge's probability will do.
    `clusters` gives each comparison's prompt. `prior_ties` multiplies the ties given to the pairs, see the top.
    Each resample solves systems of players by players, a few times: meant for tens of players, not thousands.

    Raises:
        ValueError: comparisons of a player with itself, an outcome outside [0, 1], a reference who never played,
            players with no chain of comparisons to the reference, or, with `prior_ties=0`, players whose rating is
            infinite.
    """
    graph = _graph(first, second, outcome, reference, clusters, prior_ties)
    if resamples < 100:
        raise ValueError(f"bradley_terry: resamples is {resamples}; fewer than 100 cannot place a 2.5 % point.")
    wins = np.bincount(graph.pair, weights=graph.outcome)[:, None]
    games = np.bincount(graph.pair).astype(np.float64)[:, None]
    half = graph.ties[:, None] / 2
    theta = _fit(graph, wins + half, games - wins + half, np.zeros((len(graph.players), 1)))
    draws = _resampled(graph, theta, resamples, seed)
    return _table(graph, theta[:, 0], draws, seed)


def _graph(
    first: Sequence[str],
    second: Sequence[str],
    outcome: Values,
    reference: str,
    clusters: Labels | None,
    prior_ties: float,
) -> _Graph:
    (scores,) = finite_arrays("bradley_terry", outcome=outcome)
    n = len(scores)
    prompts = range(n) if clusters is None else clusters
    for label, given in (("first", first), ("second", second), ("clusters", prompts)):
        if len(given) != n:
            raise ValueError(f"bradley_terry: {n} outcomes but {len(given)} entries of {label}; give one a comparison.")
    if scores.min() < 0 or scores.max() > 1:
        raise ValueError(f"bradley_terry: outcomes run from {scores.min()} to {scores.max()}; they must lie in [0, 1].")
    if not (math.isfinite(prior_ties) and prior_ties >= 0):
        raise ValueError(f"bradley_terry: prior_ties is {prior_ties}; it must be finite and not negative.")
    players = sorted({str(player) for player in (*first, *second)})
    place = {player: k for k, player in enumerate(players)}
    one, other = (np.array([place[str(player)] for player in side], dtype=np.intp) for side in (first, second))
    if (one == other).any():
        k = int(np.flatnonzero(one == other)[0])
        raise ValueError(f"bradley_terry: comparison {k} sets {first[k]!r} against itself; leave it out.")
    if reference not in players:
        raise ValueError(f"bradley_terry: the reference {reference!r} is not among the players {players}.")
    low, high = np.minimum(one, other), np.maximum(one, other)
    codes, pair = np.unique(low * len(players) + high, return_inverse=True)
    graph = _Graph(
        players=players,
        reference=players.index(reference),
        first=codes // len(players),
        second=codes % len(players),
        pair=pair,
        outcome=np.where(one == low, scores, 1 - scores),
        cluster=numbered(prompts),
        ties=np.zeros(len(codes)),
    )
    _check_connected(graph, finite=prior_ties == 0)
    games = np.bincount(pair).astype(np.float64)
    inverse, others = np.zeros((len(players), len(players))), _others(graph)
    inverse[np.ix_(others, others)] = np.linalg.inv(_laplacian(graph, games[:, None])[0])
    i, j = graph.first, graph.second
    return graph._replace(ties=prior_ties * games * (inverse[i, i] + inverse[j, j] - 2 * inverse[i, j]))


def _check_connected(graph: _Graph, finite: bool) -> None:
    """Every player is linked to the reference; with `finite`, by a chain of wins and by a chain of losses."""
    wins = np.bincount(graph.pair, weights=graph.outcome)
    losses = np.bincount(graph.pair) - wins
    i, j = graph.first, graph.second
    both = _reached(graph, np.r_[i, j], np.r_[j, i])
    if not both.all():
        alone = [graph.players[k] for k in np.flatnonzero(~both)[:5]]
        raise ValueError(
            f"bradley_terry: {int((~both).sum())} players have no chain of comparisons to the reference "
            f"({', '.join(alone)}, ...); rate them apart, or compare them with somebody on the reference's side."
        )
    if not finite:
        return
    winner, loser = np.r_[i[wins > 0], j[losses > 0]], np.r_[j[wins > 0], i[losses > 0]]
    # Nobody whom the reference's wins reach, over however many steps, ever took a point from those they do not reach.
    for reached, side in ((_reached(graph, winner, loser), "above"), (_reached(graph, loser, winner), "below")):
        if not reached.all():
            extreme = [graph.players[k] for k in np.flatnonzero(~reached)[:5]]
            raise ValueError(
                f"bradley_terry: without prior_ties {int((~reached).sum())} players stand infinitely far {side} the "
                f"reference ({', '.join(extreme)}, ...): no chain of comparisons bounds them. Set prior_ties=1."
            )


def _reached(graph: _Graph, source: Index, target: Index) -> NDArray[np.bool_]:
    """Which players can be reached from the reference along the arrows source -> target."""
    reached = np.zeros(len(graph.players), dtype=bool)
    reached[graph.reference] = True
    while True:
        new = target[reached[source] & ~reached[target]]
        if not new.size:
            return reached
        reached[new] = True


def _laplacian(graph: _Graph, weights: Array) -> Array:
    """(B, P - 1, P - 1): sums over pairs of weight (e_i - e_j)(e_i - e_j)', weights (E, B), the reference left out."""
    size = len(graph.players)
    matrix = np.zeros((weights.shape[1], size, size))
    matrix[:, graph.first, graph.second] = matrix[:, graph.second, graph.first] = -weights.T
    matrix[:, np.arange(size), np.arange(size)] = -matrix.sum(axis=2)
    others = _others(graph)
    return matrix[:, others[:, None], others]


def _others(graph: _Graph) -> Index:
    return np.delete(np.arange(len(graph.players)), graph.reference)


def _win_probability(graph: _Graph, theta: Array) -> Array:
    """(E, B) that the pair's first player wins, from logits (P, B)."""
    return 1 / (1 + np.exp(theta[graph.second] - theta[graph.first]))


def _fit(graph: _Graph, wins: Array, losses: Array, theta: Array) -> Array:
    """Logits (P, B) that maximise the likelihood of `wins` and `losses` (E, B), each column a problem of its own.

    Newton's method. With M the widest step between two who met, t = ln(1 + M) / M of the step can only raise the
    likelihood (the logistic log-likelihood's third derivative is at most its second), and t tends to 1 at the optimum.
    """
    others = _others(graph)
    for _ in range(NEWTON_STEPS):
        p = _win_probability(graph, theta)
        score = _to_players(graph, wins * (1 - p) - losses * p)
        curvature = _laplacian(graph, (wins + losses) * p * (1 - p))
        step = np.zeros_like(score)  # the reference stays where it is
        step[others] = np.linalg.solve(curvature, score[others].T[:, :, None])[:, :, 0].T
        widest = np.maximum(np.abs(step[graph.first] - step[graph.second]).max(axis=0), 1e-300)
        theta = theta + step * (np.log1p(widest) / widest)
        if widest.max() < 1e-4:  # of a logit; a Newton step leaves about its square: 1e-6 Elo points
            return theta
    raise RuntimeError(f"bradley_terry: not converged after {NEWTON_STEPS} Newton steps.")


def _to_players(graph: _Graph, values: Array) -> Array:
    """(E, B) to (P, B): each pair's value added to its first player, taken from its second."""
    ends = np.r_[graph.first, graph.second]
    order = np.argsort(ends, kind="stable")
    starts = np.searchsorted(ends[order], np.arange(len(graph.players)))
    summed: Array = np.add.reduceat(np.concatenate([values, -values])[order], starts, axis=0)
    return summed


def _resampled(graph: _Graph, theta: Array, resamples: int, seed: int) -> Array:
    """Elo ratings (P, resamples) with prompts weighted at random, the reference at 0."""
    rng = np.random.default_rng(seed)
    pairs, prompts = len(graph.first), int(graph.cluster.max()) + 1
    draws = np.empty((len(graph.players), resamples))
    columns = max(1, CELLS // max(pairs, len(graph.players) ** 2))
    for start in range(0, resamples, columns):
        width = min(columns, resamples - start)
        wins, losses = np.maximum(rng.standard_gamma(graph.ties[:, None] / 2, size=(2, pairs, width)), LEAST)
        for b in range(width):
            weights = rng.standard_exponential(prompts)[graph.cluster]
            won = np.bincount(graph.pair, weights=weights * graph.outcome)
            wins[:, b] += won
            losses[:, b] += np.bincount(graph.pair, weights=weights) - won
        fitted = _fit(graph, wins, losses, np.repeat(theta, width, axis=1))
        draws[:, start : start + width] = ELO * fitted
    return draws


def _table(graph: _Graph, theta: Array, draws: Array, seed: int) -> Ratings:
    (size, resamples), ratings = draws.shape, ELO * theta
    wins, games = np.bincount(graph.pair, weights=graph.outcome), np.bincount(graph.pair)
    points, met = np.zeros((size, size)), np.zeros((size, size))
    points[graph.first, graph.second], points[graph.second, graph.first] = wins, games - wins
    met[graph.first, graph.second] = met[graph.second, graph.first] = games
    low, high = np.quantile(draws, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=1)
    better, worse = _surely(ratings, draws)
    prompts = int(graph.cluster.max()) + 1
    method = f"Bradley-Terry, Elo scale; percentiles, prompts weighted at random {resamples} times, seed {seed}"
    table = []
    order = np.argsort(-ratings, kind="stable")
    for rank, k in enumerate(order, start=1):
        rating = Interval(float(ratings[k]), float(low[k]), float(high[k]), prompts, method)
        if k == graph.reference:
            rating = Interval(0.0, None, None, prompts, "the reference: 0 by definition")
        played, share = _record(graph, k, resamples, seed)
        rank_low, rank_high = 1 + int(better[k]), size - int(worse[k])
        table.append(Rated(graph.players[k], rating, rank, rank_low, rank_high, share, played))
    expected = 1 / (1 + np.exp(theta[None, order] - theta[order, None]))
    at = np.ix_(order, order)
    return Ratings(table, graph.players[graph.reference], points[at], met[at], expected)


def _record(graph: _Graph, player: int, resamples: int, seed: int) -> tuple[int, Interval]:
    """How often a player was compared, and the share it won."""
    ahead, behind = graph.first[graph.pair] == player, graph.second[graph.pair] == player
    outcome = np.r_[graph.outcome[ahead], 1 - graph.outcome[behind]]
    prompts = np.r_[graph.cluster[ahead], graph.cluster[behind]]
    return len(outcome), bootstrap_share("bradley_terry", outcome, prompts, resamples, seed, "win rate, ties 1/2")


def _surely(ratings: Array, draws: Array) -> tuple[Index, Index]:
    """How many players are surely better, and surely worse, than each: the difference is over 1.96 of its errors."""
    covariance = np.atleast_2d(np.cov(draws))
    spread = np.diag(covariance)
    error = np.sqrt(np.maximum(spread[:, None] + spread[None, :] - 2 * covariance, 0))
    above = ratings[:, None] - ratings[None, :] > Z * error  # above[i, j]: i is surely better than j
    np.fill_diagonal(above, False)
    return above.sum(axis=0), above.sum(axis=1)
