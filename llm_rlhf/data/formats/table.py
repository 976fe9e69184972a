"""Which format a row has, told by its columns.

A row comes here under our names (naming.py). FORMATS is the table of all formats: what is said of each, whether a row
has its columns, and which of them it reads. Where the columns could mean two things nothing is guessed: the error says
which key of the source decides.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from llm_rlhf.data.cells import thumb
from llm_rlhf.data.formats.columns import (
    RATINGS,
    beside,
    completion_column,
    is_rated,
    is_transcript,
    is_tree,
    label_columns,
    prompt_columns,
    reply_columns,
    reply_lists,
)

_REPLY_LIKE = re.compile(
    r"(?i)(chosen|rejected|completion|output|response|answer|repl(y|ies)|generation|candidate|choice)"
)


def formats_of(row: Any) -> list[str]:
    """The formats whose columns and shapes a row has; a column that is null counts as absent."""
    if isinstance(row, str):
        return ["prompt"]
    if not isinstance(row, dict):
        return []
    if is_tree(row):
        return ["tree"]
    found = [name for name, form in FORMATS.items() if form.fits(row)]
    if "feedback" in found and "messages" in found:  # with a label, a conversation is no demonstration by itself
        found.remove("messages")
    # Looked for last: a question and its answer under any names, and prompts without anything like a reply.
    if not found and completion_column(row) and len(prompt_columns(row)) == 1:
        form = "instruction" if "instruction" in prompt_columns(row) else "prompt_completion"
        found = ["feedback" if thumb(row.get("label")) is not None else form]
    if not found and not any(_REPLY_LIKE.match(str(name)) for name in _present(row)) and is_asked(row):
        found = ["prompt"]
    return found


def is_asked(row: Any) -> bool:
    """Whether it is clear what a row asks, whatever else it has."""
    return isinstance(row, str) or (isinstance(row, dict) and len(prompt_columns(row, further=True)) == 1)


def _present(row: dict[str, Any]) -> set[str]:
    return {name for name, value in row.items() if value is not None}


def _is_hh(row: dict[str, Any]) -> bool:
    return all(isinstance(row.get(side), str) and is_transcript(row[side]) for side in ("chosen", "rejected"))


def _is_preference(row: dict[str, Any]) -> bool:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return bool(prompt_columns(row)) and not _is_hh(row)
    return isinstance(chosen, list) and isinstance(rejected, list)


def _is_completed(row: dict[str, Any]) -> bool:
    return row.get("prompt") is not None and completion_column(row) in ("completion", "response")


def _is_feedback(row: dict[str, Any]) -> bool:
    return (_is_completed(row) or _is_instruction(row)) and thumb(row.get("label")) is not None


def _is_scored(row: dict[str, Any]) -> bool:
    return _is_completed(row) and row.get("helpfulness") is not None


def _is_instruction(row: dict[str, Any]) -> bool:
    has_reply = isinstance(row.get("output"), str) or isinstance(row.get("instances"), list)
    return row.get("instruction") is not None and has_reply


def _asks(row: dict[str, Any]) -> list[str]:
    names = prompt_columns(row)
    return [*names, "history", *(("input", "context") if names == ["instruction"] else ())]


def _present_completion(row: dict[str, Any]) -> list[str]:
    return [name] if (name := completion_column(row)) else []


def _compared(row: dict[str, Any]) -> list[str]:
    return [*_asks(row), *(name for pair in reply_columns(row) for name in pair), *label_columns(row), "margin"]


def _ranked(row: dict[str, Any]) -> list[str]:
    lists = reply_lists(row)
    return [*_asks(row), *lists, *(beside(row, len(row[lists[0]])) if lists else ())]


class Format(NamedTuple):
    """A format: what is said of it, whether a row has its columns, and which columns of a row it reads.

    All of them read `objective` and `system` too. `prompt` fits no row: it is what remains where no other one does.
    """

    what: str
    fits: Callable[[dict[str, Any]], bool]
    reads: Callable[[dict[str, Any]], Iterable[str]]


_PAIR = ("chosen", "rejected", "margin", "confidence", "chosen_stopped", "rejected_stopped")
FORMATS = {
    "hh": Format(
        "chosen and rejected, each a whole transcript that starts with 'Human:'",
        _is_hh,
        lambda row: _PAIR,
    ),
    "preference": Format(
        "chosen and rejected as messages, or as text with a prompt",
        _is_preference,
        lambda row: (*_asks(row), *_PAIR),
    ),
    "comparison": Format(
        "two replies (output_1, output_2; response_a, response_b; ...) and a label that says which is better",
        lambda row: bool(reply_columns(row) and label_columns(row)),
        _compared,
    ),
    "ranked": Format(
        "a list of replies, each with a score or a rank",
        lambda row: any(is_rated(row[name], row) for name in reply_lists(row)),
        _ranked,
    ),
    "scored": Format(
        "prompt, response and a score; the rows of one prompt are compared",
        _is_scored,
        lambda row: (*_asks(row), *_present_completion(row), *RATINGS),
    ),
    "feedback": Format(
        "prompt, completion and a label: thumbs up or down",
        lambda row: _is_feedback(row) and not _is_scored(row),
        lambda row: (*_asks(row), *_present_completion(row), "label", "stopped"),
    ),
    "tree": Format(
        "messages with replies and ranks (Open-Assistant), nested or one message a row with parent_id",
        lambda row: is_tree(row),
        lambda row: (
            "prompt",
            "message_id",
            "parent_id",
            "role",
            "text",
            "rank",
            "replies",
            "deleted",
            "review_result",
        ),
    ),
    "messages": Format(
        "messages, each with role and content or with from and value",
        lambda row: isinstance(row.get("messages"), list),
        lambda row: ("messages", "stopped", *(["label"] if thumb(row.get("label")) is not None else [])),
    ),
    "prompt_completion": Format(
        "prompt and completion, as messages or as text",
        lambda row: _is_completed(row) and not _is_feedback(row) and not _is_scored(row),
        lambda row: (*_asks(row), *_present_completion(row), "stopped"),
    ),
    "instruction": Format(
        "instruction, perhaps input, and output; or instances of input and output",
        lambda row: _is_instruction(row) and not _is_feedback(row),
        lambda row: (*_asks(row), "instances", *_present_completion(row), "stopped"),
    ),
    "prompt": Format(
        "prompt, as messages or as text",
        lambda row: False,
        lambda row: (*prompt_columns(row, further=True), *_asks(row), "facts"),
    ),
}
