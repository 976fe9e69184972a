"""What lets a round take another's place, by hand."""

import re
from typing import Any

import pytest

from llm_rlhf.rounds.gates import _gain_gate, _reward_gate
from llm_rlhf.rounds.page import _agreement, _asked, headline, rows_of, text_of
from llm_rlhf.statistics.intervals import Interval


def _entry(name: str, estimate: float, low: float | None, high: float | None, subject: str = "ppo") -> dict[str, Any]:
    return {
        "name": name, "subject": subject, "reference": "round-1", "split": "all", "estimate": estimate, "low": low,
        "high": high, "n": 100, "method": "by hand",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("low", "passed"), [(0.02, True), (0.0, False), (-0.1, False), (None, False)], ids=["shown", "0", "not", "no"]
)
def test_a_gain_must_be_shown(low: float | None, passed: bool) -> None:
    line = _gain_gate([_entry("gold_gain", 0.2, low, None if low is None else 0.4)])
    assert line.passed == passed
    assert line.check == "gain"


def test_a_gain_of_the_training_reward_is_none() -> None:
    line = _gain_gate([_entry("reward_gain", 2.0, 1.0, 3.0)])
    assert not line.passed
    assert "not measured" in line.text


@pytest.mark.parametrize(
    ("low", "points", "passed"),
    [(-0.09, 10, True), (-0.10, 10, False), (-0.11, 10, False), (0.0, 0, True), (-0.01, 0, False), (None, 10, False)],
)
def test_a_reward_model_may_not_have_lost_its_points(low: float | None, points: float, passed: bool) -> None:
    change = Interval(0.01, low, None if low is None else 0.2, 40, "by hand")
    line = _reward_gate(change, points)
    assert line.passed == passed
    assert "+1.0 points" in line.text


def test_the_table_says_which_round_is_out() -> None:
    gates = [{"check": "kl", "result": "pass", "passed": True, "text": "kl: fine."}]
    failed = [{"check": "gain", "result": "FAIL", "passed": False, "text": "gain: none.", "low": -0.3, "high": -0.1}]
    first = {
        "round": 1, "run": "round-1", "parent": None, "start": [_entry("gold_gain", 0.3, 0.2, 0.4)], "gains": {},
        "policy": [_entry("gold_score", 0.7, 0.6, 0.8)], "gates": gates, "promoted": True,
    }  # fmt: skip
    second = {
        **first, "round": 2, "run": "round-2", "parent": {"compared_with": 1}, "gates": gates + failed,
        "gains": {"1": [_entry("gold_gain", -0.1, -0.3, 0.1)]}, "promoted": False,
        "labels": {"labels": 1200, "people": 1, "simulated_people": 0, "imported_people": 2, "files": {}},
    }  # fmt: skip
    table = {"name": "x", "promoted": 1, "rounds": [first, second]}
    assert headline(table) == "Round 1 is promoted: round-1."
    assert headline({**table, "promoted": None}).startswith("No round has passed")
    rows = rows_of(table)
    assert [row["is_out"] for row in rows] == [True, False]
    assert rows[1]["failed"] == ["gain"]
    assert rows[1]["said"] == "1,200 labels by 1 person and 2 from files"
    lines = text_of(table).splitlines()
    assert lines[1].startswith("1*")
    assert "1,200" in lines[2]
    assert "1 of 2, not gain" in lines[2]
    assert "−0.10 [−0.30, +0.10]" in lines[2]


@pytest.mark.parametrize(
    ("failed", "told"),
    [
        ([("helpful", -0.2, 0.1), ("gain", -0.1, 0.1)], "leave it open.*is set by gate.margin\\.$"),
        ([("harmless", -0.1, 0.3), ("over_refusal", -0.01, 0.12)], "by gate.margin, gate.over_refusal_rise"),
        ([("gain", -0.1, 0.1)], "narrow them\\.$"),
        ([("helpful", -0.2, 0.1), ("harmless", -0.3, -0.1)], None),  # a loss is shown
        ([("over_refusal", 0.05, 0.2)], None),
        ([("gain", -0.1, 0.1), ("kl", 51.0, 60.0)], None),  # no interval's width
        ([("gain", None, None)], None),  # nobody measured it
        ([], None),
    ],
)
def test_a_round_that_too_little_was_asked_of_is_told_apart(failed: list[tuple], told: str | None) -> None:
    gates = [{"check": check, "passed": False, "low": low, "high": high} for check, low, high in failed]
    gates.append({"check": "harmful_refusals", "passed": True, "low": -0.3, "high": -0.1})
    line = headline({"promoted": None, "rounds": [{"round": 2, "gates": gates}]})
    assert line.startswith("No round has passed its gates so far, so that none is promoted.")
    assert re.search(told, line) if told else line.endswith("promoted.")


def test_a_slice_that_is_all_of_it_is_not_told_twice() -> None:
    share = {"estimate": 0.8, "low": 0.7, "high": 0.9, "n": 50}
    assert "uniform slice" not in _agreement({"about": 1, "all": share, "slice": share})
    assert "of the uniform slice alone 80 % [70, 90], n = 10" in _agreement(
        {"about": 1, "all": share, "slice": share | {"n": 10}}
    )


def test_where_labelled_questions_came_from_in_words() -> None:
    """A chat is a batch for each of its turns."""
    asked = {"made_by": "select", "details": {"rounds": "x", "round": 1}, "items": 9}
    asked["strategies"] = {"random": 7, "mixed": 2}
    others = [{"made_by": name, "details": {}, "items": count, "strategies": {"none": count}}
              for name, count in (("chat", 1), ("import", 5), ("chat", 2))]  # fmt: skip
    assert _asked([asked]) == ["asked about round 1, and labelled: 9 (7 random, 2 mixed)"]
    assert _asked([asked, *others])[1:] == ["other questions that were labelled: 3 chat, 5 import"]
