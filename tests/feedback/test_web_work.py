"""The work routes, for programs (JSON) and for people (pages and the fragments that htmx puts into them)."""

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select
from web_helpers import client, filled, pair

from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.queue import Question
from llm_rlhf.feedback.tables import Assignment, Flag, Item, Label

PAGE = {"accept": "text/html"}
FRAGMENT = PAGE | {"hx-request": "true"}
PROMPT = [{"role": "user", "content": "How many legs has a spider?"}]
ANSWERS = [{"text": "Eight.", "source": "sft"}, {"text": "Six.", "source": "ppo"}, {"text": "Ten.", "source": "base"}]
QUESTIONS = {
    "compare": Question("compare", PROMPT, ANSWERS[:2]),
    "rate": Question("rate", PROMPT, ANSWERS[:1]),
    "rank": Question("rank", PROMPT, ANSWERS),
    "demonstrate": Question("demonstrate", PROMPT),
    "correct": Question("correct", PROMPT, ANSWERS[:2]),
    "annotate": Question("annotate", PROMPT, ANSWERS[1:2]),
}
# What a page's form sends, and the label by the page's places that it is.
SAID: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "compare": ({"point": "7"}, {"choice": "better", "better": 1, "strength": 3}),
    "rate": ({"helpful": "6", "harmless": "7"}, {"helpful": 6, "harmless": 7}),
    "rank": ({"rank": ["1", "3", "1"]}, {"ranks": [1, 2, 1]}),
    "demonstrate": ({"text": "It has eight.\r\nAll have."}, {"text": "It has eight.\nAll have."}),
    "correct": ({"better": "1", "text": "It has eight."}, {"better": 1, "text": "It has eight."}),
    "annotate": ({"labels": ["wrong fact", "rude"], "comment": ""}, {"labels": ["wrong fact", "rude"], "comment": ""}),
}


def task(somebody: TestClient, **where: str) -> dict[str, Any]:
    found = somebody.get("/tasks", params=where).raise_for_status().json()["task"]
    assert found is not None
    return dict(found)


def stored(database: Database) -> list[Label]:
    with database.read() as session:
        return list(session.scalars(select(Label).order_by(Label.id)))


def by_page(database: Database, label: Label) -> dict[str, Any]:
    """A label as the page showed its answers, worked out here from the order that is stored."""
    with database.read() as session:
        order = session.get_one(Assignment, label.assignment_id).order
    value = dict(label.value)
    if "better" in value:
        value["better"] = order.index(value["better"])
    if "ranks" in value:
        value["ranks"] = [value["ranks"][place] for place in order]
    return value


def test_questions_come_one_after_another_until_none_is_left(database: Database) -> None:
    filled(database, [pair(1), pair(2)])
    somebody = client(database)
    told = somebody.get("/tasks").json()
    assert told["progress"] == {"said": 0, "remaining": 1}
    for _ in range(2):
        value = {"choice": "better", "better": 0, "strength": 2}
        told = somebody.post(f"/tasks/{told['task']['assignment']}", json={"value": value, "seconds": 3.5}).json()
    assert told["task"] is None
    assert told["progress"] == {"said": 2, "remaining": 0}
    assert "Nothing is left for you" in somebody.get("/tasks", headers=PAGE).text


@pytest.mark.parametrize("kind", list(QUESTIONS))
def test_what_a_form_sends_is_the_label_that_json_says(database: Database, kind: str) -> None:
    filled(database, [QUESTIONS[kind]], people_per_item=2)
    fields, value = SAID[kind]
    by_form, by_json = client(database), client(database)
    page = by_form.get("/tasks", headers=PAGE)
    assert f'data-kind="{kind}"' in page.text
    (number,) = re.findall(r'data-assignment="(\d+)"', page.text)
    answer = by_form.post(f"/tasks/{number}", data=fields | {"seconds": "4"}, headers=FRAGMENT)
    assert (answer.status_code, "Saved." in answer.text, "<html" in answer.text) == (200, True, False)
    by_json.post(f"/tasks/{task(by_json)['assignment']}", json={"value": value}).raise_for_status()
    said = stored(database)
    assert [by_page(database, label) for label in said] == [value, value]


@pytest.mark.parametrize("kind", list(QUESTIONS))
def test_no_page_tells_whose_an_answer_is_or_that_it_is_known(database: Database, kind: str) -> None:
    expected = {"value": {"choice": "better", "better": 0, "strength": 4}, "why": "spiders have eight"}
    gold = Question("compare", PROMPT, ANSWERS[:2], purpose="gold", expected=expected)
    filled(database, [gold if kind == "compare" else QUESTIONS[kind]], gold_share=1.0)
    somebody = client(database)
    pseudonym = somebody.get("/me").json()["pseudonym"]  # which can be golden
    told, page = somebody.get("/tasks").text, somebody.get("/tasks", headers=PAGE).text.replace(pseudonym, "")
    for word in ("sft", "ppo", "source", "gold", "expected", "spiders have eight"):
        assert word not in told, word
        assert word not in page, word


def test_a_form_without_scripts_is_led_on_to_the_next_page(database: Database) -> None:
    filled(database, [pair(1, topic="a b"), pair(2, topic="a b")])
    somebody = client(database)
    number = task(somebody, topic="a b")["assignment"]
    token = somebody.headers.pop("x-csrf-token")
    answer = somebody.post(
        f"/tasks/{number}?topic=a+b", data={"choice": "both bad", "csrf": token}, headers=PAGE, follow_redirects=False
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/tasks?topic=a+b")
    assert [label.value for label in stored(database)] == [{"choice": "both bad"}]


@pytest.mark.parametrize("kind", ["rate", "rank", "demonstrate", "correct", "annotate"])
def test_a_draft_is_kept_and_shown_again(database: Database, kind: str) -> None:
    filled(database, [QUESTIONS[kind]])
    somebody = client(database)
    number = task(somebody)["assignment"]
    part: dict[str, Any] = {
        "rate": {"helpful": "6"},
        "rank": {"rank": ["", "1", ""]},
        "demonstrate": {"text": "Half <b>a"},
        "correct": {"text": "Half <b>a", "better": "1"},
        "annotate": {"labels": "rude", "comment": "Half <b>a"},
    }[kind]
    assert somebody.post(f"/tasks/{number}/draft", data=part).json() == {"saved": True}
    draft = task(somebody)["draft"]
    assert (
        draft
        == {
            "rate": {"helpful": 6},
            "rank": {"ranks": [0, 1, 0]},
            "demonstrate": {"text": "Half <b>a"},
            "correct": {"text": "Half <b>a", "better": 1},
            "annotate": {"labels": ["rude"], "comment": "Half <b>a"},
        }[kind]
    )
    page = somebody.get("/tasks", headers=PAGE).text
    shown = {"rate": 'value="6" required checked', "rank": '<option value="1" selected'}.get(kind, "Half &lt;b&gt;a")
    assert page.count(shown) == 1
    assert stored(database) == []


def test_a_draft_is_what_its_kind_may_say_and_no_more(database: Database) -> None:
    filled(database, [QUESTIONS["correct"]])
    somebody = client(database)
    number = task(somebody)["assignment"]
    draft = {"text": "x" * 30_000, "better": True, "said": {"better": 9}, "more": "y"}
    somebody.post(f"/tasks/{number}/draft", json={"draft": draft}).raise_for_status()
    assert task(somebody)["draft"] == {"text": "x" * 20_000}
    assert somebody.get("/tasks", headers=PAGE).status_code == 200


def test_undo_brings_back_what_was_said_as_it_was_shown(database: Database) -> None:
    filled(database, [pair(number) for number in range(6)])
    somebody = client(database)
    value = {"choice": "better", "better": 1, "strength": 4}
    for _ in range(5):  # both orders
        number = task(somebody)["assignment"]
        somebody.post(f"/tasks/{number}", json={"value": value}).raise_for_status()
        told = somebody.post("/undo").json()
        assert (told["task"]["assignment"], told["task"]["draft"]) == (number, value)
        somebody.post(f"/tasks/{number}", json={"value": value}).raise_for_status()
    page = somebody.post("/undo", headers=FRAGMENT).text
    assert re.findall(r'value="(\d)"[^>]*aria-pressed="true"', page) == ["8"]
    nobody = client(database)
    assert nobody.post("/undo").status_code == 409


def test_a_skip_keeps_its_reason_and_a_report_reaches_a_lead(database: Database) -> None:
    first, second, third = filled(database, [pair(1), pair(2), pair(3)])
    somebody = client(database)
    number = task(somebody)["assignment"]
    told = somebody.post(f"/tasks/{number}/skip", data={"reason": "I cannot judge this"}).json()
    number = told["task"]["assignment"]
    told = somebody.post(f"/tasks/{number}/report", json={"kind": "report", "text": "It is cut off."}).json()
    assert told["task"]["assignment"] == number  # it can still be answered
    told = somebody.post(f"/tasks/{number}/report", data={"kind": "personal"}, headers=FRAGMENT)
    assert "Reported." in told.text
    with database.read() as session:
        assert (
            session.scalar(select(Assignment.skip_reason).where(Assignment.item_id == first)) == "I cannot judge this"
        )
        flags = [(flag.item_id, flag.kind, flag.text) for flag in session.scalars(select(Flag).order_by(Flag.id))]
        assert flags == [(second, "report", "It is cut off."), (second, "personal", "")]
        assert session.get_one(Item, second).state == "held"
    assert task(somebody)["prompt"][0]["content"] == "Question 3?"
    assert third


def test_kind_and_topic_are_chosen(database: Database) -> None:
    filled(database, [pair(1, topic="plants"), pair(2, topic="stars"), QUESTIONS["rate"]])
    somebody = client(database)
    assert task(somebody, topic="stars")["topic"] == "stars"
    assert task(somebody, kind="rate")["kind"] == "rate"
    page = somebody.get("/tasks?kind=rate", headers=PAGE).text
    assert '<option value="rate" selected>' in page
    assert '<option value="plants">' in page
    number = task(somebody, topic="plants")["assignment"]
    told = somebody.post(f"/tasks/{number}?topic=plants", json={"value": {"choice": "tie"}}).json()
    assert (told["task"], told["progress"]) == (None, {"said": 1, "remaining": 0})
    assert "Nothing is left of this" in somebody.get("/tasks?topic=plants", headers=PAGE).text


def test_the_entry_test_says_how_it_went(database: Database) -> None:
    better = {"choice": "better", "better": 0, "strength": 2}
    entry = pair(1, purpose="entry", expected={"value": better, "why": "it is the first"})
    filled(database, [entry, pair(2)])
    somebody = client(database)
    page = somebody.get("/tasks", headers=PAGE).text
    assert "Entry test" in page
    for first, says in ((False, "by 0%, and 70% is needed"), (True, "You have passed the entry test (100%")):
        found = task(somebody)
        assert found["entry"]
        place = [answer["text"] == "First 1." for answer in found["answers"]].index(first)
        told = somebody.post(f"/tasks/{found['assignment']}", json={"value": better | {"better": place}}).json()
        assert says in told["message"]
    assert not task(somebody)["entry"]


def test_the_time_is_the_pages_and_never_longer_than_the_question_was_open(database: Database) -> None:
    filled(database, [pair(1), pair(2)])
    somebody = client(database)
    for seconds in (0.0, 99_999.0):
        number = task(somebody)["assignment"]
        somebody.post(f"/tasks/{number}", json={"value": {"choice": "tie"}, "seconds": seconds}).raise_for_status()
    first, second = (label.seconds for label in stored(database))
    assert first == 0.0
    assert 0 < second < 60


def test_a_label_that_the_store_does_not_have_is_refused(database: Database) -> None:
    filled(database, [QUESTIONS["annotate"]], labels=["too long"])
    somebody = client(database)
    number = task(somebody)["assignment"]
    refused = somebody.post(f"/tasks/{number}", json={"value": {"labels": ["rude"], "comment": ""}})
    assert (refused.status_code, refused.json()) == (
        400,
        {"error": "The label 'rude' is none of this store's: too long."},
    )


def test_what_was_settled_is_told_and_not_said_twice(database: Database) -> None:
    filled(database, [pair(1), pair(2)])
    somebody = client(database)
    number = task(somebody)["assignment"]
    for _ in range(2):  # a second click says the same
        assert somebody.post(f"/tasks/{number}", data={"point": "1"}, headers=FRAGMENT).status_code == 200
    other = somebody.post(f"/tasks/{number}", data={"point": "2"}, headers=FRAGMENT)
    assert (other.status_code, other.text) == (409, "This question was answered before; undo that answer first.")
    assert len(stored(database)) == 1
