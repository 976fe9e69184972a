"""What a chat shows: on a terminal as it comes, two sides beside each other where there is room; else whole answers.

A model may say anything, escape sequences too. Nothing that it says reaches the terminal but as text.
"""

import abc
import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llm_rlhf.chat.printable import CONTROLS, printable
from llm_rlhf.chat.voices import Heard

WIDE = 100  # characters of a line from which two sides stand beside each other
WORD = 20  # characters that a word waits for its end at most before it is written
FRAME = 1 / 15  # seconds between two pictures of what is being said
NAMES = {"reward": "reward", "heldout": "held-out"}


def told_of(heard: Heard, scores: Mapping[str, float]) -> str:
    """What is known of an answer, in a line."""
    parts = [f"{NAMES[role]} {score:+.2f}" for role, score in scores.items()]
    if heard.tokens is not None:
        parts.append(f"{heard.tokens} token{'s' * (heard.tokens != 1)}")
    if heard.interrupted:
        parts.append("stopped by you")
    elif not heard.stopped:
        parts.append("cut off at response_length")
    if not heard.text.strip():
        parts.append("a thought that does not end" if heard.thought else "nothing said")
    if heard.cut:
        parts.append(f"the oldest {heard.cut} turns did not fit")
    return ", ".join(parts)


class Board(Protocol):
    """Where the answers to one question appear."""

    def tell(self, side: str, thought: str, text: str) -> None:
        """What a side has said so far."""
        ...

    def answered(self, side: str, heard: Heard, scores: Mapping[str, float]) -> None:
        """All that it said, and what is known of it."""
        ...


class Screen(Protocol):
    """What a chat shows, and how."""

    asks: bool  # somebody sits there, who is asked and told what can be done

    def board(self, asked: str, sides: Sequence[str]) -> contextlib.AbstractContextManager[Board]:
        """Shows the answers to a question while it is entered."""
        ...

    def say(self, text: str) -> None:
        """Tell something about the chat itself."""
        ...

    def explain(self, rows: Mapping[str, str]) -> None:
        """Tell what each of some things is."""
        ...


class _Plain(abc.ABC):
    """What those that write plain lines have in common."""

    asks = False

    @abc.abstractmethod
    def say(self, text: str) -> None: ...

    def explain(self, rows: Mapping[str, str]) -> None:
        width = max(map(len, rows)) + 2
        self.say("\n".join(f"{name:{width}}{what}" for name, what in rows.items()))


class Lines(_Plain):
    """Without a terminal: each answer in a piece, under its side's name where there are two."""

    @contextlib.contextmanager
    def board(self, asked: str, sides: Sequence[str]) -> Iterator[Board]:
        yield _LinesBoard(len(sides) > 1)

    def say(self, text: str) -> None:
        print(printable(text), flush=True)


class _LinesBoard:
    def __init__(self, named: bool) -> None:
        self.named = named

    def tell(self, side: str, thought: str, text: str) -> None: ...

    def answered(self, side: str, heard: Heard, scores: Mapping[str, float]) -> None:
        name = f"{side}: " if self.named else ""
        known = f"\n({told_of(heard, scores)})" if scores or not (heard.text and heard.stopped) or heard.cut else ""
        print(printable(f"{name}{heard.text}{known}"), flush=True)


class Json(_Plain):
    """A line of JSON for each answer; `turn` counts the questions from 1."""

    def __init__(self) -> None:
        self.turn = 0

    @contextlib.contextmanager
    def board(self, asked: str, sides: Sequence[str]) -> Iterator[Board]:
        self.turn += 1
        yield _JsonBoard(asked, self.turn)

    def say(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)


class _JsonBoard:
    def __init__(self, asked: str, turn: int) -> None:
        self.asked, self.turn = asked, turn

    def tell(self, side: str, thought: str, text: str) -> None: ...

    def answered(self, side: str, heard: Heard, scores: Mapping[str, float]) -> None:
        row = {
            "turn": self.turn, "side": side, "prompt": self.asked, "reply": heard.text, "thought": heard.thought,
            **{role: scores.get(role) for role in NAMES}, "tokens": heard.tokens, "stopped": heard.stopped,
            "turns_cut": heard.cut,
        }  # fmt: skip
        line = json.dumps(row, ensure_ascii=False)
        print(CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", line), flush=True)


class Terminal:
    """On a terminal: token by token, thoughts dimmed; two sides in columns where the lines are long enough."""

    asks = True

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(markup=False, highlight=False, emoji=False)

    @contextlib.contextmanager
    def board(self, asked: str, sides: Sequence[str]) -> Iterator[Board]:
        with _keys_unseen():
            yield from self._board(sides)

    def _board(self, sides: Sequence[str]) -> Iterator[Board]:
        if len(sides) < 2 or self.console.width < WIDE:
            yield _Stream(self.console, len(sides) > 1)
            return
        columns = _Columns(self.console, sides)
        try:
            with Live(console=self.console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
                columns.live = live
                yield columns
        finally:
            self.console.print(columns.whole())

    def say(self, text: str) -> None:
        self.console.print(Text(printable(text), style="dim"))

    def explain(self, rows: Mapping[str, str]) -> None:
        table = Table.grid(padding=(0, 2))
        for name, what in rows.items():
            table.add_row(Text(name), Text(what, style="dim"))
        self.console.print(table)


@contextlib.contextmanager
def _keys_unseen() -> Iterator[None]:
    """While it lasts, the terminal does not show what is typed, `^C` neither: that would stand within the answers."""
    try:
        import termios

        before = termios.tcgetattr(sys.stdin)
    except Exception:  # a system without termios, or an input that is no terminal
        yield
        return
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class _Stream:
    """One answer below the other, written on as it grows, a word at a time."""

    def __init__(self, console: Console, named: bool) -> None:
        self.console, self.named = console, named
        self.side: str | None = None
        self.written: dict[str, str] = {}  # the thought, and the reply
        self.held, self.style = "", ""  # the beginning of a word
        self.column = 0

    def tell(self, side: str, thought: str, text: str) -> None:
        if side != self.side:
            self.side, self.written = side, {"thought": "", "reply": ""}
            if self.named:
                self.console.print(Text(printable(side), style="bold"))
        if self.written["reply"] and thought != self.written["thought"]:  # what seemed the reply was a thought
            self._write("\n", "")
            self.written = {"thought": "", "reply": ""}
        self._go_on("thought", thought, "dim italic")
        if text and self.written["thought"] and not self.written["reply"]:
            self._write("\n\n", "")
        self._go_on("reply", text, "")

    def answered(self, side: str, heard: Heard, scores: Mapping[str, float]) -> None:
        self.tell(side, heard.thought, heard.text)
        self._write("\n", "")
        if known := told_of(heard, scores):
            self.console.print(Text(printable(known), style="dim"))
        self.console.print()

    def _go_on(self, part: str, text: str, style: str) -> None:
        """Write what is new; all of it anew, in a line of its own, where what was written has changed."""
        before = self.written[part]
        if text == before or not text:
            return
        if not text.startswith(before):
            self._write("\n", "")
            before = ""
        self._write(text[len(before) :], style)
        self.written[part] = text

    def _write(self, text: str, style: str) -> None:
        """Lines are broken between words, so the last word waits for its end, or for WORD characters of it."""
        if style != self.style:
            self._put(self.held)
            self.held, self.style = "", style
        pieces = re.findall(r"\s+|\S+", self.held + printable(text).expandtabs(4))
        waits = bool(pieces) and not pieces[-1].isspace() and cell_len(pieces[-1]) < WORD
        self.held = pieces.pop() if waits else ""
        for piece in pieces:
            self._put(piece)

    def _put(self, piece: str) -> None:
        """Write a word, or the space between two."""
        width, room = cell_len(piece.rpartition("\n")[2]), self.console.width - self.column
        if "\n" in piece:
            self.column = 0
        elif piece.isspace() and width >= room:
            self.column = self.console.width  # the next word begins a line
            return
        elif width > room and self.column:
            piece, self.column = f"\n{piece}", 0
        self.column += width
        if self.column > self.console.width:  # a word longer than a line, which the terminal breaks
            self.column %= self.console.width
        self.console.out(piece, style=self.style or None, end="", highlight=False)


class _Columns:
    """Two answers beside each other; while they grow, as much of their ends as the terminal has lines for."""

    def __init__(self, console: Console, sides: Sequence[str]) -> None:
        self.console, self.sides = console, sides
        self.said: dict[str, Text] = {side: Text() for side in sides}
        self.known: dict[str, str] = dict.fromkeys(sides, "")
        self.live: Live | None = None
        self.shown = 0.0

    def tell(self, side: str, thought: str, text: str) -> None:
        self.said[side] = Text(printable(thought + "\n\n" * bool(thought and text)), style="dim italic")
        self.said[side] = Text.assemble(self.said[side], Text(printable(text)))
        if self.live is not None and time.monotonic() - self.shown > FRAME:
            self.live.update(self._table(self.console.height - 4), refresh=True)
            self.shown = time.monotonic()

    def answered(self, side: str, heard: Heard, scores: Mapping[str, float]) -> None:
        self.known[side] = told_of(heard, scores)
        self.shown = 0.0
        self.tell(side, heard.thought, heard.text)

    def whole(self) -> Group:
        return Group(self._table(None), Text())

    def _table(self, lines: int | None) -> Table:
        table = Table.grid(expand=True, padding=(0, 2))
        for _ in self.sides:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*(Text(printable(side), style="bold") for side in self.sides))
        table.add_row(*(self._end(self.said[side], lines) for side in self.sides))
        table.add_row(*(Text(printable(self.known[side]), style="dim") for side in self.sides))
        return table

    def _end(self, text: Text, lines: int | None) -> Text:
        if lines is None:
            return text
        wrapped = text.wrap(self.console, max(self.console.width // len(self.sides) - 4, 1), overflow="fold")
        return Text("\n").join(wrapped[-max(lines, 1) :])
