"""What makes a row usable: checks on its text and turns, the key of a prompt, and the rule for long conversations.

A row that fails is set aside with a reason and its place in the source; nothing is dropped without being counted.
A row that can be used after a repair is repaired by a rule that has a name, and counted under that name.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llm_rlhf.data.rows import Conversation, Demonstration, Message, Origin, Preference, Prompt, Rating
from llm_rlhf.errors import shown

JOINED_TURNS = "turns of one role in a row joined"
EMPTY_SYSTEM_REMOVED = "empty system message removed"

# Text in pieces of bounded length, cut at white space where there is any: sorting one run of combining marks takes
# quadratic time, and a million of them would take a quarter of an hour.
_PIECES = re.compile(r"(?s).{1,4000}(?:\s|\Z)|.{1,4000}")

AnyRow = TypeVar("AnyRow", bound=Preference | Rating | Demonstration | Prompt)


class BadRow(Exception):  # noqa: N818 - caught row by row and turned into a SetAside; it never leaves the package
    """One row cannot be used. `reason` is from a small fixed vocabulary, `detail` is about this row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class SetAside:
    """A row that was not used: where it stands, why, and what was seen there (printable text, a short extract)."""

    origin: Origin
    reason: str
    detail: str = ""


def extract(value: Any, length: int = 80) -> str:
    """The beginning of a value as printable text: control characters and lone surrogates stand escaped."""
    text = value[: length + 1] if isinstance(value, str) else shown(value, length)
    return repr(text[:length]) + (" ..." if len(text) > length else "")


def check_text(value: Any, field: str) -> str:
    """`value` if it is text that can be tokenised and written back unchanged; else BadRow."""
    if value is None:
        raise BadRow("missing field", field)
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{field} is {type(value).__name__}, not text: {extract(value)}")
    if "\0" in value:
        raise BadRow("NUL character", f"{field}, character {value.index(chr(0)) + 1}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow("lone surrogate", f"{field}, character {error.start + 1}") from None
    return value


def is_blank(text: str) -> bool:
    """True where nothing can be seen: white space, control and formatting characters (zero-width ones too) only."""
    return all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in text)


def tidy_turns(turns: Conversation, repairs: set[str]) -> Conversation:
    """A conversation as the chat templates want it: perhaps a system message, then user and assistant by turns.

    Two turns of one role in a row are joined with a blank line between them, because nobody spoke in between; an empty
    system message is removed, because it says nothing. Both are noted in `repairs`. An empty turn, a system message
    after the start, or a conversation that the assistant opens is a BadRow.
    """
    tidy: Conversation = []
    for number, turn in enumerate(turns, 1):
        blank = is_blank(turn["content"])
        if turn["role"] == "system":
            if number > 1:
                raise BadRow("system message after the start", f"turn {number}")
            if blank:
                repairs.add(EMPTY_SYSTEM_REMOVED)
                continue
        elif blank:
            raise BadRow("empty turn", f"turn {number}, {turn['role']}")
        if tidy and tidy[-1]["role"] == turn["role"]:
            tidy[-1] = _joined(tidy[-1], turn)
            repairs.add(JOINED_TURNS)
        else:
            tidy.append(dict(turn))
    spoken = [turn for turn in tidy if turn["role"] != "system"]
    if spoken and spoken[0]["role"] != "user":
        raise BadRow("does not start with a user turn")
    return tidy


def _joined(first: Message, second: Message) -> Message:
    """One turn of two, each key's texts with a blank line between them."""
    texts = {key: [turn[key] for turn in (first, second) if turn.get(key)] for key in {**first, **second}}
    return {"role": first["role"]} | {key: "\n\n".join(of_key) for key, of_key in texts.items() if key != "role"}


def check_prompt(turns: Conversation, repairs: set[str]) -> Conversation:
    """A tidy conversation that waits for a reply: its last turn is the user's and says something."""
    if not turns or (turns[-1]["role"] != "assistant" and is_blank(turns[-1]["content"])):
        raise BadRow("empty prompt")
    if turns[-1]["role"] != "user":
        raise BadRow("prompt does not end with a user turn", f"it ends with a turn of the {turns[-1]['role']}")
    return tidy_turns(turns, repairs)


def check_ends_with_reply(turns: Conversation, name: str = "") -> None:
    """BadRow unless the last turn is the assistant's and says something; `name` tells chosen from rejected."""
    if not turns:
        raise BadRow("empty conversation", name)
    if turns[-1]["role"] != "assistant":
        raise BadRow("does not end with an assistant turn", name)
    if is_blank(turns[-1]["content"]):
        raise BadRow(f"empty {name} reply" if name else "empty reply")


def normalised_prompt(messages: Conversation) -> str:
    """The key under which two prompts count as the same: roles and text, blind to case, width and white space.

    NFKC, casefold, NFKC again (casefolding can undo it), every run of white space one space; one turn a line.
    """
    return "\n".join(f"{message['role']}: {_normalised(message['content'])}" for message in messages)


def _normalised(text: str) -> str:
    if text.isascii():  # NFKC changes none of it
        return " ".join(text.casefold().split())
    pieces = [unicodedata.normalize("NFKC", piece).casefold() for piece in _PIECES.findall(text)]
    return " ".join("".join(unicodedata.normalize("NFKC", piece) for piece in pieces).split())


def prompt_share(messages: Conversation, purpose: str = "sample") -> float:
    """A number in [0, 1), uniform over prompts and always the same for one prompt: SHA-256 of the normalised prompt.

    Two choices that take the lowest shares for one `purpose` take the same prompts. The split into training and
    evaluation and the limit of a source therefore each have a purpose of their own.
    """
    return (key_of(normalised_prompt(messages), purpose) >> 11) / 2**53  # 53 bits: exact in a float, so never 1


def key_of(text: str, purpose: str) -> int:
    """64 bits of SHA-256 that stand for a text: of a million different texts two share a key once in 10^7 times."""
    return int.from_bytes(hashlib.sha256(f"{purpose}\n{text}".encode()).digest()[:8])


def prompt_of(row: Preference | Rating | Demonstration | Prompt) -> Conversation:
    """What the assistant was asked: everything before the reply."""
    if isinstance(row, (Preference, Rating)):
        return row.prompt
    if isinstance(row, Demonstration):
        return row.messages[:-1]
    return row.messages


def opening(messages: Conversation) -> Conversation:
    """The first user turn alone. Conversations with the same opening are relatives and must share a split.

    In HH-RLHF many rows are successive turns of one talk: the prompt of one is the beginning of the prompt of another,
    replies included. Split by the whole prompt, they would straddle training and evaluation.
    """
    return next([turn] for turn in messages if turn["role"] == "user")


def fit_conversation(
    messages: Conversation, count_tokens: Callable[[Conversation], int], limit: int
) -> Conversation | None:
    """The conversation within `limit` tokens, cut at turn boundaries; None where not even the last user turn fits.

    A leading system message and the end are kept, the oldest turns go first, and what remains starts with a user turn:
    the end is what the reply answers, and a template expects the user to open.
    """
    system = messages[:1] if messages and messages[0]["role"] == "system" else []
    for start in range(len(system), len(messages)):
        if messages[start]["role"] != "user":
            continue
        cut = system + messages[start:]
        if count_tokens(cut) <= limit:
            return cut
    return None


def write_quarantine(set_aside: Iterable[SetAside], path: str | Path) -> None:
    """Write one JSON object a line: source, row, reason, detail. Plain ASCII, whatever the rows held."""
    with Path(path).open("w", encoding="ascii") as file:
        for item in set_aside:
            record = {
                "source": item.origin.source,
                "row": item.origin.row,
                "reason": item.reason,
                "detail": item.detail,
            }
            file.write(json.dumps(record) + "\n")
