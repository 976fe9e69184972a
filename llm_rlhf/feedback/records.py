"""What a store's people did, read once into plain records, by pseudonym: what quality.py counts.

Who has withdrawn is left out, as an export leaves them out, and counted.
"""

import datetime
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from llm_rlhf.feedback.settings import settings_of
from llm_rlhf.feedback.tables import Assignment, Item, Label, Person


@dataclass(frozen=True)
class Who:
    """Somebody whose labels count."""

    pseudonym: str
    role: str = "annotator"
    simulated: bool = False
    imported: bool = False  # their labels came in a file
    entry_tries: int = 0
    entry_score: float | None = None  # the last try's share of right answers
    entry_passed: bool = False


@dataclass(frozen=True)
class Said:
    """A label with what it is about."""

    person: str
    item: int
    kind: str
    value: dict[str, Any]  # by the item's places
    order: tuple[int, ...]  # place on the page, from the left: which answer stood there
    words: tuple[int, ...]  # of each answer of the item
    read: int  # words that there were to read: the last turn and the answers
    seconds: float
    hasty: bool
    day: datetime.date  # UTC
    purpose: str = "label"
    turn: int = 1
    right: bool | None = None  # of gold and entry items
    elsewhere: bool = False  # on a page that is not ours: nobody knows where the answers stood there, and for how long

    @property
    def place(self) -> int | None:
        """Of a comparison that chose: where on our page the better one stood, 0 the left; None of others."""
        return self.order.index(self.value["better"]) if self.chose and not self.elsewhere else None

    @property
    def chose(self) -> bool:
        """Whether it is a comparison, and one of the two was better."""
        return self.value.get("choice") == "better"


@dataclass(frozen=True)
class Passed:
    """A question that somebody passed over."""

    person: str
    reason: str
    day: datetime.date


@dataclass(frozen=True)
class Records:
    people: list[Who]
    said: list[Said]
    passed: list[Passed]
    withdrawn: int = 0  # people left out
    entry_pass: float = 0.7  # share of known questions that the store asks to be answered right


def records_of(session: Session) -> Records:
    """The whole store, one query a table."""
    people = session.scalars(select(Person).order_by(Person.id)).all()
    names = {person.id: person.pseudonym for person in people if person.withdrawn is None}
    imported = {person.id for person in people if person.imported}
    items = {}
    labelled = select(Item.id, Item.kind, Item.purpose, Item.prompt, Item.answers)
    for number, kind, purpose, prompt, answers in session.execute(labelled.where(Item.id.in_(select(Label.item_id)))):
        words = tuple(len(answer["text"].split()) for answer in answers)
        items[number] = (kind, purpose, words, sum(words) + len(prompt[-1]["content"].split()))
    said = []
    labels = select(Label, Assignment.order, Assignment.turn).join(Assignment, Assignment.id == Label.assignment_id)
    for label, order, turn in session.execute(labels.order_by(Label.id)):
        if label.person_id not in names:
            continue
        kind, purpose, words, read = items[label.item_id]
        said.append(
            Said(
                names[label.person_id],
                label.item_id,
                kind,
                label.value,
                tuple(order),
                words,
                read,
                label.seconds,
                label.hasty,
                label.created.date(),
                purpose,
                turn,
                label.agrees_with_gold,
                label.person_id in imported,
            )
        )
    skips = select(Assignment.person_id, Assignment.skip_reason, Assignment.ended).where(Assignment.state == "skipped")
    passed = [
        Passed(names[person], reason or "", ended.date())
        for person, reason, ended in session.execute(skips.order_by(Assignment.id))
        if person in names and ended is not None  # a skip ends it
    ]
    return Records(
        [
            Who(p.pseudonym, p.role, p.simulated, p.imported, p.entry_tries, p.entry_score, p.entry_passed is not None)
            for p in people
            if p.withdrawn is None
        ],
        said,
        passed,
        len(people) - len(names),
        settings_of(session).entry_pass,
    )
