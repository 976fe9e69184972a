"""Requests that are none: each is refused with the status that says why, and changes nothing."""

import json
import socket

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from web_helpers import BASE, JSON, VISIT, client, filled, invited, pair, serving

from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.queue import Question
from llm_rlhf.feedback.tables import Label
from llm_rlhf.feedback.web.app import create_app
from llm_rlhf.feedback.web.security import HEADERS, MOST_BYTES, Access, Limiter

TIE = {"value": {"choice": "tie"}}
HTML = {"accept": "text/html"}
POSTS = (
    "/tasks/1",
    "/tasks/1/draft",
    "/tasks/1/skip",
    "/tasks/1/report",
    "/undo",
    "/consent",
    "/me/withdraw",
    "/leave",
)


def labels(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(Label)) or 0


def opened(somebody: TestClient) -> str:
    """The address of a question that somebody has open."""
    return f"/tasks/{somebody.get('/tasks').json()['task']['assignment']}"


def test_fault_59_without_a_cookie_nothing_is_shown_or_changed(database: Database) -> None:
    filled(database, [pair(1)])
    stranger = TestClient(create_app(database), base_url=BASE, headers=JSON)
    for path in ("/", "/tasks", "/consent", "/guidelines", "/me"):
        assert stranger.get(path).status_code == 401, path
    for path in POSTS:
        assert stranger.post(path, json=TIE).status_code == 401, path
    stranger.cookies.set(VISIT, "invented")
    assert stranger.get("/tasks").status_code == 401
    assert stranger.post("/i/invented").status_code == 401
    assert stranger.get("/health").json() == {"status": "ok"}


def test_fault_59_a_change_needs_the_token_of_its_own_visit(database: Database) -> None:
    filled(database, [pair(1), pair(2)])
    app = create_app(database)
    one, other = client(database, app=app), client(database, app=app)
    address = opened(one)
    token = one.headers.pop("x-csrf-token")
    for path in POSTS:
        assert one.post(path, json=TIE).status_code == 403, path
    for wrong in ("", "x", other.headers["x-csrf-token"], "é"):
        assert one.post(address, json=TIE, headers={"x-csrf-token": wrong.encode()}).status_code == 403
    assert labels(database) == 0
    assert one.post(address, json=TIE, headers={"x-csrf-token": token}).status_code == 200


def test_fault_59_somebody_elses_question_is_theirs(database: Database) -> None:
    filled(database, [pair(1)], people_per_item=1)
    app = create_app(database)
    one, other = client(database, app=app), client(database, app=app)
    address = opened(one)
    for path in (address, f"{address}/draft", f"{address}/skip", f"{address}/report"):
        assert other.post(path, json=TIE | {"reason": "no", "text": "no"}).status_code == 403, path
    assert labels(database) == 0


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9", "file://", "http://[::"])
def test_fault_59_a_foreign_origin_is_refused(database: Database, origin: str) -> None:
    filled(database, [pair(1)])
    somebody = client(database)
    address = opened(somebody)
    refused = somebody.post(address, json=TIE, headers={"origin": origin})
    assert refused.status_code == 403
    assert labels(database) == 0
    assert somebody.post(f"/i/{invited(database)}", headers={"origin": origin}).status_code == 403
    assert somebody.post(address, json=TIE, headers={"origin": BASE}).status_code == 200


@pytest.mark.parametrize(
    ("access", "host", "status"),
    [
        (Access(), "evil.example", 400),
        (Access(), "10.0.0.7:8000", 400),
        (Access(), "", 400),
        (Access(), "localhost:1", 200),
        (Access(), "[::1]:8000", 200),
        (Access("0.0.0.0"), "10.0.0.7:8000", 200),
        (Access("0.0.0.0"), "evil.example", 400),
        (Access(public_url="https://ask.example.org"), "ask.example.org", 200),
        (Access(public_url="https://ask.example.org"), "evil.example", 400),
    ],
)
def test_fault_59_a_host_that_is_not_ours_is_refused(
    database: Database, access: Access, host: str, status: int
) -> None:
    anybody = TestClient(create_app(database, access), base_url=BASE)
    assert anybody.get("/health", headers={"host": host}).status_code == status


def test_fault_59_markup_in_an_answer_is_text(database: Database) -> None:
    told = (
        "<script>alert(1)</script> <img src=x onerror=alert(1)> [a](javascript:alert(1)) ![b](http://x/y) <http://x/>"
    )
    prompt = [{"role": "user", "content": told}]
    answers = [{"text": f'{told}\n\n    {told}\n\n```x"><script>\n{told}\n```'}, {"text": "Plain."}]
    filled(
        database,
        [
            Question("compare", prompt, answers, topic="<b>topic</b>"),
            Question("correct", prompt, [{"text": told + '" autofocus onfocus="alert(1)'}], topic="<b>topic</b>"),
        ],
    )
    somebody = client(database)
    for kind in ("compare", "correct"):
        page = somebody.get(f"/tasks?kind={kind}", headers=HTML)
        assert page.status_code == 200
        for mark in ("<script>alert", "<img", 'href="javascript', 'href="http', "<b>topic", 'onfocus="alert'):
            assert mark not in page.text, mark
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/%252e%252e/app.py",
        "/static/..\\app.py",
        "/static/%5c..%5capp.py",
        "/i/..",
        "/tasks%0d%0aset-cookie:%20a=b",
        "/static/app.js%00.css",
    ],
)
def test_fault_59_a_path_that_climbs_is_refused(tmp_path, path: str) -> None:
    database = Database.of(tmp_path / "feedback.db")
    with serving(create_app(database)) as (host, port), socket.create_connection((host, port), timeout=10) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        assert raw.makefile("rb").readline().split()[1] == b"400"
    database.close()


def test_fault_59_too_large_a_body_is_refused_also_in_pieces(database: Database) -> None:
    filled(database, [pair(1)])
    somebody = client(database)
    address = opened(somebody)
    assert somebody.post(address, content=b"x" * (MOST_BYTES + 1)).status_code == 413
    piece = b"x" * 1024
    pieces = (piece for _ in range(MOST_BYTES // len(piece) + 1))
    assert somebody.post(address, content=pieces).status_code == 413  # no length is told: it comes chunked
    text = "\U0001f600" * 20_001  # more than a label's text has, in fewer bytes than a body
    assert somebody.post(f"{address}/report", json={"kind": "report", "text": text}).status_code == 200
    assert labels(database) == 0


def test_fault_59_a_text_at_its_limit_fits_into_a_body(database: Database) -> None:
    question = Question("demonstrate", [{"role": "user", "content": "Why?"}])
    filled(database, [question])
    somebody = client(database)
    address = opened(somebody)
    text = "\U0001f600" * 20_000
    assert somebody.post(address, json={"value": {"text": text + "x"}}).status_code == 400
    assert somebody.post(address, data={"text": text}).status_code == 200  # twelve bytes a character
    assert labels(database) == 1


def test_fault_59_too_many_requests_wait(database: Database) -> None:
    filled(database, [pair(1)])
    moment = [0.0]
    limiter = Limiter(rate=2, burst=5, others_rate=1, others_burst=3, clock=lambda: moment[0])
    app = create_app(database, limiter=limiter)
    somebody = client(database, app=app)  # two of the others' three: an invitation has no visit yet
    assert [somebody.get("/tasks").status_code for _ in range(6)] == [200] * 5 + [429]
    refused = somebody.get("/tasks")
    assert refused.headers["retry-after"] == "1"
    assert "error" in refused.json()
    moment[0] += 1.0
    assert [somebody.get("/tasks").status_code for _ in range(3)] == [200, 200, 429]
    stranger = TestClient(app, base_url=BASE, headers=JSON)
    stranger.cookies.set(VISIT, "invented")  # has no bucket of its own
    assert [stranger.get("/tasks").status_code for _ in range(4)] == [401, 401, 401, 429]
    assert stranger.get("/health").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'"x"',
        b"[" * 100_000,
        b'{"value": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"value": null}',
        b'{"value": {"choice": "better", "better": 7, "strength": 2}}',
        b'{"value": {"choice": "better", "better": 0, "strength": 1e400}}',
        b'{"value": {"choice": "better", "better": -1, "strength": 1}}',
        b'{"value": {"choice": "tie", "source": "ppo"}}',
        b'{"value": {"choice": "\\u0000"}}',
        b'{"value": {"choice": "\\ud800"}}',
        b'{"value": {"choice": NaN}}',
        b"\xff\xfe",
        json.dumps({"value": {"choice": "tie", "comment": 10**400}}).encode(),
    ],
)
def test_fault_59_a_body_that_is_no_label_is_refused(database: Database, body: bytes) -> None:
    filled(database, [pair(1)])
    somebody = client(database)
    address = opened(somebody)
    answer = somebody.post(address, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert len(answer.text) < 1000
    assert labels(database) == 0


def test_fault_59_odd_numbers_and_texts_fail_nothing(database: Database) -> None:
    filled(database, [pair(1)])
    somebody = client(database)
    address = opened(somebody)
    for path in ("/tasks/0", "/tasks/-1", "/tasks/99999999999999999999", "/tasks/x", "/tasks/2147483647", "/nothing"):
        assert somebody.post(path, json=TIE).status_code in (404, 405), path
    assert somebody.get("/tasks?kind=guess").status_code == 400
    assert somebody.get("/tasks?topic=%00").status_code == 400
    assert somebody.post(address, content=b"x", headers={"content-type": "text/xml"}).status_code == 400
    assert somebody.post(f"{address}/draft", json={"draft": [1]}).status_code == 400
    assert somebody.post(f"{address}/skip", json={"reason": " "}).status_code == 400
    assert somebody.post(f"{address}/skip", json={"reason": {"a": 1}}).status_code == 400
    assert somebody.post(f"{address}/report", json={"kind": "none", "text": "x"}).status_code == 400
    for seconds in ("x", -1, 1e308, [1], None):
        assert somebody.post(address, json=TIE | {"seconds": seconds}).status_code == 200
    assert labels(database) == 1


def test_every_answer_has_the_headers(database: Database) -> None:
    somebody = client(database)
    answers = [somebody.get(path, headers=HTML) for path in ("/", "/tasks", "/nothing", "/static/app.js", "/health")]
    answers.append(somebody.get("/tasks", headers={"host": "evil.example"}))
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
    assert [answer.headers["cache-control"] for answer in answers[:3]] == ["no-store"] * 3
    assert "'unsafe" not in HEADERS["content-security-policy"]
