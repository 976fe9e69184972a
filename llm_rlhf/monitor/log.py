"""A log of conversations, read reply by reply: JSON lines in OpenAI's chat format, or requests with their responses.

Two kinds of lines are read:

- a conversation: {"messages": [...], "created" or "timestamp": when, "id", "feedback" or "thumb"}. Each assistant's
  turn in it is a reply to what stands before it;
- a request with its response, as the API has them: {"request": {"messages": [...]}, "response": {"id", "created",
  "choices": [{"message", "finish_reason"}]}}, either one also below "body". The response's messages are the replies;
  the assistant's turns in the request are another line's.

The time is seconds or milliseconds since 1970, or ISO 8601 (UTC where it names no zone), of the line, of the response,
or of the reply's own message. "conversation_id" (also in the request's metadata) or a conversation's "id" tells which
replies belong together; without one, a line with messages is one conversation, and requests that begin with the same
first message are. A thumb ("feedback", "thumb", "rating" or "label": up, down, 1, 0, -1, true, false, ... or an object
with one of these, or with "value" or "score") is of the last reply of its line, or of the message that it stands in.
Where some number there is another than 1, 0 and -1, they are stars, of which 1 is the worst: then no number is a thumb.
A response whose "id" an earlier line has is that line's, written twice.
"objective" harmless or "kind" harmful, where a line has them, say that refusing is right; objective helpful, kind
question or scary, that it is not.

What cannot be read is counted by its reason, never dropped in silence.
"""

import codecs
import datetime
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_rlhf.data.cells import as_number, thumb
from llm_rlhf.data.rows import Conversation
from llm_rlhf.errors import DataError
from llm_rlhf.json_lines import lines_of, parse_json

TIMES = ("created", "timestamp", "created_at", "time")
THUMBS = ("feedback", "thumb", "rating", "label")
_IN_A_THUMB = (*THUMBS, "value", "score")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_HALF = re.compile("[\ud800-\udfff]")  # in JSON alone; no tokenizer takes it
MILLISECONDS = 1e11  # seconds since 1970 reach this in the year 5138
STOPPED = {"stop": True, "length": False}  # finish_reason
HARMFUL = {"harmless": True, "harmful": True, "helpful": False, "question": False, "scary": False}


@dataclass(frozen=True)
class Logged:
    """A reply of the log."""

    line: int  # from 1
    conversation: str
    named: bool  # by the log; else the name is ours
    when: datetime.datetime  # UTC, without a zone
    prompt: Conversation  # ends with the user's turn
    text: str
    ended: bool | None  # by itself; None: the log does not say
    thumb: bool | None
    model: str | None
    harmful: bool | None  # the request, as the log says; None: it does not
    by_number: bool = False  # whether the thumb was one


@dataclass
class Log:
    """What a log holds, in the order of its lines."""

    replies: list[Logged] = field(default_factory=list)
    lines: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # by reason: lines, or replies of a line
    first: dict[str, int] = field(default_factory=dict)  # the first line of each reason
    repeated: int = 0  # lines of replies that are an earlier one's to the byte, and are read all the same
    stars: list[int] = field(default_factory=list)  # lines with a number that is no thumb where thumbs are looked for

    def leave_out(self, reason: str, line: int) -> None:
        self.left_out[reason] += 1
        self.first.setdefault(reason, line)


class _UnreadError(Exception):
    """Why a line, or a reply in it, is not read."""


def read_log(path: Path) -> Log:
    """The replies of a log.

    Raises:
        DataError: where there is no such file, or no reply in it can be read.
    """
    if not path.is_file():
        raise DataError(f"There is no log {path}; name a file of JSON lines.")
    found, seen, lines = Log(), set[str](), set[bytes]()
    for number, line in lines_of(path.read_bytes().removeprefix(codecs.BOM_UTF8)):
        found.lines += 1
        try:
            row = parse_json(line.decode("utf-8"))
        except ValueError:
            found.leave_out("no JSON", number)
            continue
        if (response := _response_id(row)) is not None:
            if response in seen:
                found.leave_out("response that an earlier line has", number)
                continue
            seen.add(response)
        before = len(found.replies)
        try:
            for reply in _replies(row, number, found):  # those before what cannot be read are replies all the same
                key = json.dumps([reply.conversation, reply.prompt, reply.text])
                if reply.named and key in seen:  # of a conversation that is logged again with each turn
                    found.leave_out("reply that an earlier line of the conversation has", number)
                    continue
                seen.add(key)
                found.replies.append(reply)
        except _UnreadError as reason:
            found.leave_out(str(reason), number)
        digest = hashlib.sha256(line).digest()
        found.repeated += digest in lines and len(found.replies) > before
        lines.add(digest)
    _take_no_stars_for_thumbs(found)
    if not found.replies:
        why = "; ".join(f"{reason} ({n}, first in line {found.first[reason]})" for reason, n in found.left_out.items())
        raise DataError(f"{path} holds no reply that can be read: {why or 'it is empty'}.")
    return found


def _response_id(row: Any) -> str | None:
    """A name for a request's response, which no other has."""
    response = row.get("response") if isinstance(row, dict) and isinstance(row.get("request"), dict) else None
    if isinstance(response, dict) and isinstance(response.get("body"), dict):
        response = response["body"]
    named = response.get("id") if isinstance(response, dict) else None
    return f"response {named}" if isinstance(named, str) and named else None


def _take_no_stars_for_thumbs(log: Log) -> None:
    """Where numbers are on a longer scale than a thumb's, 1 is the worst of it, and would be read as the best."""
    if not log.stars:
        return
    log.replies = [replace(reply, thumb=None, by_number=False) if reply.by_number else reply for reply in log.replies]
    reason = "number that is no thumb, so that none of the log's numbers is taken for one"
    for line in log.stars:
        log.leave_out(reason, line)


def _replies(row: Any, line: int, log: Log) -> Iterator[Logged]:
    if not isinstance(row, dict):
        raise _UnreadError("line that is no object")
    if isinstance(row.get("request"), dict) and "response" in row:
        yield from _of_request(row, line, log)
    elif isinstance(row.get("messages"), list):
        yield from _of_conversation(row, line, log)
    else:
        raise _UnreadError("line with neither messages nor a request and its response")


def _of_request(row: dict[str, Any], line: int, log: Log) -> Iterator[Logged]:
    request, response = row["request"], row["response"]
    request = request["body"] if isinstance(request.get("body"), dict) else request
    if isinstance(response, dict) and isinstance(response.get("body"), dict):
        response = response["body"]
    if not isinstance(response, dict) or not isinstance(response.get("choices"), list) or not response["choices"]:
        raise _UnreadError("response without choices (an error, or pieces of a stream)")
    prompt = [_turn(message) for message in _list_of(request.get("messages"))]
    _check_asked(prompt)
    when = _when(row) or _when(response) or _when(request)
    metadata = request.get("metadata") if isinstance(request.get("metadata"), dict) else {}
    named = row.get("conversation_id") or metadata.get("conversation_id")
    opening = [turn for turn in prompt if turn["role"] == "user"][:1]
    conversation = str(named) if named is not None else f"begins {_digest(opening)}"
    of_line = _thumb(row, line, log)
    for choice in response["choices"]:
        if not isinstance(choice, dict):
            raise _UnreadError("choice that is no object")
        message = choice.get("message")
        if when is None:
            raise _UnreadError("no time")
        told, by_number = of_line if of_line[0] is not None else _thumb(message, line, log)
        yield Logged(
            line, conversation, named is not None, when, prompt, _said(message),
            STOPPED.get(str(choice.get("finish_reason"))), told,
            _text(response.get("model") or request.get("model")), _harmful(row), by_number,
        )  # fmt: skip


def _of_conversation(row: dict[str, Any], line: int, log: Log) -> Iterator[Logged]:
    messages, when = row["messages"], _when(row)
    named = row.get("conversation_id") if row.get("conversation_id") is not None else row.get("id")
    conversation = f"line {line}" if named is None else str(named)
    places = [i for i, m in enumerate(messages) if isinstance(m, dict) and m.get("role") == "assistant"]
    if not places:
        raise _UnreadError("conversation without a reply")
    turns: Conversation = []
    for place, message in enumerate(messages):
        turn = _turn(message)  # one that cannot be read makes what follows it unreadable, too
        if turn["role"] != "assistant":
            turns = [*turns, turn]
            continue
        last = place == places[-1]
        moment = _when(message) or when
        told, by_number = _thumb(message, line, log)
        if told is None and last:
            told, by_number = _thumb(row, line, log)
        ended = STOPPED.get(str(row.get("finish_reason"))) if last else None
        try:
            _check_asked(turns)
            if moment is None:
                raise _UnreadError("no time")
            yield Logged(
                line,
                conversation,
                named is not None,
                moment,
                turns,
                turn["content"],
                ended,
                told,
                _text(row.get("model")),
                _harmful(row),
                by_number,
            )
        except _UnreadError as reason:
            log.leave_out(str(reason), line)
        turns = [*turns, turn]


def _check_asked(prompt: Conversation) -> None:
    if not prompt or prompt[-1]["role"] != "user":
        raise _UnreadError("reply to no user's turn")


def _turn(message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise _UnreadError("message that is no object")
    role = ROLES.get(str(message.get("role")))
    if role is None or message.get("tool_calls"):
        raise _UnreadError("conversation with tools, or another role than system, user and assistant")
    return {"role": role, "content": _content(message.get("content"))}


def _said(message: Any) -> str:
    """What a response's message says; "" where nothing was said, which is a reply, too."""
    if not isinstance(message, dict):
        raise _UnreadError("choice without a message")
    if message.get("tool_calls"):
        raise _UnreadError("conversation with tools, or another role than system, user and assistant")
    return _content(message.get("content") or "")


def _content(content: Any) -> str:
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise _UnreadError("content that is no text")
    if "\0" in content or (not content.isascii() and _HALF.search(content)):
        raise _UnreadError("text with a NUL or half a character")
    return content


def _when(row: Any) -> datetime.datetime | None:
    if not isinstance(row, dict):
        return None
    for name in TIMES:
        value = row.get(name)
        if value is None or isinstance(value, bool):
            continue
        if isinstance(value, str) and as_number(value) is None:
            try:
                moment = datetime.datetime.fromisoformat(value)
                return moment.astimezone(datetime.UTC).replace(tzinfo=None) if moment.tzinfo else moment
            except (ValueError, OverflowError):  # in UTC before the first year, say
                raise _UnreadError("time that cannot be read") from None
        number = as_number(value)
        if number is None:
            raise _UnreadError("time that cannot be read")
        try:
            moment = datetime.datetime.fromtimestamp(number / (1000 if number > MILLISECONDS else 1), datetime.UTC)
        except (ValueError, OverflowError, OSError):
            raise _UnreadError("time that cannot be read") from None
        return moment.replace(tzinfo=None)
    return None


def _thumb(row: Any, line: int, log: Log) -> tuple[bool | None, bool]:
    """The thumb that a line or a message has, where it has one; and whether it is a number, which may be a star."""
    if not isinstance(row, dict):
        return None, False
    for name in THUMBS:
        value = row.get(name)
        if isinstance(value, dict):
            value = next((value[inner] for inner in _IN_A_THUMB if value.get(inner) is not None), None)
        by_number = not isinstance(value, bool) and as_number(value) is not None
        if value is not None and (found := thumb(value)) is not None:
            return found, by_number
        if by_number:
            log.stars.append(line)
    return None, False


def _harmful(row: dict[str, Any]) -> bool | None:
    told = [HARMFUL.get(str(row.get(name))) for name in ("kind", "objective")]
    return next((one for one in told if one is not None), None)


def _list_of(messages: Any) -> list[Any]:
    if not isinstance(messages, list):
        raise _UnreadError("request without messages")
    return messages


def _digest(messages: Conversation) -> str:
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
