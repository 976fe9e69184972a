"""People who say something, for tests that need a store with labels."""

from typing import Any

from llm_rlhf.feedback import people, queue, saying
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.queue import Question
from llm_rlhf.feedback.settings import change
from llm_rlhf.feedback.tables import Assignment, Item, Label, Person, now


def quiet(database: Database) -> None:
    """No known questions and no repeats in between."""
    with database.write() as session:
        change(session, {"gold_share": 0.0, "repeat_share": 0.0})


def somebody(database: Database, consents: bool = True, **facts: Any) -> Person:
    with database.write() as session:
        person = people.invite(session, **facts)[0]
        if consents:
            people.consent(session, person, 1)
        return person


def asked(database: Database, kind: str, text: str, answers: list[str], **other: Any) -> int:
    """The id of a new item that any number of people may be asked."""
    question = Question(
        kind, [{"role": "user", "content": text}], [{"text": answer} for answer in answers], wanted=99, **other
    )
    with database.write() as session:
        return queue.add(session, [question], "import", {"file": "questions.jsonl"}).items[0]


def says(database: Database, person: Person, item: int, value: dict[str, Any], turn: int = 1) -> int:
    """The id of the label that somebody gives, by the item's places, whatever page they saw."""
    with database.write() as session:
        answers = session.get_one(Item, item).answers
        assignment = Assignment(
            item_id=item, person_id=person.id, turn=turn, order=list(range(len(answers))), expires=now()
        )
        session.add(assignment)
        session.flush()
        label: Label = saying.record(session, assignment, value)
        return label.id


def better(place: int, strength: int = 2) -> dict[str, Any]:
    return {"choice": "better", "better": place, "strength": strength}
