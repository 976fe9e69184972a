"""Opens a feedback store: a SQLite file, or a PostgreSQL database by its URL, at the newest schema.

Every change is one transaction that is on the disk before it is acknowledged. SQLite takes one writer at a time: a
transaction that will write says so as it begins, so that it waits for its turn and never fails half way.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, TimeoutError
from sqlalchemy.orm import Session

from llm_rlhf.errors import RecipeError
from llm_rlhf.feedback.documents import prepare
from llm_rlhf.run_folder import MANIFEST

STORE = "feedback.db"  # of a run, in its folder
SUFFIXES = (".db", ".sqlite")  # of a store that is new
WAIT = 30  # seconds for another's write
WRITES = "llm_rlhf_writes"


class Database:
    """A feedback store that is open.

    Args:
        url: as SQLAlchemy writes it. PostgreSQL needs psycopg (`pip install "llm-rlhf[postgresql]"`).

    Raises:
        RecipeError: where it cannot be opened, or is a newer version's.
    """

    def __init__(self, url: str | URL) -> None:
        try:
            self.url = make_url(url)
            if self.url.drivername in ("postgres", "postgresql"):
                self.url = self.url.set(drivername="postgresql+psycopg")
            self.engine = _engine(self.url)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise RecipeError(
                f"The store {_shown(url)} cannot be opened: {error}. It is a file, a run's folder, or a URL such as "
                'postgresql://user@host/name, for which pip install "llm-rlhf[postgresql]" brings the driver.'
            ) from None
        self._line = threading.Lock()
        try:
            self._upgrade()
        except DBAPIError as error:
            raise RecipeError(f"The store {self.name} cannot be opened: {str(error.orig).strip()}.") from None

    @classmethod
    def of(cls, store: str | Path, create: bool = True) -> "Database":
        """The store of a run's folder, of a file or of a URL.

        Raises:
            RecipeError: where there is none, and `create` is false.
        """
        if "://" in str(store):
            return cls(str(store))
        path = Path(store).expanduser()
        if path.is_dir():
            if not (path / MANIFEST).is_file() and not (path / STORE).is_file():
                raise RecipeError(
                    f"{path} is no run's folder (it has no {MANIFEST}) and holds no {STORE}; name a run, or the file "
                    "of a store."
                )
            path /= STORE
        if not path.is_file() and not create:
            raise RecipeError(f"There is no feedback store at {path}; llm-rlhf feedback select makes one.")
        if not path.is_file() and path.suffix not in SUFFIXES:  # a run's name with a slip in it must not become a store
            raise RecipeError(
                f"There is no run's folder and no store at {path}; name one that is there. A new store's file ends in "
                f"{' or '.join(SUFFIXES)}."
            )
        if not path.parent.is_dir():
            raise RecipeError(f"The store {path} cannot be made: there is no folder {path.parent}.")
        return cls(URL.create("sqlite", database=str(path)))

    @property
    def name(self) -> str:
        """The file, or the URL without its password."""
        return str(self.url.database) if self.is_sqlite else self.url.render_as_string(hide_password=True)

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that changes something; committed at its end, taken back where it raises.

        SQLite lets one in at a time, and those that wait ask again after pauses that grow: threads of one process do
        better in a line of their own.
        """
        with (
            self._in_line(),
            self.engine.connect().execution_options(**{WRITES: True}) as connection,
            Session(connection, expire_on_commit=False) as session,
            session.begin(),
        ):
            kept: list[Any] = []  # what was read stays known: a session alone forgets what nobody holds, and asks again
            event.listen(session, "loaded_as_persistent", lambda _, found: kept.append(found))
            yield session

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that sees one state of the store and changes nothing; what was read stays readable after it."""
        engine = self.engine  # PostgreSQL's default would let every query see what others have changed meanwhile
        if not self.is_sqlite:
            engine = engine.execution_options(isolation_level="REPEATABLE READ")
        with Session(engine, expire_on_commit=False) as session:
            yield session  # closing takes back what was done, and forgets nothing, as session.rollback() would

    @contextlib.contextmanager
    def _in_line(self) -> Iterator[None]:
        if not self.is_sqlite:
            yield
            return
        if not self._line.acquire(timeout=WAIT):
            raise TimeoutError(f"The store {self.name} was written to by others for {WAIT} seconds.")
        try:
            yield
        finally:
            self._line.release()

    def close(self) -> None:
        self.engine.dispose()

    def _upgrade(self) -> None:
        """Bring the schema to this version's, one process at a time."""
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        newest = ScriptDirectory.from_config(config).get_current_head()
        with self.engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        if found == newest:
            return
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if found is not None and found not in known:
            raise RecipeError(
                f"The store {self.name} was made by a newer version of llm-rlhf (schema {found}); install that one."
            )
        with (
            _one_at_a_time(self.url),
            self.engine.connect().execution_options(**{WRITES: True}) as connection,
            connection.begin(),
        ):
            if not self.is_sqlite:
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7142)")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            with Session(connection) as session:
                prepare(session)
                session.flush()


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_size=16, max_overflow=16, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": WAIT, "check_same_thread": False}, pool_size=32)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # sqlite3 begins no transaction of its own: `begin` below does
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # acknowledged is on the disk
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _one_at_a_time(url: URL) -> contextlib.AbstractContextManager[Any]:
    if url.get_backend_name() == "sqlite" and url.database:
        return FileLock(f"{url.database}.lock", timeout=WAIT)
    return contextlib.nullcontext()


def _shown(url: str | URL) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return repr(str(url).rpartition("@")[2])
