"""What one person does twice at once, and what several do to one question, ends as if it came one after another."""

import datetime
import threading
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from web_helpers import BASE, JSON, VISIT, client, filled, pair

from llm_rlhf.feedback import people, places, queue
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.tables import Assignment, Item, Label, now
from llm_rlhf.feedback.web.app import create_app


def at_once(many: int, what: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            what(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.slow
def test_one_person_in_several_windows(database: Database) -> None:
    filled(database, [pair(number) for number in range(12)])
    app = create_app(database)
    first = client(database, app=app)
    statuses: list[int] = []

    def work(number: int) -> None:
        window = TestClient(app, base_url=BASE, headers=JSON | {"x-csrf-token": first.headers["x-csrf-token"]})
        window.cookies.set(VISIT, first.cookies[VISIT])
        for _ in range(6):
            task = window.get("/tasks").json()["task"]
            if task is None:
                return
            value = {"choice": "tie"} if number % 2 else {"choice": "both bad"}
            statuses.append(window.post(f"/tasks/{task['assignment']}", json={"value": value}).status_code)

    at_once(4, work)
    assert set(statuses) <= {200, 409}
    with database.read() as session:
        said = session.scalar(select(func.count()).select_from(Label)) or 0
        opened = session.scalar(select(func.count()).select_from(Assignment).where(Assignment.state == "open")) or 0
        assert opened <= 1
        assert session.scalar(select(func.sum(Item.taken))) == said + opened


def test_what_was_left_is_given_back_once_however_many_notice(database: Database) -> None:
    filled(database, [pair(1)], people_per_item=3)
    with database.write() as session:
        for _ in range(3):
            assignment = queue.next_for(session, people.invite(session)[0])
            assert assignment is not None
        assignment.expires = now() - datetime.timedelta(seconds=1)
    holds, goes_on = threading.Event(), threading.Event()

    def release(number: int) -> None:
        if number:
            holds.wait(10)
            threading.Timer(0.3, goes_on.set).start()  # by then the other has looked, where it is not kept waiting
        with database.write() as session:
            places.release_expired(session)
            if not number:
                holds.set()
                goes_on.wait(10)

    at_once(2, release)
    with database.read() as session:
        assert session.scalar(select(Item.taken)) == 2
