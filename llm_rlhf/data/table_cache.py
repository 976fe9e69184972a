"""Arrow tables that the datasets library keeps, memory-mapped, in its cache.

Processes that ask for the same table at once wait for the one that makes it; what they read is the same whoever made
it.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.builder import Key

from llm_rlhf.errors import DataError

_TYPES: dict[Any, Any] = {bool: pa.bool_(), np.int64: pa.int64(), np.uint64: pa.uint64(), str: pa.string()}
_BATCH = 500  # lines encoded at once


def made_once(key: str, lines: Callable[[], Iterator[dict[str, Any]]], columns: Mapping[str, type]) -> datasets.Dataset:
    """The table of this key: made now, line by line, or read from the cache.

    Raises:
        DataError: as making it did.
    """
    builder = _TableBuilder(lines, pa.schema({name: _TYPES[of] for name, of in columns.items()}), hash=key)
    try:
        builder.download_and_prepare()
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        raise
    return builder.as_dataset(split="train")


class _TableBuilder(datasets.ArrowBasedBuilder):
    """The datasets library's way to make a table once: under a lock, in a folder that is renamed when it is whole."""

    def __init__(self, lines: Callable[[], Iterator[dict[str, Any]]], schema: pa.Schema, **options: Any) -> None:
        self._lines, self._schema = lines, schema
        super().__init__(dataset_name="llm_rlhf", **options)

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
