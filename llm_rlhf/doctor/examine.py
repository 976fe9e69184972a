"""All that `llm-rlhf doctor` looks at, one thing after the other; what fails in being looked at is a finding, too."""

import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, Queue

from llm_rlhf.doctor.findings import Finding

ALL_SECONDS = 28.0  # that looking at everything takes at most
EACH_SECONDS = 15.0  # that one thing may take before it is left


def examine() -> Iterator[Finding]:
    """Every finding as soon as it is made."""
    began = time.monotonic()
    from llm_rlhf.doctor import outside

    process = outside.start_smoke()
    try:
        for name, check in _checks():
            yield _within(name, check, min(EACH_SECONDS, began + ALL_SECONDS - time.monotonic()))
        yield outside.smoke(process, max(began + ALL_SECONDS - time.monotonic(), 0.5))
    finally:
        if process.poll() is None:
            process.kill()


def _checks() -> Iterator[tuple[str, Callable[[], Finding]]]:
    from llm_rlhf.doctor import packages

    yield "Python", packages.python
    yield "versions", packages.versions
    try:
        from llm_rlhf.doctor import machine
    except Exception as error:  # torch that is broken raises anything
        said = _said(error)
        remedy = "pip install --force-reinstall torch"
        yield "torch", lambda: Finding("torch", "broken", said, remedy)
        return
    yield "devices", machine.devices
    yield "bfloat16", machine.bfloat16
    yield "NF4", machine.nf4
    yield "attention", machine.attention
    yield "compiler", machine.compiler
    yield "memory", machine.memory
    yield "disk", machine.disk
    yield "threads", machine.threads
    from llm_rlhf.doctor import outside

    yield "accelerate", outside.launching
    yield "hub", outside.hub


def _within(name: str, check: Callable[[], Finding], seconds: float) -> Finding:
    """What a check finds, in a thread that is left alone where it takes too long; whatever it raises is a finding."""
    found: Queue[Finding] = Queue()

    def run() -> None:
        try:
            found.put(check())
        except Exception as error:
            found.put(Finding(name, "broken", _said(error), "It could not be looked at; mend what the message names."))

    threading.Thread(target=run, daemon=True).start()
    try:
        return found.get(timeout=max(seconds, 0.1))
    except Empty:
        return Finding(name, "note", f"no answer within {max(seconds, 0.1):.0f} s", "Looked at no further.")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
