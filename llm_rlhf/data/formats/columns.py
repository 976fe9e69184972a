"""Which columns of a row, under our names, hold what: its prompt, its replies, what is said of them."""

import re
from functools import lru_cache
from typing import Any

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


def is_rated(replies: list[Any], row: dict[str, Any]) -> bool:
    """Replies that carry scores or ranks, in themselves or in a list of the same length beside them."""
    if replies and all(isinstance(reply, dict) for reply in replies):
        return any(set(reply) & set(TEXTS) and set(reply) & {*SCORES, *RANKS, "annotations"} for reply in replies)
    return bool(replies) and all(isinstance(reply, str) for reply in replies) and bool(beside(row, len(replies)))


def beside(row: dict[str, Any], length: int) -> list[str]:
    """The columns whose lists rate the replies of a row: a score's or rank's name, also in the plural."""
    names = [*SCORES, *RANKS, *(f"{name}s" for name in (*SCORES, *RANKS))]
    return [name for name in names if isinstance(row.get(name), list) and len(row[name]) == length]
