"""Whose turn it is with what: which items somebody may be asked, and an item's places, each of which is taken once.

Two people are never given the last place of one item: it is taken by an UPDATE that finds one free, which a database
does once. Who opens an item and leaves it gives the place back.
"""

from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, select, update
from sqlalchemy.orm import Session

from llm_rlhf.feedback.question_shape import UNASKED
from llm_rlhf.feedback.tables import Assignment, Item, Person, now


def release_expired(session: Session) -> int:
    """Give back the places of questions that were opened and left; how many."""
    left = select(Assignment).where(Assignment.state == "open", Assignment.expires < now())
    gone = session.scalars(left.with_for_update(skip_locked=True)).all()  # what another is giving back is not ours
    for assignment in gone:
        assignment.state, assignment.ended = "expired", now()
        give_back(session, assignment)
    return len(gone)


def take(session: Session, item: int) -> bool:
    """One of the item's places, if one is free."""
    free = update(Item).where(Item.id == item, Item.taken < Item.wanted).values(taken=Item.taken + 1)
    return session.execute(free.returning(Item.id)).first() is not None


def take_again(session: Session, assignment: Assignment) -> bool:
    """The place that this turn had given back, if it had one and it is still free."""
    return not _has_place(session, assignment) or take(session, assignment.item_id)


def give_back(session: Session, assignment: Assignment) -> None:
    """The place of this turn, if it has one."""
    if _has_place(session, assignment):
        mine = update(Item).where(Item.id == assignment.item_id, Item.taken > 0)
        session.execute(mine.values(taken=Item.taken - 1))
    session.flush()


def _has_place(session: Session, assignment: Assignment) -> bool:
    """Repeats take none, nor do known questions, which everybody may be asked."""
    return assignment.turn == 1 and session.get_one(Item, assignment.item_id).purpose == "label"


def askable(person: Person) -> ColumnElement[bool]:
    return and_(Item.state == "open", Item.purpose == "label", is_asked(), ~_had(person))


def is_asked() -> ColumnElement[bool]:
    """Whether an item is of a kind that the page asks."""
    return Item.kind.not_in(UNASKED)


def _had(person: Person) -> ColumnElement[bool]:
    """Whether this person has had an item; one that they opened and left does not count."""
    return exists().where(
        Assignment.item_id == Item.id, Assignment.person_id == person.id, Assignment.state != "expired"
    )


def of(query: Any, kind: str | None, topic: str | None) -> Any:
    if kind is not None:
        query = query.where(Item.kind == kind)
    return query if topic is None else query.where(Item.topic == topic)


def open_of(person: Person) -> Any:
    return select(Assignment).where(Assignment.person_id == person.id, Assignment.state == "open")


def known(person: Person, purpose: str, kind: str | None = None, topic: str | None = None) -> Any:
    query = select(Item).where(Item.state == "open", Item.purpose == purpose, ~_had(person))
    return of(query, kind, topic).order_by(Item.priority.desc(), Item.id)


def remaining(session: Session, person: Person, kind: str | None = None, topic: str | None = None) -> int:
    """Questions that this person could still be asked, those of the entry test and known ones aside."""
    query = select(func.count()).select_from(Item).where(askable(person), Item.taken < Item.wanted)
    return session.scalar(of(query, kind, topic)) or 0


def counted(session: Session, person: Person) -> list[tuple[str, str | None, int]]:
    """What `remaining` counts, by kind and topic."""
    query = select(Item.kind, Item.topic, func.count()).where(askable(person), Item.taken < Item.wanted)
    return [(kind, topic, found) for kind, topic, found in session.execute(query.group_by(Item.kind, Item.topic))]
