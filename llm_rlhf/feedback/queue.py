"""The queue: questions come in once, and each is asked of as many people as it wants, its answers in an order drawn."""

import datetime
import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session, aliased

from llm_rlhf.audit.personal import suspicions
from llm_rlhf.data.rows import Conversation
from llm_rlhf.errors import DataError
from llm_rlhf.feedback import places
from llm_rlhf.feedback.labels import KINDS, checked
from llm_rlhf.feedback.question_shape import check_can_be_known, check_shape
from llm_rlhf.feedback.settings import Settings, settings_of
from llm_rlhf.feedback.tables import Assignment, Batch, Flag, Item, Person, now

TRIES = 8  # to find a question with a free place, where others are faster


@dataclass
class Question:
    """What is to be asked, before it is in the store."""

    kind: str  # of labels.KINDS
    prompt: Conversation  # ends with the user's turn
    answers: list[dict[str, Any]] = field(default_factory=list)  # {"text": ..., "source": ..., ...}
    objective: str = "overall"
    topic: str | None = None
    purpose: str = "label"  # label, gold or entry
    expected: dict[str, Any] | None = None  # a label by the item's places, {"value": label, "why": text}
    wanted: int | None = None  # people; None: the store's people_per_item
    priority: float = 0.0
    strategy: str | None = None
    propensity: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same for the same question with its answers in any order."""
        texts = sorted(answer["text"] for answer in self.answers)
        told = json.dumps([self.kind, self.purpose == "entry", self.prompt, texts], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()


@dataclass(frozen=True)
class Added:
    """What became of questions: new ones, those asked before, and those held back until a lead has looked."""

    batch: int
    items: list[int]  # ids of the new ones
    known: int = 0
    held: int = 0


def add(session: Session, questions: Iterable[Question], made_by: str, details: dict[str, Any]) -> Added:
    """Put questions into the queue as one batch. One that is there already is not asked again.

    Raises:
        DataError: where one cannot be asked.
    """
    settings = settings_of(session)
    batch = Batch(made_by=made_by, details=details)
    session.add(batch)
    session.flush()
    items, known, held = [], 0, 0
    for question in questions:
        check(question)
        if session.scalar(select(Item.id).where(Item.key == question.key)) is not None:
            known += 1
            continue
        kinds = sorted({found.kind for text in _texts(question) for found in suspicions(text)})
        item = Item(
            batch_id=batch.id,
            kind=question.kind,
            state="held" if kinds else "open",
            held_for=f"looks like personal data: {', '.join(kinds)}" if kinds else None,
            key=question.key,
            prompt=question.prompt,
            answers=question.answers,
            objective=question.objective,
            topic=question.topic,
            purpose=question.purpose,
            expected=question.expected,
            wanted=_wanted(question, settings),
            priority=question.priority,
            strategy=question.strategy,
            propensity=question.propensity,
            facts=question.facts,
        )
        session.add(item)
        session.flush()
        items.append(item.id)
        if kinds:
            held += 1
            session.add(Flag(item_id=item.id, kind="personal", text=str(item.held_for)))
    return Added(batch.id, items, known, held)


def next_for(
    session: Session,
    person: Person,
    kind: str | None = None,
    topic: str | None = None,
    rng: random.Random | None = None,
) -> Assignment | None:
    """Somebody's next question: the one they have open, else the entry test's, a known one, a repeat, or a new one.

    Args:
        kind, topic: of questions outside the entry test; None: any.
        rng: draws the order of the answers, and when a known question or a repeat comes.
    """
    rng = rng or random.SystemRandom()
    settings = settings_of(session)
    places.release_expired(session)
    if (open_one := _open(session, person, kind, topic)) is not None:
        return open_one
    if needs_entry_test(session, person, settings):
        return _assign_known(session, person, "entry", None, None, settings, rng)
    found = None
    if rng.random() < settings.gold_share:
        found = _assign_known(session, person, "gold", kind, topic, settings, rng)
    if found is None and rng.random() < settings.repeat_share:
        found = _assign_repeat(session, person, kind, topic, settings, rng)
    return found if found is not None else _assign_new(session, person, kind, topic, settings, rng)


def needs_entry_test(session: Session, person: Person, settings: Settings) -> bool:
    """Whether the entry test has a question that this person has not answered yet. Leads made it, and skip it."""
    if not settings.entry_test or person.role == "lead" or person.entry_passed is not None:
        return False
    return session.scalar(places.known(person, "entry").limit(1)) is not None


def check(question: Question) -> None:
    """Raises DataError where a question cannot be asked."""
    check_shape(question)
    if not question.prompt or question.prompt[-1].get("role") != "user":
        raise DataError("The prompt of a question ends with the user's turn, and this one does not.")
    allowed = KINDS[question.kind].answers
    if len(question.answers) not in allowed:
        raise DataError(
            f"A question of kind {question.kind} has {len(question.answers)} answers; it takes "
            f"{allowed.start}{f' to {allowed.stop - 1}' if len(allowed) > 1 else ''}."
        )
    texts = [answer["text"] for answer in question.answers]
    try:
        "".join(_texts(question)).encode()
    except UnicodeEncodeError as error:
        half = f"{error.object[max(0, error.start - 40) : error.end]!a}"
        raise DataError(f"A question has half a character, which no page can show: {half}.") from None
    if len(set(texts)) < len(texts):
        raise DataError(f"Two answers of a question are the same: {texts[0][:80]!r}.")
    if (question.purpose != "label") != (question.expected is not None):
        raise DataError("A question of purpose gold or entry, and no other, has an expected label.")
    if question.expected is not None:
        check_can_be_known(question.kind)
        question.expected["value"] = checked(question.kind, question.expected.get("value"), len(texts))


def _texts(question: Question) -> list[str]:
    return [*(turn["content"] for turn in question.prompt), *(answer["text"] for answer in question.answers)]


def _wanted(question: Question, settings: Settings) -> int:
    if question.purpose != "label":
        return 0  # everybody is asked, and nobody takes a place
    return settings.people_per_item if question.wanted is None else question.wanted


def _open(session: Session, person: Person, kind: str | None, topic: str | None) -> Assignment | None:
    """The question that somebody has open. One of another kind than they want now goes back."""
    query = places.open_of(person).join(Item, Item.id == Assignment.item_id).where(Item.kind != "chat")
    for assignment in session.scalars(query.order_by(Assignment.id)):
        item = session.get_one(Item, assignment.item_id)
        fits = (kind is None or item.kind == kind) and (topic is None or item.topic == topic)
        if item.state == "open" and (fits or item.purpose == "entry"):
            return assignment
        assignment.state, assignment.ended = "expired", now()
        places.give_back(session, assignment)
    return None


def _assign_new(
    session: Session, person: Person, kind: str | None, topic: str | None, settings: Settings, rng: random.Random
) -> Assignment | None:
    query = select(Item).where(places.askable(person), Item.taken < Item.wanted)
    query = places.of(query, kind, topic).order_by(Item.priority.desc(), Item.id).limit(1)
    for _ in range(TRIES):
        item = session.scalar(query.with_for_update(skip_locked=True, of=Item))
        if item is None:
            return None
        if places.take(session, item.id):
            return _assign(session, item, person, 1, settings, rng)
    return None


def _assign_known(
    session: Session,
    person: Person,
    purpose: str,
    kind: str | None,
    topic: str | None,
    settings: Settings,
    rng: random.Random,
) -> Assignment | None:
    item = session.scalar(places.known(person, purpose, kind, topic).limit(1))
    return None if item is None else _assign(session, item, person, 1, settings, rng)


def _assign_repeat(
    session: Session, person: Person, kind: str | None, topic: str | None, settings: Settings, rng: random.Random
) -> Assignment | None:
    """A comparison that this person answered some time ago, with the answers swapped."""
    again = aliased(Assignment)
    query = (
        select(Assignment)
        .join(Item, Item.id == Assignment.item_id)
        .where(
            Assignment.person_id == person.id,
            Assignment.state == "done",
            Assignment.turn == 1,
            Item.kind == "compare",
            Item.purpose == "label",
            Item.state == "open",
            ~exists().where(again.item_id == Assignment.item_id, again.person_id == person.id, again.turn == 2),
        )
        .order_by(Assignment.ended.desc())
    )
    old = session.scalars(places.of(query, kind, topic).offset(settings.repeat_after).limit(50)).all()
    if not old:
        return None
    first = rng.choice(old)
    item = session.get_one(Item, first.item_id)
    return _assign(session, item, person, 2, settings, rng, order=list(reversed(first.order)))


def _assign(
    session: Session,
    item: Item,
    person: Person,
    turn: int,
    settings: Settings,
    rng: random.Random,
    order: Sequence[int] | None = None,
) -> Assignment:
    """Give somebody an item, in an order that is drawn and kept; or the one they had and left, in the order it had."""
    until = now() + datetime.timedelta(minutes=settings.lease_minutes)
    before = session.scalar(
        select(Assignment).where(
            Assignment.item_id == item.id, Assignment.person_id == person.id, Assignment.turn == turn
        )
    )
    if before is not None:
        before.state, before.shown, before.ended, before.expires = "open", now(), None, until
        return before
    if order is None:
        order = list(range(len(item.answers)))
        rng.shuffle(order)
    assignment = Assignment(item_id=item.id, person_id=person.id, turn=turn, order=list(order), expires=until)
    session.add(assignment)
    session.flush()
    return assignment
