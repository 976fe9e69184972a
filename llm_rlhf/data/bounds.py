"""How much of a source is read at once: rows and archives made to fill a machine are told apart from large data.

Ten gigabytes of rows are an honest source, ten gigabytes out of a file of a few megabytes are not; and no row of any
length fits into a conversation.
"""

import gzip
import io
from pathlib import Path
from typing import Any, BinaryIO

from llm_rlhf.errors import DataError

# Bytes of one row as it stands in its file. A million tokens, the longest contexts of today, are four to six million
# bytes; as objects, a row takes up to twenty times as much memory.
LONGEST_ROW = 32 * 2**20
# How much larger than itself a file may unpack, where it comes to more than UNPACKED_FREELY bytes. Text takes 3 to 20
# times its packed size, rows that repeat a long prompt a hundred times; gzip reaches 1032 with the same byte over and
# over, and Parquet any number.
MOST_UNPACKED = 200
UNPACKED_FREELY = 128 * 2**20
# Of Parquet, whose columns store a value that returns once and then a few bits, the same for rows as they are decoded.
MOST_DECODED = 1000
DECODED_FREELY = 2**30
# Rows set aside are named one by one; so many, and nine in ten, are a file of another kind.
MOST_SET_ASIDE = 1_000_000

# What comes of a row in number: every message of a tree repeats the way to it, and `pairs: all` has n (n - 1) / 2 of n.
MOST_MESSAGES = 200  # on the way from a tree's root; Open-Assistant's have thirteen
MOST_COMPARED = 256  # replies to one prompt of which all pairs are made: 32,640

TOO_LONG = "row too long"


def too_long(row: Any) -> str | None:
    """What makes a row longer than LONGEST_ROW characters, in words; None where nothing does."""
    cells = row.items() if isinstance(row, dict) else [("the row", row)]
    for name, cell in cells:
        if isinstance(cell, (str, bytes)) and len(cell) > LONGEST_ROW:
            return f"{str(name)[:80]} has {len(cell):,} characters; at most {LONGEST_ROW:,} are read"
    return None


def unpacked(path: Path, name: str) -> BinaryIO:
    """A gzip file as it unpacks; reading it raises a DataError where it is made to grow."""
    return io.BufferedReader(_Unpacked(path, name), 2**20)


class Growth:
    """Compares what came out of a file with its size.

    Args:
        most, freely: as MOST_UNPACKED and UNPACKED_FREELY.
    """

    def __init__(self, name: str, size: int, most: int = MOST_UNPACKED, freely: int = UNPACKED_FREELY) -> None:
        self.name, self.size, self.most, self.freely = name, size, most, freely

    def check(self, grown: int) -> None:
        """DataError where that many bytes are more than data would come to."""
        if grown > self.freely and grown > self.most * self.size:
            raise DataError(
                f"{self.name} has {self.size:,} bytes and unpacks to more than {grown // 2**20:,} MiB, over "
                f"{self.most} times as much: no rows worth training on do. If it is meant, unpack it yourself and name "
                "the plain .jsonl file, or split it."
            )


class _Unpacked(io.RawIOBase):
    def __init__(self, path: Path, name: str) -> None:
        self._packed, self._growth = gzip.GzipFile(path, "rb"), Growth(name, path.stat().st_size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._packed.seek(offset, whence)

    def tell(self) -> int:
        return self._packed.tell()

    def readinto(self, buffer: Any) -> int:
        read = self._packed.readinto(buffer)
        self._growth.check(self._packed.tell())
        return read

    def close(self) -> None:
        self._packed.close()
        super().close()
