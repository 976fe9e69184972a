"""Tables that are made once: what is read, how often it is made, and what a failure leaves."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llm_rlhf.data.table_cache import made_once
from llm_rlhf.errors import DataError

COLUMNS = {"n": np.int64, "text": str}


class Lines:
    """Lines that count how often they are asked for; the last of them may fail."""

    def __init__(self, count: int, failing: bool = False) -> None:
        self.count, self.failing, self.asked = count, failing, 0

    def __call__(self) -> Iterator[dict[str, Any]]:
        self.asked += 1
        for n in range(self.count):
            yield {"n": n, "text": f"é{n}"}
        if self.failing:
            raise DataError("row 7 is broken")


@pytest.mark.parametrize("count", [3, 1001])  # two batches of 500, and one line more
def test_a_table_is_made_once_and_read_as_it_was_made(count: int) -> None:
    lines = Lines(count)
    for _ in range(2):
        table = made_once(f"test-made-once-{count}", lines, COLUMNS)
        assert table["n"][:] == list(range(count))
        assert table[count - 1] == {"n": count - 1, "text": f"é{count - 1}"}
    assert lines.asked == 1
    assert made_once(f"test-another-{count}", lines, COLUMNS).num_rows == count
    assert lines.asked == 2


def test_a_table_that_fails_is_told_as_it_failed_and_made_again() -> None:
    broken, mended = Lines(2, failing=True), Lines(2)
    with pytest.raises(DataError, match=r"^row 7 is broken$"):
        made_once("test-broken", broken, COLUMNS)
    assert made_once("test-broken", mended, COLUMNS).num_rows == 2
    assert mended.asked == 1


def test_a_type_that_no_column_has_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        made_once("test-types", Lines(1), {"n": float})
