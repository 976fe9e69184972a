"""The table of rounds, for a terminal and as a page."""

from pathlib import Path
from typing import Any


def write_page(table: dict[str, Any], folder: Path) -> None:
    (folder / "rounds.html").write_text("", encoding="utf-8")
