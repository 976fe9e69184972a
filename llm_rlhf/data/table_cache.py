"""Arrow tables that the datasets library keeps, memory-mapped, in its cache.

Processes that ask for the same table at once wait for the one that makes it; what they read is the same whoever made
it. A digest lies beside each table: one that has changed since is made again, as what it was made of is still there.
"""

import contextlib
import itertools
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.builder import Key
from filelock import FileLock

from llm_rlhf.errors import DataError
from llm_rlhf.run_folder import file_digest, read_json, write_json

_TYPES: dict[Any, Any] = {bool: pa.bool_(), np.int64: pa.int64(), np.uint64: pa.uint64(), str: pa.string()}
_NAME = "llm_rlhf"
_BATCH = 500  # lines encoded at once
_DIGESTS = "llm_rlhf-sha256.json"  # of the files beside it, by name
_checked: set[tuple[str, int, int]] = set()  # files found whole: path, bytes, time


def made_once(key: str, lines: Callable[[], Iterator[dict[str, Any]]], columns: Mapping[str, type]) -> datasets.Dataset:
    """The table of this key: made now, line by line, or read from the cache; a damaged one is made again.

    Raises:
        DataError: as making it did; or where it is damaged as soon as it is made.
    """
    schema = pa.schema({name: _TYPES[of] for name, of in columns.items()})
    folder = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / _NAME / "default" / "0.0.0" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.check.lock"):  # else one process would take away what another has just made again
        if folder.exists() and not _is_whole(folder):
            print(f"note: a table in {folder} has changed since it was made; it is made again.", file=sys.stderr)
            shutil.rmtree(folder)
        builder = _TableBuilder(lines, schema, hash=key)
        assert Path(builder.cache_dir) == folder, f"the datasets library keeps its tables in {builder.cache_dir} now"
        try:
            builder.download_and_prepare()
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, DataError):
                raise error.__cause__ from None
            raise
        if not _is_whole(folder):
            raise DataError(
                f"The table that was just written to {folder} is not as it was written: the disk is damaged, or "
                "something changes files there. Set HF_DATASETS_CACHE to a folder on another disk."
            )
        return builder.as_dataset(split="train")


def damage(rows: datasets.Dataset) -> tuple[Path, str] | None:
    """The folder and what is wrong with it where the library's own copy of a dataset is damaged; None where it is not.

    The library keeps no digests of its tables. They are taken when a table is first seen, and compared from then on;
    what no table can hold (text that is none, lengths beyond the end) is found the first time, too.
    """
    paths = [Path(file["filename"]) for file in rows.cache_files]
    if not paths:
        return None
    of_folder = {path.parent: [p for p in paths if p.parent == path.parent] for path in paths}
    for folder, files in of_folder.items():
        if _changed(files, _recorded(folder)):
            return folder, "its files have changed since they were first read"
    try:
        rows.data.validate(full=True)
    except pa.ArrowException as error:
        return paths[0].parent, str(error).partition("\n")[0][:200]
    for folder, files in of_folder.items():
        known = _recorded(folder)
        if new := [path for path in files if path.name not in known]:
            with contextlib.suppress(OSError):  # a cache that others filled, and that may only be read
                write_json(folder / _DIGESTS, known | {path.name: file_digest(path) for path in new})
    return None


def _is_whole(folder: Path) -> bool:
    """Whether a table of ours is as it was when it was made."""
    recorded = _recorded(folder)
    return bool(recorded) and not _changed([folder / name for name in recorded], recorded)


def _changed(files: list[Path], recorded: dict[str, str]) -> bool:
    """Whether a file is not as its folder's record has it; looked at once in a process while it stays as it is."""
    for path in files:
        try:
            state = str(path), path.stat().st_size, path.stat().st_mtime_ns
            if state not in _checked and recorded.get(path.name, digest := file_digest(path)) != digest:
                return True
        except OSError:
            return True
        if path.name in recorded:
            _checked.add(state)
    return False


def _recorded(folder: Path) -> dict[str, str]:
    found = read_json(folder / _DIGESTS)
    return found if isinstance(found, dict) else {}


class _TableBuilder(datasets.ArrowBasedBuilder):
    """The datasets library's way to make a table once: under a lock, in a folder that is renamed when it is whole."""

    def __init__(self, lines: Callable[[], Iterator[dict[str, Any]]], schema: pa.Schema, **options: Any) -> None:
        self._lines, self._schema = lines, schema
        super().__init__(dataset_name=_NAME, **options)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(self._schema))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name="train")]

    def _generate_tables(self) -> Iterator[tuple[Any, pa.Table]]:
        lines = self._lines()
        for number in itertools.count():
            batch = list(itertools.islice(lines, _BATCH))
            if not batch:
                return
            yield Key(0, number), pa.Table.from_pylist(batch, schema=self._schema)

    def _save_info(self) -> None:
        """The last that is written before the folder gets its name; the digest with it, of all that is there."""
        super()._save_info()
        folder = Path(self._output_dir)
        write_json(folder / _DIGESTS, {path.name: file_digest(path) for path in folder.iterdir() if path.is_file()})
