"""The feedback page under load: 50 simulated annotators at once, on SQLite and PostgreSQL, and a server that is killed.

    python benchmarks/feedback.py                                       # two minutes each, and half a minute of killing
    python benchmarks/feedback.py --people 10 --seconds 20 --stores sqlite
    python benchmarks/feedback.py --postgresql postgresql://me@host/name  # an empty database of yours

Each annotator reads for a second and a half on average, says what is better, and gets the next question in the same
answer, as the page does it. Afterwards all that the server had acknowledged is looked for in the store: it must be
there, once, and no question may have been answered by more people than it wants. Then the server is killed (SIGKILL)
in the middle of the same work and started again on the same store, and the count is made again. Times are of whole
requests, seen by the annotators, who run on the same machine.

Writes: benchmarks/FEEDBACK.md (where nothing but --postgresql is given)
"""

import argparse
import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from postgresql import server
from sqlalchemy import func, select

from llm_rlhf.feedback import people, queue
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.labels import from_page
from llm_rlhf.feedback.queue import Question
from llm_rlhf.feedback.settings import change
from llm_rlhf.feedback.simulated import Habits, Said, Simulated, work_all
from llm_rlhf.feedback.tables import Assignment, Item, Label

PAGE = Path(__file__).parent / "FEEDBACK.md"
THINK = 1.5  # seconds
GOAL = 0.2  # seconds, of the 95th percentile
WORDS = ("amber", "brook", "cedar", "dune", "elm", "fjord", "grove", "heath", "inlet", "knoll", "larch", "nook", "oak")


class Row(NamedTuple):
    store: str
    what: str
    people: int
    labels: int  # acknowledged
    missing: int  # of them, not in the store or other than was said
    doubled: int  # assignments with two labels, and items with more labels than people wanted
    p50: float  # milliseconds
    p95: float
    p99: float
    entering: float  # 95th percentile of everybody's requests up to the first question, all at once
    work: float  # of all others
    lost: int  # requests that no answer came to


def main() -> None:
    options = _options()
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        for kind in options.stores:
            url = stack.enter_context(_store(kind, options.postgresql))
            rows += _measured(kind, url, options)
    print(_table(rows))
    if not options.changed:
        PAGE.write_text(_page(rows), encoding="utf-8")
    held = all(not row.missing and not row.doubled for row in rows)
    fast = all(row.p95 < 1000 * GOAL for row in rows if row.what == "at work")
    sys.exit(0 if held and fast else 1)


def _measured(kind: str, url: str, options: argparse.Namespace) -> list[Row]:
    database = Database.of(url)
    wanted = int(options.people * (options.seconds + options.killing + 60) / THINK)
    with database.write() as session:
        change(session, {"people_per_item": 2, "entry_test": False})
        queue.add(session, map(_question, range(wanted // 2)), "import", {"made by": "benchmarks/feedback.py"})
    port = _free_port()
    place = f"http://127.0.0.1:{port}"
    with database.write() as session:
        tokens = [people.invite(session, simulated=True)[1] for _ in range(options.people)]
    helpers = [
        (token, Simulated(_length, Habits(noise=5.0), seed=number, think=THINK)) for number, token in enumerate(tokens)
    ]
    servers = [_served(url, port, place)]

    def kill_and_restart() -> None:
        servers[0].kill()
        servers[0].wait()
        servers.append(_served(url, port, place))

    try:
        steady = work_all(place, helpers, until=time.monotonic() + options.seconds)
        rows = [_row(kind, "at work", database, steady)]
        killing = threading.Timer(options.killing / 2, kill_and_restart)
        killing.start()
        killed = work_all(place, helpers, until=time.monotonic() + options.killing, patience=60)
        killing.join()
        return [*rows, _row(kind, "killed and restarted", database, killed)]
    finally:
        servers[-1].terminate()
        servers[-1].wait()
        database.close()


def _row(kind: str, what: str, database: Database, said: list[Said]) -> Row:
    """What was acknowledged against what the store holds."""
    acknowledged = [pair for one in said for pair in one.acknowledged]
    with database.read() as session:
        found: dict[int, Any] = {
            number: (order, value)
            for number, order, value in session.execute(
                select(Assignment.id, Assignment.order, Label.value).join(Label, Label.assignment_id == Assignment.id)
            )
        }
        per_assignment = Counter(session.scalars(select(Label.assignment_id)))
        per_item = session.execute(
            select(Item.wanted, func.count(Label.id))
            .join(Label, Label.item_id == Item.id)
            .join(Assignment, Assignment.id == Label.assignment_id)
            .where(Item.purpose == "label", Assignment.turn == 1)
            .group_by(Item.id, Item.wanted)
        ).all()
    missing = sum(
        number not in found or found[number][1] != from_page(value, found[number][0]) for number, value in acknowledged
    )
    doubled = sum(count > 1 for count in per_assignment.values()) + sum(count > wanted for wanted, count in per_item)
    doubled += len(acknowledged) - len({number for number, _ in acknowledged})
    milliseconds = 1000 * np.array([second for one in said for second in one.seconds])
    p50, p95, p99 = (float(np.percentile(milliseconds, q)) for q in (50, 95, 99))
    entering = [second for one in said for second in one.seconds[: one.entering]]
    work = [second for one in said for second in one.seconds[one.entering :]]
    apart = (1000 * float(np.percentile(some, 95)) for some in (entering, work))
    lost = sum(one.lost for one in said)
    return Row(kind, what, len(said), len(acknowledged), missing, doubled, p50, p95, p99, *apart, lost)


def _question(number: int) -> Question:
    def text(salt: int, length: int) -> str:
        return " ".join(WORDS[(number * 7 + salt * 11 + place * (salt + 1)) % len(WORDS)] for place in range(length))

    lengths = {"start": 20 + number % 60, "policy": 20 + (number + 31) % 60}
    answers = [
        {"text": f"{text(salt, lengths[name])}.", "source": name} for salt, name in ((1, "start"), (2, "policy"))
    ]
    return Question("compare", [{"role": "user", "content": f"Number {number}: {text(3, 12)}?"}], answers)


def _length(prompt: list[dict[str, Any]], reply: str) -> float:
    return len(reply.split()) / 10


@contextlib.contextmanager
def _store(kind: str, url: str | None) -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="fb"))
    try:
        if kind == "sqlite":
            yield str(folder / "feedback.db")
        elif url is not None:
            yield url
        else:
            with server() as started:
                yield started
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _served(url: str, port: int, place: str) -> "subprocess.Popen[bytes]":
    """A server of the store, once it answers."""
    command = [sys.executable, "-m", "llm_rlhf", "feedback", "serve", url, "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{place}/health").is_success:
                return server
        if server.poll() is not None:
            sys.exit(f"the server ended with {server.returncode}")
        time.sleep(0.1)
    sys.exit("the server does not answer")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _table(rows: list[Row]) -> str:
    columns = ("store", "the server", "people", "labels acknowledged", "missing", "doubled")
    columns += ("50 % under", "95 % under", "99 % under", "of entering, 95 %", "of labelling, 95 %")
    columns += ("requests without an answer",)
    lines = [_line(columns), _line(["---"] * len(columns))]
    for row in rows:
        times = [f"{value:.0f} ms" for value in (row.p50, row.p95, row.p99, row.entering, row.work)]
        counts = [row.people, f"{row.labels:,}", row.missing, row.doubled]
        lines.append(_line([row.store, row.what, *counts, *times, row.lost]))
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _page(rows: list[Row]) -> str:
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}, Python {platform.python_version()})"
    return f"""# The feedback page under load

`python benchmarks/feedback.py`, on {machine}, which the annotators, the server and the database share.
{rows[0].people} simulated annotators at once, who read for {THINK} seconds on average; two people a question.

{_table(rows)}

Missing: acknowledged, and not in the store as it was said. Doubled: an assignment with two labels, or a question with
more than it wants. Killed: SIGKILL in the middle of the work, and started again on the same store; who got no answer
asked again. Entering: the requests up to the first question, which all of them send in the same instant.
"""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--killing", type=int, default=30, help="seconds of work with a kill in the middle")
    parser.add_argument("--stores", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    parser.add_argument("--postgresql", help="URL of an empty database; else one is made where its programs are")
    options = parser.parse_args()
    options.changed = any(
        getattr(options, name) != parser.get_default(name) for name in ("people", "seconds", "killing", "stores")
    )
    return options


if __name__ == "__main__":
    main()
