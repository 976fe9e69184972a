"""What is shown of somebody: exact tails, paired shares, medians and Holm's steps, by hand and against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from llm_rlhf.statistics.intervals import median, paired_proportions, paired_shares
from llm_rlhf.statistics.shown import at_least, at_most, holm, paired_above


class TestTails:
    def test_by_hand(self) -> None:
        assert at_most(1, 3, 0.5) == pytest.approx(4 / 8)  # none, or one of three
        assert at_least(2, 2, 0.6) == pytest.approx(0.36)
        assert at_most(3, 3, 0.1) == at_least(0, 3, 0.1) == 1.0

    @pytest.mark.parametrize(("k", "n", "share"), [(0, 40, 0.75), (31, 40, 0.6), (700, 2000, 0.4), (5000, 9000, 0.55)])
    def test_against_scipy(self, k: int, n: int, share: float) -> None:
        assert at_most(k, n, share) == pytest.approx(stats.binom.cdf(k, n, share), rel=1e-8)
        assert at_least(k, n, share) == pytest.approx(stats.binom.sf(k - 1, n, share), rel=1e-8)

    def test_nothing_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="0 successes of 0"):
            at_most(0, 0, 0.5)
        with pytest.raises(ValueError, match="ends excluded"):
            at_most(1, 2, 1.0)


class TestPairedShares:
    def test_by_hand(self) -> None:
        # Differences 1, 1/2, -1/2, 0: sum 1, squares 1.5. Centre 1/6; variance of a row 2.5/6 - 1/36 = 14/36, over 6.
        found = paired_shares([1, 1, 0, 0], [0, 0.5, 0.5, 0])
        assert found.estimate == 0.25
        half = 1.959964 * math.sqrt(14 / 36 / 6)
        assert found[1:4] == pytest.approx((1 / 6 - half, 1 / 6 + half, 4))

    def test_of_zeros_and_ones_it_is_that_of_proportions(self) -> None:
        rng = np.random.default_rng(1)
        a, b = rng.integers(2, size=30), rng.integers(2, size=30)
        assert paired_shares(a, b)[:4] == paired_proportions(a, b)[:4]

    def test_above_a_margin_by_hand(self) -> None:
        # The same four: (1/6 - 1/10) is 0.2619 standard errors of sqrt(14/36/6) above the margin.
        p = paired_above([1, 1, 0, 0], [0, 0.5, 0.5, 0], 0.1)
        assert p == pytest.approx(stats.norm.sf((1 / 6 - 0.1) / math.sqrt(14 / 36 / 6)))

    def test_differences_that_are_all_alike_are_no_certainty(self) -> None:
        assert 0 < paired_above([1] * 20, [0.5] * 20, 0.1) < 0.05
        assert paired_above([1] * 2, [0.5] * 2, 0.1) > 0.05

    def test_no_share_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="b holds values outside 0 to 1"):
            paired_shares([0.5], [1.5])


class TestMedian:
    def test_by_hand(self) -> None:
        # P(Bin(10, 1/2) < 2) = 11/1024 = 1.1 %, below 3: 5.5 %. The second from either end.
        found = median([30, 1, 2, 3, 4, 5, 6, 7, 8, 9])
        assert found[:4] == (5.5, 2.0, 9.0, 10)

    def test_six_are_the_fewest(self) -> None:
        assert median([1, 2, 3, 4, 5])[1:3] == (None, None)  # 1/32 is 3.1 %
        assert median([1, 2, 3, 4, 5, 6])[1:3] == (1.0, 6.0)  # 1/64

    @pytest.mark.parametrize("n", [57, 1000, 1001, 5000])
    def test_against_scipy(self, n: int) -> None:
        found = median(np.arange(1, n + 1))
        low = stats.binom.ppf(0.025, n, 0.5)
        low -= stats.binom.cdf(low, n, 0.5) > 0.025
        assert found.low is not None
        assert low + 1 - found.low in ((0,) if n <= 1000 else (0, 1))  # the normal distribution may be one place wider
        assert found.high == n + 1 - found.low


class TestHolm:
    def test_by_hand(self) -> None:
        # Ascending .01, .02, .03, .2 times 4, 3, 2, 1: .04, .06, .06, .2 - the third no smaller than the second.
        assert holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
        assert holm([0.9, 0.8]) == [1.0, 1.0]
        assert holm([]) == []

    def test_of_many_true_ones_none_is_called_false_in_95_of_100(self) -> None:
        rng = np.random.default_rng(0)
        called = sum(min(holm(list(rng.random(30)))) <= 0.05 for _ in range(2000))
        assert called / 2000 == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 2000))
