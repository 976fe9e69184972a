"""Coming in and going: invitation links, consent, guidelines, one's own page, withdrawal."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import select

from llm_rlhf.errors import DataError
from llm_rlhf.feedback import documents, people, saying
from llm_rlhf.feedback.tables import Document, Item, Label, Person
from llm_rlhf.feedback.web.context import Asked, Brought, Call, Posted, csrf_of
from llm_rlhf.feedback.web.security import cookie_name, whole_number
from llm_rlhf.feedback.web.work import KIND_NAMES, overview, said_line

router = APIRouter(include_in_schema=False)
LATEST = 50  # of somebody's own labels, on their page


@router.get("/i/{token}")
def invitation(token: str, call: Asked) -> Response:
    """A page with a button: whatever looks links up beforehand uses none up."""
    return call.page("invitation.html", token=token)


@router.post("/i/{token}")
def come_in(token: str, call: Brought) -> Response:
    with call.site.database.write() as session:
        person, cookie = people.enter(session, token)
        text = documents.current(session, "consent")
        days = people.settings_of(session).session_days
        agreed = person.consent_version == text.version
    call.site.limiter.remember(cookie)
    if call.wants_json:
        told = {"pseudonym": person.pseudonym, "role": person.role, "csrf": csrf_of(cookie)}
        response: Response = call.json(told | {"consent": _consent(text, agreed)})
    else:
        response = call.go("/")
    secure = call.request.url.scheme == "https" or call.site.access.is_https
    name = cookie_name(call.request.headers)
    response.set_cookie(name, cookie, days * 86_400, httponly=True, samesite="lax", secure=secure, path="/")
    return response


def _consent(text: Document, agreed: bool) -> dict[str, Any]:
    return {"version": text.version, "text": text.text, "agreed": agreed}


@router.get("/")
def home(call: Asked) -> Response:
    if call.cookie is None:
        return call.page("refused.html", 401, message="Open the link that you were invited by.", number=401)
    with call.reading(consented=True) as session:
        found = overview(session, call.person, call.settings)
    if call.wants_json:
        return call.json(found.told())
    return call.page("home.html", overview=found, kind_names=KIND_NAMES)


@router.get("/consent")
def consent(call: Asked) -> Response:
    with call.reading() as session:
        text = documents.current(session, "consent")
        agreed = people.has_consented(session, call.person)
    if call.wants_json:
        return call.json(_consent(text, agreed))
    return call.page("consent.html", text=text, agreed=agreed)


@router.post("/consent")
def agree(call: Posted) -> Response:
    version = call.fields.get("version")
    number = whole_number(str(version), -1)
    if number < 0:
        raise DataError(f"The version is {str(version)[:40]!r}; it is the number that the consent text has.")
    with call.writing() as session:
        people.consent(session, call.person, number)
        text = documents.current(session, "consent")
    return call.json(_consent(text, True)) if call.wants_json else call.go("/")


@router.get("/guidelines")
def guidelines(call: Asked) -> Response:
    with call.reading() as session:
        text = documents.current(session, "guidelines")
    if call.wants_json:
        return call.json({"version": text.version, "text": text.text})
    return call.page("guidelines_text.html" if call.is_fragment else "guidelines.html", text=text)


@router.get("/me")
def me(call: Asked) -> Response:
    with call.reading() as session:
        said = saying.said_by(session, call.person)
        mine = (
            select(Label, Item).join(Item, Item.id == Label.item_id).where(Label.person_id == call.person.id)
        ).order_by(Label.id.desc())
        latest = [said_line(item, label) for label, item in session.execute(mine.limit(LATEST))]
        text = documents.current(session, "consent")
        agreed = people.has_consented(session, call.person)
    if call.wants_json:
        return call.json(_of(call, call.person, said) | {"consent": _consent(text, agreed)})
    return call.page("me.html", said=said, latest=latest, consent=text, agreed=agreed)


def _of(call: Call, person: Person, said: int) -> dict[str, Any]:
    return {"pseudonym": person.pseudonym, "role": person.role, "said": said, "csrf": call.csrf}


@router.post("/me/withdraw")
def withdraw(call: Posted) -> Response:
    if call.fields.get("sure") not in ("yes", True):
        raise DataError("Say that you are sure: withdrawal cannot be taken back (sure: yes).")
    with call.writing() as session:
        people.withdraw(session, call.person)
    return _gone(call, "You have withdrawn. Nothing of yours will be used for another model. Thank you for your work.")


@router.post("/leave")
def leave(call: Posted) -> Response:
    with call.writing() as session:
        people.leave(session, str(call.cookie))
    return _gone(call, "You are logged out. Your link lets you in again.")


def _gone(call: Call, message: str) -> Response:
    response: Response = call.json({"left": True}) if call.wants_json else call.page("gone.html", message=message)
    response.delete_cookie(cookie_name(call.request.headers), path="/")
    return response
