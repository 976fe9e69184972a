"""Coming in by a link, agreeing, one's own page, going, and withdrawing."""

import datetime
import re
from pathlib import Path

from fastapi.testclient import TestClient
from sqlalchemy import select, update
from web_helpers import BASE, JSON, VISIT, client, filled, invited, pair

from llm_rlhf.feedback import documents
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.tables import Invitation, Label, Person, Visit, now
from llm_rlhf.feedback.web.app import create_app
from llm_rlhf.feedback.web.security import Access

PAGE = {"accept": "text/html"}


def browser(database: Database, access: Access | None = None, base: str = BASE) -> TestClient:
    return TestClient(create_app(database, access), base_url=base, headers=PAGE)


def test_a_link_is_used_up_by_its_button_alone(database: Database) -> None:
    token = invited(database, consented=False)
    somebody = browser(database)
    page = somebody.get(f"/i/{token}")
    assert (page.status_code, "set-cookie" in page.headers) == (200, False)
    with database.read() as session:
        assert session.scalar(select(Invitation.used)) is None
    answer = somebody.post(f"/i/{token}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Secure" not in cookie
    with database.read() as session:
        assert session.scalar(select(Invitation.used)) is not None
        assert somebody.cookies[VISIT] not in str([vars(visit) for visit in session.scalars(select(Visit))])


def test_under_https_the_cookie_travels_encrypted_alone(database: Database) -> None:
    for access, base in ((None, "https://127.0.0.1"), (Access(public_url="https://ask.example.org"), BASE)):
        answer = browser(database, access, base).post(f"/i/{invited(database)}", follow_redirects=False)
        assert "Secure" in answer.headers["set-cookie"]


def test_behind_a_proxy_the_public_origin_is_ours(database: Database) -> None:
    somebody = browser(database, Access(public_url="https://ask.example.org"))
    told = {"host": "127.0.0.1:8000", "origin": "https://ask.example.org"}
    assert somebody.post(f"/i/{invited(database)}", headers=told, follow_redirects=False).status_code == 303
    assert (
        somebody.post(f"/i/{invited(database)}", headers=told | {"origin": "http://ask.example.org"}).status_code == 403
    )


def test_a_link_that_has_run_out_lets_nobody_in(database: Database) -> None:
    token = invited(database)
    with database.write() as session:
        session.execute(update(Invitation).values(expires=now() - datetime.timedelta(seconds=1)))
    assert browser(database).post(f"/i/{token}").status_code == 401


def test_nobody_works_before_they_agreed_to_the_newest_text(database: Database) -> None:
    filled(database, [pair(1)])
    somebody = client(database, consented=False)
    assert somebody.get("/tasks").status_code == 403
    redirect = somebody.get("/tasks", headers=PAGE, follow_redirects=False)
    assert (redirect.status_code, redirect.headers["location"]) == (303, "/consent")
    text = somebody.get("/consent").json()
    assert (text["version"], text["agreed"]) == (1, False)
    assert "withdraw" in somebody.get("/consent", headers=PAGE).text
    assert somebody.post("/consent", json={"version": 2}).status_code == 400
    assert somebody.post("/consent", data={"version": "x"}).status_code == 400
    assert somebody.post("/consent", data={"version": "1"}).json()["agreed"]
    assert somebody.get("/tasks").json()["task"]["kind"] == "compare"
    with database.write() as session:
        documents.publish(session, "consent", "Another text.")
    assert somebody.get("/tasks").status_code == 403
    fragment = somebody.get("/tasks", headers=PAGE | {"hx-request": "true"})
    assert fragment.status_code == 403


def test_a_visit_runs_out_and_can_be_ended(database: Database) -> None:
    somebody = client(database)
    assert somebody.get("/me").status_code == 200
    cookie = somebody.cookies[VISIT]
    assert somebody.post("/leave").json() == {"left": True}
    assert VISIT not in somebody.cookies
    somebody.cookies.set(VISIT, cookie)
    assert somebody.get("/me").status_code == 401
    other = client(database)
    with database.write() as session:
        session.execute(update(Visit).values(expires=now() - datetime.timedelta(seconds=1)))
    assert other.get("/me").status_code == 401


def test_pages_on_two_ports_of_a_host_share_no_visit(tmp_path: Path) -> None:
    """A browser gives a host's cookies to all its ports: whoever opens a second page stays logged in on the first."""
    pages, tokens = [], []
    for number, port in enumerate((8080, 8081)):
        database = Database.of(tmp_path / f"{number}.db")
        page = TestClient(create_app(database), base_url=f"http://127.0.0.1:{port}", headers=JSON)
        tokens.append(page.post(f"/i/{invited(database)}").json()["csrf"])
        pages.append(page)
    for one, other in (pages, pages[::-1]):
        one.cookies.update(other.cookies)
    assert sorted(pages[0].cookies.keys()) == ["visit-8080", "visit-8081"]
    assert [page.get("/me").status_code for page in pages] == [200, 200]
    assert pages[1].post("/leave", headers={"x-csrf-token": tokens[1]}).status_code == 200
    assert [page.get("/me").status_code for page in pages] == [200, 401]


def test_two_visits_of_one_person_have_tokens_of_their_own(database: Database) -> None:
    token, app = invited(database), create_app(database)
    visits = [TestClient(app, base_url=BASE, headers=JSON) for _ in range(2)]
    told = [visit.post(f"/i/{token}").json() for visit in visits]
    assert told[0]["pseudonym"] == told[1]["pseudonym"]
    assert told[0]["csrf"] != told[1]["csrf"]
    assert visits[0].get("/me").json()["csrf"] == told[0]["csrf"]
    assert visits[0].post("/undo", headers={"x-csrf-token": told[1]["csrf"]}).status_code == 403


def test_ones_own_page_tells_what_one_said_and_nothing_of_others(database: Database) -> None:
    filled(database, [pair(1), pair(2)], people_per_item=2)
    app = create_app(database)
    one, other = client(database, app=app), client(database, app=app)
    for somebody in (one, other):
        task = somebody.get("/tasks").json()["task"]
        place = [answer["text"] for answer in task["answers"]].index("Second 1." if somebody is one else "First 1.")
        value = {"choice": "better", "better": place, "strength": 3}
        somebody.post(f"/tasks/{task['assignment']}", json={"value": value}).raise_for_status()
    page = one.get("/me", headers=PAGE).text
    assert "Much better: Second 1." in page
    assert "First 1." not in page
    assert other.get("/me").json()["pseudonym"] not in page
    assert one.get("/me").json()["said"] == 1


def test_withdrawal_is_asked_twice_and_final(database: Database) -> None:
    filled(database, [pair(1)])
    token, app = invited(database), create_app(database)
    somebody = TestClient(app, base_url=BASE, headers=JSON)
    somebody.headers["x-csrf-token"] = somebody.post(f"/i/{token}").json()["csrf"]
    assert somebody.post("/me/withdraw").status_code == 400
    assert "You have withdrawn" in somebody.post("/me/withdraw", data={"sure": "yes"}, headers=PAGE).text
    assert somebody.get("/tasks").status_code == 401
    assert somebody.post(f"/i/{token}").status_code == 401
    with database.read() as session:
        assert session.scalar(select(Person.withdrawn)) is not None
        assert session.scalar(select(Label)) is None


def test_the_start_tells_what_is_left_by_kind_and_topic(database: Database) -> None:
    filled(database, [pair(1, topic="plants"), pair(2, topic="stars"), pair(3, topic="stars")])
    somebody = client(database)
    told = somebody.get("/").json()
    assert told["kinds"] == {"compare": 3}
    assert told["topics"] == {"plants": 1, "stars": 2}
    page = somebody.get("/", headers=PAGE).text
    assert re.findall(r'href="/tasks\?topic=(\w+)"', page) == ["plants", "stars"]
    assert 'href="/lead"' not in page
    assert 'href="/lead"' in client(database, role="lead").get("/", headers=PAGE).text


def test_the_guidelines_are_a_page_and_a_fragment(database: Database) -> None:
    somebody = client(database)
    assert somebody.get("/guidelines").json()["version"] == 1
    assert "<html" in somebody.get("/guidelines", headers=PAGE).text
    fragment = somebody.get("/guidelines", headers=PAGE | {"hx-request": "true"}).text
    assert "<html" not in fragment
    assert "<strong>Better</strong>" in fragment
