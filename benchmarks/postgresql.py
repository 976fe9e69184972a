"""A PostgreSQL server of our own, on a socket in a folder that nothing outside reaches, for benchmark and tests."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


def programs() -> Path | None:
    """Where initdb and pg_ctl are; None where they are not installed, or what root needs to run them is not."""
    if _is_root() and _runuser() is None:
        return None
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True) + ([Path(found).parent] if found else [])
    return next((folder for folder in folders if (folder / "pg_ctl").exists()), None)


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _runuser() -> str | None:
    return shutil.which("runuser") or shutil.which("runuser", path="/usr/sbin:/sbin")  # which some paths leave out


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Its URL while it runs, with the settings that it ships with."""
    where = programs()
    assert where is not None, "PostgreSQL is not installed"
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # a socket's path is short
    as_nobody: list[str] = []
    if _is_root():  # it refuses to be root's
        as_nobody = [str(_runuser()), "-u", "nobody", "--"]
        shutil.chown(folder, "nobody")

    def done(program: str, *arguments: str) -> None:
        command = [*as_nobody, str(where / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)

    done("initdb", "-A", "trust", "-U", "tester", "-E", "UTF8")
    done("pg_ctl", "-o", f"-k {folder} -c listen_addresses=''", "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql://tester@/postgres?host={folder}"
    finally:
        done("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
