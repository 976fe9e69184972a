"""The work: one question after another, each answered, skipped, reported or taken back in one transaction."""

from dataclasses import asdict
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Path
from fastapi.responses import Response
from sqlalchemy.orm import Session

from llm_rlhf.errors import DataError
from llm_rlhf.feedback import queue, saying
from llm_rlhf.feedback.labels import KINDS, MOST_TEXT, POINTS, STRENGTHS
from llm_rlhf.feedback.refusals import Settled
from llm_rlhf.feedback.tables import Assignment, Item
from llm_rlhf.feedback.web.context import Asked, Call, Posted
from llm_rlhf.feedback.web.forms import draft_of, label_of, point_of, seconds_of
from llm_rlhf.feedback.web.work import KIND_NAMES, NAMES, Progress, Task, choices, progress_of, task_of

router = APIRouter(include_in_schema=False)
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]
MOST_REASON = 2_000  # characters of a reason or a report
REASONS = (
    "I cannot judge this",
    "I do not know the subject",
    "It is in a language that I do not read well",
    "It upsets me",
)


@router.get("/tasks")
def work(call: Asked) -> Response:
    with call.writing(consented=True) as session:
        found = _next(session, call)
        kinds, topics = ([], []) if call.wants_json or call.is_fragment else choices(session)
    if call.wants_json or call.is_fragment:
        return _answer(call, *found)
    return _page(call, *found, kinds, topics)


@router.post("/tasks/{number}")
def say(number: Number, call: Posted) -> Response:
    """Keep what somebody finally said, and give them the next question."""
    with call.writing(consented=True) as session:
        assignment = saying.assignment_of(session, call.person, number)
        value = _value(session, call, assignment)
        before = call.person.entry_tries
        saying.record(session, assignment, value, seconds_of(call.fields.get("seconds")))
        found = _next(session, call)
        message = _after(call, before)
    return _answer(call, *found, message)


@router.post("/tasks/{number}/draft")
def draft(number: Number, call: Posted) -> Response:
    with call.writing(consented=True) as session:
        assignment = saying.assignment_of(session, call.person, number)
        kind = session.get_one(Item, assignment.item_id).kind
        given = call.fields.get("draft", call.fields.get("value"))
        saying.save_draft(session, assignment, draft_of(kind, label_of(kind, call.fields) if given is None else given))
    return call.json({"saved": True})


@router.post("/tasks/{number}/skip")
def skip(number: Number, call: Posted) -> Response:
    reason = _words(call, "reason", "Say why you skip it; a lead reads it.")
    with call.writing(consented=True) as session:
        before = call.person.entry_tries
        saying.skip(session, saying.assignment_of(session, call.person, number), reason)
        found = _next(session, call)
        message = _after(call, before, "Skipped.")
    return _answer(call, *found, message)


@router.post("/tasks/{number}/report")
def report(number: Number, call: Posted) -> Response:
    """Tell a lead of a question. What holds personal data is shown to nobody from then on."""
    kind = str(call.fields.get("kind", "report"))
    text = _words(call, "text", "Say what is wrong with it.") if kind == "report" else _words(call, "text", None)
    with call.writing(consented=True) as session:
        saying.report(session, saying.assignment_of(session, call.person, number), kind, text)
        found = _next(session, call)
    return _answer(call, *found, "Reported. A lead will look at it. Thank you.")


@router.post("/undo")
def undo(call: Posted) -> Response:
    with call.writing(consented=True) as session:
        assignment = saying.undo(session, call.person)
        if assignment is None:
            raise Settled("There is nothing to undo.")
        found = task_of(session, assignment, call.settings), progress_of(session, call.person, *_filter(call))
    return _answer(call, *found, "Taken back. Say it again, as you would have it.")


def _next(session: Session, call: Call) -> tuple[Task | None, Progress]:
    kind, topic = _filter(call)
    session.flush()
    assignment = queue.next_for(session, call.person, kind, topic)
    task = None if assignment is None else task_of(session, assignment, call.settings)
    return task, progress_of(session, call.person, kind, topic)


def _filter(call: Call) -> tuple[str | None, str | None]:
    """What somebody wants to be asked, from the address; None: anything."""
    kind = call.request.query_params.get("kind") or None
    if kind is not None and kind not in KINDS:
        raise DataError(f"The kind is {kind[:40]!r}; it is one of {', '.join(KINDS)}.")
    return kind, (call.request.query_params.get("topic") or None)


def _value(session: Session, call: Call, assignment: Assignment) -> Any:
    item = session.get_one(Item, assignment.item_id)
    value = call.fields["value"] if "value" in call.fields else label_of(item.kind, call.fields)
    labels = value.get("labels") if item.kind == "annotate" and isinstance(value, dict) else None
    known = call.settings.labels
    if isinstance(labels, list) and (strange := [str(label) for label in labels if label not in known]):
        raise DataError(f"The label {strange[0][:64]!r} is none of this store's: {', '.join(call.settings.labels)}.")
    return value


def _words(call: Call, name: str, missing: str | None) -> str:
    text = call.fields.get(name, "")
    given = [one for one in (text if isinstance(text, list) else [text]) if isinstance(one, str) and one.strip()]
    if not given and missing is not None:
        raise DataError(missing)
    return "; ".join(given).strip()[:MOST_REASON]


def _after(call: Call, tries: int, done: str = "Saved.") -> str:
    """What is said of an answer: that it is saved, and how the entry test went once it is over."""
    if call.person.entry_tries == tries:
        return done
    score = f"{call.person.entry_score or 0:.0%}"
    if call.person.entry_passed is not None:
        return f"You have passed the entry test ({score} as expected). Thank you; here is your first question."
    return (
        f"The entry test was answered as expected by {score}, and {call.settings.entry_pass:.0%} is needed. "
        "Read the guidelines once more, and begin it again."
    )


def _answer(call: Call, task: Task | None, progress: Progress, message: str = "") -> Response:
    if call.wants_json:
        told = {"task": None if task is None else task.told(), "progress": asdict(progress)}
        return call.json(told | ({"message": message} if message else {}))
    if not call.is_fragment:
        return call.go(_address("/tasks", call))
    return call.page("task.html", **_values(call, task, progress), message=message)


def _page(call: Call, task: Task | None, progress: Progress, kinds: list[str], topics: list[str]) -> Response:
    shown = call.settings.topics or topics
    return call.page("work.html", **_values(call, task, progress), message="", kinds=kinds, topics=shown)


def _values(call: Call, task: Task | None, progress: Progress) -> dict[str, Any]:
    kind, topic = _filter(call)
    return {
        "task": task,
        "progress": progress,
        "kind": kind,
        "topic": topic,
        "query": _address("", call),
        "point": None if task is None else point_of(task.draft),
        "names": NAMES,
        "kind_names": KIND_NAMES,
        "strengths": STRENGTHS,
        "points": POINTS,
        "reasons": REASONS,
        "most": MOST_TEXT,
    }


def _address(path: str, call: Call) -> str:
    """With what somebody wants to be asked."""
    kind, topic = _filter(call)
    chosen = {name: value for name, value in (("kind", kind), ("topic", topic)) if value}
    return f"{path}?{urlencode(chosen)}" if chosen else path
