"""Estimates and intervals, against numbers worked by hand and against scipy."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from llm_rlhf.statistics import intervals as statistics
from llm_rlhf.statistics.association import auroc, pearson, spearman
from llm_rlhf.statistics.intervals import (
    Interval,
    accuracy,
    bootstrap,
    bootstrap_mean,
    detectable_difference,
    detectable_from_interval,
    mcnemar,
    numbered,
    outcomes,
    paired_bootstrap,
    paired_proportions,
    wilson,
    win_rate,
)


def bounds(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def width(interval: Interval) -> float:
    low, high = bounds(interval)
    return high - low


class TestWilson:
    def test_half_of_four(self) -> None:
        """p = 1/2, n = 4: the centre is 1/2, the half-width z sqrt(1/16 + z^2/64) / (1 + z^2/4)."""
        z2 = 3.841459
        half = math.sqrt(z2) * math.sqrt(1 / 16 + z2 / 64) / (1 + z2 / 4)
        interval = wilson(2, 4)
        assert interval.estimate == 0.5
        assert bounds(interval) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)

    @pytest.mark.parametrize(("successes", "n"), [(0, 7), (7, 7), (1, 3), (350, 500), (1, 100_000)])
    def test_agrees_with_scipy(self, successes: int, n: int) -> None:
        theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
        assert bounds(wilson(successes, n)) == pytest.approx((theirs.low, theirs.high), abs=1e-12)  # same formula

    @pytest.mark.parametrize(("n", "half"), [(100, 0.088), (500, 0.040), (2000, 0.020)])
    def test_half_widths_to_expect_at_seventy_percent(self, n: int, half: float) -> None:
        assert width(wilson(7 * n // 10, n)) / 2 == pytest.approx(half, abs=0.0006)

    def test_keeps_a_width_at_both_ends(self) -> None:
        assert bounds(wilson(0, 10))[0] == 0.0
        assert bounds(wilson(0, 10))[1] > 0.2
        assert bounds(wilson(10, 10))[0] < 0.8

    @pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
    def test_refuses_the_impossible(self, successes: int, n: int) -> None:
        with pytest.raises(ValueError, match="wilson"):
            wilson(successes, n)


class TestMcNemar:
    def test_five_against_fifteen(self) -> None:
        """C(20, 0) + ... + C(20, 5) = 1 + 20 + 190 + 1140 + 4845 + 15504 = 21700, twice, over 2^20."""
        assert mcnemar(5, 15) == 2 * 21700 / 2**20
        assert mcnemar(15, 5) == mcnemar(5, 15)

    @pytest.mark.parametrize(("b", "c"), [(0, 1), (3, 3), (10, 4), (120, 170), (900, 1100)])
    def test_agrees_with_scipy(self, b: int, c: int) -> None:
        assert mcnemar(b, c) == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-9)

    def test_nothing_discordant_shows_nothing(self) -> None:
        assert mcnemar(0, 0) == 1.0

    def test_refuses_negative_counts(self) -> None:
        with pytest.raises(ValueError, match="negative"):
            mcnemar(-1, 3)


class TestBootstrap:
    def test_estimate_is_the_plain_mean(self) -> None:
        assert bootstrap_mean([1.0, 2.0, 6.0]).estimate == 3.0
        assert paired_bootstrap([3.0, 5.0], [1.0, 1.0]).estimate == 3.0  # (2 + 4) / 2, positive: the first is higher

    def test_interval_agrees_with_scipy(self) -> None:
        """A 2.5 % point from R resamples is known to se sqrt(.025 * .975 / R) / phi(1.96) = 2.67 se / sqrt(R).

        With R = 100,000 on both sides the two differ by 0.0119 se (one standard error); five of those are 0.06 se.
        A 93 % interval would be 0.15 se off.
        """
        values = np.random.default_rng(1).gamma(2.0, size=200)
        theirs = stats.bootstrap(
            (values,), np.mean, n_resamples=100_000, method="percentile", batch=2000, rng=np.random.default_rng(2)
        ).confidence_interval
        se = values.std() / math.sqrt(len(values))
        ours = bounds(bootstrap_mean(values, resamples=100_000))
        assert ours == pytest.approx((theirs.low, theirs.high), abs=0.06 * se)

    def test_covers_the_truth_in_95_of_100_draws(self) -> None:
        """Paired difference of 0.3 over prompts whose difficulty varies ten times as much.

        At n = 40 the percentile interval's true coverage is P(|t_39| < 1.96 sqrt(39/40)) = 0.940. The bounds are the
        1e-4 points of 400 draws at 0.935 and at 0.955.
        """
        rng = np.random.default_rng(0)
        draws, covered = 400, 0
        for draw in range(draws):
            difficulty = rng.normal(0, 3, 40)
            a = difficulty + 0.3 + rng.normal(0, 0.3, 40)
            b = difficulty + rng.normal(0, 0.3, 40)
            low, high = bounds(paired_bootstrap(a, b, resamples=600, seed=draw))
            covered += low <= 0.3 <= high
        assert stats.binom.ppf(1e-4, draws, 0.935) <= covered <= stats.binom.ppf(1 - 1e-4, draws, 0.955)

    def test_repeating_rows_of_a_prompt_adds_no_certainty(self) -> None:
        values = np.random.default_rng(3).normal(size=80)
        prompts = np.arange(80)
        alone = bootstrap_mean(values)
        repeated = bootstrap_mean(np.repeat(values, 4), clusters=np.repeat(prompts, 4))
        assert bounds(repeated) == pytest.approx(bounds(alone), abs=1e-12)  # the same draws of the same prompts
        assert repeated.n == 80
        fooled = bootstrap_mean(np.repeat(values, 4))
        assert width(fooled) == pytest.approx(width(alone) / 2, rel=0.12)  # 1/sqrt(4), each width known to about 2.5 %

    def test_clusters_may_have_unequal_sizes(self) -> None:
        interval = bootstrap_mean([1.0, 1.0, 4.0], clusters=["a", "a", "b"])
        assert interval.estimate == 2.0  # of replies, not of prompts
        assert interval.n == 2
        assert bounds(interval) == (1.0, 4.0)  # both draws from a; both from b: each 1 in 4

    def test_a_large_cluster_weighs_what_it_holds(self) -> None:
        """Four prompts with 1, 2, 3 and 4 replies worth 0, 1, 2 and 3 each: all 4^4 resamples, worked out in full.

        The mean is of replies. Exact points at 1.5 % and 3.5 %, and at 96.5 % and 98.5 %, bracket what 20,000 draws
        can place (2.5 % is known to 0.11 points).
        """
        sizes, worth = np.array([1, 2, 3, 4]), np.array([0.0, 1.0, 2.0, 3.0])
        draws = np.array(list(itertools.product(range(4), repeat=4)))
        exact = (sizes * worth)[draws].sum(axis=1) / sizes[draws].sum(axis=1)
        interval = bootstrap_mean(
            np.repeat(worth, sizes), clusters=np.repeat(["a", "b", "c", "d"], sizes), resamples=20_000
        )
        low, high = bounds(interval)
        assert interval.estimate == 2.0  # (0 + 2 + 6 + 12) / 10
        assert np.quantile(exact, 0.015) <= low <= np.quantile(exact, 0.035)
        assert np.quantile(exact, 0.965) <= high <= np.quantile(exact, 0.985)

    def test_pairing_is_used(self) -> None:
        rng = np.random.default_rng(4)
        difficulty = rng.normal(0, 3, 200)
        a, b = difficulty + 0.2 + rng.normal(0, 0.3, 200), difficulty + rng.normal(0, 0.3, 200)
        paired = paired_bootstrap(a, b)
        broken = paired_bootstrap(a, rng.permutation(b))
        assert paired.estimate == pytest.approx(broken.estimate)
        # sd of a difference: 0.42 paired, about 4.3 broken
        assert width(broken) > 7 * width(paired)
        assert bounds(paired)[0] > 0 > bounds(broken)[0]

    def test_swapping_the_sides_flips_the_sign(self) -> None:
        a, b = np.random.default_rng(5).normal(size=(2, 50))
        low, high = bounds(paired_bootstrap(a, b))
        assert bounds(paired_bootstrap(b, a)) == pytest.approx((-high, -low), abs=1e-12)

    def test_seeded(self) -> None:
        values = np.random.default_rng(6).normal(size=50)
        assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
        assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)

    def test_chunks_do_not_change_the_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = np.random.default_rng(7).normal(size=51)
        whole = bootstrap_mean(values)
        monkeypatch.setattr(statistics, "CHUNK", 51 * 7)
        assert bootstrap_mean(values) == whole

    def test_one_value_has_no_interval(self) -> None:
        interval = bootstrap_mean([2.0])
        assert (interval.estimate, interval.low, interval.high, interval.n) == (2.0, None, None, 1)
        assert "no interval" in interval.method

    def test_too_few_resamples(self) -> None:
        with pytest.raises(ValueError, match="resamples is 10"):
            bootstrap_mean([1.0, 2.0], resamples=10)


class TestShares:
    def test_outcomes_count_ties_half(self) -> None:
        assert outcomes([2, 1, 0], [1, 1, 1]).tolist() == [1.0, 0.5, 0.0]

    def test_win_rate_by_hand(self) -> None:
        assert win_rate([3, 3, 1, 0], [1, 2, 1, 5]).estimate == (1 + 1 + 0.5 + 0) / 4

    def test_ten_wins_of_ten_are_not_certainty(self) -> None:
        interval = win_rate(np.ones(10), np.zeros(10))
        assert interval.estimate == 1.0
        assert bounds(interval) == bounds(wilson(10, 10))

    def test_accuracy_is_wilson_unless_prompts_repeat(self) -> None:
        chosen, rejected = np.array([1.0] * 7 + [0.0] * 3), np.full(10, 0.5)
        assert bounds(accuracy(chosen, rejected)) == bounds(wilson(7, 10))
        assert "bootstrap" in accuracy(chosen, rejected, clusters=[0] * 5 + [1] * 5).method

    def test_a_model_that_ties_everything_scores_one_half(self) -> None:
        assert accuracy(np.zeros(8), np.zeros(8)).estimate == 0.5

    def test_paired_proportions_by_hand(self) -> None:
        """10 pairs, 3 yes only in a, 1 only in b: d = 2/12, variance (5/12 - 4/144) / 12 = 0.0324074."""
        a = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
        b = [0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
        interval = paired_proportions(a, b)
        half = 1.959964 * math.sqrt(0.0324074)
        assert interval.estimate == pytest.approx(0.2)
        assert bounds(interval) == pytest.approx((2 / 12 - half, 2 / 12 + half), abs=1e-5)

    def test_paired_proportions_stay_unsure_when_nothing_changed(self) -> None:
        low, high = bounds(paired_proportions([0] * 20, [0] * 20))
        assert low < -0.05
        assert high > 0.05

    def test_paired_proportions_want_yes_or_no(self) -> None:
        with pytest.raises(ValueError, match="other than 0 and 1"):
            paired_proportions([0.5, 1], [0, 1])


class TestCorrelation:
    X = np.array([1.0, 2, 2, 5, 7, 7, 7, 9, 12, 3])
    Y = np.array([2.0, 1, 4, 4, 9, 8, 8, 20, 11, 0])

    def test_pearson_agrees_with_scipy(self) -> None:
        theirs = stats.pearsonr(self.X, self.Y)
        interval = pearson(self.X, self.Y)
        assert interval.estimate == pytest.approx(theirs.statistic, abs=1e-12)
        expected = theirs.confidence_interval(0.95)
        assert bounds(interval) == pytest.approx((expected.low, expected.high), abs=1e-9)

    def test_spearman_agrees_with_scipy_under_ties(self) -> None:
        assert spearman(self.X, self.Y).estimate == pytest.approx(stats.spearmanr(self.X, self.Y).statistic, abs=1e-12)

    def test_spearman_sees_only_order(self) -> None:
        x = np.arange(1.0, 9.0)
        assert spearman(x, np.exp(x)).estimate == pytest.approx(1.0)
        assert spearman(x, -(x**3)).estimate == pytest.approx(-1.0)

    def test_spearman_interval_by_hand(self) -> None:
        r = spearman(self.X, self.Y).estimate
        half = 1.959964 * math.sqrt((1 + r * r / 2) / 7)
        expected = math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)
        assert bounds(spearman(self.X, self.Y)) == pytest.approx(expected, abs=1e-6)

    def test_constant_input_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="all values of y are equal"):
            pearson([1, 2, 3], [4, 4, 4])


class TestDetectable:
    def test_785_comparisons_tell_55_from_50(self) -> None:
        """(1.95996 + 0.84162)^2 * 0.25 / 0.05^2 = 784.9."""
        assert detectable_difference(785) <= 0.05 < detectable_difference(784)
        assert detectable_difference(197) <= 0.10 < detectable_difference(196)

    def test_scales_with_the_spread(self) -> None:
        assert detectable_difference(100, spread=2.0) == pytest.approx(2.80159 * 2 / 10, abs=1e-5)

    def test_read_off_an_interval(self) -> None:
        n, spread = 400, 1.3
        half = 1.959964 * spread / math.sqrt(n)
        assert detectable_from_interval(-half, half) == pytest.approx(detectable_difference(n, spread), rel=1e-6)

    def test_power_by_simulation(self) -> None:
        """A true win rate that far from one half is found about 80 times in 100; bounds are the 1e-4 points."""
        n, draws = 400, 2000
        p = 0.5 + detectable_difference(n)
        wins = np.random.default_rng(0).binomial(n, p, draws)
        found = int((np.abs(wins / n - 0.5) > 1.959964 * 0.5 / math.sqrt(n)).sum())
        assert stats.binom.ppf(1e-4, draws, 0.78) <= found <= stats.binom.ppf(1 - 1e-4, draws, 0.82)

    def test_refuses_nothing(self) -> None:
        with pytest.raises(ValueError, match="n is 0"):
            detectable_difference(0)


ONE_INPUT: list[Callable[..., Any]] = [bootstrap_mean]
TWO_INPUTS: list[Callable[..., Any]] = [
    paired_bootstrap, paired_proportions, outcomes, win_rate, accuracy, pearson, spearman
]  # fmt: skip


class TestNothingBecomesZero:
    @pytest.mark.parametrize("function", ONE_INPUT + TWO_INPUTS)
    def test_empty(self, function: Callable[..., Any]) -> None:
        inputs: list[list[float]] = [[]] if function in ONE_INPUT else [[], []]
        with pytest.raises(ValueError, match="is empty"):
            function(*inputs)

    @pytest.mark.parametrize("function", ONE_INPUT + TWO_INPUTS)
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_not_finite(self, function: Callable[..., Any], bad: float) -> None:
        inputs = [[1.0, bad, 0.0]] if function in ONE_INPUT else [[1.0, 0.0, 1.0], [0.0, bad, 1.0]]
        with pytest.raises(ValueError, match=r"1 of 3 values .* position 1"):
            function(*inputs)

    @pytest.mark.parametrize("function", TWO_INPUTS)
    def test_unequal_lengths(self, function: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match="unequal lengths"):
            function([1.0, 0.0], [1.0, 0.0, 1.0])

    def test_clusters_of_another_length(self) -> None:
        with pytest.raises(ValueError, match="one id per value"):
            bootstrap_mean([1.0, 2.0, 3.0], clusters=[1, 2])

    def test_nested_lists(self) -> None:
        with pytest.raises(ValueError, match="flat list"):
            bootstrap_mean(np.zeros((2, 2)))


def test_an_interval_becomes_an_entry_of_the_report() -> None:
    entry = wilson(3, 4).named("win_rate", "ppo", "sft", "gold").as_dict()
    assert list(entry) == [
        "name",
        "subject",
        "reference",
        "split",
        "estimate",
        "low",
        "high",
        "n",
        "method",
        "clusters",
    ]
    assert (entry["name"], entry["subject"], entry["reference"], entry["split"]) == ("win_rate", "ppo", "sft", "gold")
    assert (entry["estimate"], entry["n"]) == (0.75, 4)


class TestAuroc:
    def test_by_hand_with_a_tie(self) -> None:
        """Positives 3 and 2, negatives 2 and 1: of four comparisons three are won and one is tied."""
        assert auroc([3.0, 2.0, 2.0, 1.0], [True, True, False, False]).estimate == 3.5 / 4

    def test_is_mann_whitneys_u(self) -> None:
        rng = np.random.default_rng(0)
        scores, positive = np.round(rng.normal(size=300), 1), rng.random(300) < 0.3  # rounded: many ties
        u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
        found = auroc(scores, positive)
        assert found.estimate == pytest.approx(u / positive.sum() / (~positive).sum())
        low, high = bounds(found)
        assert low < found.estimate < high
        # Hanley and McNeil's standard error of an area near 1/2, sqrt((p + q + 1) / (12 p q))
        p, q = positive.sum(), (~positive).sum()
        assert high - low == pytest.approx(2 * 1.96 * math.sqrt((p + q + 1) / (12 * p * q)), rel=0.15)

    def test_rows_of_one_prompt_are_drawn_together(self) -> None:
        rng = np.random.default_rng(0)
        scores, positive = rng.normal(size=60), rng.random(60) < 0.5
        clustered = auroc(np.tile(scores, 20), np.tile(positive, 20), np.tile(np.arange(60), 20))
        assert clustered.n == 60
        assert width(clustered) == pytest.approx(width(auroc(scores, positive)), rel=0.15)

    def test_one_class_alone_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="all 2 rows are positive"):
            auroc([1.0, 2.0], [True, True])


class TestClusteredPearson:
    def test_copies_of_a_row_add_no_certainty(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=80)
        y = x + rng.normal(size=80)
        alone, copied = pearson(x, y), pearson(np.tile(x, 9), np.tile(y, 9), np.tile(np.arange(80), 9))
        assert copied.estimate == pytest.approx(alone.estimate)
        assert copied.n == 80
        assert bounds(copied) == pytest.approx(bounds(alone), abs=0.05)
        assert width(pearson(np.tile(x, 9), np.tile(y, 9))) < width(copied) / 2


class TestAnyStatistic:
    def test_of_a_mean_is_the_standard_error(self) -> None:
        values = np.random.default_rng(0).normal(size=400)
        found = bootstrap(lambda weights: weights @ values / weights.sum(1), 400)
        assert found.estimate == pytest.approx(values.mean())
        assert width(found) == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)

    def test_says_how_many_resamples_had_no_value(self) -> None:
        def sometimes(weights: Any) -> Any:
            return np.where(weights[:, 0] > 3, np.nan, weights[:, 0])

        assert "of them without a value" in bootstrap(sometimes, 10).method
        none = bootstrap(lambda weights: np.where(weights[:, 0] == 1, 1.0, np.nan), 10)
        assert none.low is None
        assert "too few rows" in none.method


def test_labels_are_numbered_as_they_are_ordered() -> None:
    labels = ["b", "a", "c", "a"]
    assert numbered(labels).tolist() == [1, 0, 2, 0] == np.unique(labels, return_inverse=True)[1].tolist()
