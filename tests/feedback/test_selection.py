"""Every candidate is chosen with the probability that is stored, and the inverse of it makes estimates unbiased."""

import itertools

import numpy as np
import pytest

from llm_rlhf.feedback.selection import (
    RANDOM_SHARE,
    STRATEGIES,
    choose,
    disagreement_of,
    inclusion_probabilities,
    pivotal_sample,
    uncertainty_of,
    weighted_mean,
)


def test_a_weighted_mean_by_hand() -> None:
    # Of 4 candidates, two drawn with probabilities 0.5 and 0.25: (2 / 0.5 + 3 / 0.25) / 4 = (4 + 12) / 4.
    assert weighted_mean([2, 3], [0.5, 0.25], 4) == 4.0


def test_the_weighted_mean_is_unbiased_over_every_sample_by_hand() -> None:
    """Three values, two drawn with probabilities 0.8, 0.8, 0.4: the design with P(ab)=0.6, P(ac)=P(bc)=0.2 has them."""
    values, of_each = np.array([1.0, 5.0, 9.0]), np.array([0.8, 0.8, 0.4])
    designs = {(0, 1): 0.6, (0, 2): 0.2, (1, 2): 0.2}
    for i in range(3):
        assert sum(p for pair, p in designs.items() if i in pair) == pytest.approx(of_each[i])
    expected = sum(p * weighted_mean(values[list(pair)], of_each[list(pair)], 3) for pair, p in designs.items())
    assert expected == pytest.approx(values.mean())
    # the plain mean of the chosen is not: 0.6 * 3 + 0.2 * 5 + 0.2 * 7 = 4.2, and the mean is 5
    assert sum(p * values[list(pair)].mean() for pair, p in designs.items()) == pytest.approx(4.2)


def test_inclusion_probabilities_by_hand() -> None:
    # 2 of weights 6, 1, 1: the first is certain, the others share what is left
    assert inclusion_probabilities([6, 1, 1], 2).tolist() == [1.0, 0.5, 0.5]
    assert inclusion_probabilities([1, 1, 2], 2).tolist() == [0.5, 0.5, 1.0]
    assert inclusion_probabilities([1, 2, 3, 4], 0).tolist() == [0, 0, 0, 0]
    assert inclusion_probabilities([1, 9], 2).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="without a chance"):
        inclusion_probabilities([1, 0], 1)


def test_uncertainty_and_disagreement_by_hand() -> None:
    assert uncertainty_of([0.0, np.log(3)]).tolist() == pytest.approx([1.0, 4 * 0.75 * 0.25])
    assert uncertainty_of([-800.0])[0] == pytest.approx(0.0, abs=1e-200)
    # probabilities 1/4 and 3/4: deviation 1/4
    assert disagreement_of([[np.log(3), -np.log(3)], [2.0, 2.0]]).tolist() == pytest.approx([0.25, 0.0])


@pytest.mark.parametrize("spread", [False, True])
def test_the_pivotal_method_keeps_probabilities_and_the_size(spread: bool) -> None:
    rng = np.random.default_rng(3)
    of_each = np.array([0.2, 0.9, 0.5, 0.4, 0.7, 0.3])  # adds up to 3
    vectors = np.eye(6, 2, dtype=np.float32) + 0.01 * rng.random((6, 2), np.float32) if spread else None
    draws = 4000
    counts = np.zeros(6)
    for _ in range(draws):
        places = pivotal_sample(of_each, rng, vectors)
        assert len(places) == 3
        counts[places] += 1
    # six binomial counts: 4 standard errors miss one of them in 3 000 seeds
    assert np.abs(counts / draws - of_each).max() < 4 * np.sqrt(0.25 / draws)


def test_neighbours_drive_each_other_out() -> None:
    """Of ten groups of alike prompts, ten are drawn: one of each, where a uniform draw repeats some."""
    rng = np.random.default_rng(0)
    vectors = np.repeat(np.eye(10, dtype=np.float32), 5, axis=0)
    groups = [
        len({place // 5 for place in choose(strategy, 10, 50, seed, prompts=vectors).places})
        for strategy, seed in itertools.product(("diverse", "random"), range(20))
    ]
    assert np.mean(groups[:20]) > 9.5
    assert np.mean(groups[20:]) < 7.5  # 10 (1 - 0.9^10) = 6.5 are expected, a little more without replacement
    assert rng is not None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_stored_propensities_are_the_frequencies_and_estimates_are_unbiased(strategy: str) -> None:
    rng = np.random.default_rng(1)
    candidates, number, draws = 40, 10, 3000
    spread, margin = rng.gamma(1, 0.1, candidates), rng.normal(0, 3, candidates)
    vectors = rng.normal(size=(candidates, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    truth = spread * 10 + margin  # what is asked for depends on what is chosen by: the plain mean is biased
    counts, slices, told, means, plain, of_slice = (
        np.zeros(candidates), np.zeros(candidates), np.full(candidates, np.nan), [], [], []
    )  # fmt: skip
    for seed in range(draws):
        found = choose(strategy, number, candidates, seed, spread, margin, vectors)
        assert len(found.places) == number
        assert sorted(set(found.places)) == found.places
        assert ((found.propensities > 0) & (found.propensities <= 1)).all()
        counts[found.places] += 1
        told[found.places] = found.propensities
        means.append(weighted_mean(truth[found.places], found.propensities, candidates))
        plain.append(truth[found.places].mean())
        uniform = [p for p, by in zip(found.places, found.strategies, strict=True) if by == "random"]
        slices[uniform] += 1
        if strategy == "mixed":
            assert len(uniform) >= RANDOM_SHARE * number
            assert found.slice_propensity is not None
            of_slice.append(weighted_mean(truth[uniform], np.full(len(uniform), found.slice_propensity), candidates))
    assert np.nanmax(np.abs(counts / draws - told)) < 4.5 * np.sqrt(0.25 / draws)
    error = np.std(means) / np.sqrt(draws)
    assert abs(np.mean(means) - truth.mean()) < 4 * error
    if strategy in ("disagreement", "margin", "mixed"):
        assert abs(np.mean(plain) - truth.mean()) > 10 * np.std(plain) / np.sqrt(draws)
    if strategy == "mixed":
        assert np.abs(slices / draws - found.slice_propensity).max() < 4.5 * np.sqrt(0.25 / draws)
        assert abs(np.mean(of_slice) - truth.mean()) < 4 * np.std(of_slice) / np.sqrt(draws)


def test_all_are_chosen_where_there_are_no_more() -> None:
    for strategy in STRATEGIES:
        found = choose(strategy, 9, 5, 0, np.ones(5), np.zeros(5), np.eye(5))
        assert found.places == [0, 1, 2, 3, 4]
        assert found.propensities.tolist() == [1.0] * 5


def test_mixed_does_with_what_is_known() -> None:
    assert len(choose("mixed", 3, 8, 0).places) == 3
    with pytest.raises(ValueError, match="margin of the candidates"):
        choose("margin", 3, 8, 0)
    with pytest.raises(ValueError, match="one of random"):
        choose("best", 3, 8, 0)


def test_the_same_seed_chooses_the_same() -> None:
    spread = np.linspace(0, 1, 30)
    assert choose("disagreement", 5, 30, 7, spread).places == choose("disagreement", 5, 30, 7, spread).places
    assert choose("disagreement", 5, 30, 7, spread).places != choose("disagreement", 5, 30, 8, spread).places
