"""Typed rows in tables: of a small file in memory, of others memory-mapped from a cache (table_cache.py).

A cached table is made once for each file, format and version of this code: its key is a hash of all three, so that
neither an edited file nor an edited parser can serve stale rows, and it does not depend on where the file lies.
"""

import bisect
import dataclasses
import hashlib
import itertools
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np

from llm_rlhf.data.checks import key_of, normalised_prompt, opening, prompt_of
from llm_rlhf.data.files import Opened
from llm_rlhf.data.formats.conversations import why_not_imitated
from llm_rlhf.data.formats.parsing import Entry, parse
from llm_rlhf.data.formats.trees import Kind
from llm_rlhf.data.rows import Demonstration, Origin, Preference, Prompt, Rating
from llm_rlhf.recipe.sections import Source

_TYPES = {"preferences": Preference, "ratings": Rating, "demonstrations": Demonstration, "prompts": Prompt}
# Keys of a row's prompt (see checks.key_of): equal where these are the same but for case and space. The split goes by
# `opening`, the limit of a source by `prompt`. Then of the row, and of its prompt with the reply to imitate.
KEYS = ("opening", "prompt", "content", "imitated")
COLUMNS: dict[str, type] = (
    dict.fromkeys(("is_row", "imitable"), bool)
    | dict.fromkeys(("number", "rows", "parts", "position"), np.int64)
    | dict.fromkeys(("value", "reason", "detail", "repairs", "unread"), str)
    | dict.fromkeys(KEYS, np.uint64)
)
_BATCH = 500  # rows decoded at once

Row = TypeVar("Row", Preference, Rating, Demonstration, Prompt)
Other = TypeVar("Other", Preference, Rating, Demonstration, Prompt)


@dataclasses.dataclass(frozen=True)
class Table:
    """One parsed file. A line is a row made, one set aside, or a count of what was not used (see parsing.Entry)."""

    name: str  # of the file or dataset, as in the rows' Origin
    kind: Kind
    data: Any  # columns by name, in memory; or a datasets.Dataset, on the disk

    def column(self, name: str) -> np.ndarray:
        return self.data[name] if isinstance(self.data, dict) else self.data.data.column(name).to_numpy()

    def lines(self, names: list[str], numbers: np.ndarray) -> dict[str, list[Any]]:
        """These columns of the lines of these numbers."""
        if isinstance(self.data, dict):
            return {name: self.data[name][numbers].tolist() for name in names}
        found: dict[str, list[Any]] = self.data.select_columns(names)[numbers]
        return found


def table_of(opened: Opened, form: str, source: Source, kind: Kind) -> Table:
    """The parsed rows of a file: made now, or, unless it is small, read from the cache.

    Raises:
        DataError: where the file cannot be read to its end.
    """

    def lines() -> Iterator[dict[str, Any]]:
        return map(_line, parse(opened, form, source, kind))

    if opened.small:
        made = list(lines())
        types = {name: object if of is str else of for name, of in COLUMNS.items()}
        return Table(opened.name, kind, {n: np.array([line[n] for line in made], of) for n, of in types.items()})
    from llm_rlhf.data.table_cache import made_once  # the libraries behind it take two seconds to import

    parsing = (opened.digest, kind, form, source.columns, source.labels, source.pairs, source.objective)
    key = hashlib.sha256(repr((*parsing, _code())).encode()).hexdigest()
    return Table(opened.name, kind, made_once(key, lines, COLUMNS))


@cache
def _code() -> str:
    """A hash of what decides how a row is read: the modules here, and the Unicode tables behind the prompts' keys."""
    digest = hashlib.sha256(unicodedata.unidata_version.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _line(entry: Entry) -> dict[str, Any]:
    line: dict[str, Any] = {
        "is_row": entry.made is not None,
        "number": entry.number,
        "rows": entry.rows,
        "parts": entry.parts,
        "value": "",
        "reason": entry.reason,
        "detail": entry.detail,
        "repairs": "\n".join(sorted(entry.repairs)),
        "unread": entry.unread,
    }
    if entry.made is None:
        return line | dict.fromkeys((*KEYS, "position"), 0) | {"imitable": False}
    fields = {field.name: getattr(entry.made, field.name) for field in dataclasses.fields(entry.made)}
    del fields["origin"]
    # Of most rows nothing is to be said by these, and the key of a row must not change with them.
    if not fields.get("context"):
        fields.pop("context", None)
    for name in ("chosen_stopped", "rejected_stopped", "stopped"):
        if fields.get(name):
            del fields[name]
    line["value"] = json.dumps(fields, ensure_ascii=False, default=str)
    prompt = prompt_of(entry.made)
    reply: Any = entry.made.chosen if isinstance(entry.made, Preference) else ""
    if isinstance(entry.made, Demonstration):
        last = entry.made.messages[-1]
        reply = last if "reasoning_content" in last else last["content"]
    return line | {
        "imitable": not isinstance(entry.made, Preference) or why_not_imitated(entry.made) is None,
        "position": fields.get("position") or 0,
        "opening": key_of(normalised_prompt(opening(prompt)), "split"),
        "prompt": key_of(normalised_prompt(prompt), "limit"),
        "content": key_of(line["value"], "content"),
        "imitated": key_of(json.dumps([prompt, reply]), "imitated"),
    }


@dataclasses.dataclass(frozen=True)
class Part:
    """Lines of one table, in the order they are wanted, and what is made of each row on the way out."""

    table: Table
    lines: np.ndarray
    source: Source
    convert: Callable[[Any], Any] = lambda row: row


class Rows(Sequence[Row], Generic[Row]):
    """Rows in tables: a list to look at, but each row is decoded when it is asked for, and choosing copies nothing."""

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self.parts = [part for part in parts if len(part.lines)]
        self._ends = list(itertools.accumulate(len(part.lines) for part in self.parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows[Row]": ...
    def __getitem__(self, index: int | slice) -> "Row | Rows[Row]":
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number = bisect.bisect_right(self._ends, index)
        part = self.parts[number]
        start = self._ends[number] - len(part.lines)
        return next(_decoded(part, part.lines[index - start : index - start + 1]))

    def __iter__(self) -> Iterator[Row]:
        for part in self.parts:
            for start in range(0, len(part.lines), _BATCH):
                yield from _decoded(part, part.lines[start : start + _BATCH])

    def column(self, name: str) -> np.ndarray:
        """One of KEYS, the position, or `imitable`, of every row."""
        columns = [part.table.column(name)[part.lines] for part in self.parts]
        return np.concatenate(columns) if columns else np.zeros(0, np.uint64)

    def select(self, chosen: np.ndarray) -> "Rows[Row]":
        """The rows of these numbers, in this order, or those where a mask is true; a number may come twice."""
        numbers = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        part_of = np.searchsorted(self._ends, numbers, side="right")
        parts = []
        for run, which in zip(*_runs(numbers, part_of), strict=True):
            part = self.parts[which]
            parts.append(dataclasses.replace(part, lines=part.lines[run - (self._ends[which] - len(part.lines))]))
        return Rows(parts)

    def seen_as(self, convert: Callable[[Row], Other], source: Source) -> "Rows[Other]":
        """The same rows as others, one for one: the prompts of pairs, say. `source` is the one that asks for them.

        What their own source says of leaks goes on to hold of them.
        """

        def both(first: Callable[[Any], Row]) -> Callable[[Any], Other]:
            return lambda row: convert(first(row))

        def asking(own: Source) -> Source:
            return dataclasses.replace(source, leaks=source.leaks or own.leaks)

        return Rows(dataclasses.replace(p, convert=both(p.convert), source=asking(p.source)) for p in self.parts)

    def __add__(self, other: "Rows[Row]") -> "Rows[Row]":
        return Rows([*self.parts, *other.parts])


def _decoded(part: Part, lines: np.ndarray) -> Iterator[Any]:
    found = part.table.lines(["number", "value"], lines)
    row_type = _TYPES[part.table.kind]
    for number, value in zip(found["number"], found["value"], strict=True):
        yield part.convert(row_type(origin=Origin(part.table.name, number), **json.loads(value)))


def _runs(numbers: np.ndarray, part_of: np.ndarray) -> tuple[list[np.ndarray], list[int]]:
    """The numbers cut where they go over into another part, and the part of each run."""
    runs = [run for run in np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(part_of)) + 1) if len(run)]
    return [numbers[run] for run in runs], [int(part_of[run[0]]) for run in runs]
