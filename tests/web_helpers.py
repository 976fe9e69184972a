"""Somebody at the feedback page: a client that is logged in, and questions to ask them."""

import contextlib
from collections.abc import Iterator

from fastapi import FastAPI
from fastapi.testclient import TestClient

from llm_rlhf.feedback import documents, people, queue
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.queue import Question
from llm_rlhf.feedback.settings import change
from llm_rlhf.feedback.web.app import create_app
from llm_rlhf.feedback.web.serving import in_background

BASE = "http://127.0.0.1:8000"
VISIT = "visit-8000"  # the cookie of a visit to it
JSON = {"accept": "application/json"}


def pair(number: int, **other: object) -> Question:
    answers = [{"text": f"First {number}.", "source": "sft"}, {"text": f"Second {number}.", "source": "ppo"}]
    return Question("compare", [{"role": "user", "content": f"Question {number}?"}], answers, **other)  # type: ignore[arg-type]


def filled(database: Database, questions: list[Question], **settings: object) -> list[int]:
    """Put questions into a store whose chance is off; their ids."""
    with database.write() as session:
        change(session, {"gold_share": 0.0, "repeat_share": 0.0} | settings)
        return queue.add(session, questions, "import", {}).items


def invited(database: Database, role: str = "annotator", consented: bool = True) -> str:
    """The token of somebody new."""
    with database.write() as session:
        person, token = people.invite(session, role)
        if consented:
            people.consent(session, person, documents.current_version(session, "consent"))
        return token


def client(
    database: Database, role: str = "annotator", app: FastAPI | None = None, consented: bool = True
) -> TestClient:
    """Somebody new who has come in, with the CSRF token among their headers; the page's HTML comes by `accept`."""
    found = TestClient(app or create_app(database), base_url=BASE, headers=JSON)
    told = found.post(f"/i/{invited(database, role, consented)}").raise_for_status().json()
    found.headers["x-csrf-token"] = told["csrf"]
    return found


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[tuple[str, int]]:
    """A server of its own thread, as `feedback serve` starts one: its host and port."""
    with in_background(app) as port:
        yield "127.0.0.1", port
