"""What a page shows of a question, and what it says of how much there is: plain values, read in one transaction."""

import datetime
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from llm_rlhf.feedback import places, queue, saying
from llm_rlhf.feedback.labels import POINTS, SCALE, STRENGTHS, to_page
from llm_rlhf.feedback.settings import Settings, settings_of
from llm_rlhf.feedback.tables import Assignment, Item, Label, Person
from llm_rlhf.feedback.web.left import left

NAMES = "ABCDEFGHI"  # of answers on the page, by their place
SHORT = 120  # characters of a text that is only named
KIND_NAMES = {
    "compare": "Compare two answers",
    "rate": "Rate an answer",
    "rank": "Rank answers",
    "demonstrate": "Write the ideal answer",
    "correct": "Correct an answer",
    "annotate": "Label an answer",
    "chat": "Chat with the policy",
    "thumb": "A thumb for an answer",  # from a log or a file
}


@dataclass
class Task:
    """A question as one person sees it: answers by their places on the page, and nothing of where they come from."""

    assignment: int
    kind: str
    prompt: list[dict[str, Any]]
    answers: list[dict[str, str]]
    objective: str
    topic: str | None
    entry: bool
    draft: dict[str, Any] | None  # a label, or a part of one, by the page's places
    labels: list[str] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """As JSON."""
        told = asdict(self)
        labels = told.pop("labels")
        if self.kind in ("compare", "chat"):
            told["scale"] = {"points": SCALE, "strengths": list(STRENGTHS)}
        elif self.kind == "rate":
            told["scale"] = {"points": POINTS}
        elif self.kind == "annotate":
            told["labels"] = labels
        return told


@dataclass
class Progress:
    said: int
    remaining: int


@dataclass
class Overview:
    """What somebody could do: questions that are left of each kind and each topic."""

    progress: Progress
    kinds: dict[str, int]
    topics: dict[str, int]
    entry: bool  # the entry test comes first

    def told(self) -> dict[str, Any]:
        return asdict(self)


def task_of(session: Session, assignment: Assignment, settings: Settings) -> Task:
    item = session.get_one(Item, assignment.item_id)
    return Task(
        assignment=assignment.id,
        kind=item.kind,
        prompt=item.prompt,
        answers=[{"text": item.answers[place]["text"]} for place in assignment.order],
        objective=item.objective,
        topic=item.topic,
        entry=item.purpose == "entry",
        draft=_draft(assignment),
        labels=settings.labels if item.kind == "annotate" else [],
    )


def _draft(assignment: Assignment) -> dict[str, Any] | None:
    draft = assignment.draft
    if draft is not None and "said" in draft:  # after an undo: a label by the item's places
        return to_page(draft["said"], assignment.order)
    return draft


def progress_of(session: Session, person: Person, kind: str | None, topic: str | None) -> Progress:
    return Progress(saying.said_by(session, person), left(session, person, settings_of(session), kind, topic))


def overview(session: Session, person: Person, settings: Settings) -> Overview:
    there = places.counted(session, person)
    named = {topic for _, topic, _ in there if topic is not None}
    kinds = {kind: left(session, person, settings, kind) for kind in sorted({kind for kind, _, _ in there})}
    topics = {
        topic: left(session, person, settings, topic=topic)
        for topic in sorted(named)
        if topic in (settings.topics or named)
    }
    entry = queue.needs_entry_test(session, person, settings)
    return Overview(Progress(saying.said_by(session, person), left(session, person, settings)), kinds, topics, entry)


def choices(session: Session) -> tuple[list[str], list[str]]:
    """Kinds and topics that the store has questions of."""
    rows = session.execute(select(Item.kind, Item.topic).where(places.is_asked(), Item.purpose == "label").distinct())
    found = [tuple(row) for row in rows]
    kinds = {kind for kind, _ in found}
    return [kind for kind in KIND_NAMES if kind in kinds], sorted({topic for _, topic in found if topic is not None})


@dataclass
class Line:
    """Something that somebody said, as their own page tells it."""

    asked: str
    said: str
    when: datetime.datetime


def said_line(item: Item, label: Label) -> Line:
    return Line(_short(item.prompt[-1]["content"]), in_words(item, label.value), label.created)


def in_words(item: Item, value: dict[str, Any]) -> str:
    """A label by the item's places, as a sentence of what it says."""
    texts = [_short(answer["text"]) for answer in item.answers]
    if "choice" in value:
        if value["choice"] != "better":
            return {"tie": "A tie", "both bad": "Both bad"}.get(value["choice"], value["choice"])
        return f"{STRENGTHS[value['strength'] - 1].capitalize()}: {texts[value['better']]}"
    if item.kind == "rate":
        return f"Helpful {value['helpful']}, harmless {value['harmless']} of {POINTS}: {texts[0]}"
    if item.kind == "rank":
        return "; ".join(f"{rank}. {text}" for rank, text in sorted(zip(value["ranks"], texts, strict=True)))
    if item.kind == "thumb":
        return f"Thumb {'up' if value['good'] else 'down'}: {texts[0]}"
    if item.kind == "annotate":
        return f"{', '.join(value['labels']) or 'Comment'}: {_short(value['comment']) or texts[0]}"
    return f"{'Corrected' if item.kind == 'correct' else 'Written'}: {_short(value['text'])}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHORT else f"{text[:SHORT]}..."


def count(session: Session) -> int:
    """Questions in the store, of any kind."""
    return session.scalar(select(func.count()).select_from(Item)) or 0
