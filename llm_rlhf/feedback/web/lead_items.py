"""What waits for a lead: disagreements to settle, reports and held questions to look at, known questions to make."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from llm_rlhf.errors import DataError
from llm_rlhf.feedback import adjudication
from llm_rlhf.feedback.adjudication import LEAVE_OUT, Disputed, Opinion
from llm_rlhf.feedback.labels import MOST_TEXT, POINTS, STRENGTHS, from_scale
from llm_rlhf.feedback.queue import Question
from llm_rlhf.feedback.tables import Decision, Flag, Item, Label, Person
from llm_rlhf.feedback.web.context import Asked, Call, Posted
from llm_rlhf.feedback.web.security import whole_number
from llm_rlhf.feedback.web.work import KIND_NAMES, NAMES
from llm_rlhf.statistics.intervals import wilson

router = APIRouter(include_in_schema=False)
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]
From = Annotated[int, Query(alias="from", ge=0, le=2**31 - 1)]
A_PAGE = 10  # disagreements
VERDICTS = [  # of a comparison, as the lead chooses them: points of the scale with A at the left
    *((str(5 - strength), f"A is {STRENGTHS[strength - 1]}") for strength in (4, 3, 2, 1)),
    ("tie", "A tie"),
    *((str(4 + strength), f"B is {STRENGTHS[strength - 1]}") for strength in (1, 2, 3, 4)),
    ("both bad", "Both bad"),
]


@router.get("/lead/disagreements")
def disagreements(call: Asked, start: From = 0) -> Response:
    with call.reading(lead=True) as session:
        found, count = adjudication.disagreements(session, A_PAGE, start)
    if call.wants_json:
        return call.json({"count": count, "disagreements": [_told(one) for one in found]})
    return call.page("lead_disagreements.html", **_shared(), found=found, count=count, start=start, a_page=A_PAGE)


@router.get("/lead/items/{number}")
def item(number: Number, call: Asked) -> Response:
    with call.reading(lead=True) as session:
        found = adjudication.item_of(session, number)
        said = adjudication.opinions(session, number)
        decision = session.get(Decision, number)
        by = None if decision is None else session.get_one(Person, decision.person_id).pseudonym
        flags = [
            (flag, session.get_one(Person, flag.person_id).pseudonym if flag.person_id else None)
            for flag in session.scalars(select(Flag).where(Flag.item_id == number).order_by(Flag.id))
        ]
    if call.wants_json:
        return call.json(_told(Disputed(found, said)) | {"decision": None if decision is None else decision.value})
    one, sources = Disputed(found, said), [answer.get("source") for answer in found.answers]
    return call.page("lead_item.html", **_shared(), one=one, decision=decision, by=by, flags=flags, sources=sources)


@router.post("/lead/items/{number}/decide")
def decide(number: Number, call: Posted) -> Response:
    with call.writing(lead=True) as session:
        found = adjudication.item_of(session, number)
        value = _decision(session, found, call.fields)
        decision = adjudication.decide(session, call.person, found, value, text_of(call.fields, "comment")[:MOST_TEXT])
    if call.is_fragment:
        return call.page("lead_decided.html", **_shared(), item=found, decision=decision)
    return done(call, f"/lead/items/{number}")


@router.post("/lead/items/{number}/take-back")
def take_back(number: Number, call: Posted) -> Response:
    with call.writing(lead=True) as session:
        adjudication.take_back(session, adjudication.item_of(session, number))
    return done(call, f"/lead/items/{number}")


@router.get("/lead/reports")
def reports(call: Asked) -> Response:
    with call.reading(lead=True) as session:
        flags, held = adjudication.open_flags(session), adjudication.held_items(session)
    waiting: dict[int, tuple[Item, list[tuple[Flag, str | None]]]] = {one.id: (one, []) for one in held}
    for flag, of, name in flags:
        waiting.setdefault(of.id, (of, []))[1].append((flag, name))
    if call.wants_json:
        return call.json([_waiting(of, told) for of, told in waiting.values()])
    return call.page("lead_reports.html", **_shared(), waiting=list(waiting.values()))


@router.post("/lead/items/{number}/release")
def release(number: Number, call: Posted) -> Response:
    return _settled(call, number, adjudication.release, "It is asked like any other now.")


@router.post("/lead/items/{number}/close")
def close(number: Number, call: Posted) -> Response:
    return _settled(call, number, adjudication.close, "It is asked no more.")


@router.post("/lead/reports/{number}/dismiss")
def dismiss(number: Number, call: Posted) -> Response:
    with call.writing(lead=True) as session:
        found = adjudication.dismiss(session, number, text_of(call.fields, "why"))
    return _answered(call, found, "The report is resolved; the question stays as it is.")


@router.get("/lead/known")
def known(call: Asked) -> Response:
    with call.reading(lead=True) as session:
        found = adjudication.known_items(session)
    rows = [(one, wilson(one.right, one.asked) if one.asked else None) for one in found]
    if call.wants_json:
        return call.json([_known(one, interval) for one, interval in rows])
    return call.page("lead_known.html", **_shared(), rows=rows, most=MOST_TEXT)


@router.post("/lead/known")
def new_known(call: Posted) -> Response:
    """A comparison whose answer a lead knows, as a form or as JSON."""
    fields = call.fields
    answers = [{"text": _needed(fields, name, title), "source": None} for name, title in (("a", "A"), ("b", "B"))]
    value = _comparison(text_of(fields, "decision"))
    question = Question(
        "compare",
        [{"role": "user", "content": _needed(fields, "prompt", "The question")}],
        answers,
        text_of(fields, "objective") or "overall",
        text_of(fields, "topic").strip() or None,
        text_of(fields, "purpose"),
        {"value": value, "why": text_of(fields, "why")},
    )
    if question.objective not in ("helpful", "harmless", "overall"):
        raise DataError(f"The objective is {question.objective[:40]!r}; it is helpful, harmless or overall.")
    with call.writing(lead=True) as session:
        made = adjudication.new_known(session, question)
    return call.json({"item": made.id, "state": made.state}) if call.wants_json else call.go("/lead/known?done=1")


@router.post("/lead/items/{number}/known")
def make_known(number: Number, call: Posted) -> Response:
    """Make a known question of an item, its decision the answer that is expected."""
    purpose = text_of(call.fields, "purpose")
    if purpose not in ("gold", "entry"):
        raise DataError(f"The purpose is {purpose[:40]!r}; it is gold or entry.")
    with call.writing(lead=True) as session:
        found = adjudication.item_of(session, number)
        decision = session.get(Decision, number)
        if decision is None or decision.value == LEAVE_OUT:
            raise DataError("Decide first which answer is right; that is what is expected of people then.")
        why = text_of(call.fields, "why") or decision.comment or ""
        made = adjudication.make_known(session, found, purpose, decision.value, why)
    return call.json({"item": made.id}) if call.wants_json else call.go("/lead/known?done=1")


def by_letter(kind: str, value: dict[str, Any]) -> str:
    """A label in words, answers by the letters that they have on the lead's page: A is the item's first."""
    if "choice" in value:
        told = {"tie": "A tie", "both bad": "Both bad", "leave out": "Leave it out"}
        if value["choice"] != "better":
            return told[value["choice"]]
        return f"{NAMES[value['better']]} is {STRENGTHS[value['strength'] - 1]}"
    if kind == "rate":
        return f"Helpful {value['helpful']}, harmless {value['harmless']} (of {POINTS})"
    if kind == "rank":
        ranks = value["ranks"]
        places = [[NAMES[p] for p, r in enumerate(ranks) if r == rank] for rank in range(1, max(ranks) + 1)]
        return " > ".join(" = ".join(names) for names in places)
    if kind == "thumb":
        return f"Thumb {'up' if value['good'] else 'down'}"
    if kind == "annotate":
        return ", ".join(value["labels"]) or "No label"
    if kind == "correct":
        return f"{NAMES[value['better']]} is better, corrected"
    return "Written"


def _decision(session: Session, of: Item, fields: dict[str, Any]) -> dict[str, Any]:
    """What a lead decided: a label of their own, somebody's, or to leave the item out.

    Raises:
        DataError: where the form says none of these.
    """
    if isinstance(fields.get("value"), dict):
        return dict(fields["value"])
    said = text_of(fields, "decision")
    if said == "leave out":
        return LEAVE_OUT
    if said.startswith("like:"):
        label = session.get(Label, whole_number(said[5:], 0))
        if label is None or label.item_id != of.id:
            raise DataError("Nobody has said that of this question.")
        return label.value
    if of.kind in ("compare", "chat"):
        return _comparison(said)
    if of.kind == "rate":
        return {name: whole_number(text_of(fields, name), 0) for name in ("helpful", "harmless")}
    raise DataError("Choose what this question's label is.")


def _comparison(said: str) -> dict[str, Any]:
    """A comparison by the item's places, as VERDICTS names it."""
    if said not in dict(VERDICTS):
        raise DataError("Choose what is right: A or B, and by how much, a tie, or both bad.")
    return from_scale(int(said)) if said.isdecimal() else {"choice": said}


def _settled(call: Call, number: int, act: Any, told: str) -> Response:
    with call.writing(lead=True) as session:
        found = adjudication.item_of(session, number)
        act(session, found, text_of(call.fields, "why"))
    return _answered(call, found, told)


def _answered(call: Call, of: Item, told: str) -> Response:
    if call.is_fragment:
        return call.page("lead_settled.html", item=of, told=told)
    return done(call, "/lead/reports")


def _shared() -> dict[str, Any]:
    """What the templates of items go by."""
    return {"letters": NAMES, "kind_names": KIND_NAMES, "verdicts": VERDICTS, "points": POINTS, "by_letter": by_letter}


def _told(one: Disputed) -> dict[str, Any]:
    return _item(one.item) | {"said": [_opinion(said) for said in one.opinions]}


def _item(of: Item) -> dict[str, Any]:
    names = ("kind", "state", "held_for", "prompt", "answers", "objective", "topic", "purpose", "expected")
    return {"item": of.id} | {name: getattr(of, name) for name in names}


def _opinion(said: Opinion) -> dict[str, Any]:
    return {"person": said.person, "value": said.value, "seconds": said.seconds, "hasty": said.hasty, "turn": said.turn}


def _waiting(of: Item, flags: list[tuple[Flag, str | None]]) -> dict[str, Any]:
    told = [{"number": flag.id, "kind": flag.kind, "text": flag.text, "by": name} for flag, name in flags]
    return _item(of) | {"reports": told}


def _known(one: adjudication.Known, interval: Any) -> dict[str, Any]:
    return _item(one.item) | {"right": None if interval is None else interval._asdict()}


def _needed(fields: dict[str, Any], name: str, title: str) -> str:
    text = text_of(fields, name).strip()
    if not text:
        raise DataError(f"{title} is empty.")
    return text[:MOST_TEXT]


def text_of(fields: dict[str, Any], name: str) -> str:
    """A field of a form; empty where it is missing.

    Raises:
        DataError: where it is no text.
    """
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise DataError(f"{name} is no text.")
    return value


def done(call: Call, path: str) -> Response:
    """The answer to a change: on to a page, or said so to a program."""
    return call.json({"done": True}) if call.wants_json else call.go(path)
