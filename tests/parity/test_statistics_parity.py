"""Ratings and length control against scipy's optimiser on the written-out likelihood, and on published judgements."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, stats

from llm_rlhf.statistics.length_control import length_controlled_win_rate
from llm_rlhf.statistics.ratings import bradley_terry

POINTS = 400 / np.log(10)


def tournament(seed: int) -> tuple[list[str], list[str], np.ndarray]:
    """Twelve players on a random connected graph, a few dozen comparisons, a fifth of them ties."""
    rng = np.random.default_rng(seed)
    strength = rng.normal(0, 1, 12)
    pairs = [(k, int(rng.integers(k))) for k in range(1, 12)] + [tuple(rng.permutation(12)[:2]) for _ in range(10)]
    first, second, outcome = [], [], []
    for i, j in pairs:
        for _ in range(int(rng.integers(3, 12))):
            won = float(rng.random() < 1 / (1 + np.exp(strength[j] - strength[i])))
            first.append(f"p{i:02d}")
            second.append(f"p{j:02d}")
            outcome.append(0.5 if rng.random() < 0.2 else won)
    return first, second, np.array(outcome)


def scipy_ratings(first: list[str], second: list[str], outcome: np.ndarray, prior: bool) -> np.ndarray:
    """The same likelihood, one term a comparison and two a given tie, minimised by BFGS."""
    names = sorted({*first, *second})
    i, j = (np.array([names.index(name) for name in side]) for side in (first, second))
    weight, y = np.ones(len(i)), outcome
    if prior:
        games = Counter(tuple(sorted(pair)) for pair in zip(i.tolist(), j.tolist(), strict=True))
        laplacian = np.zeros((len(names), len(names)))
        for (a, b), n in games.items():
            laplacian[[a, b], [a, b]] += n
            laplacian[[a, b], [b, a]] -= n
        inverse = np.linalg.pinv(laplacian)
        given = [(a, b, n * (inverse[a, a] + inverse[b, b] - 2 * inverse[a, b])) for (a, b), n in games.items()]
        assert sum(h for _, _, h in given) == pytest.approx(len(names) - 1)  # Foster's theorem
        i, j = np.r_[i, [a for a, _, _ in given]], np.r_[j, [b for _, b, _ in given]]
        weight, y = np.r_[weight, [h for _, _, h in given]], np.r_[y, np.full(len(given), 0.5)]

    def loss(rest: np.ndarray) -> float:
        theta = np.r_[0.0, rest]
        gap = theta[i] - theta[j]
        return float(weight @ (np.logaddexp(0, gap) - y * gap))

    found = optimize.minimize(loss, np.zeros(len(names) - 1), method="BFGS", options={"gtol": 1e-9})
    return POINTS * np.r_[0.0, found.x]


@pytest.mark.parametrize("seed", range(4))
def test_ratings_equal_scipys(seed: int) -> None:
    games = tournament(seed)
    found = bradley_terry(*games, reference="p00", resamples=100)
    ours = [row.rating.estimate for row in sorted(found.table, key=lambda row: row.player)]
    # BFGS stops at its finite-difference gradient, some 1e-6 of a logit off: hundredths of a point.
    np.testing.assert_allclose(ours, scipy_ratings(*games, prior=True), atol=0.02)


def test_plain_maximum_likelihood_equals_scipys() -> None:
    first, second, outcome = tournament(0)
    outcome = np.where(np.arange(len(outcome)) % 7 == 0, 0.5, outcome)
    found = bradley_terry(first, second, outcome, reference="p00", resamples=100, prior_ties=0)
    ours = [row.rating.estimate for row in sorted(found.table, key=lambda row: row.player)]
    np.testing.assert_allclose(ours, scipy_ratings(first, second, outcome, prior=False), atol=0.02)


@pytest.mark.parametrize(("wins", "n"), [(10, 10), (7, 10), (30, 100)])
def test_one_opponent_gives_jeffreys_interval(wins: int, n: int) -> None:
    """Prompts weighted Exp(1) and ties Gamma(1/2): the share won is Beta(wins + 1/2, losses + 1/2)."""
    outcome = [1.0] * wins + [0.0] * (n - wins)
    found = bradley_terry(["new"] * n, ["base"] * n, outcome, "base", resamples=20_000)
    rating = next(row.rating for row in found.table if row.player == "new")
    assert rating.low is not None
    assert rating.high is not None
    shares = [1 / (1 + 10 ** (-end / 400)) for end in (rating.low, rating.high)]
    expected = stats.beta(wins + 0.5, n - wins + 0.5)
    assert expected.cdf(shares) == pytest.approx([0.025, 0.975], abs=0.005)  # 4.5 errors of 20,000 draws


@pytest.mark.parametrize("seed", range(4))
def test_length_control_equals_scipys_penalised_likelihood(seed: int) -> None:
    """The log-likelihood of the comparisons and of 2/n of a tie beside each."""
    rng = np.random.default_rng(seed)
    own, other = rng.normal(220, 60, 60), rng.normal(200, 40, 60)
    difference = own - other
    x = np.column_stack([np.ones(60), np.tanh(difference / difference.std())])
    y = rng.choice([0.0, 0.5, 1.0], 60, p=[0.3, 0.2, 0.5])

    def loss(beta: np.ndarray) -> float:
        eta = x @ beta
        return float((np.logaddexp(0, eta) - y * eta + 2 / 60 * (np.logaddexp(0, eta) - 0.5 * eta)).sum())

    theirs = optimize.minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13}).x
    found = length_controlled_win_rate(y, own, other)
    assert found.controlled.estimate == pytest.approx(1 / (1 + np.exp(-theirs[0])), abs=1e-6)
    assert found.length_effect.estimate == pytest.approx(theirs[1], abs=1e-5)  # Nelder-Mead's own tolerance


def judgements() -> Path:
    beside = Path(__file__).parents[2] / "../shared/data/alpaca_eval/gpt4_pairwise_vs_davinci003.jsonl.gz"
    return Path(os.environ.get("LLM_RLHF_ALPACA_EVAL_FILE", beside))


@pytest.mark.slow
@pytest.mark.skipif(
    not judgements().is_file(), reason="needs AlpacaEval's pairwise judgements (LLM_RLHF_ALPACA_EVAL_FILE)"
)
def test_fifty_two_models_of_alpaca_eval() -> None:
    """Every comparison has one opponent, so each rating is that of its own record, and each win rate a count."""
    rows = []
    with gzip.open(judgements(), "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["preference"] in (1.0, 1.5, 2.0):  # 0.0 and null have no stated meaning
                rows.append((row["generator_2"], row["generator_1"], row["preference"] - 1, row["instruction"]))
    assert len(rows) == 41615
    models, opponents, outcomes, prompts = (list(column) for column in zip(*rows, strict=True))
    found = bradley_terry(models, opponents, outcomes, "text_davinci_003", prompts)
    assert len(found.table) == 53

    points, games = Counter[str](), Counter[str]()
    for model, outcome in zip(models, outcomes, strict=True):
        points[model] += outcome
        games[model] += 1
    for row in found.table:
        if row.player == "text_davinci_003":
            continue
        won, lost = points[row.player], games[row.player] - points[row.player]
        assert row.games == games[row.player]
        assert row.win_rate.estimate == pytest.approx(points[row.player] / games[row.player], abs=1e-12)
        assert row.rating.estimate == pytest.approx(400 * np.log10((won + 0.5) / (lost + 0.5)), abs=1e-4)
        assert row.rating.low is not None
        assert row.rating.high is not None
        assert row.rating.low < row.rating.estimate < row.rating.high
        assert row.rank_low <= row.rank <= row.rank_high
