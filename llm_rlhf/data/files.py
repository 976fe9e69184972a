"""Reads the rows of a file, a folder or a hub dataset as they stand: JSONL, JSON, CSV, TSV and Parquet, gzipped or not.

The format of a file is known by its name, gzip by the first bytes. A row that cannot be read is a BadRow in its place;
a file that cannot be read to its end is a DataError, because nobody can say what was lost.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO

from llm_rlhf.data.bounds import (
    DECODED_FREELY,
    LONGEST_ROW,
    MOST_DECODED,
    TOO_LONG,
    Growth,
    too_long,
    unpacked,
)
from llm_rlhf.data.cells import of_table
from llm_rlhf.data.checks import BadRow, extract
from llm_rlhf.data.json_files import BOM_REMOVED, holds_lines, read_json, read_lines
from llm_rlhf.data.rows import Origin, RawRow
from llm_rlhf.errors import DataError, first_line
from llm_rlhf.recipe.sections import Source, expanded, local_files

_LINES, _JSON, _TABLES, _PARQUET = (".jsonl", ".ndjson"), (".json",), (".csv", ".tsv"), (".parquet",)
SMALL = 1 << 20  # bytes of a source's files that are read in less time than it takes to import what would cache it
GZIP = b"\x1f\x8b"  # how a gzip file begins
_PARQUET_BATCH = 32  # rows decoded at once: each may be as long as a row may be
_SUFFIXES = (*_LINES, *_JSON, *_TABLES, *_PARQUET)


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
        recipe = " A recipe is checked by --recipe FILE." if _kind(name) in (".yaml", ".yml") else ""
        raise DataError(f"{name} is none of {', '.join(_SUFFIXES)}, plain or with .gz; convert or rename it.{recipe}")
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
        packed = start.startswith(GZIP)
        opened = unpacked(path, name) if packed else path.open("rb")
        kind = _kind(name)
        with opened as file:
            if kind in _PARQUET:
                yield from _read_parquet(io.BytesIO(file.read()) if packed else file, name, path.stat().st_size)
            elif kind in _TABLES:
                yield from _read_table(file, name, "\t" if kind == ".tsv" else ",")
            elif kind in _JSON and not holds_lines(file):
                yield from read_json(file, name)
            else:
                yield from read_lines(file, name)


@contextlib.contextmanager
def _clear_errors(name: str) -> Iterator[None]:
    """Errors of the file system and of gzip, as one sentence."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{name} is a damaged gzip file ({error}); fetch it again.") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}.") from None


def _read_table(file: BinaryIO, name: str, delimiter: str) -> Iterator[RawRow]:
    """The rows under a header, numbered from 1; a cell that is empty or says nan is absent: a table cannot say null."""
    csv.field_size_limit(LONGEST_ROW)  # a cell may hold a whole conversation; the default is 128 KiB
    # Bytes that are no UTF-8 come through as lone surrogates, and only the row that has them is set aside.
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    reader = csv.reader(_bounded_lines(text), delimiter=delimiter, strict=True)
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
        raise DataError(
            f"{name} is damaged in {place} ({error}); mend its quotes: one that is never closed takes in "
            "the rest of the file."
        ) from None


def _bounded_lines(text: io.TextIOWrapper) -> Iterator[str]:
    """The lines of a table. A row may have several, but its cells are bounded, each by csv's own limit."""
    for number in itertools.count(1):
        if not (line := text.readline(LONGEST_ROW + 1)):
            return
        if len(line) > LONGEST_ROW:
            raise csv.Error(f"line {number} has more than {LONGEST_ROW:,} characters")
        yield line


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


def _read_parquet(file: BinaryIO, name: str, size: int) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    number = decoded = 0
    growth = Growth(name, size, MOST_DECODED, DECODED_FREELY)
    try:
        opened = pyarrow.parquet.ParquetFile(file)
        groups = (opened.metadata.row_group(i) for i in range(opened.num_row_groups))
        Growth(name, size).check(sum(group.total_byte_size for group in groups))
        for batch in opened.iter_batches(batch_size=_PARQUET_BATCH):
            decoded += batch.nbytes
            growth.check(decoded)
            for row in batch.to_pylist():
                number += 1
                long = too_long(row)
                yield RawRow(Origin(name, number), row if long is None else BadRow(TOO_LONG, long))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name} is a damaged Parquet file ({first_line(error)}); fetch it again.") from None


def _open_dataset(source: Source, name: str) -> Opened:
    from datasets.fingerprint import Hasher

    rows = _whole_dataset(source, name)

    def read() -> Iterator[RawRow]:
        for number, row in enumerate(rows, 1):
            long = too_long(row)
            yield RawRow(Origin(name, number), dict(row) if long is None else BadRow(TOO_LONG, long))

    return Opened(name, getattr(rows, "_fingerprint", None) or Hasher.hash(rows), read)


def _whole_dataset(source: Source, name: str) -> Any:
    """The dataset of a folder or of the hub. Of a folder, a damaged copy in the library's cache is made again.

    Raises:
        DataError: where it cannot be loaded, or its copy is damaged; says which folder to delete.
    """
    import datasets
    import pyarrow

    from llm_rlhf.data.table_cache import damage

    here = Path(name).is_dir()
    asked = {"split": source.split, "data_dir": source.data_dir, "subset": source.subset}

    def load(**more: str) -> Any:
        return datasets.load_dataset(name, name=source.subset, data_dir=source.data_dir, split=source.split, **more)

    def refused(error: Exception, remedy: str) -> DataError:
        described = ", ".join(f"{key} {value!r}" for key, value in asked.items() if value is not None)
        what = "folder" if here else "hub dataset"
        return DataError(
            f"The {what} {name!r} ({described}) cannot be loaded: {type(error).__name__}: {first_line(error)}. {remedy}"
        )

    cached = _cached(name, here)
    try:
        rows = load()
        found = damage(rows)
    except Exception as error:
        kept = f" If they are, its copy in {cached} may be damaged: delete that folder." if cached.is_dir() else ""
        remedy = (
            "Check the name and the split, and that the network is there or the data set is in the local cache; or "
            f"download its files and name those.{kept}"
        )
        if not (here and cached.is_dir() and isinstance(error, (pyarrow.ArrowException, OSError))):
            raise refused(error, remedy) from None
        found = cached, str(error).partition("\n")[0][:200]
    if found is None:
        return rows
    folder, why = found
    if not here:
        raise DataError(
            f"The copy of {name!r} in the datasets library's cache is damaged ({why}). Delete the folder {folder}; it "
            "is made again from the hub's files, which must be in the cache or to be had."
        )
    print(f"note: the copy of {name} in {folder} is damaged ({why}); it is made again.", file=sys.stderr)
    try:
        rows = load(download_mode="force_redownload")
    except Exception as error:
        raise refused(error, f"Delete the folder {folder}, or name the files.") from None
    if (found := damage(rows)) is not None:
        raise DataError(f"The copy of {name!r} in {found[0]} is damaged as soon as it is made ({found[1]}).")
    return rows


def _cached(name: str, here: bool) -> Path:
    """Where the datasets library keeps the tables it made of a dataset."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    owner, _, last = ("", "", Path(name).resolve().name) if here else name.rpartition("/")
    folder = f"{owner}___{camelcase_to_snakecase(last)}" if owner else camelcase_to_snakecase(last)
    return Path(datasets.config.HF_DATASETS_CACHE).expanduser() / folder


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
