"""Alarms by hand: one number against another, and many at once."""

import math

import numpy as np
import pytest
from scipy import stats

from llm_rlhf.monitor.drift import Measured, Reference, alarms, held, holm, measured, paired
from llm_rlhf.statistics.intervals import wilson

Z = 1.959964


def level(estimate: float, half: float, period: str = "d", measure: str = "reward") -> Measured:
    return Measured(period, measure, estimate, estimate - half, estimate + half, 100, "", 10**9)


def report(value: float, half: float, margin: float = 0.0) -> Reference:
    return Reference(value, value - half, value + half, 100, margin, "report.json")


def test_a_difference_by_hand() -> None:
    # Standard errors 3 and 4, so 5 of the difference, 12.25: z = 2.45, two-sided p = 0.01429.
    test = held(level(12.25, 3 * Z), report(0, 4 * Z))
    assert test.p == pytest.approx(0.014286, abs=1e-5)
    assert (test.low, test.high) == pytest.approx((12.25 - 5 * Z, 12.25 + 5 * Z))


def test_a_margin_is_taken_off() -> None:
    # Of 12.25 with error 5, a margin of 4 leaves z = 1.65: P = 0.04947, and P(Z > 3.25) = 0.00058 on the other side.
    test = held(level(12.25, 3 * Z), report(0, 4 * Z, margin=4))
    assert test.p == pytest.approx(0.04947 + 0.00058, abs=1e-5)
    assert held(level(-12.25, 3 * Z), report(0, 4 * Z, margin=4)).p == pytest.approx(test.p)
    assert held(level(1, 3 * Z), report(0, 4 * Z, margin=4)).p > 0.8


def test_without_an_interval_nothing_is_held() -> None:
    assert held(Measured("d", "reward", 1.0, None, None, 1, "", 1), report(0, 1)) is None
    assert held(level(1, 1), Reference(0, None, None, 1, 0, "")) is None


def test_holm_by_hand() -> None:
    # Sorted .01, .02, .03, .04 times 4, 3, 2, 1: .04, .06, .06, .04; none below an earlier one: .04, .06, .06, .06.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_of_many_periods_one_in_a_hundred_is_no_alarm() -> None:
    quiet = [held(level(0, Z, f"d{i}"), report(0, 0)) for i in range(99)]
    chance = held(level(2.6, Z, "d99"), report(0, 0))  # p = 0.0093 by itself
    assert chance.p < 0.01
    assert alarms([*quiet, chance], {}) == []
    assert len(alarms([chance], {})) == 1
    drift = held(level(5, Z, "d99"), report(0, 0))
    (alarm,) = alarms([*quiet, drift], {})
    assert alarm.test.period == "d99"
    assert alarm.p_holm == pytest.approx(100 * drift.p)


def test_prompts_are_told_from_replies() -> None:
    drift = held(level(-5, Z), report(0, 0))
    worse_replies = paired("d", "reward", [0, -1, -2, -1] * 10, [4, 4, 3, 5] * 10, list(range(40)), 0.0)
    same_replies = paired("d", "reward", [0, 1, 0, 1] * 10, [1, 0, 1, 0] * 10, list(range(40)), 0.0)
    harder = held(level(-5, Z), report(0, 0))
    as_before = held(level(0.1, Z), report(0, 0))

    def cause(replies, prompts) -> str:
        return alarms([drift], {("d", "reward"): (replies, prompts)})[0].cause

    assert cause(worse_replies, as_before) == "replies"
    assert cause(same_replies, harder) == "prompts"
    assert cause(worse_replies, harder) == "replies and prompts"
    assert cause(same_replies, as_before) == ""
    assert cause(None, None) == ""
    easier = held(level(5, Z), report(0, 0))
    assert cause(worse_replies, easier) == "replies", "what goes the other way is no cause"


def test_the_words_have_the_numbers() -> None:
    (alarm,) = alarms([held(level(0.5, 0.1 * Z, "2026-11-05", "refusal"), report(0.1, 0, 0.02))], {})
    assert alarm.words == (
        "2026-11-05: refusals higher than the report's by 40.0 points [20.4, 59.6], p < 0.001; prompts and replies "
        "could not be told apart."
    )
    (alarm,) = alarms([held(level(-2, 0.1 * Z), report(0, 0))], {})
    assert "reward lower than the report's by 2.00 [1.80, 2.20]" in alarm.words


def test_replies_of_one_conversation_are_no_independent_ones() -> None:
    values = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    alone = measured("d", "refusal", values, list(range(12)))
    together = measured("d", "refusal", values, [i // 3 for i in range(12)])
    assert alone.estimate == together.estimate == 0.5
    assert together.high - together.low > 1.5 * (alone.high - alone.low)
    assert "conversations" in together.method
    assert measured("d", "reward", [1.0, 2.0], [1, 1]).low is None, "one conversation has no interval"
    assert math.isclose(measured("d", "reward", [1.0, 2.0, 6.0], [1, 2, 3]).estimate, 3.0)


def test_few_conversations_are_held_against_nothing() -> None:
    alike = measured("d", "reward", [-3.0] * 3, ["a", "b", "c"])
    assert (alike.low, alike.high) == (-3.0, -3.0), "three that are alike seem to be sure"
    assert held(alike, report(0, 0.1)) is None
    assert paired("d", "reward", [-3.0] * 9, [0.0] * 9, list(range(9)), 0.0) is None
    assert paired("d", "reward", [-3.0] * 10, [0.0] * 10, list(range(10)), 0.0) is not None


@pytest.mark.parametrize("n", [10, 12, 15, 25, 50])
@pytest.mark.parametrize("rate", [0.05, 0.15, 0.3, 0.5, 0.75, 0.85, 0.95])
def test_shares_of_few_replies_alarm_no_more_often_than_is_said(n: int, rate: float) -> None:
    """Exactly, over all counts of a day: half-widths as standard errors alarmed in up to 29 % of 30 days at 15."""
    of_report = wilson(round(300 * rate), 300)
    told = Reference(of_report.estimate, of_report.low, of_report.high, 300, 0.02, "report.json")
    days = [measured("d", "refusal", [1.0] * k + [0.0] * (n - k), list(range(n))) for k in range(n + 1)]
    p = np.array([held(day, told).p for day in days])
    probability = stats.binom.pmf(range(n + 1), n, rate)
    for days_looked_at in (1, 3, 7, 30):  # Holm: some alarm where the smallest p is under the level over their number
        alarm = 1 - (1 - probability[p <= 0.05 / days_looked_at].sum()) ** days_looked_at
        assert alarm <= 0.05


def test_of_ten_conversations_no_more_alarm_than_is_said() -> None:
    # 3,000 days of 10 rows without drift: of p below 0.001 three are expected; the normal distribution had about 30
    rng = np.random.default_rng(0)
    ids = list(range(10))
    days = [held(measured("d", "reward", rng.normal(size=10), ids), report(0, 0)) for _ in range(3000)]
    assert sum(day.p < 0.001 for day in days) <= 10
    assert sum(day.p < 0.05 for day in days) == pytest.approx(150, abs=60)
