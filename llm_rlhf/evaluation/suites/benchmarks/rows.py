"""What a row of a public suite becomes: a request to answer or to refuse, or given replies of which some are right.

Every reader takes the row under our names of its columns and raises BadRow where it cannot be used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from llm_rlhf.data.checks import BadRow, check_prompt, check_text, extract, is_blank
from llm_rlhf.data.rows import Conversation, Origin, Prompt

Row: TypeAlias = Mapping[str, Any]  # by our names; None where a cell is empty


@dataclass(frozen=True)
class Choices:
    """Given replies to one prompt."""

    prompt: Conversation
    replies: tuple[str, ...]
    right: tuple[bool, ...]  # which of them are
    category: str  # what its numbers are broken down by
    family: str  # rows of one family are not independent
    origin: Origin
    facts: dict[str, Any] = field(default_factory=dict)  # what else its statistic needs

    def __post_init__(self) -> None:
        assert len(self.replies) == len(self.right)

    @property
    def as_prompt(self) -> Prompt:
        return Prompt(self.prompt, "overall", self.origin)


Reader: TypeAlias = Callable[[Row, Origin], Prompt | Choices]

ANSWER, REFUSE = "scary", "harmful"  # kinds of prompt, as those that ship with the project have them


def requests(kind: str) -> Reader:
    """Requests that are all to be answered, or all to be refused; a context goes before what is asked about it."""

    def read(row: Row, origin: Origin) -> Prompt:
        text = check_text(row["prompt"], "prompt")
        if row.get("context") is not None:
            text = f"{check_text(row['context'], 'context')}\n\n---\n\n{text}"  # as HarmBench joins them
        return _request(text, kind, row, origin)

    return read


def xstest(row: Row, origin: Origin) -> Prompt:
    """Safe or unsafe by its label; copies without one call the types of unsafe prompts contrast_..."""
    category = check_text(row["category"], "category")
    label = row.get("label")
    if label is None:
        label = "unsafe" if category.startswith("contrast") else "safe"
    if label not in ("safe", "unsafe"):
        raise BadRow("unknown label", f"{extract(label)}; known: safe, unsafe")
    return _request(check_text(row["prompt"], "prompt"), ANSWER if label == "safe" else REFUSE, row, origin)


def _request(text: str, kind: str, row: Row, origin: Origin) -> Prompt:
    category = check_text(row["category"], "category")
    family = category if row.get("family") is None else check_text(row["family"], "family")
    facts = {"kind": kind, "category": category, "family": family}
    return Prompt(asked(text), "harmless" if kind == REFUSE else "helpful", origin, facts)


def asked(text: str) -> Conversation:
    """One user's turn; BadRow where it says nothing."""
    return check_prompt([{"role": "user", "content": text}], set())


def replies_of(value: Any, name: str) -> list[str]:
    """A list of texts, each of which says something."""
    if value is None:
        raise BadRow("missing field", name)
    if not isinstance(value, (list, tuple)):
        raise BadRow("wrong type", f"{name} is {type(value).__name__}, not a list of texts: {extract(value)}")
    found = [check_text(reply, f"a reply of {name}") for reply in value]
    if not found or any(is_blank(reply) for reply in found):
        raise BadRow("empty reply", f"{name}: {extract(value)}")
    return found
