"""The lead's pages: how good the labels are, who the people are, settings and texts. Leads alone see them."""

from dataclasses import MISSING, Field, dataclass, fields
from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from llm_rlhf.errors import DataError
from llm_rlhf.feedback import adjudication, documents, people, settings
from llm_rlhf.feedback.quality import quality_of
from llm_rlhf.feedback.refusals import Absent
from llm_rlhf.feedback.settings import Settings
from llm_rlhf.feedback.tables import Decision, Document, Flag, Identity, Invitation, Item, Label, Person
from llm_rlhf.feedback.web import lead_items
from llm_rlhf.feedback.web.context import Asked, Call, Posted
from llm_rlhf.feedback.web.lead_items import done, text_of

router = APIRouter(include_in_schema=False)
router.include_router(lead_items.router)
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]
MOST_NAME = 200
TOLD = {  # what the lead reads beside each setting
    "title": "Title of the page",
    "people_per_item": "People asked each new question",
    "lease_minutes": "Minutes until a question that was opened and left is somebody else's",
    "gold_share": "Share of known questions among those shown, 0 to 1",
    "repeat_share": "Share of questions shown again with the answers swapped, 0 to 1",
    "repeat_after": "Questions before the same one comes again, at least",
    "entry_test": "The entry test comes first, where there is one",
    "entry_pass": "Share of known questions to answer as expected, 0 to 1",
    "words_per_second": "Words a second above which a label is told as hasty",
    "labels": "Labels to annotate with, one a line",
    "topics": "Topics to choose among, one a line; empty: those of the questions",
    "red_team": "Chats may be held in red-team mode",
    "session_days": "Days until somebody must log in again",
    "invitation_days": "Days that an invitation's link is good for",
}


@dataclass(frozen=True)
class Somebody:
    """A row of the page of people."""

    person: Person
    name: str | None
    labels: int
    link_until: Any  # the last day of a link that is good; None: there is none


@router.get("/lead")
def overview(call: Asked) -> Response:
    with call.reading(lead=True) as session:
        found = quality_of(session)
        todo = _todo(session)
    if call.wants_json:
        return call.json(found.as_json() | {"todo": todo})
    return call.page("lead.html", quality=found, todo=todo)


@router.get("/lead/people")
def everybody(call: Asked) -> Response:
    with call.reading(lead=True) as session:
        found = _everybody(session)
    if call.wants_json:
        return call.json([_told(one) for one in found])
    return call.page("lead_people.html", people=found, most=MOST_NAME)


@router.post("/lead/people")
def invite(call: Posted) -> Response:
    """A new person and their link, which is shown this once."""
    name = text_of(call.fields, "name").strip()[:MOST_NAME] or None
    with call.writing(lead=True) as session:
        simulated = call.fields.get("simulated") in ("yes", True)
        person, token = people.invite(session, text_of(call.fields, "role") or "annotator", name, simulated)
    return _link(call, person, token)


@router.post("/lead/people/{number}/link")
def new_link(number: Number, call: Posted) -> Response:
    with call.writing(lead=True) as session:
        person = _person(session, number)
        token = people.link_for(session, person)
    return _link(call, person, token)


@router.post("/lead/people/{number}/identity")
def delete_identity(number: Number, call: Posted) -> Response:
    """Delete the name behind a pseudonym; what they said stays."""
    with call.writing(lead=True) as session:
        identity = session.get(Identity, _person(session, number).id)
        if identity is not None:
            session.delete(identity)
    return done(call, "/lead/people?done=1")


@router.post("/lead/people/{number}/shut-out")
def shut_out(number: Number, call: Posted) -> Response:
    with call.writing(lead=True) as session:
        person = _person(session, number)
        if person.id == call.person.id:
            raise DataError("This is you: log out instead, or let another lead do it.")
        people.shut_out(session, person)
    return done(call, "/lead/people?done=1")


@router.post("/lead/people/{number}/forget")
def forget(number: Number, call: Posted) -> Response:
    """Delete the labels of somebody who has withdrawn."""
    with call.writing(lead=True) as session:
        people.forget(session, _person(session, number))
    return done(call, "/lead/people?done=1")


@router.get("/lead/settings")
def see_settings(call: Asked) -> Response:
    with call.reading(lead=True) as session:
        texts = {kind: documents.current(session, kind) for kind in documents.DEFAULTS}
        versions = session.scalars(select(Document).order_by(Document.kind, Document.version.desc())).all()
        not_agreed = _not_agreed(session)
    if call.wants_json:
        return call.json({field.name: getattr(call.settings, field.name) for field in fields(Settings)})
    rows = [(field.name, TOLD[field.name], getattr(call.settings, field.name)) for field in fields(Settings)]
    rows.sort(key=lambda row: (isinstance(row[2], list), isinstance(row[2], bool)))  # alike beside alike on the page
    return call.page("lead_settings.html", rows=rows, texts=texts, versions=versions, not_agreed=not_agreed)


@router.post("/lead/settings")
def change_settings(call: Posted) -> Response:
    """JSON: some of them, by name. A form: all of them."""
    with call.writing(lead=True) as session:
        given = call.fields if _is_json(call) else {f.name: _of_form(f, call) for f in fields(Settings)}
        changes = {name: value for name, value in given.items() if value != getattr(call.settings, name, MISSING)}
        settings.change(session, changes)
    return done(call, "/lead/settings?done=1")


@router.post("/lead/documents/{kind}")
def publish(kind: str, call: Posted) -> Response:
    """A text as the newest version; of consent, everybody is asked anew."""
    if kind not in documents.DEFAULTS:
        raise Absent(f"There is no text {kind[:40]!r}; there are {' and '.join(documents.DEFAULTS)}.")
    text = text_of(call.fields, "text").strip()
    if not text:
        raise DataError("The text is empty.")
    with call.writing(lead=True) as session:
        documents.publish(session, kind, text + "\n")
    return done(call, "/lead/settings?done=1")


def _todo(session: Session) -> dict[str, int]:
    """What waits for a lead."""

    def count(query: Any) -> int:
        return session.scalar(query) or 0

    return {
        "disagreements": adjudication.disagreements(session, 0)[1],
        "reports": count(select(func.count()).select_from(Flag).where(Flag.resolved.is_(None))),
        "held": count(select(func.count()).select_from(Item).where(Item.state == "held")),
        "decided": count(select(func.count()).select_from(Decision)),
        "open": count(
            select(func.count()).where(Item.state == "open", Item.purpose == "label", Item.taken < Item.wanted)
        ),
    }


def _everybody(session: Session) -> list[Somebody]:
    names = {one.person_id: one.name for one in session.scalars(select(Identity))}
    counts = {
        row[0]: row[1] for row in session.execute(select(Label.person_id, func.count()).group_by(Label.person_id))
    }
    until = {
        row[0]: row[1]
        for row in session.execute(
            select(Invitation.person_id, func.max(Invitation.expires))
            .where(Invitation.expires > people.now())
            .group_by(Invitation.person_id)
        )
    }
    return [
        Somebody(person, names.get(person.id), counts.get(person.id, 0), until.get(person.id))
        for person in session.scalars(select(Person).order_by(Person.withdrawn.is_not(None), Person.id))
    ]


def _told(one: Somebody) -> dict[str, Any]:
    return {
        "number": one.person.id,
        "pseudonym": one.person.pseudonym,
        "role": one.person.role,
        "simulated": one.person.simulated,
        "name": one.name,
        "labels": one.labels,
        "withdrawn": one.person.withdrawn is not None,
    }


def _not_agreed(session: Session) -> int:
    """People who are there and have not agreed to the newest consent text."""
    newest = documents.current_version(session, "consent")
    agreed = func.coalesce(Person.consent_version, 0) != newest
    return session.scalar(select(func.count()).select_from(Person).where(Person.withdrawn.is_(None), agreed)) or 0


def _person(session: Session, number: int) -> Person:
    person = session.get(Person, number)
    if person is None:
        raise Absent("There is no such person.")
    return person


def _link(call: Call, person: Person, token: str) -> Response:
    base = call.site.access.public_url or str(call.request.base_url)
    link = f"{base.rstrip('/')}/i/{token}"
    if call.wants_json:
        told = {"number": person.id, "pseudonym": person.pseudonym, "role": person.role, "link": link, "token": token}
        return call.json(told)
    return call.page("lead_link.html", invited=person, link=link)


def _of_form(field: Field[Any], call: Call) -> Any:
    """A setting as the form's text says it.

    Raises:
        DataError: where a number is none.
    """
    before = getattr(call.settings, field.name)
    if isinstance(before, bool):
        return call.fields.get(field.name) == "yes"
    text = text_of(call.fields, field.name).strip()
    if isinstance(before, list):
        return [line.strip() for line in text.split("\n") if line.strip()]
    try:
        return type(before)(text)
    except ValueError:
        raise DataError(
            f"{TOLD[field.name]}: {text[:40]!r} is no {'whole ' * isinstance(before, int)}number."
        ) from None


def _is_json(call: Call) -> bool:
    return call.request.headers.get("content-type", "").startswith("application/json")
