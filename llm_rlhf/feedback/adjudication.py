"""What a lead settles: where people disagree, what they reported, what is held back, and which questions are known."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from llm_rlhf.errors import DataError
from llm_rlhf.feedback import queue
from llm_rlhf.feedback.labels import checked
from llm_rlhf.feedback.question_shape import check_can_be_known
from llm_rlhf.feedback.queue import Question
from llm_rlhf.feedback.refusals import Absent, Settled
from llm_rlhf.feedback.tables import Assignment, Decision, Flag, Item, Label, Person, now

LEAVE_OUT = {"choice": "leave out"}
APART = 2  # points of a rating from which two people disagree


@dataclass(frozen=True)
class Opinion:
    """What somebody said of an item, by pseudonym."""

    label: int  # its number
    person: str
    value: dict[str, Any]
    order: list[int]  # in which they saw the answers
    seconds: float
    hasty: bool
    turn: int
    withdrawn: bool


@dataclass(frozen=True)
class Disputed:
    """An item on which people disagree."""

    item: Item
    opinions: list[Opinion]


def item_of(session: Session, number: int) -> Item:
    """An item by its number.

    Raises:
        Absent: where there is none.
    """
    item = session.get(Item, number)
    if item is None:
        raise Absent("There is no such question.")
    return item


def disagreements(session: Session, limit: int, skipped: int = 0) -> tuple[list[Disputed], int]:
    """Undecided items on which people disagree, the least agreed first; and how many there are in all."""
    said: dict[int, list[dict[str, Any]]] = defaultdict(list)
    kinds: dict[int, str] = {}
    labels = (
        select(Label.item_id, Item.kind, Label.value)
        .join(Item, Item.id == Label.item_id)
        .join(Assignment, Assignment.id == Label.assignment_id)
        .join(Person, Person.id == Label.person_id)
        .outerjoin(Decision, Decision.item_id == Item.id)
        .where(Decision.item_id.is_(None), Assignment.turn == 1, Item.purpose == "label", Person.withdrawn.is_(None))
    )
    for number, kind, value in session.execute(labels):
        said[number].append(value)
        kinds[number] = kind
    found = sorted((_agreed(kinds[number], values), -len(values), number) for number, values in said.items())
    apart = [number for agreed, _, number in found if agreed < 1]
    page = apart[skipped : skipped + limit]
    return [Disputed(session.get_one(Item, number), opinions(session, number)) for number in page], len(apart)


def opinions(session: Session, item: int) -> list[Opinion]:
    """All labels of an item."""
    rows = session.execute(
        select(Label, Assignment.order, Assignment.turn, Person.pseudonym, Person.withdrawn)
        .join(Assignment, Assignment.id == Label.assignment_id)
        .join(Person, Person.id == Label.person_id)
        .where(Label.item_id == item)
        .order_by(Label.id)
    )
    return [
        Opinion(label.id, name, label.value, order, label.seconds, label.hasty, turn, withdrawn is not None)
        for label, order, turn, name, withdrawn in rows
    ]


def decide(session: Session, lead: Person, item: Item, value: dict[str, Any], comment: str = "") -> Decision:
    """What the item's label is from now on, whatever people said; a later decision takes an earlier one's place.

    Args:
        value: by the item's places, or LEAVE_OUT.

    Raises:
        DataError: where it is no label of this item.
    """
    if value != LEAVE_OUT:
        value = checked(item.kind, value, len(item.answers))
    decision = session.get(Decision, item.id)
    if decision is None:
        decision = Decision(item_id=item.id, person_id=lead.id, value=value)
        session.add(decision)
    decision.person_id, decision.value, decision.comment, decision.created = lead.id, value, comment or None, now()
    session.flush()
    return decision


def take_back(session: Session, item: Item) -> None:
    """People's labels count again."""
    if (decision := session.get(Decision, item.id)) is not None:
        session.delete(decision)
        session.flush()


def open_flags(session: Session) -> list[tuple[Flag, Item, str | None]]:
    """Reports that nobody has looked at yet, the oldest first, each with its item and who reported it."""
    query = (
        select(Flag, Item, Person.pseudonym)
        .join(Item, Item.id == Flag.item_id)
        .outerjoin(Person, Person.id == Flag.person_id)
        .where(Flag.resolved.is_(None))
        .order_by(Flag.created, Flag.id)
    )
    return [(flag, item, name) for flag, item, name in session.execute(query)]


def held_items(session: Session) -> list[Item]:
    """Items that nobody is shown until a lead has looked."""
    return list(session.scalars(select(Item).where(Item.state == "held").order_by(Item.id)))


def release(session: Session, item: Item, why: str) -> None:
    """An item is asked like any other from now on; its reports are resolved.

    Raises:
        DataError: without a reason.
    """
    _settle(session, item, "open", why, "released")
    item.held_for = None


def close(session: Session, item: Item, why: str) -> None:
    """An item is asked no more; its reports are resolved. What people said of it stays.

    Raises:
        DataError: without a reason.
    """
    _settle(session, item, "closed", why, "closed")
    item.held_for = why


def dismiss(session: Session, number: int, why: str) -> Item:
    """A report is resolved, and its item stays as it is.

    Raises:
        DataError: without a reason. Absent: where there is none. Settled: where somebody resolved it before.
    """
    flag = session.get(Flag, number)
    if flag is None:
        raise Absent("There is no such report.")
    if flag.resolved is not None:
        raise Settled("This report was resolved before.")
    flag.resolved, flag.resolution = now(), _reason(why)
    return session.get_one(Item, flag.item_id)


def make_known(session: Session, item: Item, purpose: str, value: dict[str, Any], why: str) -> Item:
    """Make an item a known question (gold), or a copy of it a question of the entry test.

    Gold is the item itself, so that nobody is asked it twice: it is exported no more, and labels given before are not
    held against anybody.

    Raises:
        DataError: where it cannot be. Settled: where it is one already.
    """
    check_can_be_known(item.kind)
    value = checked(item.kind, value, len(item.answers))
    if purpose == "gold":
        if item.purpose != "label":
            raise Settled(f"This question is one of the {item.purpose} questions already.")
        item.purpose, item.expected, item.wanted = "gold", {"value": value, "why": why}, 0
        return item
    answers = [dict(answer) for answer in item.answers]
    question = Question(
        item.kind, item.prompt, answers, item.objective, item.topic, purpose, {"value": value, "why": why}
    )
    return new_known(session, question)


def new_known(session: Session, question: Question) -> Item:
    """A known question, or one of the entry test, that a lead wrote.

    Raises:
        DataError: where it cannot be asked. Settled: where it is there already.
    """
    if question.purpose not in ("gold", "entry"):
        raise DataError(f"The purpose is {question.purpose!r}; it is gold or entry.")
    added = queue.add(session, [question], question.purpose, {})
    if not added.items:
        raise Settled("This question is in the store already.")
    return session.get_one(Item, added.items[0])


@dataclass(frozen=True)
class Known:
    """A known question with how people do on it."""

    item: Item
    right: int
    asked: int


def known_items(session: Session) -> list[Known]:
    """All gold and entry questions, the newest first."""
    counts: dict[int, tuple[int, int]] = {}
    rows = (
        select(Label.item_id, func.count(), Label.agrees_with_gold)
        .where(Label.agrees_with_gold.is_not(None))
        .group_by(Label.item_id, Label.agrees_with_gold)
    )
    for number, count, agrees in session.execute(rows):
        right, asked = counts.get(number, (0, 0))
        counts[number] = right + count * bool(agrees), asked + count
    items = session.scalars(select(Item).where(Item.purpose.in_(("gold", "entry"))).order_by(Item.id.desc()))
    return [Known(item, *counts.get(item.id, (0, 0))) for item in items]


def _settle(session: Session, item: Item, state: str, why: str, done: str) -> None:
    item.state = state
    for flag in session.scalars(select(Flag).where(Flag.item_id == item.id, Flag.resolved.is_(None))):
        flag.resolved, flag.resolution = now(), f"{done}: {_reason(why)}"
    _reason(why)
    session.flush()


def _reason(why: str) -> str:
    if not why.strip():
        raise DataError("Say why; it is kept beside the report.")
    return why.strip()


def _agreed(kind: str, values: list[dict[str, Any]]) -> float:
    """The share of people who say what most say; 1 where nobody disagrees, or nobody else spoke."""
    if kind == "rate":
        apart = max(max(v[name] for v in values) - min(v[name] for v in values) for name in ("helpful", "harmless"))
        return 1.0 if apart < APART else 1 / (1 + apart)
    return Counter(map(_outcome, values)).most_common(1)[0][1] / len(values)


def _outcome(value: dict[str, Any]) -> str:
    """What people agree on where it is the same: not how much better, and not the words of a text."""
    if "choice" in value:
        return f"{value['choice']} {value.get('better')}"
    if "ranks" in value:
        return str([place for place, rank in enumerate(value["ranks"]) if rank == 1])
    if "labels" in value:
        return str(sorted(value["labels"]))
    if "good" in value:
        return str(value["good"])
    return str(value.get("better"))
