"""Reads the rows of a JSON file: one object a line, a list of objects, or one object of columns."""

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from llm_rlhf.data.bounds import LONGEST_ROW, TOO_LONG
from llm_rlhf.data.checks import BadRow
from llm_rlhf.data.rows import Origin, RawRow
from llm_rlhf.errors import DataError
from llm_rlhf.json_lines import DEEPEST, is_too_deep, parse_json

BOM_REMOVED = "byte-order mark removed"

_ASKS = ("prompt", "instruction", "question", "query")  # columns of which one is there where an object holds columns
_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")


def read_lines(file: BinaryIO, name: str) -> Iterator[RawRow]:
    """One row a line. Blank lines are skipped, but counted in the row numbers, so these are line numbers."""
    for number, line in enumerate(_lines(file), 1):
        raw = RawRow(Origin(name, number), None)
        if number == 1 and line.startswith(_BOM):
            line = line[3:]
            raw.repairs.add(BOM_REMOVED)
        if len(line) > LONGEST_ROW:
            raw.fields = BadRow(TOO_LONG, f"the line has more than {LONGEST_ROW:,} bytes; split the row, or the file")
            yield raw
        elif line.strip():
            raw.fields = _parse_line(line)
            yield raw


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one that is too long, its beginning."""
    while line := file.readline(LONGEST_ROW + 1):
        yield line
        while len(line) > LONGEST_ROW and not line.endswith(b"\n"):
            line = file.readline(LONGEST_ROW + 1)


def _parse_line(line: bytes) -> Any:
    """The JSON value on a line, or the BadRow that says why there is none."""
    try:
        return parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow("invalid UTF-8", f"byte {error.start + 1} of the line is 0x{line[error.start]:02x}")
    except ValueError as error:
        return BadRow("malformed JSON", str(error))


def holds_lines(file: BinaryIO) -> bool:
    """Whether a .json file holds an object a line, as many on the hub do, no list and no columns; goes to the start."""
    first = next((line for line in _lines(file) if line.removeprefix(_BOM).strip()), b"").removeprefix(_BOM)
    file.seek(0)
    row = _parse_line(first) if first.lstrip()[:1] == b"{" else None
    return isinstance(row, dict) and columns_of(row) is None


def read_json(file: BinaryIO, name: str) -> Iterator[RawRow]:
    """The items of one JSON list, numbered from 1, taken one by one: the whole as objects would need much memory."""
    data = file.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; convert the file."
        ) from None
    repairs = {BOM_REMOVED} if text.startswith("\ufeff") else set()
    place = _after_space(text, len(repairs))
    if place == len(text):
        return
    if text[place] == "{":
        yield from _read_columns(text[place:], name)
        return
    if text[place] != "[":
        raise DataError(f"{name} holds no list; write a JSON list of objects, or one object a line (.jsonl).")
    decoder, number, place = json.JSONDecoder(), 0, _after_space(text, place + 1)
    try:
        while text[place : place + 1] != "]" or number:
            value, end = decoder.raw_decode(text, place)
            number += 1
            if end - place > LONGEST_ROW:
                value = BadRow(TOO_LONG, f"it has {end - place:,} characters; at most {LONGEST_ROW:,} are read")
            elif is_too_deep(value):
                value = BadRow("malformed JSON", f"it is nested deeper than {DEEPEST} levels")
            place = end
            yield RawRow(Origin(name, number), value, repairs if number == 1 else set())
            place = _after_space(text, place)
            if text[place : place + 1] == "]":
                break
            if text[place : place + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
            place = _after_space(text, place + 1)
        if _after_space(text, place + 1) != len(text):
            raise json.JSONDecodeError("Extra data after the list", text, place + 1)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is damaged JSON after item {number} ({error}); mend or fetch it again.") from None


def _read_columns(text: str, name: str) -> Iterator[RawRow]:
    """The rows of one object of columns, each a list, or an object by row number as pandas writes it."""
    try:
        table = parse_json(text)
    except ValueError as error:
        raise DataError(f"{name} is damaged JSON ({error}); mend or fetch it again.") from None
    columns = columns_of(table)
    if columns is None:
        raise DataError(
            f"{name} holds no list, and no columns of one length with the prompts among them; write a JSON list of "
            "objects, or one object a line (.jsonl)."
        )
    for number, cells in enumerate(zip(*columns.values(), strict=True), 1):
        yield RawRow(Origin(name, number), dict(zip(columns, cells, strict=True)))


def columns_of(table: Any) -> dict[str, list[Any]] | None:
    """The columns of an object that holds several rows; None where it is one row.

    Lists of one length may also be the two conversations of a pair, so one of them must hold what asks, as text.
    """
    if not isinstance(table, dict) or not table:
        return None
    keys = [list(value) for value in table.values() if isinstance(value, dict)]
    if len(keys) == len(table) and all(of_one == keys[0] for of_one in keys):
        return {name: list(value.values()) for name, value in table.items()}
    lists = [value for value in table.values() if isinstance(value, list)]
    if len(lists) < len(table) or len({len(value) for value in lists}) > 1:
        return None
    asks = [value for name, value in table.items() if name.lower() in _ASKS]
    return table if any(value and all(isinstance(text, str) for text in value) for value in asks) else None


def _after_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    assert found is not None  # the pattern matches the empty text, too
    return found.end()
