"""What has been said in a chat: each side's own conversation, who was better, and both as rows of data.

Nothing is loaded or printed here. A side is one model that answers; two sides are asked the same and go on with their
own replies, until somebody takes the better one: then both go on from there.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_rlhf.data.rows import Conversation, Message
from llm_rlhf.errors import DataError


@dataclass
class Exchange:
    """One question, and what each side said to it: the assistant's turn, by the side's name."""

    asked: str
    replies: dict[str, Message]
    taken: str | None = None  # the side that somebody found better
    cut: frozenset[str] = frozenset()  # sides whose reply did not come to its end


@dataclass
class Talk:
    """A conversation with one side or two."""

    sides: Sequence[str]
    system: str | None = None
    exchanges: list[Exchange] = field(default_factory=list)

    def history(self, side: str, upto: int | None = None) -> Conversation:
        """What this side has heard and said in the first `upto` exchanges, or in all; a system turn comes first."""
        said: dict[str, Conversation] = {name: [] for name in self.sides}
        for exchange in self.exchanges[:upto]:
            for name in self.sides:
                said[name] = [*said[name], _user(exchange.asked), exchange.replies[name]]
            if exchange.taken is not None:
                said = dict.fromkeys(self.sides, said[exchange.taken])
        return [*self._opening(), *said[side]]

    def prompts(self, asked: str) -> dict[str, Conversation]:
        """What each side is to answer next."""
        return {side: [*self.history(side), _user(asked)] for side in self.sides}

    def heard(self, asked: str, replies: Mapping[str, Message], cut: Iterable[str] = ()) -> None:
        """Add an exchange; `cut`: the sides whose reply did not come to its end."""
        self.exchanges.append(Exchange(asked, dict(replies), cut=frozenset(cut)))

    def take(self, side: str) -> bool:
        """Go on from this side's conversation on both sides.

        Returns:
            Whether the two replies answered one and the same conversation, so that they are a comparison.

        Raises:
            DataError: where nothing has been said yet.
        """
        if not self.exchanges:
            raise DataError("Nothing has been said yet; ask something first.")
        self.exchanges[-1].taken = side
        return self._compared(len(self.exchanges) - 1)

    def undo(self) -> str:
        """Forget the last exchange, and return what was asked in it; DataError where there is none."""
        if not self.exchanges:
            raise DataError("There is nothing to take back.")
        return self.exchanges.pop().asked

    def reset(self) -> None:
        """Forget all that was said; the system turn stays."""
        self.exchanges = []

    def conversations(self) -> list[Conversation]:
        """What was said, each different conversation once, up to the first reply that says nothing.

        Of equal ones it is that in which fewer replies were cut.
        """
        found: list[Conversation] = []
        for side in sorted(self.sides, key=lambda side: sum(side in exchange.cut for exchange in self.exchanges)):
            turns = self.history(side)
            empty = (i for i, turn in enumerate(turns) if turn["role"] == "assistant" and not turn["content"].strip())
            turns = turns[: next(empty, len(turns) + 1) - 1]
            if turns[-1:] and turns[-1]["role"] == "assistant" and turns not in found:
                found.append(turns)
        return found

    def comparisons(self) -> list[dict[str, Any]]:
        """A row for each exchange of which somebody said who was better, where both answered the same to the end.

        Of replies that break off a reward model would learn that good ones do.
        """
        rows = []
        for number, exchange in enumerate(self.exchanges):
            if exchange.taken is None or not self._compared(number):
                continue
            (other,) = (side for side in self.sides if side != exchange.taken)
            chosen, rejected = (exchange.replies[side]["content"] for side in (exchange.taken, other))
            if not exchange.cut and chosen.strip() and rejected.strip() and chosen != rejected:
                prompt = [*self.history(exchange.taken, number), _user(exchange.asked)]
                rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        return rows

    def save(self, path: Path) -> list[tuple[Path, int]]:
        """Write the conversations, and what was compared into a file of its own beside it: a file has one format.

        Returns:
            The files written, each with its number of rows.

        Raises:
            DataError: where there is nothing to write, a file is there already, or it cannot be written.
        """
        pairs = path.with_stem(f"{path.stem}-pairs")
        rows = {path: self._demonstrations(), pairs: self.comparisons()}
        written = {file: found for file, found in rows.items() if found}
        if not written:
            raise DataError("Nothing has been said to its end, so that there is nothing to save.")
        if taken := [file for file in written if file.exists()]:
            raise DataError(f"{taken[0]} is there already; name another file.")
        if path.suffix != ".jsonl":
            raise DataError(f"{path} is to hold JSON lines; call it {path.with_suffix('.jsonl')}.")
        try:
            for file, found in written.items():
                file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), "utf-8")
        except (OSError, UnicodeEncodeError) as error:
            raise DataError(f"{path} cannot be written: {error}") from None
        return [(file, len(found)) for file, found in written.items()]

    def _demonstrations(self) -> list[dict[str, Any]]:
        """The conversations as rows; a reply that was cut is context and not imitated, or its end would be taught."""
        cut = [id(exchange.replies[side]) for exchange in self.exchanges for side in exchange.cut]
        rows: list[dict[str, Any]] = []
        for turns in self.conversations():
            marked: list[dict[str, Any]] = [turn | {"weight": 0} if id(turn) in cut else dict(turn) for turn in turns]
            if any(turn["role"] == "assistant" and "weight" not in turn for turn in marked):
                rows.append({"messages": marked})
        return rows

    def _compared(self, number: int) -> bool:
        """Whether all sides answered one and the same conversation in this exchange."""
        histories = [self.history(side, number) for side in self.sides]
        return len(histories) > 1 and all(history == histories[0] for history in histories)

    def _opening(self) -> Conversation:
        return [{"role": "system", "content": self.system}] if self.system else []


def _user(text: str) -> Message:
    return {"role": "user", "content": text}
