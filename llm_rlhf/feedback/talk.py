"""Live conversations with the policy: every turn is a comparison of two answers, and goes on from the better one.

1. `begin` opens a conversation, `ask` adds what its person says.
2. Two answers come (web/turns.py), beside each other, in an order that is drawn.
3. `choose` keeps what was said of them: as an item of kind chat with what was shown of each answer, or of kind correct
   where a better answer was written; and the conversation goes on.

What is stored of an answer is what was shown of it when the choice was made: all of it where it had ended, else its
beginning, marked as not complete. A tie, or two bad ones, say nothing about where to go on, so that is drawn.

In red-team mode people try to make the policy say harmful things, and still choose the better, less harmful answer:
recording the worse one starves the next model of good refusals (Bai et al. 2022, arXiv 2204.05862, section 2.2).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from llm_rlhf.data.rows import Conversation
from llm_rlhf.errors import DataError
from llm_rlhf.feedback.labels import MOST_TEXT, checked, from_page
from llm_rlhf.feedback.question_shape import MOST_TOPIC
from llm_rlhf.feedback.queue import Question, add
from llm_rlhf.feedback.refusals import Absent, Forbidden, Settled
from llm_rlhf.feedback.saying import record
from llm_rlhf.feedback.settings import settings_of
from llm_rlhf.feedback.tables import Assignment, Batch, Flag, Item, Label, Person, Talk, now

MODES = {"helpful": "helpful", "red-team": "harmless"}  # and what a comparison in it is about


@dataclass(frozen=True)
class Shown:
    """What somebody was shown of an answer."""

    text: str
    source: str | None  # whose answer it is
    complete: bool  # all of it


@dataclass(frozen=True)
class Turn:
    """Two answers to a conversation, by their places in the item, and how they stood on the page."""

    answers: Sequence[Shown]
    order: Sequence[int]  # place on the page, from the left: which of the answers stands there
    asked: Any  # datetime, UTC: since when they could be read
    details: dict[str, Any] = field(default_factory=dict)  # of the models; the seed


@dataclass(frozen=True)
class Chosen:
    """Where a conversation goes on."""

    text: str  # the answer that it goes on from
    place: int | None  # on the page, from the left; None: from what was written
    drawn: bool  # nothing was said of which is better, so it was drawn
    label: int | None  # what was kept; None: nothing, for this reason:
    why: str | None = None


def begin(session: Session, person: Person, mode: str, topic: str | None = None) -> Talk:
    """A new conversation.

    Raises:
        DataError: for a mode or a topic that is none. Forbidden: where the store's lead has red-teaming turned off.
    """
    settings = settings_of(session)
    if mode not in MODES:
        raise DataError(f"The mode is {mode!r}; it is {' or '.join(MODES)}.")
    if mode == "red-team" and not settings.red_team:
        raise Forbidden("Red-teaming is turned off here.")
    topic = (topic or "").strip() or None
    if topic is not None and len(topic) > MOST_TOPIC:
        raise DataError(f"The topic has {len(topic)} characters; {MOST_TOPIC} at most.")
    if topic is not None and settings.topics and topic not in settings.topics:
        raise DataError(f"The topic is {topic!r}; it is one of {', '.join(settings.topics)}, or none.")
    talk = Talk(person_id=person.id, mode=mode, topic=topic, messages=[])
    session.add(talk)
    session.flush()
    return talk


def talk_of(session: Session, person: Person, number: int, changed: bool = False) -> Talk:
    """A conversation of this person, by its number.

    Args:
        changed: it is going to be, so that nobody else may change it before this transaction ends.

    Raises:
        Absent: where there is none; Forbidden: where it is somebody else's.
    """
    talk = session.get(Talk, number, with_for_update=changed or None)
    if talk is None:
        raise Absent("There is no such conversation.")
    if talk.person_id != person.id:
        raise Forbidden("This is somebody else's conversation.")
    return talk


def talks_of(session: Session, person: Person) -> list[Talk]:
    """The conversations of this person, the newest first."""
    return list(session.scalars(select(Talk).where(Talk.person_id == person.id).order_by(Talk.id.desc())))


def ask(session: Session, talk: Talk, text: str) -> Conversation:
    """The conversation with what its person says next; said before a choice, it takes the place of the last question.

    Raises:
        DataError: where that says nothing, or too much. Settled: where the conversation has ended.
    """
    _check_open(talk)
    text = text.strip()
    if not text:
        raise DataError("Write something first.")
    if len(text) > MOST_TEXT:
        raise DataError(f"That has {len(text):,} characters; {MOST_TEXT:,} at most.")
    before = talk.messages[:-1] if awaits_choice(talk) else talk.messages
    talk.messages = [*before, {"role": "user", "content": text}]
    session.flush()
    return talk.messages


def awaits_choice(talk: Talk) -> bool:
    """Whether its person has asked something, and not chosen an answer yet."""
    return bool(talk.messages) and talk.messages[-1]["role"] == "user"


def choose(
    session: Session,
    talk: Talk,
    turn: Turn,
    value: Any,
    seconds: float | None = None,
    rng: random.Random | None = None,
) -> Chosen:
    """Keep what was said of two answers, and go on.

    Args:
        value: a comparison by the places on the page; or {"better": place, "text": what it should have said}.
        seconds: since they could be read, as the page measured.
        rng: draws the answer to go on from after a tie or two bad ones.

    Raises:
        DataError: where it is no label. Settled: where there is nothing to choose between.
    """
    _check_open(talk)
    if not awaits_choice(talk):
        raise Settled("There is nothing to choose between: ask something first.")
    kind = "correct" if isinstance(value, dict) and "text" in value else "chat"
    own = checked(kind, from_page(value, turn.order) if isinstance(value, dict) else value, len(turn.answers))
    drawn = own.get("better") is None
    better = (rng or random.SystemRandom()).randrange(len(turn.answers)) if drawn else own["better"]
    went_on = own["text"] if kind == "correct" else turn.answers[better].text
    place = None if kind == "correct" else list(turn.order).index(better)
    why = _not_kept(kind, turn.answers)
    if not went_on.strip():
        raise DataError("That answer says nothing so far; wait for it, choose the other, or write a better one.")
    label = None
    if why is None:
        label, why = _keep(session, talk, turn, kind, value, seconds)
    talk.messages = [*talk.messages, {"role": "assistant", "content": went_on}]
    session.flush()
    return Chosen(went_on, place, drawn, None if label is None else label.id, why)


def take_back(session: Session, talk: Talk) -> Turn | None:
    """Undo the last choice: its label is gone, and the conversation waits for another.

    Returns:
        the two answers as they were shown; None where nothing was kept of them: the question is to be asked anew.

    Raises:
        Settled: where there is no choice to take back.
    """
    _check_open(talk)
    if not talk.messages or awaits_choice(talk):
        raise Settled("There is nothing to take back.")
    talk.messages = talk.messages[:-1]
    theirs = (
        select(Assignment, Item)
        .join(Item, Item.id == Assignment.item_id)
        .where(Assignment.person_id == talk.person_id, Item.kind.in_(("chat", "correct")))
        .order_by(Assignment.id.desc())
    )
    others = set(session.scalars(select(Talk.id).where(Talk.person_id == talk.person_id, Talk.id != talk.id)))
    found = next(
        (
            (assignment, item)
            for assignment, item in session.execute(theirs)
            if item.prompt == talk.messages and item.facts.get("talk") not in others  # which can begin with the same
        ),
        None,
    )
    if found is None:
        session.flush()
        return None
    assignment, item = found
    session.execute(delete(Label).where(Label.assignment_id == assignment.id))
    session.delete(assignment)
    item.wanted, item.taken = item.wanted - 1, item.taken - 1
    session.flush()
    told = session.get_one(Batch, item.batch_id).details
    answers = [Shown(a["text"], a.get("source"), bool(a.get("complete", True))) for a in item.answers]
    details = {name: value for name, value in told.items() if name not in ("talk", "mode")}
    return Turn(answers, assignment.order, assignment.shown, details)


def report(session: Session, talk: Talk, turn: Turn | None, kind: str, text: str) -> Flag:
    """Tell a lead of the two answers that are there, or of the last ones that were chosen between.

    Raises:
        DataError: where there is nothing to tell of.
    """
    if kind not in ("report", "personal"):
        raise DataError(f"A report is of kind {kind!r}; it is report or personal.")
    if turn is not None and awaits_choice(talk) and _not_kept("chat", turn.answers) is None:
        item = _item(session, talk, turn, "chat", wanted=0)
    else:
        theirs = (
            select(Item)
            .join(Assignment, Assignment.item_id == Item.id)
            .where(Assignment.person_id == talk.person_id, Item.kind.in_(("chat", "correct")))
            .order_by(Assignment.id.desc())
        )
        found = next((item for item in session.scalars(theirs) if item.facts.get("talk") == talk.id), None)
        if found is None:
            raise DataError("There are no two answers yet that could be reported.")
        item = found
    flag = Flag(item_id=item.id, person_id=talk.person_id, kind=kind, text=text)
    session.add(flag)
    if kind == "personal" and item.state == "open":
        item.state, item.held_for = "held", "somebody saw personal data"
    session.flush()
    return flag


def end(session: Session, talk: Talk) -> None:
    """Nothing more is said in it. What was asked and not chosen between is no part of it."""
    if talk.ended is None:
        if awaits_choice(talk):
            talk.messages = talk.messages[:-1]
        talk.ended = now()
        session.flush()


def _check_open(talk: Talk) -> None:
    if talk.ended is not None:
        raise Settled("This conversation has ended; begin another.")


def _not_kept(kind: str, answers: Sequence[Shown]) -> str | None:
    """Why nothing can be said of these answers; None where something can."""
    texts = [answer.text for answer in answers]
    if len(set(texts)) < len(texts):
        return "Both answers say the same, so nothing was kept of which is better."
    if kind == "chat" and not all(text.strip() for text in texts):
        return "One of the answers says nothing, so nothing was kept of which is better."
    return None


def _keep(
    session: Session, talk: Talk, turn: Turn, kind: str, value: dict[str, Any], seconds: float | None
) -> tuple[Label | None, str | None]:
    """The turn as an item, the person's assignment and their label; or why there is none."""
    item = _item(session, talk, turn, kind, wanted=0)
    theirs = select(Assignment.id).where(Assignment.item_id == item.id, Assignment.person_id == talk.person_id)
    if session.scalar(theirs.limit(1)) is not None:
        return None, "You said before what you think of these two answers; that was kept."
    texts = [answer["text"] for answer in item.answers]  # of one that was met before, perhaps in another order
    order = [texts.index(turn.answers[place].text) for place in turn.order]
    item.wanted += 1  # nobody but who held the conversation is asked
    item.taken += 1
    assignment = Assignment(
        item_id=item.id, person_id=talk.person_id, order=order, shown=turn.asked, expires=turn.asked, state="open"
    )
    session.add(assignment)
    session.flush()
    return record(session, assignment, value, seconds), None


def _item(session: Session, talk: Talk, turn: Turn, kind: str, wanted: int) -> Item:
    """The turn in the store: a new item, or the one that has the same conversation and answers already."""
    question = Question(
        kind=kind,
        prompt=list(talk.messages),
        answers=[{"text": a.text, "source": a.source, "complete": a.complete} for a in turn.answers],
        objective=MODES[talk.mode],
        topic=talk.topic,
        wanted=wanted,
        facts={"talk": talk.id, "mode": talk.mode, "turn": sum(m["role"] == "user" for m in talk.messages)},
    )
    added = add(session, [question], "chat", {"talk": talk.id, "mode": talk.mode, **turn.details})
    if added.items:
        return session.get_one(Item, added.items[0])
    return session.scalars(select(Item).where(Item.key == question.key)).one()
