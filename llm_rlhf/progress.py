"""What long work shows while it goes on: a bar on a terminal, and in a log a whole line a minute."""

import contextlib
import os
import sys
from typing import Any, TextIO

from tqdm.std import tqdm

EVERY = 60.0  # seconds between two lines in a log


class _Lines:
    """A stream that makes plain lines of what redraws one line."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            self.stream.write(f"  {line}\n")

    def flush(self) -> None:
        self.stream.flush()


def _size() -> dict[str, int]:
    """What tqdm needs on a terminal that says it is 0 by 0, as in some containers: there it would draw nothing."""
    with contextlib.suppress(OSError, ValueError):
        known = os.get_terminal_size(sys.stderr.fileno())
        if known.columns and known.lines:
            return {}
    return {"ncols": 99, "nrows": 24}


def bar(*rows: Any, desc: str, **options: Any) -> "tqdm[Any]":
    """tqdm's bar, over `rows` where they are given.

    Not on a terminal, it shows nothing of what takes less than a minute, and then a line a minute.

    Args:
        options: of tqdm (`total`, `disable`, `leave`, ...).
    """
    if sys.stderr.isatty():
        shown: dict[str, Any] = {"mininterval": 0.5, **_size()}
    else:
        shown = {"mininterval": EVERY, "delay": EVERY, "file": _Lines(sys.stderr), "ascii": True, "ncols": 0}
        shown["miniters"] = 1  # else tqdm, which adapts it, draws a line of its own ten seconds after each of ours
    return tqdm(*rows, desc=f"  {desc}", **(shown | options))


def tell(line: str) -> None:
    """Print a line; where bars are on the screen, above them."""
    tqdm.write(line)
    sys.stdout.flush()


def leave_bars() -> None:
    """Leave the bars that are on the screen as they are: what is printed next begins a line of its own."""
    for shown in list(getattr(tqdm, "_instances", ())):
        shown.leave = True
        shown.close()
