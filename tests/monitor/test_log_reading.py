"""What a log's lines say, reply by reply; what cannot be read is counted by its reason."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from llm_rlhf.errors import DataError
from llm_rlhf.monitor.log import read_log

NOON = datetime.datetime(2026, 11, 5, 12)
STAMP = 1793880000  # 2026-11-05 12:00 UTC


def said(role: str, text: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **more}


def log(tmp_path: Path, *rows: Any) -> Any:
    path = tmp_path / "log.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return read_log(path)


TALK = [said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")]


def pair(messages: list, reply: Any = "r", **more: Any) -> dict[str, Any]:
    choice = {"message": said("assistant", reply), "finish_reason": "stop"}
    return {
        "request": {"messages": messages, "model": "m"},
        "response": {"created": STAMP, "choices": [choice]},
        **more,
    }


def test_each_reply_of_a_conversation_is_one(tmp_path) -> None:
    found = log(
        tmp_path, {"messages": [said("developer", "s"), *TALK], "created": STAMP, "id": "k", "feedback": "down"}
    )
    first, second = found.replies
    assert first.prompt == [said("system", "s"), said("user", "a")]
    assert (first.text, first.thumb, first.conversation, first.when) == ("b", None, "k", NOON)
    assert [turn["content"] for turn in second.prompt] == ["s", "a", "b", "c"]
    assert (second.text, second.thumb) == ("d", False), "a line's thumb is of its last reply"


def test_of_a_request_the_response_is_the_reply(tmp_path) -> None:
    found = log(
        tmp_path,
        pair(TALK[:3], feedback={"score": 1}),
        {"request": {"body": {"messages": TALK[:1]}}, "response": {"body": pair([])["response"]}},
        pair(TALK[:1], [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}], conversation_id=7),
    )
    first, second, third = found.replies
    assert [turn["content"] for turn in first.prompt] == ["a", "b", "c"]
    assert (first.text, first.thumb, first.ended, first.model) == ("r", True, True, "m")
    assert first.conversation == second.conversation, "both begin with the same message"
    assert (third.text, third.conversation) == ("xy", "7")


@pytest.mark.parametrize(
    "time",
    [STAMP, STAMP * 1000, str(STAMP), "2026-11-05T12:00:00", "2026-11-05T13:00:00+01:00", "2026-11-05T12:00:00Z"],
)
def test_times(tmp_path, time) -> None:
    (first, _) = log(tmp_path, {"messages": TALK, "timestamp": time}).replies
    assert first.when == NOON


def test_a_messages_own_time_and_thumb_count_first(tmp_path) -> None:
    own = said("assistant", "b", created=STAMP + 86400, thumb="up")
    first, second = log(tmp_path, {"messages": [TALK[0], own, *TALK[2:]], "created": STAMP, "thumb": 0}).replies
    assert (first.when.day, first.thumb, second.when.day, second.thumb) == (6, True, 5, False)


def test_a_conversation_that_is_logged_again_with_each_turn_counts_each_reply_once(tmp_path) -> None:
    lines = [{"messages": TALK[:2], "created": STAMP, "id": "k"}, {"messages": TALK, "created": STAMP, "id": "k"}]
    found = log(tmp_path, *lines)
    assert [reply.text for reply in found.replies] == ["b", "d"]
    assert found.left_out == {"reply that an earlier line of the conversation has": 1}
    unnamed = [{name: line[name] for name in ("messages", "created")} for line in lines]
    assert len(log(tmp_path, *unnamed).replies) == 3, "without a name nobody knows that they are one"
    assert len(log(tmp_path, pair(TALK[:1]), pair(TALK[:1])).replies) == 2, "two requests are two"


def test_what_is_known_of_the_request(tmp_path) -> None:
    kinds = [{"kind": "harmful"}, {"objective": "harmless"}, {"kind": "scary"}, {"objective": "helpful"}, {}]
    found = log(tmp_path, *({"messages": TALK[:2], "created": STAMP, **kind} for kind in kinds))
    assert [reply.harmful for reply in found.replies] == [True, True, False, False, None]


def test_what_cannot_be_read_is_counted(tmp_path) -> None:
    found = log(
        tmp_path,
        {"messages": TALK[:2], "created": STAMP},
        "{no json",
        [1],
        {"text": "x"},
        {"messages": TALK[:1], "created": STAMP},
        {"messages": TALK[:2]},
        {"messages": TALK[:2], "created": "yesterday"},
        {"messages": [said("assistant", "hello"), *TALK[:2]], "created": STAMP},
        {"messages": [said("tool", "x"), *TALK[:2]], "created": STAMP},
        {"messages": [said("user", [{"type": "image_url"}]), TALK[1]], "created": STAMP},
        {"request": {"messages": TALK[:1]}, "response": {"error": "x"}},
        pair(TALK[:1], "") | {"kind": "harmful"},
    )
    assert [reply.text for reply in found.replies] == ["b", "b", ""]
    assert found.lines == 12
    assert dict(found.left_out) == {
        "no JSON": 1,
        "line that is no object": 1,
        "line with neither messages nor a request and its response": 1,
        "conversation without a reply": 1,
        "no time": 1,
        "time that cannot be read": 1,
        "reply to no user's turn": 1,
        "conversation with tools, or another role than system, user and assistant": 1,
        "content that is no text": 1,
        "response without choices (an error, or pieces of a stream)": 1,
    }
    assert found.first["no JSON"] == 2


def test_nothing_to_read_is_an_error(tmp_path) -> None:
    with pytest.raises(DataError, match=r"no reply that can be read: no time \(2, first in line 1\)"):
        log(tmp_path, {"messages": TALK})
    with pytest.raises(DataError, match="There is no log"):
        read_log(tmp_path / "none.jsonl")


def test_replies_before_what_cannot_be_read_are_read(tmp_path) -> None:
    call = said("assistant", None, tool_calls=[{"id": "1"}])
    found = log(tmp_path, {"messages": [*TALK[:3], call, said("tool", "x"), *TALK], "created": STAMP})
    assert [reply.text for reply in found.replies] == ["b"]
    assert sum(found.left_out.values()) == 1


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", 1e18, "", "12/05/2026"])
def test_a_time_that_is_none_is_counted(tmp_path, time) -> None:
    found = log(tmp_path, {"messages": TALK, "created": time}, {"messages": TALK, "created": STAMP})
    assert found.left_out["time that cannot be read"] >= 1
    assert len(found.replies) == 2


def test_a_response_that_was_written_twice_counts_once(tmp_path) -> None:
    twice, again = pair(TALK[:1]), pair(TALK[:1], hour=2)
    twice["response"]["id"] = again["response"]["id"] = "chatcmpl-1"
    other = pair(TALK[:1])
    other["response"]["id"] = "chatcmpl-2"
    found = log(tmp_path, twice, again, other)
    assert len(found.replies) == 2, "what two responses say alike was said twice"
    assert found.left_out == {"response that an earlier line has": 1}


def test_equal_lines_without_a_name_are_counted_each_and_told(tmp_path) -> None:
    line = {"messages": TALK[:2], "created": STAMP}
    found = log(tmp_path, line, line, line, "{broken", "{broken")
    assert (len(found.replies), found.repeated) == (3, 2)


def test_stars_are_no_thumbs(tmp_path) -> None:
    stars = [{"messages": TALK[:2], "created": STAMP, "rating": of} for of in (1, "1", {"score": 1}, 5, "up", True)]
    found = log(tmp_path, *stars)
    assert [reply.thumb for reply in found.replies] == [None, None, None, None, True, True]
    assert found.left_out == {"number that is no thumb, so that none of the log's numbers is taken for one": 1}
    assert [reply.thumb for reply in log(tmp_path, *stars[:3]).replies] == [True] * 3, "without a 5 they are thumbs"


def test_half_a_character_and_a_byte_order_mark(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    half = {"messages": [TALK[0], said("assistant", "ok \ud83d")], "created": STAMP}
    lines = [json.dumps(row) for row in ({"messages": TALK[:2], "created": STAMP}, half)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    found = read_log(path)
    assert [reply.text for reply in found.replies] == ["b"]
    assert found.left_out == {"text with a NUL or half a character": 1}
