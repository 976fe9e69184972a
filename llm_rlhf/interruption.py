"""SIGTERM, by which schedulers announce that they will kill: a command ends by it in time, and says how to go on.

A command listens (`listening`). Outside training, the signal ends what is going on at once. In training
(`at_a_safe_point`) it is noted, and acted on where nothing is half done (llm_rlhf/stopping.py); inside that, work that
changes no weights, as sampling, may be broken off at once (`broken_off_at_once`). What does not end within the grace
period, such as a process that waits for one that is gone, is ended by a thread of its own: the signal's number reaches
it by the interpreter's wakeup descriptor, even while the main thread is inside a library in C.

Further SIGTERMs change nothing: a scheduler and a launcher often both send one.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from llm_rlhf.errors import RecipeError

CODE = 143  # 128 + SIGTERM
GRACE = 25.0  # seconds; Slurm, Kubernetes and torchrun kill 30 seconds after the signal
VARIABLE = "LLM_RLHF_GRACE_SECONDS"
FOR_A_SAVE = 600.0  # seconds that a checkpoint may take beyond, where nothing kills
TO_EXIT = 5.0  # seconds behind a checkpoint


class Terminated(SystemExit):
    """SIGTERM ended the command. Without anybody who catches it, the exit code is right all the same.

    Args:
        told: where the work stands, as the sentence before "Run the same command again to go on".
    """

    def __init__(self, told: str = "") -> None:
        super().__init__(CODE)
        self.told = told


class _State:
    """What the signal's handler knows; of the process, as signals are."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.asked = False  # whether SIGTERM has come
        self.interrupted = False  # whether Ctrl-C has
        self.waits = 0  # blocks that note it only
        self.at_once = 0  # blocks inside those that may be broken off
        self.saving = False  # whether a checkpoint is being written


_state = _State()


def raise_if_interrupted() -> None:
    """KeyboardInterrupt, where Ctrl-C has come: the first is lost if it meets a destructor; Python drops its errors."""
    if _state.interrupted:
        raise KeyboardInterrupt


def asked() -> bool:
    """Whether the process is to stop at the next safe point."""
    return _state.asked


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """SIGTERM becomes `Terminated`, until the block ends; nothing changes outside the main thread.

    Raises:
        RecipeError: where the grace period in the environment is no number of seconds.
    """
    grace = _grace()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.begin()
    reads, writes = socket.socketpair()
    writes.setblocking(False)
    process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # forked from the command, as workers that load data are
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        with contextlib.suppress(OSError):
            writes.send(bytes([number]))  # where somebody else took the wakeup descriptor
        first, _state.asked = not _state.asked, True
        if first and (not _state.waits or _state.at_once):
            raise Terminated

    def interrupt(number: int, frame: FrameType | None) -> None:
        _state.interrupted = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, handle)
    of_ctrl_c = signal.getsignal(signal.SIGINT)
    if of_ctrl_c is signal.default_int_handler:  # and not ignored, as in the background
        signal.signal(signal.SIGINT, interrupt)
    wakeup = signal.set_wakeup_fd(writes.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_end_in_time, args=(reads, grace, _state), daemon=True, name="sigterm")
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, before)
        if of_ctrl_c is signal.default_int_handler:
            signal.signal(signal.SIGINT, of_ctrl_c)
        if not _state.asked:  # else the thread also ends a process whose libraries do not let it exit
            writes.close()
            thread.join()
            reads.close()
        _state.begin()


@contextlib.contextmanager
def at_a_safe_point() -> Iterator[None]:
    """In the block, SIGTERM only makes `asked` true."""
    _state.waits += 1
    try:
        yield
    finally:
        _state.waits -= 1


@contextlib.contextmanager
def broken_off_at_once(allowed: bool = True) -> Iterator[None]:
    """In the block, SIGTERM raises `Terminated` although a safe point is awaited; also where it came before.

    Args:
        allowed: False changes nothing: several processes must break off together.
    """
    if not allowed:
        yield
        return
    _state.at_once += 1
    try:
        if _state.asked:
            raise Terminated
        yield
    finally:
        _state.at_once -= 1


def save_begins(begins: bool) -> None:
    """A checkpoint is being written from here on (False: no more); it may take longer than the grace period."""
    _state.saving = begins


def _grace() -> float:
    given = os.environ.get(VARIABLE)
    if given is None:
        return GRACE
    with contextlib.suppress(ValueError):
        if 0 < float(given) < float("inf"):
            return float(given)
    raise RecipeError(
        f"The environment variable {VARIABLE} is {given!r}; it must be a number of seconds over 0: those from SIGTERM "
        f"to the kill, less what it takes to exit ({GRACE:g} without it)."
    )


def _end_in_time(reads: socket.socket, grace: float, state: Any) -> None:
    """Wait for SIGTERM, then for the grace period, and end the process if it still runs."""
    while True:
        try:
            numbers = reads.recv(64)
        except OSError:
            return
        if not numbers:
            return
        if signal.SIGTERM in numbers:
            break
    end = time.monotonic() + grace
    last = end + FOR_A_SAVE
    while time.monotonic() < end:
        time.sleep(0.05)
        if state.saving:  # and some seconds to exit behind it
            end = min(max(end, time.monotonic() + TO_EXIT), last)
    os.write(
        2,
        f"\nerror: stopped by SIGTERM: no safe point was reached within {grace:g} seconds ({VARIABLE}). What was saved "
        "before stands; run the same command again to go on from it.\n".encode(),
    )
    os._exit(CODE)
