"""JSON as others may have written it: a value a line, where a line ends at \\n alone, and none nested without end.

`str.splitlines` also cuts at U+2028, U+2029, U+0085 and other characters that JSON may hold within its strings, so that
one of them in a prompt would cut its row in two.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_rlhf.errors import DataError

# Levels of lists and objects in each other. A tree of fifty messages, each among the replies to the one before, has a
# hundred; what reads, prints and writes values calls itself once a level, and Python ends that at a thousand.
DEEPEST = 200


def lines_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines of a text of JSON lines and their numbers from 1; blank ones are left out, but counted."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield number, line


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file of JSON lines, in order.

    Raises:
        DataError: where a line is no JSON, by its number.
    """
    rows = []
    for number, line in lines_of(path.read_bytes()):
        try:
            rows.append(parse_json(line.decode("utf-8")))
        except ValueError as error:
            raise DataError(
                f"{path}, line {number} is no JSON ({error}): it was cut off or changed since it was written. Make the "
                "file again, or mend the line."
            ) from None
    return rows


def parse_json(text: str | bytes) -> Any:
    """The value of a text.

    Raises:
        ValueError: where it is no JSON, or nested deeper than DEEPEST.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    check_depth(value, text)
    return value


def check_depth(value: Any, text: str | bytes) -> None:
    """ValueError where a value, read from `text`, is nested deeper than DEEPEST."""
    brackets = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(map(text.count, brackets)) > DEEPEST and is_too_deep(value):  # type: ignore[arg-type]
        raise ValueError(_TOO_DEEP)


def is_too_deep(value: Any) -> bool:
    """Whether a value is nested deeper than DEEPEST."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


_TOO_DEEP = f"it is nested deeper than {DEEPEST} levels"
