"""Which format a row has, told by its columns, and which columns hold what.

Where the columns could mean two things nothing is guessed: the error says which key of the source decides.
"""

import re
from typing import Any

FORMATS = {
    "hh": "chosen and rejected, each a whole transcript that starts with 'Human:'",
    "preference": "chosen and rejected as messages, or as text with a prompt",
    "comparison": "two replies (output_1, output_2; response_a, response_b; ...) and a label that says which is better",
    "ranked": "a list of replies, each with a score or a rank",
    "feedback": "prompt, completion and a label: thumbs up or down",
    "tree": "messages with replies and ranks (Open-Assistant), nested or one message a row with parent_id",
    "messages": "messages",
    "prompt_completion": "prompt and completion, as messages or as text",
    "instruction": "instruction, perhaps input, and output; or instances of input and output",
    "prompt": "prompt, as messages or as text",
}

# What a prompt may be called. `prompt` is ours, and where it stands it is the prompt.
PROMPTS = ("prompt", "instruction", "question", "query", "input", "turns")
COMPLETIONS = ("completion", "response")
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


def renamed(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """The row under our names: each of `columns`, ours to the file's, moved; the others as they are."""
    if not columns:
        return row
    moved = {ours: row.get(theirs) for ours, theirs in columns.items()}
    return {name: value for name, value in row.items() if name not in columns.values()} | moved


def formats_of(row: Any) -> list[str]:
    """The formats whose columns and shapes a row has; a column that is null counts as absent."""
    if isinstance(row, str):
        return ["prompt"]
    if not isinstance(row, dict):
        return []
    has = {key for key, value in row.items() if value is not None}
    found = _pair_formats(row, has)
    if is_tree(row):
        return ["tree"]
    if {"prompt"} <= has and has & set(COMPLETIONS):
        found.append("feedback" if thumb(row.get("label")) is not None else "prompt_completion")
    if isinstance(row.get("messages"), list):
        found.append("messages")
    if "instruction" in has and (isinstance(row.get("output"), str) or isinstance(row.get("instances"), list)):
        found.append("instruction")
    # Checked last: a file of prompts has nothing that looks like a reply.
    if not found and not any(_REPLY_LIKE.match(name) for name in has) and len(prompt_columns(row)) == 1:
        found.append("prompt")
    return found


def _pair_formats(row: dict[str, Any], has: set[str]) -> list[str]:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    found = []
    if isinstance(chosen, str) and isinstance(rejected, str):
        if is_transcript(chosen) and is_transcript(rejected):
            found.append("hh")
        elif prompt_columns(row):
            found.append("preference")
    elif isinstance(chosen, list) and isinstance(rejected, list):
        found.append("preference")
    if reply_columns(row) and label_columns(row):
        found.append("comparison")
    if any(_is_rated(row[name], row) for name in REPLY_LISTS if isinstance(row.get(name), list)):
        found.append("ranked")
    return found


def prompt_columns(row: dict[str, Any]) -> list[str]:
    """The columns that may hold the prompt; one where it is clear. An instruction and its input are one prompt."""
    found = [name for name in PROMPTS if row.get(name) is not None]
    if "prompt" in found:
        return ["prompt"]
    return ["instruction"] if set(found) == {"instruction", "input"} else found


def reply_columns(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs of columns that hold two replies to choose from, first and second."""
    pairs = []
    for name, value in row.items():
        match = _FIRST_OF_TWO.fullmatch(name) if isinstance(name, str) and isinstance(value, (str, list)) else None
        if match is None:
            continue
        second = name[:-1] + _SECOND[match[1]]
        before = name[:-1] + "0"
        if isinstance(row.get(second), (str, list)) and not (match[1] == "1" and before in row):
            pairs.append((name, second))
    return [("response_1", "response_2")] if ("response_1", "response_2") in pairs else pairs


def label_columns(row: dict[str, Any]) -> list[str]:
    """The columns that may say which of two replies is better; `label`, which is our name, comes first and alone."""
    found = [name for name in LABELS if isinstance(row.get(name), (str, int, float))]
    return ["label"] if "label" in found else found


def thumb(label: Any) -> bool | None:
    """True for thumbs up, False for down, None where a label is neither."""
    if isinstance(label, str):
        label = label.strip().lower()
    if label in (True, 1, "1", "true", "up", "thumbs_up", "thumbs up", "good", "like"):
        return True
    return (
        False
        if label in (False, 0, -1, "0", "-1", "false", "down", "thumbs_down", "thumbs down", "bad", "dislike")
        else None
    )


def is_tree(row: dict[str, Any]) -> bool:
    """A tree of messages, a message with its replies, or one message of a flat list."""
    root = row.get("prompt")
    if isinstance(root, dict):
        return "text" in root and "replies" in root
    return {"text", "role"} <= row.keys() and bool({"replies", "parent_id"} & row.keys())


def is_transcript(text: str) -> bool:
    return text.lstrip().startswith("Human:")


def _is_rated(replies: list[Any], row: dict[str, Any]) -> bool:
    """Replies that carry scores or ranks, in themselves or in a list of the same length beside them."""
    if replies and all(isinstance(reply, dict) for reply in replies):
        return any(set(reply) & set(TEXTS) and set(reply) & {*SCORES, *RANKS} for reply in replies)
    return bool(replies) and all(isinstance(reply, str) for reply in replies) and bool(beside(row, len(replies)))


def beside(row: dict[str, Any], length: int) -> list[str]:
    """The columns whose lists rate the replies of a row: a score's or rank's name, also in the plural."""
    names = [*SCORES, *RANKS, *(f"{name}s" for name in (*SCORES, *RANKS))]
    return [name for name in names if isinstance(row.get(name), list) and len(row[name]) == length]
