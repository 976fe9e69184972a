"""A user's own suite: a file of prompts and one function. Numbers worked by hand, and every way to get it wrong."""

import json
import sys

import pytest

from llm_rlhf.data.rows import Origin, Prompt
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.evaluation.suites import own as own_suites
from llm_rlhf.evaluation.suites.own import (
    check_suites,
    score_replies,
    suite_estimates,
    suite_of,
    suite_record,
)
from llm_rlhf.recipe.sections import OwnSuite, Source
from llm_rlhf.user_code import load_function

PROMPTS = [Prompt([{"role": "user", "content": f"q{i}"}], "overall", Origin("mine.jsonl", i)) for i in (1, 2, 3, 4)]
NAMES = ("ppo", "sft")


def suite(function: str = "m:f", name: str = "brevity", **changes) -> OwnSuite:
    return OwnSuite(name, function, [Source(source="mine.jsonl")], **changes)


@pytest.fixture
def scoring(monkeypatch):
    """Scores four replies with a function given here."""

    def score(function, replies=("a", "bb", "ccc", "dddd")):
        monkeypatch.setattr(own_suites, "load_function", lambda *_: function)
        return score_replies(suite(), PROMPTS, list(replies))

    return score


def test_levels_and_the_paired_difference_are_means_over_what_was_scored() -> None:
    scored = {"ppo": [1.0, 2.0, None, 6.0], "sft": [0.5, None, 4.0, 3.0]}
    found = {(e.name, e.subject, e.reference): e for e in suite_estimates(suite(), PROMPTS, scored, NAMES)}
    assert found["brevity", "ppo", None].estimate == 3.0  # (1 + 2 + 6) / 3
    assert found["brevity", "sft", None].estimate == 2.5
    gain = found["brevity_gain", "ppo", "sft"]
    assert (gain.estimate, gain.n) == (1.75, 2)  # (0.5 + 3) / 2, on the first and the last prompt
    assert "2 prompts without a number" in gain.method
    record = suite_record(suite(), scored)
    assert record["not_scored"] == {"ppo": 1, "sft": 1}
    assert (record["unit"], record["prompts"]) == ("score", 4)


def test_yes_and_no_is_a_share_whose_interval_keeps_a_width() -> None:
    scored = {"ppo": [1.0] * 4, "sft": [0.0] * 4}
    found = {e.name + e.subject: e for e in suite_estimates(suite(), PROMPTS, scored, NAMES)}
    assert found["brevityppo"].low == pytest.approx(0.5101, abs=1e-4)  # Wilson, four of four: 4 / (4 + 1.96 ** 2)
    assert found["brevity_gainppo"].estimate == 1.0
    assert found["brevity_gainppo"].low < 0.95
    assert suite_record(suite(), scored)["unit"] == "share"


def test_no_number_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="m:f of the suite 'brevity' gave no number to any of the 4 replies of sft"):
        suite_estimates(suite(), PROMPTS, {"ppo": [1.0] * 4, "sft": [None] * 4}, NAMES)


def test_the_function_gets_conversations_and_texts_and_may_spoil_them(scoring) -> None:
    def function(prompts, replies):
        found = [len(reply) + (prompt[-1]["content"] == "q2") for prompt, reply in zip(prompts, replies, strict=True)]
        prompts[0][0]["content"] = "spoiled"
        replies.clear()
        return found

    assert scoring(function) == [1.0, 3.0, 3.0, 4.0]
    assert PROMPTS[0].messages[0]["content"] == "q1"
    assert scoring(lambda p, r: (value for value in (True, False, None, 2))) == [1.0, 0.0, None, 2.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda p, r: [1.0], "m:f of the suite 'brevity' returned 1 values for 4 replies"),
        (lambda p, r: [1, 2, "3", 4], r"mine.jsonl, row 3: returned '3'; return a finite number, or None"),
        (lambda p, r: [1, float("nan"), 3, 4], "mine.jsonl, row 2: returned nan"),
        (lambda p, r: [1, [2], 3, 4], "mine.jsonl, row 2: returned"),
        (lambda p, r: [1 / 0], r"failed: ZeroDivisionError: division by zero \(.*test_own_suites.py, line \d+\)"),
        (lambda p, r: None, "returned None; it must return one number for each reply"),
        (lambda p, r: sys.exit(3), "failed: SystemExit"),
        (lambda p: [1], "failed: TypeError"),
    ],
)
def test_what_a_function_may_not_return(scoring, function, message) -> None:
    with pytest.raises(RecipeError, match=message):
        scoring(function)


def test_the_spelling_on_the_command_line() -> None:
    assert suite_of("brevity=my, file.jsonl,my_suites.a:brevity") == OwnSuite(
        "brevity", "my_suites.a:brevity", [Source(source="my, file.jsonl")]
    )
    assert suite_of("slow=org/data,m:f,lower").good == "lower"
    for wrong in ("brevity", "a=file.jsonl", "a=file.jsonl,function", "=f,m:g"):
        with pytest.raises(RecipeError, match="is not of the form NAME=SOURCE,MODULE:FUNCTION"):
            suite_of(wrong)


def test_functions_lie_in_the_working_directory_and_tell_what_is_wrong_with_them(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    (tmp_path / "suites_here.py").write_text("def f(prompts, replies):\n    return [0 for _ in replies]\nx = 3\n")
    (tmp_path / "suites_broken.py").write_text("\nprint(undefined_name)\n")
    assert load_function("suites_here:f")([], ["a"]) == [0]
    for name, message in (
        ("suites_here:g", "'suites_here:g' cannot be loaded"),
        ("suites_here:x", "is int, which cannot be called"),
        ("suites_broken:f", r"NameError: .*suites_broken.py, line 2"),
        ("suites_nowhere:f", "No module named 'suites_nowhere'"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_function(name, "function of the suite 'a'")
    (tmp_path / "mine.jsonl").write_text(json.dumps({"prompt": ""}) + "\n")
    with pytest.raises(DataError, match=r"Nothing is left of mine.jsonl.*row 1"):
        check_suites([suite("suites_here:f")])
