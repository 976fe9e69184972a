"""The curves of reward against distance, their peak, and the alarm."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from llm_rlhf.statistics.overoptimization import Form, fit_curve, parting

D = np.linspace(0, 8, 9)


def curve(form: Form, alpha: float, beta: float, d: np.ndarray) -> np.ndarray:
    if form == "best_of_n":
        return d * (alpha - beta * d)
    return np.array([x * (alpha - beta * math.log(x)) if x else 0.0 for x in d])


class TestFit:
    @pytest.mark.parametrize(
        ("form", "peak", "height"),
        [("best_of_n", 2.0 / (2 * 0.25), 2.0**2 / (4 * 0.25)), ("rl", math.exp(7.0), 0.25 * math.exp(7.0))],
    )
    def test_points_on_the_curve(self, form: Form, peak: float, height: float) -> None:
        """alpha 2, beta 1/4: best-of-n turns at d = 4 with a gain of 4, RL at exp(8 - 1) with beta d."""
        found = fit_curve(D, curve(form, 2.0, 0.25, D), form)
        assert (found.alpha.estimate, found.beta.estimate) == pytest.approx((2.0, 0.25))
        assert found.peak is not None
        assert found.peak.estimate == pytest.approx(peak)
        assert found.peak_gain == pytest.approx(height)
        assert found.residual < 1e-9
        np.testing.assert_allclose(found.at(D), curve(form, 2.0, 0.25, D), atol=1e-9)

    @pytest.mark.parametrize("form", ["best_of_n", "rl"])
    def test_agrees_with_scipys_curve_fit(self, form: Form) -> None:
        rng = np.random.default_rng(0)
        gains = curve(form, 1.0, 0.2, D) + rng.normal(0, 0.1, len(D))
        theirs, covariance = optimize.curve_fit(lambda d, a, b: curve(form, a, b, d), D[1:], gains[1:])
        found = fit_curve(D, gains, form)
        assert (found.alpha.estimate, found.beta.estimate) == pytest.approx(tuple(theirs), rel=1e-6)
        half = stats.t.ppf(0.975, len(D) - 3) * np.sqrt(np.diag(covariance))
        assert found.alpha.high == pytest.approx(theirs[0] + half[0], rel=1e-6)  # curve_fit's own differences
        assert found.beta.low == pytest.approx(theirs[1] - half[1], rel=1e-6)

    def test_errors_over_prompts_are_those_of_each_prompts_own_fit(self) -> None:
        """The fit is linear, so the coefficients are the means of the prompts' own, and so are their errors."""
        rng = np.random.default_rng(1)
        gains = curve("best_of_n", 1.0, 0.2, D)[:, None] + np.cumsum(rng.normal(0, 0.5, (9, 60)), axis=0)
        alphas = [fit_curve(D, gains[:, k], "best_of_n").alpha.estimate for k in range(60)]
        found = fit_curve(D, gains, "best_of_n")
        assert found.alpha.estimate == pytest.approx(np.mean(alphas))
        assert found.alpha.high == pytest.approx(np.mean(alphas) + stats.t.ppf(0.975, 59) * stats.sem(alphas), rel=1e-6)

    def test_fiellers_interval_is_that_of_the_test(self) -> None:
        """A ratio r is inside exactly where alpha - r beta is within t of its errors of 0: check at both ends."""
        rng = np.random.default_rng(2)
        gains = curve("best_of_n", 1.0, 0.1, D)[:, None] + rng.normal(0, 3, (9, 100))
        found = fit_curve(D, gains, "best_of_n")
        assert found.peak is not None
        assert found.peak.low is not None
        assert found.peak.high is not None
        assert found.peak.low < found.peak.estimate < found.peak.high
        terms = np.linalg.pinv(np.column_stack([D[1:], -(D[1:] ** 2)]))
        own = terms @ gains[1:]  # (2, prompts)
        for end in (found.peak.low, found.peak.high):
            values = own[0] - 2 * end * own[1]
            assert abs(values.mean()) / stats.sem(values) == pytest.approx(stats.t.ppf(0.975, 99), rel=1e-6)

    def test_errors_over_wordings_are_those_of_their_means_where_they_are_equally_large(self) -> None:
        """Six wordings of ten prompts: the mean of six, with t of five. Every prompt a wording: as without."""
        rng = np.random.default_rng(4)
        gains = curve("best_of_n", 1.0, 0.2, D)[:, None] + np.cumsum(rng.normal(0, 0.5, (9, 60)), axis=0)
        wordings = np.repeat([f"how {number}" for number in range(6)], 10)
        found = fit_curve(D, gains, "best_of_n", wordings)
        means = [fit_curve(D, gains[:, wordings == name].mean(axis=1), "best_of_n") for name in np.unique(wordings)]
        for name in ("alpha", "beta"):
            of_wordings = [getattr(of, name).estimate for of in means]
            half = stats.t.ppf(0.975, 5) * stats.sem(of_wordings)
            assert getattr(found, name).high == pytest.approx(np.mean(of_wordings) + half, rel=1e-6)
        assert found.peak is not None
        assert "wordings" in found.peak.method
        assert fit_curve(D, gains, "best_of_n", np.arange(60)) == fit_curve(D, gains, "best_of_n")
        alone = fit_curve(D, gains, "best_of_n", ["one"] * 60)
        assert (alone.alpha.estimate, alone.alpha.low) == (found.alpha.estimate, None)
        assert alone.peak is not None
        assert (alone.peak.estimate, alone.peak.low) == (found.peak.estimate, None)

    def test_a_curve_that_only_rises_has_no_peak(self) -> None:
        found = fit_curve(D, D * 1.0 + 0.1 * D**2, "best_of_n")
        assert found.peak is None
        assert found.peak_gain is None

    def test_a_peak_without_bounds_says_so(self) -> None:
        rng = np.random.default_rng(3)
        gains = curve("best_of_n", 1.0, 0.01, D)[:, None] + rng.normal(0, 5, (9, 30))
        found = fit_curve(D, gains, "best_of_n")
        assert found.beta.low is not None
        assert found.beta.low < 0 < found.beta.estimate
        assert found.peak is not None
        assert found.peak.low is None
        assert "beta may be 0" in found.peak.method

    @pytest.mark.parametrize(
        ("d", "gains", "message"),
        [
            ([0, 1, 2], [0, 1, 2], "two coefficients need 4"),
            ([0, 1], [[0, 0], [1, 1]], "two coefficients need 2"),
            ([1, 2], [[0], [1]], "1 prompts"),
            ([1, 2], [1, 2, 3], "a row each"),
            ([-1, 1, 2, 3, 4], [1, 2, 3, 4, 5], "not negative"),
            ([1, 2, 3, 4], [1, 2, math.nan, 4], "not finite"),
            ([], [], "empty"),
        ],
    )
    def test_refusals(self, d: list[float], gains: list[float], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            fit_curve(d, gains, "best_of_n")
        with pytest.raises(ValueError, match="form"):
            fit_curve([1, 2, 3, 4], [1, 2, 3, 4], "cubic")  # type: ignore[arg-type]


def hacked(rng: np.random.Generator, fall: float, prompts: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Training reward rising throughout; held-out reward rising to d = 4 and falling by `fall` to d = 8."""
    difficulty = rng.normal(0, 1, prompts)
    training = 0.3 * D[:, None] + difficulty + rng.normal(0, 0.5, (9, prompts))
    shape = np.where(D <= 4, D / 4, 1 - fall * (D - 4) / 4)
    return training, shape[:, None] + difficulty + rng.normal(0, 0.5, (9, prompts))


class TestParting:
    def test_a_hacked_policy_raises_the_alarm(self) -> None:
        found = parting(D, *hacked(np.random.default_rng(0), fall=1.0))
        assert found.alarm
        assert found.p < 0.01
        assert found.distance.estimate == 4
        assert found.distance.low is not None
        assert found.distance.high is not None
        assert 3 <= found.distance.low <= found.distance.high <= 5
        assert found.heldout_change.high is not None
        assert found.heldout_change.high < 0
        assert found.training_rise.estimate == pytest.approx(1.2, abs=0.15)  # four units of d at .3; error .05
        assert "Over-optimisation" in found.message

    def test_a_sound_policy_does_not(self) -> None:
        found = parting(D, *hacked(np.random.default_rng(0), fall=-1.0))
        assert not found.alarm
        assert found.checkpoint == 8
        assert found.training_rise[:3] == (0.0, None, None)
        assert "nothing shows over-optimisation" in found.message

    def test_a_fall_of_both_is_not_over_optimisation(self) -> None:
        """A policy that simply got worse: the training reward fell as well."""
        _, heldout = hacked(np.random.default_rng(1), fall=1.0)
        found = parting(D, heldout, heldout)
        assert not found.alarm

    def test_they_cannot_part_where_the_training_reward_fell(self) -> None:
        """The held-out reward stood highest at the start, but so did the training reward: it only rose from row 1."""
        noise = np.random.default_rng(3).normal(0, 0.5, (3, 100))
        training, heldout = np.array([2.0, 0, 1])[:, None] + noise, np.array([3.0, 1, 0])[:, None] + noise
        found = parting([0, 1, 2], training, heldout)
        assert found.alarm
        assert found.checkpoint == 1
        assert found.distance[:3] == (1.0, 1.0, 1.0)

    def test_a_fall_that_is_the_same_on_every_prompt_is_certain(self) -> None:
        training, heldout = np.outer([0.0, 1.0], np.ones(30)), np.outer([1.0, 0.0], np.ones(30))
        found = parting([0, 2], training, heldout)
        assert found.alarm
        assert "p < .001" in found.message
        assert found.heldout_change[:3] == (-1.0, -1.0, -1.0)

    def test_what_wordings_do_counts_as_often_as_there_are_wordings(self) -> None:
        """Of 5 wordings all fall: one pattern of signs of 2^5 is as clear, p = 1 / 32; of 4 none is clear enough."""
        training, heldout = np.outer([0.0, 1.0], np.ones(40)), np.outer([1.0, 0.0], np.ones(40))
        five = parting([0, 2], training, heldout, clusters=[i % 5 for i in range(40)])
        assert five.alarm
        assert five.p == pytest.approx(1 / 32, abs=0.012)  # 2,000 draws: three of their errors of .004
        four = parting([0, 2], training, heldout, clusters=[i % 4 for i in range(40)])
        assert not four.alarm
        assert four.heldout_change[:3] == (-1.0, -1.0, -1.0)
        one = parting([0, 2], training, heldout, clusters=["one"] * 40)
        assert not one.alarm
        assert one.checkpoint == 1  # not even that the training reward rose is known

    def test_every_prompt_a_wording_is_as_without(self) -> None:
        scores = hacked(np.random.default_rng(5), fall=0.2)
        assert parting(D, *scores, clusters=[f"prompt {i:03}" for i in range(200)]) == parting(D, *scores)

    def test_same_seed_same_numbers(self) -> None:
        scores = hacked(np.random.default_rng(2), fall=0.1)
        assert parting(D, *scores, seed=1) == parting(D, *scores, seed=1)

    @pytest.mark.parametrize(
        ("rows", "prompts", "message"), [(1, 50, "it needs 2 and 20"), (3, 10, "it needs 2 and 20")]
    )
    def test_too_little_is_refused(self, rows: int, prompts: int, message: str) -> None:
        scores = np.zeros((rows, prompts))
        with pytest.raises(ValueError, match=message):
            parting(np.arange(rows), scores, scores)

    def test_refusals(self) -> None:
        scores = np.zeros((2, 30))
        with pytest.raises(ValueError, match="both need the same prompts"):
            parting([0, 1], scores, np.zeros((2, 31)))
        with pytest.raises(ValueError, match="some heldout scores are not finite"):
            parting([0, 1], scores, np.full((2, 30), np.nan))
        with pytest.raises(ValueError, match="a row each"):
            parting([0, 1, 2], scores, scores)
