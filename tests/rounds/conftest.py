"""Stores to test with, as those of tests/feedback."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_rlhf.feedback.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An empty store."""
    found = Database.of(tmp_path / "feedback.db")
    yield found
    found.close()
