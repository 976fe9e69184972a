"""stdout and stderr as a command needs them: they hide secrets, take any text, and outlive their reader.

A run that trained for hours must not end by a sign that an ASCII terminal has not, by a pipe whose reader has gone, or
by a log file on a full disk: what it made is in its folder.
"""

import codecs
import contextlib
import json
import os
import sys
from typing import Any, TextIO

from llm_rlhf.redaction import redacted

ESCAPED = "llm_rlhf.escaped"  # error handler: what cannot be encoded, as JSON escapes it


class Guarded:
    """A text stream for `sys.stdout` or `sys.stderr`, around the one that was there."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.outlives = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(redacted(text))
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._lost(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lost(error)

    def _lost(self, error: OSError | ValueError) -> None:
        """Write to nowhere from here on; raises where the command is worth nothing without its output."""
        if not self.outlives:
            raise error
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is left in its buffer, too, and what C libraries say
            os.close(nowhere)
        if self is sys.stdout and sys.stderr is not self:
            print(f"warning: nothing more can be printed ({error}); the command goes on without.", file=sys.stderr)


def guard() -> None:
    """Put both in place, once, before anything else takes hold of the old ones."""
    codecs.register_error(ESCAPED, _escaped)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # started with it closed: the next file that is opened would get its number, and C's errors
            os.open(os.devnull, os.O_RDWR)
        if name == "stdin":
            continue
        stream = getattr(sys, name) or open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - it stays
        with contextlib.suppress(AttributeError):  # of a stream that is none of Python's own
            stream.reconfigure(errors=ESCAPED)
        if not isinstance(stream, Guarded):
            setattr(sys, name, Guarded(stream))


def outlive() -> None:
    """From here on, the command goes on where nothing can be printed any more."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Guarded):
            stream.outlives = True


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
