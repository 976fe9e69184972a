"""What can go wrong that a person can mend. The command line tells each in one message, without a traceback.

A message quotes what was found, and what was found may be a file of megabytes: `shown` bounds a value, and the errors
bound the whole.
"""

from collections.abc import Iterator
from typing import Any

LONGEST_MESSAGE = 4000  # characters: a screen or two; the beginning says what was found, the end what to do
LONGEST_SHOWN = 300  # characters of one value in a message


class _ToldError(Exception):
    """An error of which only the beginning and the end are told where it is long."""

    def __init__(self, message: object = "") -> None:
        super().__init__(bounded(str(message)))


class RecipeError(_ToldError, ValueError):
    """The request was wrong; the message says which key, what was found, the rule and what to do."""


class DataError(_ToldError, ValueError):
    """A source cannot be used, or nothing is left of it; the message says which, why, and what to do."""


class RunFolderError(_ToldError, ValueError):
    """The folder cannot be used as asked; the message says why and what to do."""


class RunError(_ToldError, RuntimeError):
    """The run failed for a reason that its message explains; nothing is wrong with the request."""


class NonFiniteError(RunError):
    """A number that must be finite is not; the weights have not been changed by it."""


def bounded(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """A text, without its middle where it is longer than that."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} [{len(text) - 2 * half:,} characters left out] {text[-half:]}"


def shown(value: object, longest: int = LONGEST_SHOWN) -> str:
    """A value as Python prints it, for a message: no more of it than that, however large it is or deep."""
    found = ""
    for piece in _pieces(value, longest):
        found += piece
        if len(found) > longest:
            return found[:longest] + " ..."
    return found


def _pieces(value: Any, longest: int) -> Iterator[str]:
    """The text of a value bit by bit, so that what is not shown is never made."""
    if type(value) in (list, tuple, dict):
        opening, closing = (
            ("[", "]") if isinstance(value, list) else ("(", ")") if isinstance(value, tuple) else ("{", "}")
        )
        yield opening
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _pieces(item, longest)
            if isinstance(value, dict):
                yield ": "
                yield from _pieces(value[item], longest)
        yield "," + closing if isinstance(value, tuple) and len(value) == 1 else closing
    elif isinstance(value, (str, bytes)):
        yield repr(value[: longest + 1])
    elif isinstance(value, int) and value.bit_length() > 4 * longest:  # Python refuses to print thousands of digits
        yield f"a number of {value.bit_length()} bits"
    else:
        yield repr(value)
