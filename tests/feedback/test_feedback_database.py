"""The store: it opens at the newest schema, keeps what was acknowledged, and says what is wrong in one sentence."""

import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, inspect, select

from llm_rlhf.errors import RecipeError
from llm_rlhf.feedback import people
from llm_rlhf.feedback.database import STORE, Database
from llm_rlhf.feedback.tables import Person, Table


def test_the_migrations_make_the_tables_that_the_code_knows(database: Database) -> None:
    """Seen by what the database itself tells of them, indices of expressions and of some rows alone too."""
    made = _told(database.engine)
    made.pop("alembic_version")
    with database.write() as session:
        Table.metadata.drop_all(session.connection())
        Table.metadata.create_all(session.connection())
    known = _told(database.engine)
    known.pop("alembic_version")
    assert made == known


def _told(engine: Engine) -> dict[str, Any]:
    seen = inspect(engine)

    def plain(value: Any) -> Any:  # conditions of indices come as objects
        return {name: plain(of) for name, of in value.items()} if isinstance(value, dict) else str(value)

    def sorted_of(rows: Sequence[Any]) -> list[str]:
        return sorted(str(plain(row)) for row in rows)

    return {
        table: [
            sorted_of(seen.get_columns(table)),
            sorted_of(seen.get_indexes(table)),
            sorted_of(seen.get_unique_constraints(table)),
            sorted_of(seen.get_foreign_keys(table)),
            str(seen.get_pk_constraint(table)),
        ]
        for table in seen.get_table_names()
    }


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    store = Database.of(tmp_path / STORE)
    with store.write() as session:
        people.invite(session)
    again = Database.of(tmp_path)  # the folder that holds it
    with again.read() as session:
        assert len(session.scalars(select(Person)).all()) == 1


def test_what_raises_leaves_nothing_behind(database: Database) -> None:
    def fail() -> None:
        with database.write() as session:
            people.invite(session)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.read() as session:
        assert session.scalars(select(Person)).all() == []


@pytest.mark.slow
def test_several_processes_open_a_new_store_at_once(tmp_path: Path) -> None:
    opening = f"from llm_rlhf.feedback.database import Database; Database.of({str(tmp_path / STORE)!r})"
    processes = [subprocess.Popen([sys.executable, "-c", opening], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 4


def test_a_newer_versions_store_is_left_alone(tmp_path: Path) -> None:
    Database.of(tmp_path / STORE).close()
    with sqlite3.connect(tmp_path / STORE) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(RecipeError, match=r"newer version of llm-rlhf \(schema 9999\)"):
        Database.of(tmp_path / STORE)


@pytest.mark.parametrize(
    ("store", "says"),
    [
        ("nosuch://x/y", "cannot be opened"),
        ("postgresql://ada:secret@127.0.0.1:1/none", "cannot be opened"),
        ("{folder}", "no run's folder"),
        ("{folder}/none/feedback.db", "there is no folder"),
        ("{folder}/text.db", "cannot be opened"),
        ("{folder}/quikstart", r"no run's folder and no store at .*quikstart.* ends in \.db or \.sqlite"),
    ],
)
def test_what_is_no_store_is_named_without_its_password(tmp_path: Path, store: str, says: str) -> None:
    (tmp_path / "text.db").write_text("This is no database, but long enough to be taken for one." * 100)
    with pytest.raises(RecipeError, match=says) as raised:
        Database.of(store.format(folder=tmp_path))
    assert "secret" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["text.db"]


def test_a_store_that_must_be_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="There is no feedback store"):
        Database.of(tmp_path / STORE, create=False)
    assert list(tmp_path.iterdir()) == []
