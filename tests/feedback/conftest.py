"""Stores to test with: SQLite, and PostgreSQL where the machine has its server's programs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from postgresql import programs, server

from llm_rlhf.feedback.database import Database


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a server of our own."""
    if programs() is None:
        pytest.skip("PostgreSQL's initdb and pg_ctl, and for root runuser, are not here; Debian has them in postgresql")
    with server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty store, of each kind."""
    if request.param == "sqlite":
        found = Database.of(tmp_path / "feedback.db")
    else:
        url = request.getfixturevalue("postgresql")
        _empty(url)
        found = Database(url)
    yield found
    found.close()


def _empty(url: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
