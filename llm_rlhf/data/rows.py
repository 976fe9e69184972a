"""The typed rows that every data source becomes, whatever its format on disk.

A conversation is a list of messages, `{"role": "system" | "user" | "assistant", "content": text}`, as in the chat
templates of transformers; one of the assistant's may also have `reasoning_content`, the thoughts before its text. Every
row remembers where it came from, so that an error or a count can name it.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, str]
Conversation: TypeAlias = list[Message]


@dataclass(frozen=True)
class Origin:
    """Where a row was read: `source` is the file or hub id, `row` its number there, counted from 1."""

    source: str
    row: int

    def __str__(self) -> str:
        return f"{self.source}, row {self.row}"


def mark_of_cut(stopped: float | None, column: str = "stopped") -> dict[str, bool]:
    """What a row says of a reply that was cut at its length; nothing of one that ended by itself, or may have."""
    return {} if stopped is None or stopped else {column: False}


@dataclass(frozen=True)
class Preference:
    """Two replies to one prompt, of which a person preferred the first."""

    prompt: Conversation  # ends with the user's turn
    chosen: str
    rejected: str
    objective: str  # what was judged: "helpful", "harmless", or "overall" where the source does not say
    origin: Origin
    margin: float | None = None  # by how much `chosen` is better, in units of the reward; None where unknown
    confidence: float = 1.0  # probability that `chosen` is the better reply, over 1/2; under 1 where the label is soft
    position: int | None = None  # where `chosen` stood among the row's replies, from 1; None where columns name it
    chosen_stopped: bool = True  # it ended by itself; False: it was cut at its length, and is read without an end
    rejected_stopped: bool = True

    @property
    def sides(self) -> tuple[tuple[str, bool], tuple[str, bool]]:
        """Chosen and rejected, each with whether it ended by itself."""
        return (self.chosen, self.chosen_stopped), (self.rejected, self.rejected_stopped)


@dataclass(frozen=True)
class Rating:
    """A reply that somebody found good or bad by itself, thumbs up or down."""

    prompt: Conversation  # ends with the user's turn
    reply: str
    good: bool
    objective: str  # as in Preference
    origin: Origin
    stopped: bool = True  # as in Preference


@dataclass(frozen=True)
class Demonstration:
    """A conversation to imitate. Only the assistant's replies are trained on."""

    messages: Conversation  # ends with the assistant's turn
    origin: Origin
    every_reply: bool = False  # train on every assistant turn; False: on the last alone (the others are context)
    # With `every_reply`: the assistant's turns that are context even so, by their places from the end of `messages`
    # (-3, say), which stay the same where the oldest turns are cut. The last turn, -1, is never among them.
    context: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Prompt:
    """A conversation waiting for a reply: what PPO samples from and what the evaluation asks."""

    messages: Conversation  # ends with the user's turn
    objective: str  # "helpful", "harmless" or "overall", as in Preference
    origin: Origin
    facts: dict[str, Any] = field(default_factory=dict)  # what a rule needs to judge a reply; empty on real data


@dataclass
class RawRow:
    """A row as read. `fields` is what stands there, mostly a JSON object, or the BadRow that kept it from that.

    Once it is under our names (formats/naming.py), a row that holds several has the others in `more`.
    """

    origin: Origin
    fields: Any
    repairs: set[str] = field(default_factory=set)  # names of the rules that repaired it
    parts: Counter[str] = field(default_factory=Counter)  # what of a row with several replies was not used, by reason
    more: list[Any] = field(default_factory=list)
    written: dict[str, str] = field(default_factory=dict)  # our name of a column: how the file writes it
    taken: frozenset[str] = frozenset()  # columns, by our names, that a public set's shape has read
