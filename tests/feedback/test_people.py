"""People: who comes in, what they agreed to, and what is left of somebody who withdraws."""

import datetime

import pytest
from sqlalchemy import func, select

from llm_rlhf.errors import DataError
from llm_rlhf.feedback import documents, people, queue, saying
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.queue import Question
from llm_rlhf.feedback.refusals import Forbidden, Unknown
from llm_rlhf.feedback.settings import change
from llm_rlhf.feedback.tables import Identity, Invitation, Item, Label, Person, Visit, now


def asked() -> Question:
    return Question("compare", [{"role": "user", "content": "Why?"}], [{"text": "So."}, {"text": "Because."}])


def test_a_link_lets_its_person_in_until_it_runs_out(database: Database) -> None:
    with database.write() as session:
        person, token = people.invite(session, "annotator", "Ada Byron")
        known, cookie = people.enter(session, token)
        assert known.id == person.id
        assert people.visitor(session, cookie).id == person.id
        people.enter(session, token)  # again, from another machine
        session.scalars(select(Invitation)).one().expires = now() - datetime.timedelta(seconds=1)
        with pytest.raises(Unknown):
            people.enter(session, token)
        assert people.visitor(session, cookie).id == person.id  # who is in stays in
        people.leave(session, cookie)
        with pytest.raises(Unknown):
            people.visitor(session, cookie)


def test_no_token_and_no_name_stands_in_the_tables_but_where_it_may(database: Database) -> None:
    with database.write() as session:
        person, token = people.invite(session, "annotator", "Ada Byron")
        _, cookie = people.enter(session, token)
    with database.read() as session:
        tables = {table.name: str(session.execute(select(table)).all()) for table in Person.metadata.sorted_tables}
    assert not [name for name, text in tables.items() if token in text or cookie in text]
    assert [name for name, text in tables.items() if "Ada" in text] == ["identity"]
    assert "Ada" not in person.pseudonym


@pytest.mark.parametrize("cookie", [None, "", "x", "'; DROP TABLE person; --"])
def test_nobody_is_somebody(database: Database, cookie: str | None) -> None:
    with database.read() as session, pytest.raises(Unknown, match="not logged in"):
        people.visitor(session, cookie)


def test_pseudonyms_are_each_somebodys(database: Database) -> None:
    with database.write() as session:
        names = [people.invite(session)[0].pseudonym for _ in range(200)]  # there are 144 pairs of words
    assert len(set(names)) == 200


def test_consent_is_to_a_version_and_lapses_with_it(database: Database) -> None:
    with database.write() as session:
        person, _ = people.invite(session)
        assert not people.has_consented(session, person)
        people.consent(session, person, 1)
        assert people.has_consented(session, person)
        documents.publish(session, "consent", "Other words.")
        assert not people.has_consented(session, person)
        with pytest.raises(DataError, match="changed since"):
            people.consent(session, person, 1)


def test_a_text_published_twice_is_one_version(database: Database) -> None:
    with database.write() as session:
        assert documents.publish(session, "guidelines", "Choose.").version == 2
        assert documents.publish(session, "guidelines", "Choose.").version == 2
        assert documents.publish(session, "guidelines", "Choose well.").version == 3


def test_who_withdraws_is_let_in_no_more_and_somebody_else_is_asked(database: Database) -> None:
    with database.write() as session:
        queue.add(session, [asked()], "import", {})
        person, token = people.invite(session, name="Ada Byron")
        _, cookie = people.enter(session, token)
        assignment = queue.next_for(session, person)
        assert assignment is not None
        saying.record(session, assignment, {"choice": "tie"})
        people.withdraw(session, person)
        for table in (Identity, Invitation, Visit):
            assert session.scalar(select(func.count()).select_from(table)) == 0
        with pytest.raises(Unknown):
            people.enter(session, token)
        with pytest.raises(Unknown):
            people.visitor(session, cookie)
        assert session.scalar(select(Item.taken)) == 0
        other, _ = people.invite(session)
        assert queue.next_for(session, other) is not None
        assert session.scalar(select(func.count()).select_from(Label)) == 1  # so that what holds it can be named
        assert people.forget(session, person) == 1


def test_who_withdraws_gives_back_places_and_no_others(database: Database) -> None:
    """A known question has none: everybody may be asked it."""
    known = asked()
    known.purpose, known.expected = "gold", {"value": {"choice": "tie"}}
    with database.write() as session:
        queue.add(session, [known], "gold", {})
        change(session, {"gold_share": 1.0})
        person, _ = people.invite(session)
        assignment = queue.next_for(session, person)
        assert assignment is not None
        saying.record(session, assignment, {"choice": "tie"})
        people.withdraw(session, person)
    with database.read() as session:
        assert session.scalar(select(Item.taken)) == 0


def test_labels_of_somebody_who_has_not_withdrawn_stay(database: Database) -> None:
    with database.write() as session:
        person, _ = people.invite(session)
        with pytest.raises(DataError, match="has not withdrawn"):
            people.forget(session, person)


def test_a_leads_page_is_no_annotators(database: Database) -> None:
    with database.write() as session:
        people.only_lead(people.invite(session, "lead")[0])
        with pytest.raises(Forbidden):
            people.only_lead(people.invite(session)[0])
        with pytest.raises(DataError, match="annotator, lead"):
            people.invite(session, "boss")
