"""The chat's routes: what a program says and hears, and what is refused."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from scripted_speaker import Scripted
from sqlalchemy import select
from web_helpers import client, filled, pair

from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.settings import change
from llm_rlhf.feedback.tables import Item, Label
from llm_rlhf.feedback.web.app import create_app

LEFT = {"choice": "better", "better": 0, "strength": 4}


def events(told: str) -> list[tuple[str, Any]]:
    found = []
    for block in told.strip().split("\n\n"):
        kind, data = block.split("\n")
        found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def begun(somebody: TestClient, **fields: Any) -> str:
    number = somebody.post("/chat", json={"mode": "helpful", **fields}).raise_for_status().json()["talk"]
    return f"/chat/{number}"


def test_a_conversation_goes_on_from_the_answer_that_was_chosen(database: Database) -> None:
    speaker = Scripted(("It *boils*.", "<script>no</script>"))
    somebody = client(database, app=create_app(database, voices=speaker))
    talk = begun(somebody, topic="cooking")
    response = somebody.post(f"{talk}/say", json={"text": "how long?"})
    assert response.headers["content-type"].startswith("text/event-stream")
    heard = events(response.text)
    assert heard[0] == ("place", {"before": 0})
    kind, ready = heard[-1]
    assert kind == "ready"
    texts = [answer["text"] for answer in ready["answers"]]
    assert sorted(texts) == ["<script>no</script>", "It *boils*."]
    by_text = {answer["text"]: answer["html"] for answer in ready["answers"]}
    assert "<em>boils</em>" in by_text["It *boils*."]
    assert "<script>" not in by_text["<script>no</script>"]
    assert "ppo" not in response.text, "whose answer it is stays unknown"
    chosen = somebody.post(f"{talk}/choose", json={"value": LEFT, "seen": ready["seen"], "seconds": 2.5}).json()
    assert (chosen["text"], chosen["place"], chosen["drawn"], chosen["why"]) == (texts[0], 0, False, None)
    somebody.post(f"{talk}/say", json={"text": "and then?"})
    assert speaker.asked[1] == [
        {"role": "user", "content": "how long?"}, {"role": "assistant", "content": texts[0]},
        {"role": "user", "content": "and then?"},
    ]  # fmt: skip
    with database.read() as session:
        item, label = session.scalars(select(Item)).one(), session.scalars(select(Label)).one()
    assert item.answers[label.value["better"]]["text"] == texts[0]
    assert [answer["source"] for answer in item.answers] == ["ppo", "sft"]
    assert (item.topic, label.seconds <= 2.5) == ("cooking", True)


def test_what_was_seen_is_what_is_kept(database: Database) -> None:
    somebody = client(database, app=create_app(database, voices=Scripted(("a b c d", "e f g h"))))
    talk = begun(somebody)
    heard = events(somebody.post(f"{talk}/say", json={"text": "hello"}).text)
    assert heard[-1][0] == "ready"
    somebody.post(f"{talk}/choose", json={"value": LEFT, "seen": 4}).raise_for_status()
    with database.read() as session:
        item = session.scalars(select(Item)).one()
    assert [(answer["text"], answer["complete"]) for answer in item.answers] == [("a b", False), ("e f", False)]


def test_after_a_reload_there_is_what_had_come_and_after_a_restart_the_question(database: Database) -> None:
    app = create_app(database, voices=Scripted(("a b", "c d")))
    somebody = client(database, app=app)
    talk = begun(somebody)
    ready = events(somebody.post(f"{talk}/say", json={"text": "hello"}).text)[-1][1]
    told = somebody.get(talk).json()
    assert [answer["text"] for answer in told["turn"]["answers"]] == [answer["text"] for answer in ready["answers"]]
    page = somebody.get(talk, headers={"accept": "text/html"}).text
    assert 'data-asked="hello"' in page
    assert "data-turn=" in page
    del app.state.desk
    assert somebody.get(talk).json()["turn"] is None
    response = somebody.post(f"{talk}/choose", json={"value": LEFT})
    assert response.status_code == 409
    assert somebody.get(talk).json()["messages"] == [{"role": "user", "content": "hello"}]


def test_a_choice_is_made_once(database: Database) -> None:
    somebody = client(database, app=create_app(database, voices=Scripted()))
    talk = begun(somebody)
    somebody.post(f"{talk}/say", json={"text": "hello"})
    assert somebody.post(f"{talk}/choose", json={"value": {"choice": "better"}}).status_code == 400
    assert somebody.post(f"{talk}/choose", json={"value": {**LEFT, "better": 7}}).status_code == 400
    assert somebody.post(f"{talk}/choose", json={"value": LEFT, "seen": "3"}).status_code == 400
    assert somebody.post(f"{talk}/choose", json={"value": LEFT}).status_code == 200
    assert somebody.post(f"{talk}/choose", json={"value": LEFT}).status_code == 409


def test_others_conversations_are_theirs(database: Database) -> None:
    app = create_app(database, voices=Scripted())
    somebody, other = client(database, app=app), client(database, app=app)
    talk = begun(somebody)
    assert other.get(talk).status_code == 403
    for path, fields in (("say", {"text": "x"}), ("choose", {"value": LEFT}), ("end", {})):
        assert other.post(f"{talk}/{path}", json=fields).status_code == 403
    assert somebody.get("/chat/999").status_code == 404
    stranger = TestClient(app, base_url="http://127.0.0.1:8000", headers={"accept": "application/json"})
    assert stranger.post(f"{talk}/say", json={"text": "x"}).status_code == 401
    del somebody.headers["x-csrf-token"]
    assert somebody.post(f"{talk}/say", json={"text": "x"}).status_code == 403


def test_red_teaming_is_warned_of_and_can_be_turned_off(database: Database) -> None:
    somebody = client(database, app=create_app(database, voices=Scripted()))
    response = somebody.post("/chat", json={"mode": "red-team"})
    assert (response.status_code, "upsetting" in response.json()["error"]) == (400, True)
    talk = begun(somebody, mode="red-team", warned=True)
    page = somebody.get(talk, headers={"accept": "text/html"}).text
    assert "Leave now" in page
    assert somebody.post(f"{talk}/end").json() == {"ended": True}
    assert somebody.post(f"{talk}/say", json={"text": "x"}).status_code == 409
    with database.write() as session:
        change(session, {"red_team": False})
    assert somebody.get("/chat").json()["modes"] == ["helpful"]
    assert "Warning" not in somebody.get("/chat", headers={"accept": "text/html"}).text
    assert somebody.post("/chat", json={"mode": "red-team", "warned": True}).status_code == 403


def test_without_a_model_the_page_says_so(database: Database) -> None:
    somebody = client(database)
    assert somebody.get("/chat").json()["available"] is False
    assert "Start it with a run" in somebody.get("/chat", headers={"accept": "text/html"}).text
    assert somebody.post("/chat", json={"mode": "helpful"}).status_code == 404


def test_the_entry_test_and_the_consent_come_first(database: Database) -> None:
    app = create_app(database, voices=Scripted())
    known = {"value": {"choice": "better", "better": 0, "strength": 1}, "why": "it is first"}
    filled(database, [pair(1, purpose="entry", expected=known)])
    somebody = client(database, app=app)
    response = somebody.post("/chat", json={"mode": "helpful"})
    assert (response.status_code, "entry test" in response.json()["error"]) == (403, True)
    assert client(database, app=app, consented=False).post("/chat", json={"mode": "helpful"}).status_code == 403


@pytest.mark.parametrize(
    ("fields", "status"), [({}, 400), ({"text": 3}, 400), ({"text": " "}, 400), ({"text": "x" * 20_001}, 400)]
)
def test_what_cannot_be_asked(database: Database, fields: dict[str, Any], status: int) -> None:
    somebody = client(database, app=create_app(database, voices=Scripted()))
    assert somebody.post(f"{begun(somebody)}/say", json=fields).status_code == status


def test_a_model_that_fails_says_so_and_can_be_asked_again(database: Database) -> None:
    speaker = Scripted(fails=0)
    somebody = client(database, app=create_app(database, voices=speaker))
    talk = begun(somebody)
    assert events(somebody.post(f"{talk}/say", json={"text": "hello"}).text)[-1] == (
        "failed", {"error": "The endpoint is gone."},
    )  # fmt: skip
    speaker.fails = None
    assert events(somebody.post(f"{talk}/say", json={"text": "hello?"}).text)[-1][0] == "ready"
    assert somebody.get(talk).json()["messages"] == [{"role": "user", "content": "hello?"}]
