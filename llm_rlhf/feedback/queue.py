"""The queue: questions come in once, each is asked of as many people as it wants, and every choice is kept once.

Two people are never given the last place of one question: a place is taken by an UPDATE that finds one free, which a
database does once. An assignment has one label at most, by a constraint; saying the same again is no second label.
"""

import datetime
import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, select, update
from sqlalchemy.orm import Session, aliased

from llm_rlhf.audit.personal import suspicions
from llm_rlhf.data.rows import Conversation
from llm_rlhf.errors import DataError
from llm_rlhf.feedback.documents import current_version
from llm_rlhf.feedback.labels import KINDS, checked, from_page
from llm_rlhf.feedback.question_shape import UNASKED, check_can_be_known, check_shape
from llm_rlhf.feedback.refusals import Absent, Forbidden, Settled
from llm_rlhf.feedback.settings import Settings, settings_of
from llm_rlhf.feedback.tables import Assignment, Batch, Flag, Item, Label, Person, now

MOST_SECONDS = 3600.0  # a label's time is told up to an hour: whoever takes longer was away
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
    release_expired(session)
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
    return session.scalar(_known(person, "entry").limit(1)) is not None


def assignment_of(session: Session, person: Person, number: int) -> Assignment:
    """An assignment of this person, by its number.

    Raises:
        Absent: where there is none; Forbidden: where it is somebody else's.
    """
    assignment = session.get(Assignment, number, with_for_update=True)  # nobody gives it back meanwhile
    if assignment is None:
        raise Absent("There is no such question.")
    if assignment.person_id != person.id:
        raise Forbidden("This question was given to somebody else.")
    return assignment


def record(session: Session, assignment: Assignment, value: Any, seconds: float | None = None) -> Label:
    """Keep what somebody finally said. The same said twice is one label.

    Args:
        value: by the places on the page. seconds: since it was shown, as the page measured; None: by our own clock.

    Raises:
        DataError: where it is no label of this item. Settled: where another was said, or the turn has run out.
    """
    item = session.get_one(Item, assignment.item_id)
    value = checked(
        item.kind, from_page(value, assignment.order) if isinstance(value, dict) else value, len(item.answers)
    )
    before = session.scalar(select(Label).where(Label.assignment_id == assignment.id))
    if before is not None:
        if before.value == value:
            return before
        raise Settled("This question was answered before; undo that answer first.")
    if assignment.state != "open":
        raise Settled("This question is no longer yours: it was left for too long, or skipped.")
    settings, moment = settings_of(session), now()
    passed = (moment - assignment.shown).total_seconds()
    passed = max(0.0, min(passed, MOST_SECONDS, passed if seconds is None else seconds))  # clocks are set back
    person = session.get_one(Person, assignment.person_id)
    expected = (item.expected or {}).get("value")
    label = Label(
        assignment_id=assignment.id,
        item_id=item.id,
        person_id=person.id,
        value=value,
        seconds=passed,
        hasty=passed < words(item) / settings.words_per_second,
        agrees_with_gold=None if expected is None else agrees(value, expected),
        guidelines_version=current_version(session, "guidelines"),
        consent_version=person.consent_version,
    )
    session.add(label)
    assignment.state, assignment.draft, assignment.ended = "done", None, moment
    session.flush()
    if item.purpose == "entry":
        _mark_entry_test(session, person, settings)
    return label


def skip(session: Session, assignment: Assignment, reason: str) -> None:
    """Pass a question over; somebody else is asked.

    Raises:
        Settled: where it was answered.
    """
    if assignment.state == "skipped":
        return
    if assignment.state != "open":
        raise Settled("This question is no longer yours to skip.")
    assignment.state, assignment.skip_reason, assignment.draft, assignment.ended = "skipped", reason, None, now()
    _give_back(session, assignment)
    session.flush()
    if session.get_one(Item, assignment.item_id).purpose == "entry":  # not answered as expected: else who skips is in
        _mark_entry_test(session, session.get_one(Person, assignment.person_id), settings_of(session))


def save_draft(session: Session, assignment: Assignment, draft: dict[str, Any]) -> None:
    """Keep what somebody has written so far, until they say it or leave it."""
    if assignment.state != "open":
        raise Settled("This question is no longer open.")
    assignment.draft = draft
    assignment.expires = now() + datetime.timedelta(minutes=settings_of(session).lease_minutes)


def undo(session: Session, person: Person) -> Assignment | None:
    """Open somebody's last answered or skipped question again, with what they had said as its draft; None: none there.

    The label is gone: only the final choice is kept. What the entry test asked stays answered.
    """
    last = session.scalar(
        select(Assignment)
        .join(Item, Item.id == Assignment.item_id)
        .join(Batch, Batch.id == Item.batch_id)
        .where(Assignment.person_id == person.id, Assignment.state.in_(("done", "skipped")), Item.purpose != "entry")
        .where(Batch.made_by != "chat")  # a conversation has gone on from what was said
        .order_by(Assignment.ended.desc(), Assignment.id.desc())
        .limit(1)
    )
    if last is None:
        return None
    takes_a_place = last.turn == 1 and session.get_one(Item, last.item_id).purpose == "label"
    if last.state == "skipped" and takes_a_place and not _take(session, last.item_id):
        raise Settled("The question that you skipped has been given to somebody else.")
    label = session.scalar(select(Label).where(Label.assignment_id == last.id))
    if label is not None:
        last.draft = {"said": label.value}
        session.delete(label)
    for other in session.scalars(_open_of(person)):  # one at a time: the one shown meanwhile goes back
        other.state = "expired"
        _give_back(session, other)
    last.state, last.skip_reason, last.ended, last.shown = "open", None, None, now()
    last.expires = now() + datetime.timedelta(minutes=settings_of(session).lease_minutes)
    session.flush()
    return last


def report(session: Session, assignment: Assignment, kind: str, text: str) -> Flag:
    """Somebody's report of an item, for a lead. An item with personal data is shown to nobody else meanwhile.

    The same said twice, as when an answer was lost on its way, is one report.
    """
    if kind not in ("report", "personal"):
        raise DataError(f"A report is of kind {kind!r}; it is report or personal.")
    theirs = (Flag.item_id == assignment.item_id, Flag.person_id == assignment.person_id, Flag.kind == kind)
    flag = session.scalar(select(Flag).where(*theirs, Flag.text == text, Flag.resolved.is_(None)).limit(1))
    if flag is None:
        flag = Flag(item_id=assignment.item_id, person_id=assignment.person_id, kind=kind, text=text)
        session.add(flag)
    item = session.get_one(Item, assignment.item_id)
    if kind == "personal" and item.state == "open":
        item.state, item.held_for = "held", "somebody saw personal data"
    session.flush()
    return flag


def release_expired(session: Session) -> int:
    """Give back the places of questions that were opened and left; how many."""
    left = select(Assignment).where(Assignment.state == "open", Assignment.expires < now())
    gone = session.scalars(left.with_for_update(skip_locked=True)).all()  # what another is giving back is not ours
    for assignment in gone:
        assignment.state, assignment.ended = "expired", now()
        _give_back(session, assignment)
    return len(gone)


def remaining(session: Session, person: Person, kind: str | None = None, topic: str | None = None) -> int:
    """Questions that this person could still be asked, those of the entry test and known ones aside."""
    query = select(func.count()).select_from(Item).where(_askable(person), Item.taken < Item.wanted)
    return session.scalar(_of(query, kind, topic)) or 0


def counted(session: Session, person: Person) -> list[tuple[str, str | None, int]]:
    """What `remaining` counts, by kind and topic."""
    query = select(Item.kind, Item.topic, func.count()).where(_askable(person), Item.taken < Item.wanted)
    return [(kind, topic, found) for kind, topic, found in session.execute(query.group_by(Item.kind, Item.topic))]


def said_by(session: Session, person: Person) -> int:
    """Labels of this person."""
    return session.scalar(select(func.count()).select_from(Label).where(Label.person_id == person.id)) or 0


def words(item: Item) -> int:
    """What there is to read: the last turn of the prompt, and the answers."""
    texts = [item.prompt[-1]["content"], *(answer["text"] for answer in item.answers)]
    return sum(len(text.split()) for text in texts)


def agrees(value: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether a label says what was expected; of a comparison, which answer is better, whatever the strength.

    What somebody writes in their own words is not held against the lead's.
    """
    if "choice" in expected:
        return (value["choice"], value.get("better")) == (expected["choice"], expected.get("better"))
    if "labels" in expected:
        return set(value["labels"]) == set(expected["labels"])
    return all(value.get(name) == wanted for name, wanted in expected.items() if name != "text")


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


def _askable(person: Person) -> ColumnElement[bool]:
    return and_(Item.state == "open", Item.purpose == "label", is_asked(), ~_had(person))


def is_asked() -> ColumnElement[bool]:
    """Whether an item is of a kind that the page asks."""
    return Item.kind.not_in(UNASKED)


def _had(person: Person) -> ColumnElement[bool]:
    """Whether this person has had an item; one that they opened and left does not count."""
    return exists().where(
        Assignment.item_id == Item.id, Assignment.person_id == person.id, Assignment.state != "expired"
    )


def _of(query: Any, kind: str | None, topic: str | None) -> Any:
    if kind is not None:
        query = query.where(Item.kind == kind)
    return query if topic is None else query.where(Item.topic == topic)


def _open_of(person: Person) -> Any:
    return select(Assignment).where(Assignment.person_id == person.id, Assignment.state == "open")


def _open(session: Session, person: Person, kind: str | None, topic: str | None) -> Assignment | None:
    """The question that somebody has open. One of another kind than they want now goes back."""
    query = _open_of(person).join(Item, Item.id == Assignment.item_id).where(Item.kind != "chat")
    for assignment in session.scalars(query.order_by(Assignment.id)):
        item = session.get_one(Item, assignment.item_id)
        fits = (kind is None or item.kind == kind) and (topic is None or item.topic == topic)
        if item.state == "open" and (fits or item.purpose == "entry"):
            return assignment
        assignment.state, assignment.ended = "expired", now()
        _give_back(session, assignment)
    return None


def _assign_new(
    session: Session, person: Person, kind: str | None, topic: str | None, settings: Settings, rng: random.Random
) -> Assignment | None:
    query = select(Item).where(_askable(person), Item.taken < Item.wanted)
    query = _of(query, kind, topic).order_by(Item.priority.desc(), Item.id).limit(1)
    for _ in range(TRIES):
        item = session.scalar(query.with_for_update(skip_locked=True, of=Item))
        if item is None:
            return None
        if _take(session, item.id):
            return _assign(session, item, person, 1, settings, rng)
    return None


def _known(person: Person, purpose: str, kind: str | None = None, topic: str | None = None) -> Any:
    query = select(Item).where(Item.state == "open", Item.purpose == purpose, ~_had(person))
    return _of(query, kind, topic).order_by(Item.priority.desc(), Item.id)


def _assign_known(
    session: Session,
    person: Person,
    purpose: str,
    kind: str | None,
    topic: str | None,
    settings: Settings,
    rng: random.Random,
) -> Assignment | None:
    item = session.scalar(_known(person, purpose, kind, topic).limit(1))
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
    old = session.scalars(_of(query, kind, topic).offset(settings.repeat_after).limit(50)).all()
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


def _take(session: Session, item: int) -> bool:
    """One of the item's places, if one is free."""
    free = update(Item).where(Item.id == item, Item.taken < Item.wanted).values(taken=Item.taken + 1)
    return session.execute(free.returning(Item.id)).first() is not None


def _give_back(session: Session, assignment: Assignment) -> None:
    item = session.get_one(Item, assignment.item_id)
    if assignment.turn == 1 and item.purpose == "label":
        session.execute(update(Item).where(Item.id == item.id, Item.taken > 0).values(taken=Item.taken - 1))
    session.flush()


def _mark_entry_test(session: Session, person: Person, settings: Settings) -> None:
    """Once the last question of the entry test is answered: passed or not. Who has not passed begins it again."""
    if session.scalar(_known(person, "entry").limit(1)) is not None:
        return
    mine = (
        select(Assignment, Label)
        .join(Item, Item.id == Assignment.item_id)
        .outerjoin(Label, Label.assignment_id == Assignment.id)
        .where(Assignment.person_id == person.id, Item.purpose == "entry", Assignment.state.in_(("done", "skipped")))
    )
    had = session.execute(mine).all()
    person.entry_score = sum(label is not None and bool(label.agrees_with_gold) for _, label in had) / len(had)
    person.entry_tries += 1
    if person.entry_score >= settings.entry_pass:
        person.entry_passed = now()
        return
    for assignment, label in had:
        if label is not None:
            session.delete(label)
        assignment.state = "expired"
    session.flush()
