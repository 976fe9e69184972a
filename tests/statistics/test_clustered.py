"""Intervals of prompts that come in wordings: numbers worked by hand, and the same bits where no two share one."""

import numpy as np
import pytest
from scipy import stats

from llm_rlhf.statistics.clustered import (
    clustered_change,
    clustered_difference,
    clustered_mean,
    clustered_proportion,
    clustered_share,
    effective_rows,
    spread_of,
    student_quantile,
    student_tail,
)
from llm_rlhf.statistics.intervals import bootstrap_share, paired_proportions, wilson

FOUR = np.repeat(np.arange(4), 3)
T3 = 3.182446  # Student's 97.5 % point of three degrees of freedom, to six places


def test_equal_clusters_give_the_t_interval_of_their_means() -> None:
    """Means 1, 2, 3 and 6: mean 3, their variance 14 / 3, that of the mean 7 / 6."""
    values = np.array([0.0, 1, 2, 1, 2, 3, 3, 3, 3, 5, 6, 7])
    found = clustered_mean(values, FOUR)
    half = T3 * np.sqrt(7 / 6)
    assert (found.estimate, found.n, found.clusters) == (3.0, 12, 4)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), abs=1e-5)  # the quantile's own places
    assert found.method == "mean, cluster-robust t interval over 4 wordings (CR2, 3.0 degrees of freedom)"
    paired = clustered_difference(values + 5, np.full(12, 5.0), FOUR)
    assert (paired.low, paired.high) == pytest.approx((found.low, found.high))


def test_unequal_clusters_by_hand() -> None:
    """Rows 1, 1 | 4: mean 2, sums of deviations -2 and 2, shares 2/3 and 1/3: (4 * 3 + 4 * 3/2) / 9 = 2.

    Of two clusters one contrast is left, whatever their sizes: one degree of freedom.
    """
    spread = spread_of(np.array([1.0, 1.0, 4.0]), [0, 0, 1])
    assert spread is not None
    assert spread.variance == pytest.approx(2.0)
    assert spread.freedom == pytest.approx(1.0)


def test_a_cluster_that_outweighs_the_others_costs_degrees_of_freedom() -> None:
    """Against the matrices written out: V = T'AT, 2 E(V)^2 / Var(V) = tr(AW)^2 / tr(AWAW)."""
    sizes = np.array([4.0, 4, 4, 20])
    share = sizes / sizes.sum()
    deviation = np.eye(4) - np.outer(share, np.ones(4))
    aw = deviation.T @ np.diag(1 / (1 - share)) @ deviation @ np.diag(sizes)
    expected = np.trace(aw) ** 2 / np.trace(aw @ aw)
    spread = spread_of(np.random.default_rng(0).normal(size=32), np.repeat(np.arange(4), sizes.astype(int)))
    assert spread is not None
    assert spread.freedom == pytest.approx(expected)
    assert spread.freedom < 2.5


@pytest.mark.parametrize("freedom", [1.0, 1.5, 2.0, 3.0, 7.3, 30.0, 499.0, 500.0, 5000.0])
def test_the_quantile_of_student(freedom: float) -> None:
    assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-5)  # the grid's own error


def test_a_proportion_has_the_rows_that_its_clusters_leave() -> None:
    """One of four wordings of three refuses everything: p = 1/4, sums of deviations -3/4 three times and 9/4.

    Variance (3 * 9/16 + 81/16) / (3/4) / 144 = 1/16; of twelve single rows (3/16) / 12 = 1/64. So 12 / 4 = 3 rows.
    """
    yes = np.repeat([1.0, 0, 0, 0], 3)
    assert effective_rows(yes, FOUR).rows == pytest.approx(3.0)
    found = clustered_proportion(yes, FOUR)
    centre = (1 / 4 + T3**2 / 6) / (1 + T3**2 / 3)
    half = T3 * np.sqrt(3 / 16 / 3 + T3**2 / 36) / (1 + T3**2 / 3)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-5)
    assert (found.n, found.clusters) == (12, 4)


def test_where_all_rows_are_alike_each_wording_counts_once() -> None:
    """None of 12 in 4 wordings: the upper bound is t^2 / (4 + t^2) = .717, not the .243 of 12 rows."""
    found = clustered_proportion(np.zeros(12), FOUR)
    assert found.low == 0.0
    assert found.high == pytest.approx(T3**2 / (4 + T3**2), abs=1e-5)
    change = clustered_change(np.zeros(12), np.zeros(12), FOUR)
    half = T3 * np.sqrt(1 / 36)  # (0 + 1) / (4 + 2) over 4 + 2
    assert (change.low, change.high) == pytest.approx((-half, half), abs=1e-5)


def test_rows_that_differ_less_than_chance_count_as_they_are() -> None:
    """Every wording refuses one of three: no variance between them, and still no more than 12 rows."""
    assert effective_rows(np.tile([1.0, 0, 0], 4), FOUR).rows == 12


def test_where_no_two_rows_share_a_wording_the_numbers_are_those_of_single_rows() -> None:
    rng = np.random.default_rng(0)
    a, b, labels = rng.normal(size=30), rng.normal(size=30), [f"q{i}" for i in rng.permutation(30)]
    yes, also = (a > 0).astype(float), (b > 0).astype(float)
    for found, values in ((clustered_mean(a, labels), a), (clustered_difference(a, b, labels), a - b)):
        wanted = stats.t.interval(0.95, 29, values.mean(), stats.sem(values))
        assert (found.low, found.high) == pytest.approx(wanted, abs=1e-5)
        assert (found.estimate, found.n) == (pytest.approx(values.mean()), 30)
    assert clustered_proportion(yes, labels) == wilson(int(yes.sum()), 30)
    assert clustered_change(yes, also, labels) == paired_proportions(yes, also)
    assert clustered_share(yes, labels, "won", 200) == bootstrap_share("x", yes, labels, 200, 0, "won")


@pytest.mark.parametrize("labels", [FOUR, range(12)])
def test_differences_that_are_all_equal_have_no_interval(labels) -> None:
    """A loss of 1.5 on one prompt of thirty is not seen on these twelve in two of three draws: 0 +- 0 ruled it out."""
    found = clustered_difference(np.ones(12), np.full(12, 0.5), labels)
    assert (found.estimate, found.low, found.high, found.n) == (0.5, None, None, 12)
    assert "all are equal" in found.method
    rounded = clustered_difference(np.arange(12) + 0.1, np.arange(12.0), labels)
    assert np.ptp(np.arange(12) + 0.1 - np.arange(12)) > 0
    assert rounded.low is None
    assert clustered_mean(np.zeros(12), labels).high == 0.0  # a distance of 0 is what it is


def test_one_wording_alone_has_no_interval() -> None:
    for found in (
        clustered_mean([1.0, 2.0], [0, 0]),
        clustered_proportion([1.0, 0.0], [0, 0]),
        clustered_change([1.0, 0.0], [0.0, 0.0], [0, 0]),
    ):
        assert found.low is None
        assert "one wording" in found.method


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="2 values but clusters of shape"):
        clustered_mean([1.0, 2.0], [0])
    with pytest.raises(ValueError, match="other than 0 and 1"):
        clustered_change([0.5, 1.0], [0.0, 1.0], [0, 0])
    with pytest.raises(ValueError, match="must be positive"):
        student_quantile(0.0)


@pytest.mark.parametrize("freedom", [1.0, 2.0, 2.7, 9.0, 30.0, 499.0, 500.0, 1e9])
def test_the_tail_of_students_t(freedom: float) -> None:
    for t in (-2.0, 0.0, 0.5, 2.0, 4.303, 6.0):
        assert student_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=2e-2, abs=1e-7)
    assert student_tail(student_quantile(freedom), freedom) == pytest.approx(0.025, abs=1e-5)
    with pytest.raises(ValueError, match="must be positive"):
        student_tail(1.0, 0.0)
