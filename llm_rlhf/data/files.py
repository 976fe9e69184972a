"""Reads the rows of a file, a folder or a hub dataset as they stand: JSONL, JSON, CSV, TSV and Parquet, gzipped or not.

The format of a file is known by its name, gzip by the first bytes. A row that cannot be read is a BadRow in its place;
a file that cannot be read to its end is a DataError, because nobody can say what was lost.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO

from llm_rlhf.data.cells import of_table
from llm_rlhf.data.checks import BadRow, extract
from llm_rlhf.data.rows import Origin, RawRow
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import Source, expanded, local_files

BOM_REMOVED = "byte-order mark removed"

_LINES, _JSON, _TABLES, _PARQUET = (".jsonl", ".ndjson"), (".json",), (".csv", ".tsv"), (".parquet",)
SMALL = 1 << 20  # bytes of a source's files that are read in less time than it takes to import what would cache it
_SUFFIXES = (*_LINES, *_JSON, *_TABLES, *_PARQUET)
_ASKS = ("prompt", "instruction", "question", "query")  # columns of which one is there where an object holds columns
_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Opened:
    """One file of a source, or the dataset it names, ready to be read as often as needed."""

    name: str
    digest: str  # of what it holds; the same rows under another name have the same
    rows: Callable[[], Iterator[RawRow]]
    small: bool = False  # read again sooner than looked up


def open_source(source: Source, purpose: str) -> list[Opened]:
    """The files of a source, or its one dataset.

    Raises:
        DataError: where there is nothing under that name, or it is of no known kind.
    """
    name = source.source
    assert name is not None, "the recipe refuses a source without a name"
    if not name.strip():
        raise DataError(f"A source of {purpose} has an empty name; give a file, a folder or a hub id.")
    path = expanded(name)
    if path.is_dir():
        return [_open_dataset(source, str(path))]
    is_glob = not path.exists() and any(sign in name for sign in "*?[")
    looks_like_path = name.startswith((".", "/", "~")) or _kind(name) in (*_SUFFIXES, ".txt")
    if not (path.exists() or is_glob or looks_like_path):
        return [_open_dataset(source, name)]
    files = local_files(name)
    if not files:
        what = "no file fits" if is_glob else "There is no file"
        raise DataError(f"{what[0].upper()}{what[1:]} {name}.{_nearest_existing(path)}")
    for key, default in (("data_dir", None), ("subset", None), ("split", "train")):
        if (value := getattr(source, key)) != default:
            raise DataError(f"{name} is a file, but '{key}' is {value!r}, which is for hub datasets; remove it.")
    small = sum(file.stat().st_size for file in files) <= SMALL
    return [_open_file(file, str(file) if is_glob else name, small) for file in files]


def _kind(name: str) -> str:
    return Path(name.lower().removesuffix(".gz")).suffix


def _open_file(path: Path, name: str, small: bool) -> Opened:
    if _kind(name) not in _SUFFIXES:
        raise DataError(f"{name} is none of {', '.join(_SUFFIXES)}, plain or with .gz; convert or rename it.")
    with _clear_errors(name):
        digest = hashlib.sha256(_kind(name).encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    small = small and not name.lower().endswith(".gz") and _kind(name) not in _PARQUET
    return Opened(name, digest.hexdigest(), lambda: _read_file(path, name), small)


def _read_file(path: Path, name: str) -> Iterator[RawRow]:
    with _clear_errors(name):
        with path.open("rb") as file:
            start = file.read(24)
        if start.startswith(b"version https://git-lfs"):
            raise DataError(f"{name} is a Git LFS pointer, not the data; run `git lfs pull` in its repository.")
        opened: Any = gzip.open(path, "rb") if start.startswith(b"\x1f\x8b") else path.open("rb")  # noqa: SIM115
        kind = _kind(name)
        with opened as file:
            if kind in _PARQUET:
                yield from _read_parquet(file, name)
            elif kind in _TABLES:
                yield from _read_table(file, name, "\t" if kind == ".tsv" else ",")
            elif kind in _JSON and not _holds_lines(file):
                yield from _read_json(file, name)
            else:
                yield from _read_lines(file, name)


@contextlib.contextmanager
def _clear_errors(name: str) -> Iterator[None]:
    """Errors of the file system and of gzip, as one sentence."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{name} is a damaged gzip file ({error}); fetch it again.") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}.") from None


def _read_lines(file: BinaryIO, name: str) -> Iterator[RawRow]:
    """One row a line. Blank lines are skipped, but counted in the row numbers, so these are line numbers."""
    for number, line in enumerate(file, 1):
        raw = RawRow(Origin(name, number), None)
        if number == 1 and line.startswith(_BOM):
            line = line[3:]
            raw.repairs.add(BOM_REMOVED)
        if line.strip():
            raw.fields = _parse_line(line)
            yield raw


def _parse_line(line: bytes) -> Any:
    """The JSON value on a line, or the BadRow that says why there is none."""
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow("invalid UTF-8", f"byte {error.start + 1} of the line is 0x{line[error.start]:02x}")
    except (ValueError, RecursionError) as error:
        return BadRow("malformed JSON", str(error))


def _holds_lines(file: BinaryIO) -> bool:
    """Whether a .json file holds an object a line, as many on the hub do, no list and no columns; goes to the start."""
    first = next((line for line in file if line.removeprefix(_BOM).strip()), b"").removeprefix(_BOM)
    file.seek(0)
    row = _parse_line(first) if first.lstrip()[:1] == b"{" else None
    return isinstance(row, dict) and columns_of(row) is None


def _read_json(file: BinaryIO, name: str) -> Iterator[RawRow]:
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
            value, place = decoder.raw_decode(text, place)
            number += 1
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
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
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


def _read_table(file: BinaryIO, name: str, delimiter: str) -> Iterator[RawRow]:
    """The rows under a header, numbered from 1; a cell that is empty or says nan is absent: a table cannot say null."""
    csv.field_size_limit(2**31 - 1)  # a cell may hold a whole conversation; the default is 128 KiB
    # Bytes that are no UTF-8 come through as lone surrogates, and only the row that has them is set aside.
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    number = 0
    try:
        header = next(reader, [])
        if header and header[0].startswith(("\udcff\udcfe", "\udcfe\udcff")):
            raise DataError(f"{name} is in UTF-16, not in UTF-8; save it as UTF-8 (in Excel: CSV UTF-8).")
        if len(header) == 1 and (found := [other for other in ",;\t" if other in header[0]]):
            raise DataError(
                f"{name} is separated by {' and '.join(map(repr, found))}, not by {delimiter!r}: its header is "
                f"{extract(header[0])}; save it with {delimiter!r} between the columns"
                f"{', or call it .tsv' if found == [chr(9)] else ''}."
            )
        repairs = {BOM_REMOVED} if header and header[0].startswith("\ufeff") else set()
        header = [cell.removeprefix("\ufeff").strip() for cell in header]
        if len(set(header)) < len(header):
            raise DataError(f"{name} has two columns of one name in its header: {', '.join(map(extract, header))}.")
        for cells in reader:
            if not cells:
                continue
            number += 1
            yield RawRow(Origin(name, number), _cells(header, cells), repairs if number == 1 else set())
    except csv.Error as error:
        place = f"row {number + 1}, which ends on line {reader.line_num}"
        raise DataError(f"{name} is damaged in {place} ({error}); mend its quotes.") from None


def _cells(header: list[str], cells: list[str]) -> Any:
    if len(cells) != len(header):
        return BadRow("wrong number of columns", f"{len(cells)} instead of {len(header)}")
    for column, cell in zip(header, cells, strict=True):
        if not cell.isascii() and any("\ud800" <= character <= "\udfff" for character in cell):
            return BadRow("invalid UTF-8", f"column {extract(column)}")
    try:
        return {column: of_table(cell, column) for column, cell in zip(header, cells, strict=True)}
    except BadRow as bad:
        return bad


def _read_parquet(file: BinaryIO, name: str) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        whole = io.BytesIO(file.read()) if isinstance(file, gzip.GzipFile) else file
        for batch in pyarrow.parquet.ParquetFile(whole).iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield RawRow(Origin(name, number), row)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, gzip.BadGzipFile):
            raise
        first_line = (str(error).splitlines() or [""])[0][:200].rstrip(".")
        raise DataError(f"{name} is a damaged Parquet file ({first_line}); fetch it again.") from None


def _open_dataset(source: Source, name: str) -> Opened:
    import datasets
    from datasets.fingerprint import Hasher

    try:
        rows = datasets.load_dataset(name, name=source.subset, data_dir=source.data_dir, split=source.split)
    except Exception as error:
        asked = {"split": source.split, "data_dir": source.data_dir, "subset": source.subset}
        described = ", ".join(f"{key} {value!r}" for key, value in asked.items() if value is not None)
        what = "folder" if Path(name).is_dir() else "hub dataset"
        first_line = (str(error).splitlines() or [""])[0][:300].rstrip(".")
        raise DataError(
            f"The {what} {name!r} ({described}) cannot be loaded: {type(error).__name__}: {first_line}. "
            "Check the name and the split, and that the network is there or the data set is in the local cache; "
            "or download its files and name those."
        ) from None

    def read() -> Iterator[RawRow]:
        for number, row in enumerate(rows, 1):
            yield RawRow(Origin(name, number), dict(row))

    return Opened(name, getattr(rows, "_fingerprint", None) or Hasher.hash(rows), read)


def _nearest_existing(path: Path) -> str:
    """A sentence naming what exists nearest to a missing path."""
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    folder = missing.parent.resolve()
    try:
        near = get_close_matches(missing.name, [p.name for p in folder.iterdir()], n=1, cutoff=0.5)
    except OSError:  # a folder that may be entered but not listed
        near = []
    return f" Did you mean {folder / near[0]}?" if near else f" The nearest folder that exists is {folder}."
