"""Stores to test with: SQLite, and PostgreSQL where the machine has its server's programs."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_rlhf.feedback.database import Database


def _programs() -> Path | None:
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "pg_ctl").exists()), None)


def _as_nobody() -> list[str]:
    """PostgreSQL refuses to be started by root."""
    return ["runuser", "-u", "nobody", "--"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server of our own, on a socket in a folder, which nothing outside can reach."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL's programs (initdb, pg_ctl) are not installed; Debian's package postgresql has them")
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # a socket's path is short, which pytest's folders are not
    as_nobody = _as_nobody()
    if as_nobody:
        shutil.chown(folder, "nobody")

    def done(program: str, *arguments: str) -> None:
        command = [*as_nobody, str(programs / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)

    done("initdb", "-A", "trust", "-U", "tester", "-E", "UTF8")
    done("pg_ctl", "-o", f"-k {folder} -c listen_addresses=''", "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql://tester@/postgres?host={folder}"
    finally:
        done("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


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
