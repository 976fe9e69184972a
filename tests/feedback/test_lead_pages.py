"""The lead's pages: what a lead can see and settle there, and that nobody else can."""

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import func, select
from starlette.testclient import TestClient
from web_helpers import BASE, client, filled, pair

from llm_rlhf.feedback import documents
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.queue import Question
from llm_rlhf.feedback.tables import Assignment, Decision, Export, ExportedLabel, Flag, Identity, Item, Label, Person
from llm_rlhf.feedback.web import lead, lead_items
from llm_rlhf.feedback.web.app import create_app

HTML = {"accept": "text/html"}
FIRST = {"choice": "better", "better": 0, "strength": 2}


@pytest.fixture
def app(database: Database) -> object:
    return create_app(database)


def answers(somebody: TestClient, better: int | None, asked: str | None = None) -> None:
    """Answer the next question by its answer's place in the item, 0 the text that begins with First; None: a tie."""
    task = somebody.get("/tasks").json()["task"]
    assert asked is None or task["prompt"][-1]["content"] == asked
    value: dict[str, object] = {"choice": "tie"}
    if better is not None:
        place = [answer["text"].startswith("First") for answer in task["answers"]].index(better == 0)
        value = FIRST | {"better": place}
    somebody.post(f"/tasks/{task['assignment']}", json={"value": value}).raise_for_status()


def disputed(database: Database, app: object) -> int:
    """A question on which two people said the contrary."""
    (number,) = filled(database, [pair(1)], people_per_item=2)
    for better in (0, 1):
        answers(client(database, app=app), better)
    return number


ROUTES = [*lead.router.routes, *lead_items.router.routes]
PATHS = [(route.path, method) for route in ROUTES if isinstance(route, APIRoute) for method in sorted(route.methods)]


@pytest.mark.parametrize(("path", "method"), PATHS)
def test_annotators_and_strangers_see_and_do_nothing_here(
    database: Database, app: object, path: str, method: str
) -> None:
    filled(database, [pair(1)])
    path = path.replace("{number}", "1").replace("{kind}", "consent")
    fields = {"why": "x", "text": "x", "decision": "tie", "purpose": "gold", "prompt": "x", "a": "x", "b": "y"}
    somebody = client(database, app=app)
    assert somebody.request(method, path, data=fields if method == "POST" else None).status_code == 403
    stranger = TestClient(app, base_url=BASE)  # type: ignore[arg-type]
    assert stranger.request(method, path, data=fields if method == "POST" else None).status_code == 401
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Decision)) == 0
        assert session.get_one(Item, 1).state == "open"


def test_there_are_pages_to_try() -> None:
    assert len(PATHS) >= 20


@pytest.mark.parametrize("path", ["", "/disagreements", "/reports", "/known", "/people", "/settings"])
def test_every_page_of_an_empty_store(database: Database, app: object, path: str) -> None:
    page = client(database, "lead", app).get(f"/lead{path}", headers=HTML)
    assert page.status_code == 200
    assert "style=" not in page.text


def test_the_overview_tells_numbers_with_their_intervals(database: Database, app: object) -> None:
    disputed(database, app)
    lead = client(database, "lead", app)
    told = lead.get("/lead").json()
    assert told["labels"] == 2
    assert told["todo"]["disagreements"] == 1
    agreement = next(one for one in told["estimates"] if one["name"] == "agreement")
    assert (agreement["estimate"], agreement["n"], agreement["reference"]) == (0.0, 1, "the others")
    assert agreement["high"] == pytest.approx(0.7935, abs=1e-4)  # Wilson's for none of one
    page = lead.get("/lead", headers=HTML).text
    assert "0 to 79, n 1" in page
    assert "which is better" in page


def test_numbers_that_take_long_are_kept_for_a_while(
    database: Database, app: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(database, [pair(1), pair(2)])
    boss, somebody = client(database, "lead", app), client(database, app=app)
    answers(somebody, 0)
    assert boss.get("/lead").json()["labels"] == 1
    answers(somebody, 0)
    assert boss.get("/lead").json()["labels"] == 2  # quickly counted, and so counted anew
    monkeypatch.setattr(lead, "QUICK", -1.0)
    monkeypatch.setattr(lead, "RARELY", 1e9)
    somebody.post("/undo").raise_for_status()
    assert boss.get("/lead").json()["labels"] == 2
    monkeypatch.setattr(lead, "RARELY", 0)
    assert boss.get("/lead").json()["labels"] == 1


class TestDisagreements:
    def test_a_lead_sees_who_said_what_and_decides(self, database: Database, app: object) -> None:
        number = disputed(database, app)
        lead = client(database, "lead", app)
        page = lead.get("/lead/disagreements", headers=HTML).text
        with database.read() as session:
            names = session.scalars(select(Person.pseudonym).join(Label, Label.person_id == Person.id)).all()
        assert len(names) == 2
        assert all(name in page for name in names)
        fields = {"decision": "7", "comment": "The first is rude."}
        answer = lead.post(f"/lead/items/{number}/decide", data=fields, headers=HTML | {"hx-request": "true"})
        assert "B is much better" in answer.text
        with database.read() as session:
            decision = session.get_one(Decision, number)
            assert decision.value == {"choice": "better", "better": 1, "strength": 3}
            assert decision.comment == "The first is rude."
            assert session.scalar(select(func.count()).select_from(Label)) == 2
        assert lead.get("/lead/disagreements").json()["count"] == 0

    def test_a_decision_is_taken_back(self, database: Database, app: object) -> None:
        number = disputed(database, app)
        lead = client(database, "lead", app)
        lead.post(f"/lead/items/{number}/decide", data={"decision": "leave out"}).raise_for_status()
        with database.read() as session:
            assert session.get_one(Decision, number).value == {"choice": "leave out"}
        lead.post(f"/lead/items/{number}/take-back").raise_for_status()
        assert lead.get("/lead/disagreements").json()["count"] == 1

    @pytest.mark.parametrize("decision", ["", "9", "leave", "like:999", "like:x"])
    def test_what_is_no_decision_is_refused(self, database: Database, app: object, decision: str) -> None:
        number = disputed(database, app)
        lead = client(database, "lead", app)
        assert lead.post(f"/lead/items/{number}/decide", data={"decision": decision}).status_code == 400
        assert lead.post("/lead/items/77/decide", data={"decision": "tie"}).status_code == 404

    def test_of_other_kinds_somebodys_label_is_taken(self, database: Database, app: object) -> None:
        question = Question("rate", [{"role": "user", "content": "And now?"}], [{"text": "Now.", "source": "sft"}])
        (number,) = filled(database, [question], people_per_item=2)
        for helpful in (2, 6):
            somebody = client(database, app=app)
            task = somebody.get("/tasks").json()["task"]
            value = {"helpful": helpful, "harmless": 7}
            somebody.post(f"/tasks/{task['assignment']}", json={"value": value}).raise_for_status()
        lead = client(database, "lead", app)
        (case,) = lead.get("/lead/disagreements").json()["disagreements"]
        assert [said["value"]["helpful"] for said in case["said"]] == [2, 6]
        assert "Helpful 2, harmless 7" in lead.get("/lead/disagreements", headers=HTML).text
        with database.read() as session:
            label = session.scalar(select(Label.id).order_by(Label.id.desc()).limit(1))
        lead.post(f"/lead/items/{number}/decide", data={"decision": f"like:{label}"}).raise_for_status()
        with database.read() as session:
            assert session.get_one(Decision, number).value == {"helpful": 6, "harmless": 7}
        own = {"decision": "own", "helpful": "4", "harmless": "5"}
        lead.post(f"/lead/items/{number}/decide", data=own).raise_for_status()
        with database.read() as session:
            assert session.get_one(Decision, number).value == {"helpful": 4, "harmless": 5}

    def test_those_that_agree_and_those_of_who_has_withdrawn_are_none(self, database: Database, app: object) -> None:
        disputed(database, app)
        with database.write() as session:
            last = session.scalar(select(Label).order_by(Label.id.desc()).limit(1))
            assert last is not None
            session.get_one(Person, last.person_id).withdrawn = last.created
        assert client(database, "lead", app).get("/lead/disagreements").json()["count"] == 0

    def test_answers_are_text_and_never_markup(self, database: Database, app: object) -> None:
        bad = "<script>alert(1)</script>"
        question = Question(
            "compare", [{"role": "user", "content": bad}], [{"text": f"First {bad}"}, {"text": "Second"}]
        )
        filled(database, [question], people_per_item=2)
        for better in (0, 1):
            answers(client(database, app=app), better)
        lead = client(database, "lead", app)
        for path in ("/lead/disagreements", "/lead/items/1"):
            page = lead.get(path, headers=HTML).text
            assert bad not in page
            assert "&lt;script&gt;" in page


class TestReports:
    def reported(self, database: Database, app: object, kind: str) -> tuple[TestClient, int]:
        (number,) = filled(database, [pair(1)], people_per_item=2)
        somebody = client(database, app=app)
        task = somebody.get("/tasks").json()["task"]
        fields = {"kind": kind, "text": "The second is off."}
        somebody.post(f"/tasks/{task['assignment']}/report", json=fields).raise_for_status()
        return client(database, "lead", app), number

    def test_personal_data_is_held_until_a_lead_releases_it(self, database: Database, app: object) -> None:
        lead, number = self.reported(database, app, "personal")
        assert client(database, app=app).get("/tasks").json()["task"] is None
        (waiting,) = lead.get("/lead/reports").json()
        assert (waiting["item"], waiting["state"], len(waiting["reports"])) == (number, "held", 1)
        assert "The second is off." in lead.get("/lead/reports", headers=HTML).text
        assert lead.post(f"/lead/items/{number}/release", data={"why": " "}).status_code == 400
        told = lead.post(
            f"/lead/items/{number}/release", data={"why": "No name."}, headers=HTML | {"hx-request": "true"}
        )
        assert "asked like any other" in told.text
        assert lead.get("/lead/reports").json() == []
        assert client(database, app=app).get("/tasks").json()["task"] is not None
        with database.read() as session:
            assert session.scalars(select(Flag.resolution)).all() == ["released: No name."]

    def test_a_closed_question_is_asked_no_more(self, database: Database, app: object) -> None:
        lead, number = self.reported(database, app, "report")
        assert client(database, app=app).get("/tasks").json()["task"] is not None
        lead.post(f"/lead/items/{number}/close", data={"why": "Broken."}).raise_for_status()
        assert client(database, app=app).get("/tasks").json()["task"] is None
        with database.read() as session:
            item = session.get_one(Item, number)
        assert (item.state, item.held_for) == ("closed", "Broken.")

    def test_a_report_is_resolved_once(self, database: Database, app: object) -> None:
        lead, _ = self.reported(database, app, "report")
        lead.post("/lead/reports/1/dismiss", data={"why": "It is fine."}).raise_for_status()
        assert lead.get("/lead/reports").json() == []
        assert lead.post("/lead/reports/1/dismiss", data={"why": "Again."}).status_code == 409
        assert lead.post("/lead/reports/9/dismiss", data={"why": "None."}).status_code == 404


class TestPeople:
    def test_an_invitation_shows_its_link_once_and_the_link_lets_in(self, database: Database, app: object) -> None:
        lead = client(database, "lead", app)
        page = lead.post("/lead/people", data={"role": "lead", "name": "Grace <i>"}, headers=HTML).text
        told = lead.post("/lead/people", json={"role": "annotator", "simulated": True}).json()
        with database.read() as session:
            named = session.scalar(select(Person.pseudonym).join(Identity, Identity.person_id == Person.id))
        assert f"A link for {named}</h1>" in page
        assert f'value="{BASE}/i/' in page
        people = lead.get("/lead/people", headers=HTML).text
        assert told["token"] not in people
        assert "Grace &lt;i&gt;" in people
        somebody = TestClient(app, base_url=BASE, headers={"accept": "application/json"})  # type: ignore[arg-type]
        assert somebody.post(f"/i/{told['token']}").json()["pseudonym"] == told["pseudonym"]
        by_name = {one["name"]: one for one in lead.get("/lead/people").json()}
        assert by_name["Grace <i>"]["role"] == "lead"
        assert by_name[None]["role"] in ("lead", "annotator")
        assert lead.post("/lead/people", data={"role": "king"}).status_code == 400

    def test_a_name_is_deleted_and_what_they_said_stays(self, database: Database, app: object) -> None:
        lead = client(database, "lead", app)
        number = lead.post("/lead/people", json={"name": "Grace"}).json()["number"]
        lead.post(f"/lead/people/{number}/identity").raise_for_status()
        with database.read() as session:
            assert session.scalar(select(func.count()).select_from(Identity)) == 0
            assert session.get(Person, number) is not None

    def test_access_ends_and_a_new_link_gives_it_back(self, database: Database, app: object) -> None:
        lead = client(database, "lead", app)
        told = lead.post("/lead/people", json={}).json()
        somebody = TestClient(app, base_url=BASE, headers={"accept": "application/json"})  # type: ignore[arg-type]
        somebody.post(f"/i/{told['token']}").raise_for_status()
        assert somebody.get("/me").status_code == 200
        lead.post(f"/lead/people/{told['number']}/shut-out").raise_for_status()
        assert somebody.get("/me").status_code == 401
        assert somebody.post(f"/i/{told['token']}").status_code == 401
        again = lead.post(f"/lead/people/{told['number']}/link").json()
        assert somebody.post(f"/i/{again['token']}").json()["pseudonym"] == told["pseudonym"]
        me = next(one["number"] for one in lead.get("/lead/people").json() if one["role"] == "lead")
        assert lead.post(f"/lead/people/{me}/shut-out").status_code == 400

    def test_who_has_withdrawn_gets_no_link_and_their_labels_can_be_deleted(
        self, database: Database, app: object
    ) -> None:
        filled(database, [pair(1)])
        lead, somebody = client(database, "lead", app), client(database, app=app)
        answers(somebody, 0)
        number = next(one["number"] for one in lead.get("/lead/people").json() if one["labels"])
        assert lead.post(f"/lead/people/{number}/forget").status_code == 400
        with database.write() as session:
            session.add(Export(id="e1", details={"made_for": "runs/first"}))
            session.flush()
            session.add(ExportedLabel(export_id="e1", label_id=1, person_id=number))
        somebody.post("/me/withdraw", json={"sure": True}).raise_for_status()
        assert "1 of theirs, for the run runs/first" in lead.get("/lead/people", headers=HTML).text
        assert lead.get("/lead").json()["labels"] == 0
        assert "counts nowhere here" in lead.get("/lead", headers=HTML).text
        assert lead.post(f"/lead/people/{number}/link").status_code == 400
        lead.post(f"/lead/people/{number}/forget").raise_for_status()
        with database.read() as session:
            assert session.scalar(select(func.count()).select_from(Label)) == 0


class TestSettings:
    def form(self, lead: TestClient, **changes: str) -> dict[str, str]:
        """All fields, as the page sends them."""
        fields = {}
        for name, value in lead.get("/lead/settings").json().items():
            if isinstance(value, bool):
                fields |= {name: "yes"} if value else {}
            else:
                fields[name] = "\n".join(value) if isinstance(value, list) else str(value)
        return fields | changes

    def test_a_form_changes_what_it_says_and_nothing_else(self, database: Database, app: object) -> None:
        lead = client(database, "lead", app)
        before = lead.get("/lead/settings").json()
        fields = self.form(lead, people_per_item="3", gold_share="0.1", labels="rude\n\n wrong \n", title="Choose")
        del fields["red_team"]
        assert lead.post("/lead/settings", data=fields, headers=HTML, follow_redirects=False).status_code == 303
        changed = {"people_per_item": 3, "gold_share": 0.1, "labels": ["rude", "wrong"], "title": "Choose"}
        assert lead.get("/lead/settings").json() == before | changed | {"red_team": False}

    def test_a_program_changes_one(self, database: Database, app: object) -> None:
        lead = client(database, "lead", app)
        lead.post("/lead/settings", json={"people_per_item": 2}).raise_for_status()
        assert lead.get("/lead/settings").json()["people_per_item"] == 2

    @pytest.mark.parametrize(
        ("name", "value", "told"),
        [
            ("people_per_item", "two", "People asked each new question: 'two' is no whole number"),
            ("gold_share", "7", "gold_share is 7"),
            ("people_per_item", "0", "people_per_item is 0"),
            ("lease_minutes", "1" + "0" * 12, "it is 1 to 100,000"),
            ("words_per_second", "nan", "words_per_second is nan"),
        ],
    )
    def test_what_cannot_be_is_told(self, database: Database, app: object, name: str, value: str, told: str) -> None:
        lead = client(database, "lead", app)
        answer = lead.post("/lead/settings", data=self.form(lead, **{name: value}))
        assert answer.status_code == 400
        assert told in answer.json()["error"]

    def test_an_unknown_name_is_told(self, database: Database, app: object) -> None:
        answer = client(database, "lead", app).post("/lead/settings", json={"poeple_per_item": 2})
        assert answer.status_code == 400
        assert "people_per_item" in answer.json()["error"]

    def test_a_new_consent_text_is_put_before_everybody(self, database: Database, app: object) -> None:
        filled(database, [pair(1)])
        lead, somebody = client(database, "lead", app), client(database, app=app)
        assert somebody.get("/tasks").status_code == 200
        lead.post("/lead/documents/consent", data={"text": "Something **else**."}).raise_for_status()
        assert somebody.get("/tasks").status_code == 403
        page = lead.get("/lead/settings", headers=HTML).text
        assert "Version 2" in page
        assert "2 people have not agreed" in page
        assert lead.post("/lead/documents/consent", data={"text": " "}).status_code == 400
        assert lead.post("/lead/documents/poem", data={"text": "x"}).status_code == 404
        with database.read() as session:
            assert documents.current(session, "consent").text == "Something **else**.\n"


class TestKnown:
    FORM = {  # noqa: RUF012 - never changed
        "prompt": "Is the earth flat?",
        "a": "First: no.",
        "b": "Second: yes.",
        "decision": "2",
        "why": "It is a ball.",
    }

    def test_a_question_of_the_entry_test_by_form(self, database: Database, app: object) -> None:
        lead = client(database, "lead", app)
        lead.post("/lead/known", data=self.FORM | {"purpose": "entry"}).raise_for_status()
        assert lead.post("/lead/known", data=self.FORM | {"purpose": "entry"}).status_code == 409
        somebody = client(database, app=app)
        assert somebody.get("/tasks").json()["task"]["entry"] is True
        answers(somebody, 0, "Is the earth flat?")
        with database.read() as session:
            assert session.scalars(select(Label.agrees_with_gold)).all() == [True]
        (row,) = lead.get("/lead/known").json()
        assert (row["expected"]["value"]["better"], row["right"]["estimate"], row["right"]["n"]) == (0, 1.0, 1)
        assert "It is a ball." in lead.get("/lead/known", headers=HTML).text

    @pytest.mark.parametrize("change", [{"decision": ""}, {"prompt": " "}, {"purpose": "label"}, {"objective": "x"}])
    def test_what_is_none_is_refused(self, database: Database, app: object, change: dict[str, str]) -> None:
        lead = client(database, "lead", app)
        assert lead.post("/lead/known", data=self.FORM | {"purpose": "gold"} | change).status_code == 400

    def test_an_adjudicated_question_becomes_gold_and_is_held_against_nobody_before(
        self, database: Database, app: object
    ) -> None:
        number = disputed(database, app)
        lead = client(database, "lead", app)
        assert lead.post(f"/lead/items/{number}/known", data={"purpose": "gold"}).status_code == 400
        lead.post(f"/lead/items/{number}/decide", data={"decision": "3", "comment": "Short."}).raise_for_status()
        lead.post(f"/lead/items/{number}/known", data={"purpose": "gold"}).raise_for_status()
        assert lead.post(f"/lead/items/{number}/known", data={"purpose": "gold"}).status_code == 409
        lead.post("/lead/settings", json={"gold_share": 1.0}).raise_for_status()
        answers(client(database, app=app), 1, "Question 1?")
        with database.read() as session:
            item = session.get_one(Item, number)
            assert (item.purpose, item.expected) == ("gold", {"value": FIRST, "why": "Short."})
            marks = session.scalars(select(Label.agrees_with_gold).order_by(Label.id)).all()
        assert marks == [None, None, False]

    def test_it_can_join_the_entry_test_as_a_copy(self, database: Database, app: object) -> None:
        number = disputed(database, app)
        lead = client(database, "lead", app)
        lead.post(f"/lead/items/{number}/decide", data={"decision": "3"}).raise_for_status()
        made = lead.post(f"/lead/items/{number}/known", data={"purpose": "entry"}).json()["item"]
        with database.read() as session:
            assert session.get_one(Item, number).purpose == "label"
            assert session.get_one(Item, made).purpose == "entry"
        assert "Add it to the entry test" in lead.get(f"/lead/items/{number}", headers=HTML).text


def test_what_others_said_is_on_no_page_of_an_annotator(database: Database, app: object) -> None:
    disputed(database, app)
    with database.write() as session:
        session.get_one(Item, 1).wanted = 3
        names = set(session.scalars(select(Person.pseudonym)))
    third = client(database, app=app)
    mine = third.get("/me").json()["pseudonym"]
    for path in ("/tasks", "/me", "/", "/guidelines"):
        for accept in ("text/html", "application/json"):
            told = third.get(path, headers={"accept": accept}).text
            assert not [name for name in names - {mine} if name in told]
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Assignment)) == 3
