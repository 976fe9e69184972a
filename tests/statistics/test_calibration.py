"""Margins read as probabilities: numbers worked by hand, scipy beside them, and worlds whose truth is known."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from llm_rlhf.statistics.calibration import (
    brier,
    calibrate,
    calibration_error,
    calibration_floor,
    ensemble_agreement,
    fit_temperature,
    log_loss,
    reliability_curve,
)

LOGIT_09 = math.log(9)  # sigma of it is 0.9


def world(n: int, temperature: float, seed: int = 0) -> np.ndarray:
    """Margins of a model that is calibrated at this temperature: the sign of each is right as often as it says."""
    rng = np.random.default_rng(seed)
    size = np.abs(rng.normal(0, 2 * temperature, n))
    right = rng.random(n) < 1 / (1 + np.exp(-size / temperature))
    return np.where(right, size, -size)


class TestTemperature:
    def test_nine_of_ten_right_with_equal_margins(self) -> None:
        """Of ten margins of size 2, nine are right: sigma(2 / T) = 0.9, so T = 2 / ln 9."""
        assert fit_temperature([2.0] * 9 + [-2.0]) == pytest.approx(2 / LOGIT_09, rel=1e-9)

    @pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
    def test_scipy_finds_the_same(self, scale: float) -> None:
        margins = np.random.default_rng(1).normal(0.7, 2.0, 300) * scale
        loss = lambda log_t: np.logaddexp(0, -margins / math.exp(log_t)).mean()  # noqa: E731
        best = optimize.minimize_scalar(loss, bounds=(math.log(scale) - 5, math.log(scale) + 7), method="bounded",
                                        options={"xatol": 1e-9})  # fmt: skip
        assert fit_temperature(margins) == pytest.approx(math.exp(best.x), rel=1e-5)

    @pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
    def test_a_world_of_known_temperature(self, temperature: float) -> None:
        # The estimate's standard error in 20,000 pairs is about 2 %.
        assert fit_temperature(world(20_000, temperature)) == pytest.approx(temperature, rel=0.06)

    def test_where_nothing_is_best_it_is_a_bound(self) -> None:
        assert fit_temperature([1.0, 3.0]) == pytest.approx(2e-3)  # every margin right: the surer, the better
        assert fit_temperature([-1.0, -3.0]) == pytest.approx(2e3)  # worse than chance: never sure
        assert fit_temperature([-1.0, 1.0]) == pytest.approx(1e3)

    @pytest.mark.parametrize(
        ("margins", "why"),
        [
            ([1.0, 3.0] * 20, "every one of the 40 held-out pairs is right, so that no certainty is too great"),
            (
                [-1.0, -3.0] * 20,
                "it is not more often right than wrong on the 40 held-out pairs, so that no certainty is too",
            ),
            ([2.0] * 39 + [-2.0], "every one of the 20 held-out pairs in one half is right"),  # the other has the error
            ([2.0, 2.0, -1.0] * 40, None),
        ],
    )
    def test_a_bound_is_not_called_a_temperature(self, margins: list[float], why: str | None) -> None:
        known = calibrate(margins, [f"p{i}" for i in range(len(margins))], resamples=100)
        assert (known["temperature"] is None) == (why is not None)
        assert (known["ece_after"] is None) == (known["curve_after"] is None) == (why is not None)
        assert known["ece_before"] is not None
        assert (known["no_temperature"] or "").startswith(why or "")

    @pytest.mark.parametrize(
        ("margins", "words"), [([], "at least one"), ([0.0, 0.0], "every margin is 0"), ([1.0, math.nan], "position 1")]
    )
    def test_nothing_to_fit_is_an_error(self, margins: list[float], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            fit_temperature(margins)


class TestErrors:
    def test_of_four_pairs(self) -> None:
        """Certainties 0.9, 0.9, 0.9 (two right, one wrong) and 0.5 (a tie, half right).

        ECE: the bin of 0.9 is |2/3 - 0.9| = 0.2333 off with weight 3/4, the tie is exact: 0.175. Brier: 0.01, 0.01,
        0.81, 0.25. Log loss: -ln 0.9 twice, -ln 0.1, ln 2.
        """
        margins = [LOGIT_09, LOGIT_09, -LOGIT_09, 0.0]
        assert calibration_error(margins).estimate == pytest.approx(0.175)
        assert brier(margins).estimate == pytest.approx((0.01 + 0.01 + 0.81 + 0.25) / 4)
        expected = -(2 * math.log(0.9) + math.log(0.1) + math.log(0.5)) / 4
        assert log_loss(margins).estimate == pytest.approx(expected)
        tie, sure = reliability_curve(margins)
        assert tie == {"low": 0.5, "high": 0.55, "n": 1, "certainty": 0.5, "accuracy": 0.5,
                       "accuracy_low": tie["accuracy_low"], "accuracy_high": tie["accuracy_high"]}  # fmt: skip
        assert (sure["low"], sure["high"], sure["n"]) == (pytest.approx(0.9), pytest.approx(0.95), 3)
        assert (sure["certainty"], sure["accuracy"]) == (pytest.approx(0.9), pytest.approx(2 / 3))
        wilson = stats.binomtest(2, 3).proportion_ci(method="wilson")
        assert (sure["accuracy_low"], sure["accuracy_high"]) == pytest.approx((wilson.low, wilson.high))

    def test_huge_margins_do_not_overflow(self) -> None:
        assert log_loss([1e6, -1e6]).estimate == pytest.approx(5e5)
        assert brier([1e6, -1e6]).estimate == 0.5

    def test_a_perfect_model_is_at_its_floor(self) -> None:
        """In 400 pairs a perfect model's error is well over 0; the floor is its mean over such samples."""
        errors = [calibration_error(world(400, 1.0, seed), resamples=100).estimate for seed in range(60)]
        floor = np.mean([calibration_floor(world(400, 1.0, seed)) for seed in range(5)])
        # 60 draws of a deviation of about 0.011: 4 standard errors are 0.006.
        assert np.mean(errors) == pytest.approx(floor, abs=0.006)
        assert floor > 0.02

    @pytest.mark.slow
    def test_the_interval_covers_a_known_error(self) -> None:
        """Twice too sure: the true error, from 300,000 pairs, lies in 95 % of the intervals; 50 of 60 at least."""
        truth = calibration_error(2 * world(300_000, 1.0, 99), resamples=100).estimate
        covered = 0
        for seed in range(60):
            found = calibration_error(2 * world(600, 1.0, seed), resamples=300)
            assert found.low is not None
            assert found.high is not None
            covered += found.low <= truth <= found.high
        assert covered >= 50

    def test_pairs_of_one_prompt_are_drawn_together(self) -> None:
        margins = world(200, 0.5)
        alone = calibration_error(margins)
        tenfold = calibration_error(np.tile(margins, 10), np.tile(np.arange(200), 10))
        assert tenfold.estimate == pytest.approx(alone.estimate)
        assert tenfold.n == alone.n == 200
        assert (tenfold.low, tenfold.high) == pytest.approx((alone.low, alone.high), abs=0.01)


class TestCalibrate:
    @pytest.mark.slow
    def test_overconfidence_is_found_and_mended_on_pairs_that_did_not_fit_it(self) -> None:
        found = calibrate(3 * world(4000, 1.0), np.arange(4000))
        assert found["temperature"] == pytest.approx(3.0, rel=0.1)
        assert found["ece_before"] > 0.1
        assert found["ece_after"] < 0.03
        assert found["log_loss_after"] < found["log_loss_before"]
        assert found["brier_after"] < found["brier_before"]
        assert found["halves"][0] != found["halves"][1]
        assert (found["n"], found["pairs"]) == (4000, 4000)

    def test_a_half_never_reads_its_own_temperature(self) -> None:
        """Pairs of one prompt are of one half. With two prompts each is read with the temperature of the other."""
        margins = np.array([2.0] * 9 + [-2.0] + [2.0] * 6 + [-2.0] * 4)
        found = calibrate(margins, ["a"] * 10 + ["b"] * 10)
        nine, six = 2 / math.log(9), 2 / math.log(6 / 4)
        assert sorted(found["halves"]) == pytest.approx(sorted([nine, six]))
        # a says 0.6 and is right in 0.9, b says 0.9 and is right in 0.6
        assert found["ece_after"] == pytest.approx(0.3)

    def test_one_prompt_cannot_be_split(self) -> None:
        found = calibrate([1.0, 2.0, -1.0], ["same"] * 3)
        assert found["temperature"] > 0
        assert found["ece_after"] is None
        assert found["halves"][0] is None


class TestEnsemble:
    def margins(self, informative: bool) -> np.ndarray:
        """Three members. Where informative, half the pairs are hard: members scatter there, and the mean errs more."""
        rng = np.random.default_rng(0)
        hard = rng.random(2000) < 0.5
        scatter = np.where(hard & informative, 3.0, 0.5)
        level = np.where(hard, 0.3, 1.5)
        return level[:, None] + rng.normal(0, 1, (2000, 1)) + scatter[:, None] * rng.normal(size=(2000, 3))

    def test_doubt_that_means_something(self) -> None:
        found = ensemble_agreement(self.margins(True), np.arange(2000), resamples=200)
        assert found["auroc_doubt"]["low"] > 0.6
        first, last = found["by_doubt"][0], found["by_doubt"][-1]
        assert first["accuracy"]["low"] > last["accuracy"]["high"]
        assert first["doubt"] < last["doubt"]
        assert found["accuracy_unanimous"]["estimate"] > found["accuracy_split"]["estimate"]
        assert sum(b["n"] for b in found["by_doubt"]) == 2000

    def test_doubt_that_means_nothing(self) -> None:
        found = ensemble_agreement(self.margins(False), np.arange(2000), resamples=200)
        assert found["auroc_spread"]["low"] < 0.5 < found["auroc_spread"]["high"]
        assert found["auroc_doubt"]["estimate"] <= found["auroc_margin"]["estimate"]  # all it knows is the margin

    def test_four_pairs_by_hand(self) -> None:
        """Means 2, 1, -1, 3 with deviations 0, 1/2, 2, 1 times the root of 2: doubt 0, .71, 2.83 (the error), .47."""
        margins = np.array([[2.0, 2.0], [0.5, 1.5], [-3.0, 1.0], [2.0, 4.0]])
        found: dict[str, Any] = ensemble_agreement(margins, ["a", "b", "c", "d"], bins=2, resamples=100)
        assert found["auroc_doubt"]["estimate"] == 1.0
        assert found["auroc_margin"]["estimate"] == pytest.approx(2.5 / 3)  # |mean|: 1 ties with 1, under 2 and 3
        assert found["unanimous"] == 0.75
        assert found["accuracy_unanimous"]["estimate"] == 1.0
        assert found["accuracy_split"]["estimate"] == 0.0
        assert [b["accuracy"]["estimate"] for b in found["by_doubt"]] == [1.0, 0.5]

    def test_without_errors_there_is_no_area(self) -> None:
        found = ensemble_agreement(np.ones((5, 2)), range(5))
        assert found["auroc_doubt"] is None
        assert found["accuracy_split"] is None

    def test_one_member_is_no_ensemble(self) -> None:
        with pytest.raises(ValueError, match="two or more"):
            ensemble_agreement(np.ones((5, 1)), range(5))
