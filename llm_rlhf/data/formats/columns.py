"""Which format a row has, told by its columns, and which columns hold what.

A row comes here under our names (naming.py). FORMATS is the table of all formats: what is said of each, whether a row
has its columns, and which of them it reads. Where the columns could mean two things nothing is guessed: the error says
which key of the source decides.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from llm_rlhf.data.cells import thumb

# What a prompt may be called. `prompt` is ours, and where it stands it is the prompt.
PROMPTS = ("prompt", "instruction", "question", "query", "input", "turns")
# What a file of prompts may call them besides; the first of these that a row has.
FURTHER_PROMPTS = ("goal", "forbidden_prompt", "prompt_text", "user_prompt", "behavior", "behaviour", "request", "text")
COMPLETIONS = ("completion", "response", "output", "answer")
RATINGS = ("score", "helpfulness")  # of one reply a row
TREE = ("prompt", "message_id", "parent_id", "role", "text", "rank", "replies", "deleted", "review_result")
LABELS = ("label", "labels", "preference", "winner", "better_response_id", "safer_response_id", "preferred", "choice")
REPLY_LISTS = ("responses", "completions", "candidates", "answers", "replies", "outputs", "generations")
TEXTS = ("text", "response", "output", "completion", "answer", "content", "reply", "generation")
SCORES = ("score", "rating", "overall_score", "reward", "preference")
RANKS = ("rank", "ranking")

_REPLIES = ("output", "response", "answer", "completion", "conversation", "reply", "generation", "human_ref")
_FIRST_OF_TWO = re.compile(rf"(?i)(?:{'|'.join(_REPLIES)})[_ ]?([01a])")
_SECOND = {"0": "1", "1": "2", "a": "b", "A": "B"}
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


def prompt_columns(row: dict[str, Any], further: bool = False) -> list[str]:
    """The columns that may hold the prompt; one where it is clear. An instruction and its input are one prompt.

    Args:
        further: also where nothing but the prompt is wanted, which has more names.
    """
    found = [name for name in PROMPTS if row.get(name) is not None]
    if "prompt" in found:
        return ["prompt"]
    if further and not found:
        return [name for name in FURTHER_PROMPTS if isinstance(row.get(name), (str, list))][:1]
    return ["instruction"] if set(found) == {"instruction", "input"} else found


def reply_columns(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs of columns that hold two replies to choose from, first and second."""
    pairs = []
    for name, value in row.items():
        match = _first_of_two(name) if isinstance(name, str) and isinstance(value, (str, list)) else None
        if match is None:
            continue
        second = name[:-1] + _SECOND[match[1]]
        before = name[:-1] + "0"
        if isinstance(row.get(second), (str, list)) and not (match[1] == "1" and before in row):
            pairs.append((name, second))
    return [("response_1", "response_2")] if ("response_1", "response_2") in pairs else pairs


@lru_cache(maxsize=256)
def _first_of_two(name: str) -> re.Match[str] | None:
    return _FIRST_OF_TWO.fullmatch(name)


def label_columns(row: dict[str, Any]) -> list[str]:
    """The columns that may say which of two replies is better; `label`, which is our name, comes first and alone.

    A list has the labels of several people.
    """
    found = [name for name in LABELS if isinstance(row.get(name), (str, int, float)) or _is_votes(row.get(name))]
    return ["label"] if "label" in found else found


def _is_votes(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(isinstance(one, (str, int, float, type(None))) for one in value)
    )


def completion_column(row: dict[str, Any]) -> str | None:
    """The column of the one reply of a row: the first of the names it may have."""
    return next((name for name in COMPLETIONS if row.get(name) is not None), None)


def is_tree(row: dict[str, Any]) -> bool:
    """A tree of messages, a message with its replies, or one message of a flat list."""
    root = row.get("prompt")
    if isinstance(root, dict):
        return "text" in root and "replies" in root
    return {"text", "role"} <= row.keys() and bool({"replies", "parent_id"} & row.keys())


def is_transcript(text: str) -> bool:
    return text.lstrip().startswith("Human:")


def reply_lists(row: dict[str, Any]) -> list[str]:
    return [name for name in REPLY_LISTS if isinstance(row.get(name), list)]


def _is_rated(replies: list[Any], row: dict[str, Any]) -> bool:
    """Replies that carry scores or ranks, in themselves or in a list of the same length beside them."""
    if replies and all(isinstance(reply, dict) for reply in replies):
        return any(set(reply) & set(TEXTS) and set(reply) & {*SCORES, *RANKS, "annotations"} for reply in replies)
    return bool(replies) and all(isinstance(reply, str) for reply in replies) and bool(beside(row, len(replies)))


def beside(row: dict[str, Any], length: int) -> list[str]:
    """The columns whose lists rate the replies of a row: a score's or rank's name, also in the plural."""
    names = [*SCORES, *RANKS, *(f"{name}s" for name in (*SCORES, *RANKS))]
    return [name for name in names if isinstance(row.get(name), list) and len(row[name]) == length]


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


FORMATS = {
    "hh": Format(
        "chosen and rejected, each a whole transcript that starts with 'Human:'",
        _is_hh,
        lambda row: ("chosen", "rejected", "margin"),
    ),
    "preference": Format(
        "chosen and rejected as messages, or as text with a prompt",
        _is_preference,
        lambda row: (*_asks(row), "chosen", "rejected", "margin"),
    ),
    "comparison": Format(
        "two replies (output_1, output_2; response_a, response_b; ...) and a label that says which is better",
        lambda row: bool(reply_columns(row) and label_columns(row)),
        _compared,
    ),
    "ranked": Format(
        "a list of replies, each with a score or a rank",
        lambda row: any(_is_rated(row[name], row) for name in reply_lists(row)),
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
        lambda row: (*_asks(row), *_present_completion(row), "label"),
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
        lambda row: ("messages", *(["label"] if thumb(row.get("label")) is not None else [])),
    ),
    "prompt_completion": Format(
        "prompt and completion, as messages or as text",
        lambda row: _is_completed(row) and not _is_feedback(row) and not _is_scored(row),
        lambda row: (*_asks(row), *_present_completion(row)),
    ),
    "instruction": Format(
        "instruction, perhaps input, and output; or instances of input and output",
        lambda row: _is_instruction(row) and not _is_feedback(row),
        lambda row: (*_asks(row), "instances", *_present_completion(row)),
    ),
    "prompt": Format(
        "prompt, as messages or as text",
        lambda row: False,
        lambda row: (*prompt_columns(row, further=True), *_asks(row), "facts"),
    ),
}
