"""Serves the page: takes the port, lets the first people in, and ends when it is told to."""

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import uvicorn
from fastapi import FastAPI
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from llm_rlhf.errors import RecipeError, RunError
from llm_rlhf.feedback import people
from llm_rlhf.feedback.tables import Identity, Invitation, Person
from llm_rlhf.feedback.web.security import Access

PATIENCE = 5  # seconds that answers under way have, once the server is to end
LONGEST_START = 30.0  # seconds
EVERYWHERE = ("0.0.0.0", "::")


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0: any that is free.

    Raises:
        RecipeError: where the port is taken, or the address is not this machine's.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RecipeError(
                f"--port is {port}, and something listens there already; take another (--port {port + 1}), or any that "
                "is free (--port 0)."
            ) from None
        raise RecipeError(
            f"--host is {host} and --port {port}; this machine cannot listen there: {error.strerror or error}."
        ) from None
    return listener


def address_of(access: Access, port: int) -> str:
    """Where people find the page, without a slash at the end."""
    if access.public_url:
        return access.public_url.rstrip("/")
    host = socket.gethostname() if access.host in EVERYWHERE else access.host
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def lead_link(session: Session) -> tuple[Person, str]:
    """A link for whoever leads; a store without a lead gets one."""
    wanted = select(Person).where(Person.role == "lead", Person.withdrawn.is_(None), ~Person.simulated)
    lead = session.scalar(wanted.order_by(Person.id).limit(1))
    return people.invite(session, "lead") if lead is None else (lead, people.link_for(session, lead))


def annotator_links(session: Session, names: Sequence[str]) -> list[tuple[Person, str, str | None]]:
    """A link for each of these people, who may be known already; without names, for somebody who has not come yet.

    Returns:
        who, the link's token, and the name.
    """
    found: list[tuple[Person, str, str | None]] = []
    for name in names:
        known = select(Person).join(Identity, Identity.person_id == Person.id).where(Identity.name == name)
        person = session.scalar(known.where(Person.role == "annotator", Person.withdrawn.is_(None)).limit(1))
        if person is None:
            person, token = people.invite(session, "annotator", name)
        else:
            token = people.link_for(session, person)
        found.append((person, token, name))
    if not names:
        came = exists().where(Invitation.person_id == Person.id, Invitation.used.is_not(None))
        nobody = exists().where(Identity.person_id == Person.id)
        free = select(Person).where(Person.role == "annotator", Person.withdrawn.is_(None), ~Person.simulated)
        person = session.scalar(free.where(~came, ~nobody).order_by(Person.id).limit(1))
        if person is None:
            person, token = people.invite(session)
        else:
            token = people.link_for(session, person)
        found.append((person, token, None))
    return found


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answer until Ctrl-C or SIGTERM, which come out of here as they do elsewhere."""
    _server(app).run(sockets=[listener])


@contextlib.contextmanager
def in_background(app: FastAPI) -> Iterator[int]:
    """The page in a thread, on a free port of this machine alone, while it lasts; the port.

    Raises:
        RunError: where it does not begin.
    """
    listener = bind("127.0.0.1", 0)
    server = _server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    give_up = time.monotonic() + LONGEST_START
    while not server.started:
        if not thread.is_alive() or time.monotonic() > give_up:
            raise RunError("The feedback page did not begin to serve.")
        time.sleep(0.02)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(2 * PATIENCE)
        listener.close()


def _server(app: FastAPI) -> uvicorn.Server:
    """No address of anybody is logged."""
    config = uvicorn.Config(
        app,
        http="h11",  # bounds the head of a request (64 KiB), which httptools does not
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=PATIENCE,
        lifespan="off",
    )
    return uvicorn.Server(config)
