"""Commands and functions in processes of their own: as a user starts them, or forked from one that has imported all.

To import torch, transformers, TRL and this package takes more than most tests. So one launch is a user's, to the letter
(`command`); the others are forked (`start`), each process from one that has imported and done nothing else, and get
what `torch.distributed.run` would tell them. test_resume.py compares the two bit by bit.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

ENVIRONMENT = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}  # CPUs alone, one thread each
IMPORTED = [
    *("llm_rlhf.cli.main", "llm_rlhf.pipeline", "llm_rlhf.evaluation.evaluate"),
    *(f"llm_rlhf.stages.{stage}" for stage in ("world", "sft", "reward", "ppo", "online", "offline", "evaluate")),
]


def command(*arguments: object, processes: int = 1) -> list[str]:
    """`llm-rlhf ARGUMENTS`; several processes through accelerate, on a port that no other test has."""
    accelerate = ["accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0", "--num_processes"]
    launcher = [*accelerate, str(processes), "-m"] if processes > 1 else []
    return [sys.executable, "-m", *launcher, "llm_rlhf", *map(str, arguments)]


class Launch:
    """Processes that run a function together; what each says goes to files in a folder."""

    def __init__(self, function: Callable[..., None], arguments: tuple[Any, ...], processes: int, folder: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)  # of no account once the server runs, which outlives the test
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder.mkdir(parents=True, exist_ok=True)
        self._said = [(folder / f"out-{rank}", folder / f"errors-{rank}") for rank in range(processes)]
        self._processes = [
            context.Process(target=_run, args=(function, arguments, said, _told(rank, processes, port)), daemon=True)
            for rank, said in enumerate(self._said)
        ]
        for path in (path for said in self._said for path in said):
            path.write_text("")
        with _importable():
            for process in self._processes:
                process.start()

    @property
    def runs(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def kill(self) -> None:
        """SIGKILL to every process."""
        for process in self._processes:  # all before any is waited for: the others would see that one is gone
            process.kill()
        for process in self._processes:
            process.join(60)
            assert process.exitcode == -signal.SIGKILL, self.errors

    def kill_when(self, path: Path) -> None:
        """SIGKILL to every process as soon as the file is there."""
        deadline = time.time() + 240
        while not path.exists():
            assert self.runs, f"the run ended before {path.name} was there: {self.errors}"
            assert time.time() < deadline, f"{path.name} did not come"
            time.sleep(0.005)
        self.kill()

    def send(self, number: int, *ranks: int) -> None:
        """A signal to these processes; without any, to all."""
        for rank in ranks or range(len(self._processes)):
            os.kill(self._processes[rank].pid or 0, number)

    def codes(self, seconds: float = 120) -> list[int | None]:
        """Exit codes of all processes, which end by themselves; None of one that does not, and is killed."""
        end = time.monotonic() + seconds
        for process in self._processes:
            process.join(max(end - time.monotonic(), 0))
        found = [process.exitcode for process in self._processes]
        for process in self._processes:
            process.kill()
        return found

    def finish(self, seconds: float = 600) -> str:
        """What was printed, of all processes; they must end in time. Where one fails, none waits for it any longer."""
        end = time.monotonic() + seconds
        while True:
            running = [process.sentinel for process in self._processes if process.is_alive()]
            codes = [
                process.exitcode for process in self._processes
            ]  # after `running`: none is missing where it is empty
            if not running or set(codes) - {None, 0} or time.monotonic() >= end:
                break
            wait(running, timeout=max(end - time.monotonic(), 0))
        for process in self._processes:
            process.kill()
        assert set(codes) == {0}, (codes, self.errors)
        return "".join(out.read_text() for out, _ in self._said)

    @property
    def out(self) -> str:
        return "".join(out.read_text() for out, _ in self._said)

    @property
    def errors(self) -> str:
        return "".join(errors.read_text()[-3000:] for _, errors in self._said)


def start(*arguments: object, folder: Path, processes: int = 1) -> Launch:
    """`llm-rlhf ARGUMENTS`, forked."""
    return Launch(_command, tuple(map(str, arguments)), processes, folder)


def _command(*arguments: str) -> None:
    from llm_rlhf.cli.main import main

    sys.argv = ["llm-rlhf", *arguments]
    main()


def _told(rank: int, processes: int, port: int) -> dict[str, str]:
    if processes == 1:
        return ENVIRONMENT
    of_all = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return ENVIRONMENT | {name: str(value) for name, value in (of_all | {"RANK": rank, "LOCAL_RANK": rank}).items()}


def _run(function: Callable[..., None], arguments: tuple[Any, ...], said: tuple[Path, Path], told: dict) -> None:
    """In the new process: everything that is said to files, down to the libraries in C."""
    for path, stream in zip(said, (sys.stdout, sys.stderr), strict=True):
        with path.open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    faulthandler.enable()  # where in Python a process was that a library in C brought down
    os.environ.update(told)
    function(*arguments)


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """The server is a new interpreter, which finds modules by PYTHONPATH and its number of threads as it starts."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
