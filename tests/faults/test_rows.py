"""The page of faults and the tests: each row has one that carries its number."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ROW = re.compile(r"\| (\d+) \| .* \| .* \| (.*)\|\n")


def rows() -> dict[int, list[str]]:
    """The test files of each row of the page."""
    found = ROW.findall((ROOT / "docs" / "faults.md").read_text(encoding="utf-8"))
    return {int(number): [name for name in files.strip().split(", ") if name] for number, files in found}


def test_the_page_has_every_row_in_order() -> None:
    assert list(rows()) == list(range(1, 61))


@pytest.mark.parametrize("number", range(1, 61))
def test_each_file_that_a_row_names_has_a_test_of_its_number(number) -> None:
    files = rows()[number]
    assert files
    for name in files:
        (path,) = (ROOT / "tests").rglob(name)
        text = path.read_text(encoding="utf-8")
        assert re.search(rf"(def test_\w*|\")fault_{number:02}_", text), f"{name} has no test of row {number}"
