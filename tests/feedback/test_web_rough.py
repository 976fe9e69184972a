"""What people, phones and odd programs do to the page that nobody meant: nothing is kept wrong, and nothing fails."""

import contextlib
import datetime
import itertools
import json
import socket
import threading
import time
from typing import Any

import pytest
import uvicorn
from scripted_speaker import Scripted
from sqlalchemy import func, select
from test_live_chat import LEFT, begun, events
from web_helpers import VISIT, client, filled, pair, serving

from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.feedback import people
from llm_rlhf.feedback.counted import counted
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.exchange.exporting import export
from llm_rlhf.feedback.exchange.importing import bring_in
from llm_rlhf.feedback.queue import Question
from llm_rlhf.feedback.settings import change
from llm_rlhf.feedback.tables import Assignment, Flag, Item, Label, Person
from llm_rlhf.feedback.web import serving as web_serving
from llm_rlhf.feedback.web.app import create_app
from llm_rlhf.feedback.web.context import csrf_of
from llm_rlhf.feedback.web.security import Access

HTML = {"accept": "text/html"}
ASKED = [{"role": "user", "content": "Why?"}]
TIE = {"value": {"choice": "tie"}}
DIGITS = "1" * 5_000  # more than Python reads


def count(database: Database, table: type) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


@pytest.mark.parametrize("place", [0.0, 1.0, True, False, "0", 10**400])
def test_a_place_that_is_no_whole_number_is_refused_and_not_taken_for_the_other_answer(
    database: Database, place: object
) -> None:
    filled(database, [pair(1), Question("correct", ASKED, [{"text": "a"}, {"text": "b"}])])
    somebody = client(database)
    for kind, rest in (("compare", {"choice": "better", "strength": 1}), ("correct", {"text": "c"})):
        number = somebody.get(f"/tasks?kind={kind}").json()["task"]["assignment"]
        said = somebody.post(f"/tasks/{number}", json={"value": {"better": place, **rest}})
        assert said.status_code == 400, said.text
    assert count(database, Label) == 0


def test_a_form_that_breaks_off_is_not_kept_as_a_whole_one(tmp_path) -> None:
    database = Database.of(tmp_path / "feedback.db")
    filled(database, [Question("demonstrate", ASKED)])
    app = create_app(database)
    somebody = client(database, app=app)
    number = somebody.get("/tasks").json()["task"]["assignment"]
    cookie = somebody.cookies[VISIT]
    with serving(app) as (host, port):
        with socket.create_connection((host, port), timeout=10) as raw:
            raw.sendall(
                f"POST /tasks/{number} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nCookie: visit={cookie}\r\n"
                f"X-CSRF-Token: {csrf_of(cookie)}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
                "Content-Length: 500\r\n\r\nseconds=3&text=Only+the+beg".encode()
            )
            time.sleep(0.3)  # it has come, and the rest never will
        time.sleep(0.3)
    assert count(database, Label) == 0
    assert somebody.post(f"/tasks/{number}", data={"text": "All of it."}).status_code == 200
    database.close()


@pytest.mark.parametrize("depth", [40, 450, 700, 900])
@pytest.mark.parametrize("marks", ["[]", '{"a":}'])
def test_a_deep_body_is_refused(database: Database, depth: int, marks: str) -> None:
    somebody = client(database)
    body = '{"version": ' + marks[:-1] * depth + "1" + marks[-1] * depth + "}"
    answer = somebody.post("/consent", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert len(answer.text) < 300


def test_numbers_with_more_digits_than_python_reads_are_refused(database: Database) -> None:
    item, *_ = filled(database, [Question("rate", ASKED, [{"text": "a"}])])
    app = create_app(database, voices=Scripted())
    somebody, lead = client(database, app=app), client(database, "lead", app=app)
    for version in (DIGITS, "٣", 10**400):
        assert somebody.post("/consent", json={"version": version}).status_code == 400
        assert somebody.post("/consent", data={"version": str(version)[:9000]}).status_code == 400
    number = somebody.get("/tasks").json()["task"]["assignment"]
    for field in ({"helpful": DIGITS, "harmless": "1"}, {"helpful": "٣", "harmless": "1"}):
        assert somebody.post(f"/tasks/{number}", data=field).status_code == 400
        assert lead.post(f"/lead/items/{item}/decide", data={"decision": "own", **field}).status_code == 400
    assert lead.post(f"/lead/items/{item}/decide", data={"decision": f"like:{DIGITS}"}).status_code == 400
    talk = begun(somebody)
    somebody.post(f"{talk}/say", json={"text": "hello"})
    chosen = somebody.post(f"{talk}/choose", json={"value": LEFT, "seconds": 10**400, "seen": 10**400})
    assert chosen.status_code == 200, chosen.text


@pytest.mark.parametrize("charset", ["undefined", "é", "x\x00y", "idna", "rot13"])
def test_a_form_in_a_character_set_that_is_none_fails_nothing(database: Database, charset: str) -> None:
    kind = f"multipart/form-data; boundary=x; charset={charset}".encode()
    body = b'--x\r\nContent-Disposition: form-data; name="version"\r\n\r\n\xff1\r\n--x--\r\n'
    assert client(database).post("/consent", content=body, headers={"content-type": kind}).status_code == 400


def test_half_a_character_gets_before_nobody(database: Database) -> None:
    with pytest.raises(DataError, match="half a character"):
        filled(database, [Question("compare", ASKED, [{"text": "a\ud800"}, {"text": "b"}])])


def test_a_thumb_is_never_asked_on_the_page_and_told_as_what_it_is(database: Database) -> None:
    filled(database, [Question("thumb", ASKED, [{"text": "a"}], wanted=1)])
    somebody, lead = client(database), client(database, "lead")
    assert somebody.get("/tasks").json() == {"task": None, "progress": {"said": 0, "remaining": 0}}
    assert somebody.get("/tasks", headers=HTML).status_code == 200
    with database.write() as session:  # as an import does
        person = session.scalars(select(Person).where(Person.role == "annotator")).one()
        moment = person.created
        turn = Assignment(
            item_id=1, person_id=person.id, order=[0], state="done", shown=moment, expires=moment, ended=moment
        )
        session.add(turn)
        session.flush()
        session.add(
            Label(assignment_id=turn.id, item_id=1, person_id=person.id, value={"good": False}, seconds=0, hasty=False)
        )
    assert "Thumb down" in somebody.get("/me", headers=HTML).text
    assert "Thumb down" in lead.get("/lead/items/1", headers=HTML).text


def test_who_skips_the_entry_test_has_not_passed_it(database: Database) -> None:
    expected = {"value": {"choice": "tie"}}
    tests = [pair(number, purpose="entry", expected=dict(expected)) for number in (1, 2)]
    filled(database, [*tests, pair(3)], entry_pass=0.7)
    somebody = client(database)

    def task() -> dict:
        return somebody.get("/tasks").json()["task"]

    for _ in range(2):
        assert task()["entry"]
        told = somebody.post(f"/tasks/{task()['assignment']}/skip", json={"reason": "no"}).json()
    assert "begin it again" in told["message"]
    assert task()["entry"], "from its beginning"
    somebody.post(f"/tasks/{task()['assignment']}", json=TIE)
    told = somebody.post(f"/tasks/{task()['assignment']}/skip", json={"reason": "no"}).json()
    assert "50%" in told["message"]
    for _ in range(2):
        somebody.post(f"/tasks/{task()['assignment']}", json=TIE)
    assert not task()["entry"]


def test_a_known_question_that_was_skipped_can_be_taken_back_like_any_other(database: Database) -> None:
    filled(database, [pair(1, purpose="gold", expected={"value": {"choice": "tie"}})], gold_share=1.0)
    somebody = client(database)
    number = somebody.get("/tasks").json()["task"]["assignment"]
    somebody.post(f"/tasks/{number}/skip", json={"reason": "no"})
    assert somebody.post("/undo").json()["task"]["assignment"] == number


def test_a_choice_is_between_the_answers_that_its_window_shows(database: Database) -> None:
    somebody = client(database, app=create_app(database, voices=Scripted()))
    talk = begun(somebody)
    here = events(somebody.post(f"{talk}/say", json={"text": "one"}).text)[-1][1]
    there = events(somebody.post(f"{talk}/say", json={"text": "two"}).text)[-1][1]  # in another window
    told = {"value": LEFT, "seen": here["seen"], "turn": here["turn"]}
    assert somebody.post(f"{talk}/choose", json=told).status_code == 409
    assert count(database, Label) == 0
    assert somebody.post(f"{talk}/choose", json=told | {"turn": there["turn"]}).status_code == 200


def test_undo_in_a_conversation_leaves_another_that_began_alike(database: Database) -> None:
    speaker = Scripted(("a", "b"))
    somebody = client(database, app=create_app(database, voices=speaker))
    first, second = begun(somebody), begun(somebody)
    for talk, texts in ((first, ("a", "b")), (second, ("c", "d"))):
        speaker.texts = texts
        somebody.post(f"{talk}/say", json={"text": "hello"})
        somebody.post(f"{talk}/choose", json={"value": LEFT}).raise_for_status()
    turn = somebody.post(f"{first}/undo").json()["turn"]
    assert sorted(answer["text"] for answer in turn["answers"]) == ["a", "b"]
    with database.read() as session:
        kept = session.scalars(select(Item).join(Label, Label.item_id == Item.id)).one()
    assert sorted(answer["text"] for answer in kept.answers) == ["c", "d"]


def test_settings_and_topics_that_no_label_and_no_table_can_hold_are_refused(database: Database) -> None:
    lead = client(database, "lead")
    for wrong in (["x" * 65], ["", "a"], ["a", "a"], ["  "], [f"{n}" for n in range(40)]):
        assert lead.post("/lead/settings", json={"labels": wrong}).status_code == 400, wrong
    assert lead.post("/lead/settings", json={"topics": ["x" * 65]}).status_code == 400
    assert lead.post("/lead/settings", json={"title": "x" * 100_000}).status_code == 400
    known = {"a": "x", "b": "y", "prompt": "p", "decision": "tie", "purpose": "gold"}
    assert lead.post("/lead/known", data=known | {"topic": "t" * 65}).status_code == 400
    assert lead.post("/lead/known", data=known | {"topic": "t" * 64}).status_code == 200
    assert count(database, Item) == 1


def test_withdrawal_frees_places_of_questions_that_have_some(database: Database) -> None:
    gold = pair(1, purpose="gold", expected={"value": {"choice": "tie"}})
    filled(database, [gold, pair(2)], gold_share=1.0)
    somebody = client(database)
    for _ in range(2):
        somebody.post(f"/tasks/{somebody.get('/tasks').json()['task']['assignment']}", json=TIE)
    with database.write() as session:
        people.withdraw(session, session.scalars(select(Person)).one())
    with database.read() as session:
        assert [(item.taken, item.wanted) for item in session.scalars(select(Item).order_by(Item.id))] == [
            (0, 0),
            (0, 1),
        ]


def test_all_of_an_answer_is_shown_however_deep_it_lies_and_without_styles(database: Database) -> None:
    quoted = "> " * 60 + "deep"
    listed = "\n".join("  " * depth + f"- level {depth}" for depth in range(15))
    table = "| a | b |\n|--:|:-:|\n| 1 | 2 |"
    filled(database, [Question("rank", ASKED, [{"text": text} for text in (quoted, listed, table)])])
    page = client(database).get("/tasks", headers=HTML).text
    assert "deep" in page
    assert "level 14" in page
    assert 'class="to-right"' in page
    assert "style=" not in page


def test_a_time_before_a_clock_was_set_back_is_none(database: Database) -> None:
    filled(database, [pair(1)])
    somebody = client(database)
    number = somebody.get("/tasks").json()["task"]["assignment"]
    with database.write() as session:
        turn = session.get_one(Assignment, number)
        turn.shown = turn.expires  # later than now
    somebody.post(f"/tasks/{number}", json=TIE).raise_for_status()
    with database.read() as session:
        assert session.scalars(select(Label.seconds)).one() == 0.0


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("POST /leave HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"400"),
        ("GET /health HTTP/1.1\r\nX-Long: " + "a" * 200_000 + "\r\n", b"400"),
        (
            "GET /tasks HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            b"403",
        ),
        ("GET /health HTTP/1.1\r\n", b"200"),
    ],
)
def test_odd_heads_are_refused_by_the_server_that_is_started(tmp_path, monkeypatch, head: str, status: bytes) -> None:
    database = Database.of(tmp_path / "feedback.db")
    listener = web_serving.bind("127.0.0.1", 0)
    host, port = listener.getsockname()
    started = []
    monkeypatch.setattr(uvicorn.Server, "install_signal_handlers", lambda self: None, raising=False)
    monkeypatch.setattr(
        uvicorn.Server, "capture_signals", lambda self: started.append(self) or contextlib.nullcontext()
    )
    thread = threading.Thread(target=web_serving.serve, args=(create_app(database), listener), daemon=True)
    thread.start()
    try:
        with socket.create_connection((host, port), timeout=10) as raw:
            with contextlib.suppress(ConnectionError):  # refused before it was sent
                raw.sendall(f"{head}Host: {host}:{port}\r\n\r\n".encode())
            assert raw.recv(64).split()[1] == status
    finally:
        started[0].should_exit = True
        thread.join(10)
        database.close()


@pytest.mark.slow
def test_json_bodies_of_every_type_at_every_route_fail_nothing(database: Database) -> None:
    filled(database, [pair(1), Question("rate", ASKED, [{"text": "a"}]), Question("annotate", ASKED, [{"text": "b"}])])
    app = create_app(database, voices=Scripted())
    lead = client(database, "lead", app=app)
    talk = begun(lead)
    lead.post(f"{talk}/say", json={"text": "hello"})
    number = lead.get("/tasks").json()["task"]["assignment"]
    odd = [
        None,
        True,
        0,
        -1,
        1.5,
        1e308,
        10**300,
        "",
        "x",
        "<b>",
        [],
        [[]],
        {},
        {"a": [1]},
        ["x"] * 40,
        "\x1b[2J",
        "9" * 400,
    ]
    names = {
        f"/tasks/{number}": ["value", "point", "choice", "seconds"],
        f"/tasks/{number}/draft": ["draft", "value"],
        f"/tasks/{number}/skip": ["reason"],
        f"/tasks/{number}/report": ["kind", "text"],
        "/consent": ["version"],
        "/lead/people": ["name", "role", "simulated"],
        "/lead/settings": ["title", "gold_share", "lease_minutes", "labels", "topics", "entry_test", "__class__", ""],
        "/lead/documents/consent": ["text"],
        "/lead/items/1/decide": ["value", "decision", "comment"],
        "/lead/items/2/decide": ["value", "decision", "helpful"],
        "/lead/items/1/close": ["why"],
        "/lead/items/1/known": ["purpose", "why"],
        "/lead/known": ["prompt", "a", "b", "decision", "objective", "topic", "purpose"],
        "/lead/reports/1/dismiss": ["why"],
        "/chat": ["mode", "topic", "warned"],
        f"{talk}/choose": ["value", "seen", "turn", "seconds"],
        f"{talk}/report": ["kind", "text"],
        f"{talk}/say": ["text"],
        "/me/withdraw": ["sureness"],
    }  # fmt: skip
    for path, fields in names.items():
        for field in fields:
            for value in odd:
                answer = lead.post(
                    path, content=json.dumps({field: value}), headers={"content-type": "application/json"}
                )
                assert answer.status_code < 500, (path, field, value, answer.text)


def test_what_people_write_does_nothing_to_the_terminal_of_a_report(tmp_path) -> None:
    from typer.testing import CliRunner

    from llm_rlhf.cli.feedback import feedback_app

    database = Database.of(tmp_path / "feedback.db")
    filled(database, [pair(1), pair(2)])
    somebody = client(database)
    somebody.post(f"/tasks/{somebody.get('/tasks').json()['task']['assignment']}", json=TIE)
    number = somebody.get("/tasks").json()["task"]["assignment"]
    reason = "no\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r\n  999  Everybody agrees" + "x" * 1_000
    somebody.post(f"/tasks/{number}/skip", json={"reason": reason})
    database.close()
    printed = CliRunner().invoke(feedback_app, ["report", str(tmp_path / "feedback.db")])
    assert printed.exit_code == 0, printed.output
    assert not set("\x1b\x07\x9b\u202e\r") & set(printed.output)
    assert "no␛]0;owned" in printed.output
    assert not any(line.startswith("  999") for line in printed.output.split("\n"))
    assert max(map(len, printed.output.split("\n"))) < 400


@pytest.mark.parametrize(
    ("url", "known"),
    [
        ("HTTPS://Ask.Example.ORG/", "https://ask.example.org"),
        ("https://ask.example.org:443", "https://ask.example.org"),
        ("http://ask.example.org:8080", "http://ask.example.org:8080"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://[::1]:8443", "https://[::1]:8443"),
    ],
)
def test_a_public_url_is_known_as_browsers_name_it(url: str, known: str) -> None:
    from llm_rlhf.cli.feedback import _public

    found = _public(url)
    assert found == known
    access = Access(public_url=found)
    assert access.knows_origin(known, "127.0.0.1:8080"), "behind a proxy that keeps no Host"
    assert access.knows_host(known.partition("://")[2])
    assert access.is_https == known.startswith("https")


@pytest.mark.parametrize(
    "url", ["https://[::1", "https://a:b", "https://a/#x", "https://u:p@a", "ftp://a", "https://", "a"]
)
def test_a_public_url_that_is_none_is_refused(url: str) -> None:
    from llm_rlhf.cli.feedback import _public

    with pytest.raises(RecipeError, match="--public-url"):
        _public(url)


def test_the_comment_of_somebody_who_withdrew_is_exported_by_no_decision(database: Database) -> None:
    filled(database, [Question("annotate", ASKED, [{"text": "a"}])])
    somebody, lead = client(database), client(database, "lead")
    said = {"value": {"labels": ["rude"], "comment": "My own words."}}
    somebody.post(f"/tasks/{somebody.get('/tasks').json()['task']['assignment']}", json=said).raise_for_status()
    lead.post("/lead/items/1/decide", data={"decision": "like:1"}).raise_for_status()
    with database.read() as session:
        assert len(counted(session).asked) == 1
    somebody.post("/me/withdraw", json={"sure": True}).raise_for_status()
    with database.read() as session:
        assert counted(session).asked == []


WHOLE = {"kind": "compare", "prompt": ASKED, "answers": [{"text": "a"}, {"text": "b"}], "labels": []}
SAID = {"annotator": "x", "value": {"choice": "tie"}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": ["compare"]}, {"kind": None}, {"prompt": "Why?"}, {"prompt": [{"role": "user"}]}, {"prompt": [1]},
        {"prompt": [{"role": "user", "content": 1}]}, {"answers": ["a", "b"]}, {"answers": [{"text": 1}, {"text": 2}]},
        {"answers": {"a": 1}}, {"objective": "evil"}, {"objective": []}, {"topic": 7}, {"topic": "t" * 65},
        {"purpose": "gold"}, {"purpose": "odd"}, {"expected": "tie"}, {"wanted": -1}, {"wanted": "x"},
        {"wanted": 10**30}, {"priority": "x"}, {"priority": float("nan")}, {"priority": 10**400}, {"propensity": 0},
        {"propensity": True}, {"facts": []}, {"strategy": "s" * 33},
    ],
)  # fmt: skip
def test_a_line_of_a_file_that_no_page_could_show_is_set_aside(tmp_path, wrong: dict) -> None:
    file = tmp_path / "labels.jsonl"
    rows = [WHOLE | wrong, WHOLE | {"answers": [{"text": "c"}, {"text": "d"}]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    database = Database.of(tmp_path / "feedback.db")
    found = bring_in(database, file, "jsonl")
    assert (found.questions, sum(found.set_aside.values())) == (1, 1), found
    assert max(map(len, found.set_aside)) < 400
    assert client(database).get("/tasks", headers=HTML).status_code == 200
    database.close()


@pytest.mark.parametrize(
    ("wrong", "labels", "aside"),
    [
        (SAID | {"seconds": "x"}, 1, 0), (SAID | {"seconds": float("nan")}, 1, 0), (SAID | {"seconds": 10**400}, 1, 0),
        (SAID | {"created": 7}, 0, 1), ("x", 0, 1), (SAID | {"value": "tie"}, 0, 1), ({"value": {}}, 0, 1),
    ],
)  # fmt: skip
def test_a_label_of_a_file_that_cannot_be_is_set_aside_alone(tmp_path, wrong: Any, labels: int, aside: int) -> None:
    """Its question stays, and a time that is none is a time that nobody took."""
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps(WHOLE | {"labels": [wrong]}) + "\n")
    database = Database.of(tmp_path / "feedback.db")
    found = bring_in(database, file, "jsonl")
    assert (found.questions, found.labels, sum(found.set_aside.values())) == (1, labels, aside), found
    assert client(database).get("/tasks", headers=HTML).status_code == 200
    database.close()


def test_a_time_with_a_zone_is_kept_as_utc(tmp_path, database: Database) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps(WHOLE | {"labels": [SAID | {"created": "2026-01-01T02:00:00+02:00"}]}) + "\n")
    bring_in(database, file)
    with database.read() as session:
        assert session.scalars(select(Label.created)).one() == datetime.datetime(2026, 1, 1)


@pytest.mark.parametrize("purpose", ["gold", "entry"])
def test_a_turn_of_a_conversation_becomes_no_known_question(database: Database, purpose: str) -> None:
    app = create_app(database, voices=Scripted())
    somebody, lead = client(database, app=app), client(database, "lead", app=app)
    talk = begun(somebody)
    somebody.post(f"{talk}/say", json={"text": "hello"})
    somebody.post(f"{talk}/choose", json={"value": LEFT}).raise_for_status()
    lead.post("/lead/items/1/decide", data={"decision": "tie"}).raise_for_status()
    assert lead.post("/lead/items/1/known", data={"purpose": purpose}).status_code == 400
    assert "/known" not in lead.get("/lead/items/1", headers=HTML).text.partition("<main")[2].partition("Decision")[2]
    with database.write() as session:
        change(session, {"gold_share": 1.0})
    assert client(database, app=app).get("/tasks", headers=HTML).status_code == 200


def test_own_words_are_not_held_against_those_of_a_known_question(database: Database) -> None:
    labels = {"value": {"labels": ["rude", "unsafe"], "comment": "The lead's words."}}
    better = {"value": {"better": 0, "text": "The lead's words."}}
    right = [
        Question("annotate", ASKED, [{"text": "a"}], purpose="gold", expected=labels),
        Question("correct", ASKED, [{"text": "a"}], purpose="gold", expected=better),
    ]
    filled(database, right, gold_share=1.0)
    somebody, lead = client(database), client(database, "lead")
    for kind, value in (("annotate", {"labels": ["unsafe", "rude"]}), ("correct", {"better": 0, "text": "Mine."})):
        number = somebody.get(f"/tasks?kind={kind}").json()["task"]["assignment"]
        somebody.post(f"/tasks/{number}", json={"value": value}).raise_for_status()
    with database.read() as session:
        assert session.scalars(select(Label.agrees_with_gold)).all() == [True, True]
    filled(database, [Question("demonstrate", ASKED)])
    lead.post("/lead/items/3/decide", json={"value": {"text": "So."}}).raise_for_status()
    assert lead.post("/lead/items/3/known", data={"purpose": "entry"}).status_code == 400


@pytest.mark.parametrize("value", [LEFT, {"better": 0, "text": "My answer."}])
def test_a_conversation_of_somebody_who_withdrew_is_in_no_export(tmp_path, database: Database, value: dict) -> None:
    filled(database, [pair(1)])
    app = create_app(database, voices=Scripted())
    somebody, lead = client(database, app=app), client(database, "lead", app=app)
    for decided in (False, True):
        talk = begun(somebody)
        somebody.post(f"{talk}/say", json={"text": f"My secret {decided}."})
        somebody.post(f"{talk}/choose", json={"value": value}).raise_for_status()
    with database.read() as session:
        number = max(session.scalars(select(Item.id)))
    decision = {"value": value} if "text" not in value else {"value": value | {"text": "The lead's."}}
    lead.post(f"/lead/items/{number}/decide", json=decision).raise_for_status()
    export(database, tmp_path / "before", "jsonl")
    somebody.post("/me/withdraw", json={"sure": True}).raise_for_status()
    export(database, tmp_path / "after", "jsonl")
    told = {name: "".join(path.read_text() for path in (tmp_path / name).iterdir()) for name in ("before", "after")}
    assert told["before"].count("My secret") > 1
    assert "My secret" not in told["after"]


def test_what_is_left_does_not_tell_which_questions_are_known(database: Database) -> None:
    gold = [pair(number, purpose="gold", expected={"value": {"choice": "tie"}}) for number in (101, 102, 103)]
    filled(database, [*gold, *map(pair, range(20))], gold_share=0.4)
    somebody = client(database)
    told = somebody.get("/tasks").json()
    left, numbers = [], []
    while told["task"] is not None:
        left.append(told["progress"]["remaining"])
        home = somebody.get("/").json()
        assert home["progress"]["remaining"] == home["kinds"].get("compare", 0) == left[-1]
        numbers.append(int(told["task"]["prompt"][0]["content"][9:-1]))
        told = somebody.post(f"/tasks/{told['task']['assignment']}", json=TIE).json()
    known = sum(number > 100 for number in numbers)
    falls = [before - after for before, after in itertools.pairwise(left)]
    assert left[0] == 22, "twenty new ones and three known ones, one of them open"
    assert set(falls[: -1 - 3]) == {1}, (known, left)


def test_what_is_sent_again_since_its_answer_was_lost_is_kept_once(database: Database) -> None:
    filled(database, [pair(1), pair(2)])
    somebody = client(database)
    number = somebody.get("/tasks").json()["task"]["assignment"]
    for kind, text in (("report", "wrong"), ("report", "wrong"), ("report", "also rude")):
        assert somebody.post(f"/tasks/{number}/report", json={"kind": kind, "text": text}).status_code == 200
    assert count(database, Flag) == 2
    for _ in range(2):
        assert somebody.post(f"/tasks/{number}", json=TIE).status_code == 200
    other = somebody.get("/tasks").json()["task"]["assignment"]
    for _ in range(2):
        assert somebody.post(f"/tasks/{other}/skip", json={"reason": "no"}).status_code == 200
    assert count(database, Label) == 1


def test_a_consent_text_that_changes_in_the_middle_is_told_and_nothing_is_lost(database: Database) -> None:
    filled(database, [Question("demonstrate", ASKED)])
    app = create_app(database)
    somebody, lead = client(database, app=app), client(database, "lead", app=app)
    number = somebody.get("/tasks").json()["task"]["assignment"]
    lead.post("/lead/documents/consent", data={"text": "Another text."}).raise_for_status()
    refused = somebody.post(f"/tasks/{number}", data={"text": "Mine."}, headers={"accept": "*/*", "hx-request": "true"})
    assert (refused.status_code, "changed meanwhile" in refused.text, "/consent" in refused.text) == (403, True, True)
    version = somebody.get("/consent").json()["version"]
    somebody.post("/consent", json={"version": version}).raise_for_status()
    assert somebody.post(f"/tasks/{number}", data={"text": "Mine."}).status_code == 200
    with database.read() as session:
        assert session.scalars(select(Label.consent_version)).one() == version
