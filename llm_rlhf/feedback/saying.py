"""What somebody does with a question they were given: says it, passes it over, takes it back, reports it.

An assignment has one label at most, by a constraint; saying the same again is no second label.
"""

import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from llm_rlhf.errors import DataError
from llm_rlhf.feedback import places
from llm_rlhf.feedback.documents import current_version
from llm_rlhf.feedback.labels import checked, from_page
from llm_rlhf.feedback.refusals import Absent, Forbidden, Settled
from llm_rlhf.feedback.settings import Settings, settings_of
from llm_rlhf.feedback.tables import Assignment, Batch, Flag, Item, Label, Person, now

MOST_SECONDS = 3600.0  # a label's time is told up to an hour: whoever takes longer was away


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
    places.give_back(session, assignment)
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
    if last.state == "skipped" and not places.take_again(session, last):
        raise Settled("The question that you skipped has been given to somebody else.")
    label = session.scalar(select(Label).where(Label.assignment_id == last.id))
    if label is not None:
        last.draft = {"said": label.value}
        session.delete(label)
    for other in session.scalars(places.open_of(person)):  # one at a time: the one shown meanwhile goes back
        other.state = "expired"
        places.give_back(session, other)
    last.state, last.skip_reason, last.ended, last.shown = "open", None, None, now()
    last.expires = now() + datetime.timedelta(minutes=settings_of(session).lease_minutes)
    session.flush()
    return last


def report(session: Session, assignment: Assignment, kind: str, text: str) -> Flag:
    """Somebody's report of an item, for a lead. An item with personal data is shown to nobody else meanwhile.

    The same said twice, as when an answer was lost on its way, is one report. A question of the entry test, which a
    lead has made, is passed over and stays: else whoever reports them all is in.
    """
    if kind not in ("report", "personal"):
        raise DataError(f"A report is of kind {kind!r}; it is report or personal.")
    theirs = (Flag.item_id == assignment.item_id, Flag.person_id == assignment.person_id, Flag.kind == kind)
    flag = session.scalar(select(Flag).where(*theirs, Flag.text == text, Flag.resolved.is_(None)).limit(1))
    if flag is None:
        flag = Flag(item_id=assignment.item_id, person_id=assignment.person_id, kind=kind, text=text)
        session.add(flag)
    item = session.get_one(Item, assignment.item_id)
    if kind == "personal" and item.purpose == "entry" and assignment.state == "open":
        skip(session, assignment, "reported for personal data")
    elif kind == "personal" and item.purpose != "entry" and item.state == "open":
        item.state, item.held_for = "held", "somebody saw personal data"
    session.flush()
    return flag


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


def _mark_entry_test(session: Session, person: Person, settings: Settings) -> None:
    """Once the last question of the entry test is answered: passed or not. Who has not passed begins it again."""
    if session.scalar(places.known(person, "entry").limit(1)) is not None:
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
