"""The length-controlled win rate in worlds where the truth is known."""

import math

import numpy as np
import pytest

from llm_rlhf.statistics.length_control import LengthControlled, length_controlled_win_rate


def sigma(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def judged(rng: np.random.Generator, n: int, better: float, longer: float, bias: float) -> LengthControlled:
    """A judge to whom the policy is `better` logits better and a reply longer by one sd worth `bias` tanh(1)."""
    reference = rng.normal(200, 40, n)
    own = reference + rng.normal(longer, 80, n)
    difference = own - reference
    p = 1 / (1 + np.exp(-better - bias * np.tanh(difference / difference.std())))
    return length_controlled_win_rate((rng.random(n) < p).astype(float), own, reference)


class TestPlantedWorlds:
    def test_longer_but_no_better(self) -> None:
        found = judged(np.random.default_rng(0), 500, better=0.0, longer=80, bias=2.0)
        assert found.raw.estimate > 0.6
        assert found.raw.low is not None
        assert found.raw.low > 0.5
        assert found.controlled.low is not None
        assert found.controlled.high is not None
        assert found.controlled.low < 0.5 < found.controlled.high
        assert found.warning is not None
        assert "longer" in found.warning
        assert "extrapolated" not in found.warning  # a fifth of its replies are the shorter ones

    def test_hardly_ever_shorter_is_said_to_be_extrapolated(self) -> None:
        found = judged(np.random.default_rng(3), 500, better=0.0, longer=140, bias=2.0)
        assert found.warning is not None
        assert "% of the replies are the shorter ones, so this is extrapolated" in found.warning

    def test_better_and_no_longer(self) -> None:
        found = judged(np.random.default_rng(1), 500, better=1.0, longer=0, bias=1.0)
        assert found.controlled.estimate == pytest.approx(sigma(1.0), abs=0.06)  # two errors at n = 500
        assert abs(found.raw.estimate - found.controlled.estimate) < 0.05
        assert found.warning is None

    def test_shorter_and_better_is_given_its_due(self) -> None:
        found = judged(np.random.default_rng(2), 1000, better=0.8, longer=-80, bias=2.0)
        assert found.raw.estimate < 0.5
        assert found.controlled.low is not None
        assert found.controlled.low > 0.5
        assert found.warning is not None
        assert "shorter" in found.warning


class TestByHand:
    def test_symmetric_data(self) -> None:
        """Longer by 10 wins 3 of 4, shorter by 10 wins 1 of 4, equally often: theta is 0, the win rate one half.

        sd = 10, tanh(1) = .7616. Of the two ties given each group of four gets one, half a win and half a loss: 3.5
        of 5, and phi tanh(1) = ln(3.5 / 1.5).
        """
        own = np.array([10.0] * 4 + [-10.0] * 4) + 100
        found = length_controlled_win_rate([1, 1, 1, 0, 0, 0, 0, 1], own, np.full(8, 100.0))
        assert found.controlled.estimate == pytest.approx(0.5, abs=1e-9)
        assert found.length_effect.estimate == pytest.approx(math.log(3.5 / 1.5) / math.tanh(1), abs=1e-6)

    def test_the_interval_of_one_balanced_group(self) -> None:
        """As above: eight observations and two given ones of information .21; the squared scores, own and given, as
        below; theta's variance is meat / bread^2, its covariance with phi 0 by symmetry."""
        own = np.array([10.0] * 4 + [-10.0] * 4) + 100
        found = length_controlled_win_rate([1, 1, 1, 0, 0, 0, 0, 1], own, np.full(8, 100.0))
        p = 0.7
        bread = 8 * p * (1 - p) * (1 + 1 / 4)
        meat = 2 * (3 * (1 - p) ** 2 + p**2) + 2 * 0.5 * ((1 - p) ** 2 + p**2)
        half = 1.959964 * math.sqrt(meat) / bread
        assert found.controlled.low == pytest.approx(sigma(-half), abs=1e-6)
        assert found.controlled.high == pytest.approx(sigma(half), abs=1e-6)

    def test_equal_lengths_leave_the_raw_win_rate(self) -> None:
        found = length_controlled_win_rate([1, 1, 0, 0.5], [5, 6, 7, 8], [5, 6, 7, 8])
        assert found.controlled == found.raw
        assert found.raw.estimate == 0.625
        assert found.warning is None

    def test_swapping_sides_mirrors_everything(self) -> None:
        rng = np.random.default_rng(4)
        own, other, outcome = rng.normal(100, 20, 80), rng.normal(90, 20, 80), rng.choice([0, 0.5, 1], 80)
        there = length_controlled_win_rate(outcome, own, other).controlled
        back = length_controlled_win_rate(1 - outcome, other, own).controlled
        assert there.low is not None
        assert there.high is not None
        assert (back.estimate, back.low, back.high) == pytest.approx(
            (1 - there.estimate, 1 - there.high, 1 - there.low), abs=1e-9
        )

    def test_the_unit_of_length_does_not_matter(self) -> None:
        rng = np.random.default_rng(5)
        own, other, outcome = rng.normal(100, 20, 80), rng.normal(90, 20, 80), rng.choice([0.0, 1.0], 80)
        tokens = length_controlled_win_rate(outcome, own, other).controlled
        characters = length_controlled_win_rate(outcome, 4 * own, 4 * other).controlled
        assert tokens[:3] == pytest.approx(characters[:3], abs=1e-9)


class TestExtremes:
    def test_twenty_wins_of_twenty_keep_a_width(self) -> None:
        rng = np.random.default_rng(6)
        found = length_controlled_win_rate(np.ones(20), rng.normal(100, 20, 20), rng.normal(100, 20, 20))
        assert found.controlled.low is not None
        assert found.controlled.high is not None
        assert found.controlled.low < 0.9 < found.controlled.estimate < found.controlled.high < 1

    def test_wins_that_go_exactly_with_length(self) -> None:
        """Separated data, for which plain maximum likelihood has no answer."""
        difference = np.array([-30.0, -20, -10, 10, 20, 30])
        found = length_controlled_win_rate(difference > 0, 100 + difference, np.full(6, 100.0))
        assert found.controlled.estimate == pytest.approx(0.5, abs=1e-6)
        assert found.length_effect.estimate > 0

    def test_lengths_that_never_overlap_are_refused(self) -> None:
        own = np.linspace(500, 510, 30)
        with pytest.raises(ValueError, match="nothing shows what would happen at equal length"):
            length_controlled_win_rate(np.tile([1.0, 0, 1], 10), own, np.full(30, 100.0))
        with pytest.raises(ValueError, match=r"lengths differ by 180.0 \+- 47.8 everywhere"):
            length_controlled_win_rate(np.tile([1.0, 0, 1], 10), np.linspace(200, 360, 30), np.full(30, 100.0))
        with pytest.raises(ValueError, match="nothing shows"):
            length_controlled_win_rate([1, 0, 1], [5, 5, 5], [4, 4, 4])

    def test_one_prompt_many_times_knows_little(self) -> None:
        rng = np.random.default_rng(7)
        own, other = rng.normal(100, 20, 20), rng.normal(100, 20, 20)
        outcome = rng.choice([0.0, 1.0], 20)
        once = length_controlled_win_rate(outcome, own, other).controlled
        prompts = np.tile(np.arange(20), 10)
        copied = length_controlled_win_rate(np.tile(outcome, 10), np.tile(own, 10), np.tile(other, 10), prompts)
        alone = length_controlled_win_rate(np.tile(outcome, 10), np.tile(own, 10), np.tile(other, 10))

        def width(low: float | None, high: float | None) -> float:
            assert low is not None
            assert high is not None
            return high - low

        assert copied.controlled.n == 20
        assert width(*copied.controlled[1:3]) > 0.8 * width(*once[1:3])
        assert width(*copied.controlled[1:3]) > 2 * width(*alone.controlled[1:3])

    @pytest.mark.parametrize(
        ("outcome", "own", "message"),
        [([], [], "empty"), ([1.5], [3.0], "must lie in"), ([1.0], [math.nan], "not finite"), ([1, 0], [3], "unequal")],
    )
    def test_refusals(self, outcome: list[float], own: list[float], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            length_controlled_win_rate(outcome, own, own)
