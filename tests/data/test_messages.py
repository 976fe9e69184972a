"""Messages as people write them: whose turn, what parts, what is imitated, and what stands before them in columns."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_rlhf.data.checks import BadRow
from llm_rlhf.data.messages import check_messages, read_messages
from llm_rlhf.data.sources import Loaded, load_demonstrations, load_preferences, load_prompts
from llm_rlhf.data.storage import Rows
from llm_rlhf.recipe.sections import Source


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def source(path: Path, *rows: Any, **keys: Any) -> Source:
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Source(source=str(path / "rows.jsonl"), **keys)


def told(path: Path, *rows: Any) -> Loaded[Any]:
    return load_demonstrations([source(path, *rows)], Rows())


def reasons(loaded: Loaded[Any]) -> list[tuple[int, str]]:
    return [(item.origin.row, item.reason) for item in loaded.set_aside]


# --- who speaks, and in what parts


@pytest.mark.parametrize(
    ("message", "read"),
    [
        ({"from": "human", "value": "a"}, user("a")),
        ({"from": "gpt", "value": "a"}, says("a")),
        ({"from": "chatgpt", "value": "a"}, says("a")),
        ({"from": "bing", "value": "a"}, says("a")),
        ({"from": "system", "value": "a"}, system("a")),
        ({"role": "developer", "content": "a"}, system("a")),
        ({"role": "User", "content": "a"}, user("a")),
        (user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), user("ab")),  # type: ignore[arg-type]
        (says("a", tool_calls=[], function_call=None), says("a")),
    ],
)
def test_a_message_in_every_form(message: dict[str, Any], read: dict[str, Any]) -> None:
    assert check_messages([message], "messages") == [read]


def test_an_exchange_in_one_object_is_two_messages() -> None:
    assert check_messages([{"input": "a", "output": "b"}], "messages") == [user("a"), says("b")]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "tool", "content": "12"}, "tools are not supported"),
        ({"from": "function_call", "value": "{}"}, "tools are not supported"),
        ({"from": "observation", "value": "12"}, "tools are not supported"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, "tools are not supported"),
        (user([{"type": "text", "text": "a"}, {"type": "image"}]), "not text alone"),  # type: ignore[arg-type]
        (says("a", weight=0.5), "weight that is neither 0 nor 1"),
        (says("a", weight=1, loss=False), "weights of a turn that contradict each other"),
        (says("a", reasoning="b", thinking="c"), "thoughts of a turn stand twice"),
        (says("a", reasoning_content=["b"]), "wrong type"),
        ({"role": "narrator", "content": "a"}, "unknown role"),
    ],
)
def test_what_cannot_be_read_whole_is_not_read_in_half(message: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as bad:
        check_messages([user("q"), message], "messages")
    assert (bad.value.reason, "message 2" in bad.value.detail) == (reason, True)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_stay_with_their_turn_through_storage_and_count_as_content(name: str, tmp_path: Path) -> None:
    first = [user("q"), says("a", **{name: "Let me see."}), user("r"), says("b", **{name: " "})]
    loaded = told(tmp_path, {"messages": first}, {"messages": [user("q"), says("a"), user("r"), says("b")]})
    thought = says("a", reasoning_content="Let me see.")
    assert [row.messages[1] for row in loaded.rows] == [thought, says("a")]
    assert loaded.rows[0].messages[3] == says("b")
    assert len(set(loaded.rows.column("content"))) == len(set(loaded.rows.column("imitated"))) == 2
    assert len(set(loaded.rows.column("prompt"))) == 1
    last = told(tmp_path, {"messages": [user("q"), says("a", **{name: "x"})]}, {"messages": [user("q"), says("a")]})
    assert len(set(last.rows.column("imitated"))) == 2


def test_thoughts_part_no_pair_and_those_of_the_two_replies_are_counted(tmp_path: Path) -> None:
    asked = [user("q"), says("a", thinking="one"), user("r")]
    other = [user("q"), says("a"), user("r")]
    row = {"chosen": [*asked, says("good", thinking="x")], "rejected": [*other, says("bad")]}
    loaded = load_preferences([source(tmp_path, row)])
    (pair,) = loaded.rows
    assert pair.prompt == [user("q"), says("a", reasoning_content="one"), user("r")]
    assert loaded.repaired == {"thoughts of compared replies left out": 1}


# --- what is imitated


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"weight": 0.0}, {"loss": False}, {"train": False}, {"training": "false"}, {"weight": "0"}]
)
def test_a_turn_of_weight_0_is_context(mark: dict[str, Any], tmp_path: Path) -> None:
    talk = [system("s"), user("q"), says("bad", **mark), user("r"), says("good", weight=1), user("t"), says("fine")]
    (row,) = told(tmp_path, {"messages": talk}).rows
    assert [list(message) for message in row.messages] == [["role", "content"]] * 7
    assert (row.every_reply, row.context) == (True, [-5])
    assert row.messages[-5]["content"] == "bad"


def test_what_follows_the_last_reply_to_imitate_is_left_out_and_a_talk_without_one_set_aside(tmp_path: Path) -> None:
    def talk(*weights: int) -> dict[str, Any]:
        return {"messages": [turn for weight in weights for turn in (user("q"), says("a", weight=weight))]}

    loaded = told(tmp_path, talk(0, 1, 0), talk(0, 0), talk(1))
    assert [(len(row.messages), row.context) for row in loaded.rows] == [(4, [-3]), (2, [])]
    assert loaded.repaired == {"turns after the last reply to imitate left out": 1}
    assert reasons(loaded) == [(2, "no reply to imitate")]
    rows = [{"prompt": "q", "completion": [says("a", weight=weight)]} for weight in (0, 1)]
    assert reasons(told(tmp_path, *rows)) == [(1, "no reply to imitate")]


def test_two_replies_in_a_row_of_which_one_is_imitated_cannot_be_joined(tmp_path: Path) -> None:
    both = [user("q"), says("a", weight=0), says("b")]
    assert reasons(told(tmp_path, {"messages": both}, {"messages": [user("q"), says("a")]})) == [
        (1, "replies in a row of which only some are to be imitated")
    ]
    assert read_messages(both, "messages") == [(user("q"), True), (says("a"), False), (says("b"), True)]


def test_a_down_voted_conversation_is_no_demonstration_and_an_up_voted_one_is(tmp_path: Path) -> None:
    rows = [{"messages": [user("q"), says(text)], "label": label} for text, label in (("a", True), ("b", False))]
    loaded = told(tmp_path, *rows)
    assert [row.messages[-1]["content"] for row in loaded.rows] == ["a"]
    assert reasons(loaded) == [(2, "down-voted completion")]
    (pair,) = load_preferences([source(tmp_path, *rows)]).rows
    assert (pair.prompt, pair.chosen, pair.rejected) == ([user("q")], "a", "b")
    later = told(tmp_path, {"messages": [user("q"), says("c")]}, rows[1])  # the first row decides the format
    assert reasons(later) == [(2, "down-voted completion")]


# --- what stands before the turns, in columns of its own


@pytest.mark.parametrize("name", ["system", "system_prompt", "System", "system_message"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("q"), says("a")]},
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "output": "a"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"chosen": [user("q"), says("a")], "rejected": [user("q"), says("b")]},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"prompt": "q", "responses": [{"text": "a", "score": 2}, {"text": "b", "score": 1}]},
        {"prompt": "q", "chosen": [user("q"), says("a")], "rejected": [user("q"), says("b")]},
        {"instruction": "q", "output_1": "a", "output_2": "b", "label": 1},
    ],
)
def test_a_system_column_is_a_turn_before_the_others(row: dict[str, Any], name: str, tmp_path: Path) -> None:
    asked = source(tmp_path, {**row, name: "Be brief."})
    assert load_demonstrations([asked], Rows()).rows[0].messages == [system("Be brief."), user("q"), says("a")]
    assert load_prompts([asked], Rows()).rows[0].messages == [system("Be brief."), user("q")]
    assert "unread" not in load_prompts([asked], Rows()).counts()


def test_two_system_messages_must_be_equal(tmp_path: Path) -> None:
    talk = [system("Be brief."), user("q"), says("a")]
    rows = [{"messages": talk, "system": text} for text in ("Be brief. ", "Be kind.", "", None, 3)]
    loaded = told(tmp_path, *rows)
    assert [row.messages for row in loaded.rows] == [talk] * 3
    assert reasons(loaded) == [(2, "two system messages"), (5, "wrong type")]


@pytest.mark.parametrize("history", [[["h", "i"]], [user("h"), says("i")]])
@pytest.mark.parametrize("row", [{"prompt": "q", "completion": "a"}, {"instruction": "q", "input": "", "output": "a"}])
def test_a_history_comes_before_the_prompt_and_after_the_system_message(
    row: dict[str, Any], history: list[Any], tmp_path: Path
) -> None:
    (made,) = told(tmp_path, {**row, "history": history, "system": "s"}).rows
    assert made.messages == [system("s"), user("h"), says("i"), user("q"), says("a")]
    assert not made.every_reply


def test_a_history_that_is_no_history(tmp_path: Path) -> None:
    row = {"prompt": "q", "completion": "a"}
    rows = [{**row, "history": history} for history in ([], [["h"]], [["h", None]], "h", [["h", ""]])]
    loaded = told(tmp_path, *rows)
    assert len(loaded.rows) == 1
    assert reasons(loaded) == [(2, "wrong type"), (3, "missing field"), (4, "wrong type"), (5, "empty turn")]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("tools", [{"name": "search"}], "tools are not supported"),
        ("tools", '[{"name": "search"}]', "tools are not supported"),
        ("images", ["a.png"], "not text alone"),
    ],
)
def test_columns_that_need_more_than_text_set_the_row_aside(
    column: str, value: Any, reason: str, tmp_path: Path
) -> None:
    row = {"messages": [user("q"), says("a")]}
    loaded = told(tmp_path, {**row, column: value}, {**row, column: []}, {**row, column: None}, {**row, column: "[]"})
    assert (len(loaded.rows), reasons(loaded)) == (3, [(1, reason)])
    assert column in loaded.set_aside[0].detail
