"""What a route works with: one request, who it is from, the store in one transaction, and how the answer is written.

A route opens its transaction itself, in the thread that it runs in, and it is committed before the answer is sent:

    @router.post("/me/colour")
    def colour(call: Posted) -> Response:
        with call.writing() as session:
            ... call.person, call.fields ...
        return call.page("me.html", ...)
"""

import contextlib
import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy.orm import Session

from llm_rlhf.errors import DataError
from llm_rlhf.feedback import people
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.refusals import Forbidden, Unknown
from llm_rlhf.feedback.settings import Settings, settings_of
from llm_rlhf.feedback.tables import Person
from llm_rlhf.feedback.web.security import Access, Limiter, visit_cookie
from llm_rlhf.feedback.web.shown import prose, shown

DEEPEST = 32  # lists and objects in each other, of a body
HALVES = re.compile("[\ud800-\udfff]")
NOBODY = "You are not logged in. Open the link that you were invited by."


class NoConsent(Forbidden):
    """Somebody has not agreed to the newest consent text: as a page, they are led to it."""


@dataclass
class Site:
    """What all requests share.

    Args:
        voices: who answers in live chats; None: nobody.
    """

    database: Database
    access: Access
    limiter: Limiter
    templates: Environment
    version: str  # of the static files, so that a browser keeps them until they change
    voices: Any = None


def templates(**shared: Any) -> Environment:
    found = Environment(
        loader=PackageLoader("llm_rlhf.feedback.web"), autoescape=True, undefined=StrictUndefined, auto_reload=False,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.globals |= shared
    found.filters |= {"shown": shown, "prose": prose}
    return found


@dataclass
class Call:
    """One request. `person` and `settings` are there once a transaction was opened."""

    request: Request
    site: Site
    fields: dict[str, Any] = field(default_factory=dict)  # of a form, texts or lists of texts; of JSON, as they came
    person: Person = field(init=False)
    settings: Settings = field(init=False)

    @property
    def cookie(self) -> str | None:
        return visit_cookie(self.request.headers)

    @property
    def csrf(self) -> str:
        return csrf_of(self.cookie or "")

    @property
    def wants_json(self) -> bool:
        return "application/json" in self.request.headers.get("accept", "")

    @property
    def is_fragment(self) -> bool:
        """Whether htmx asked: it puts the answer into the page that is there."""
        return self.request.headers.get("hx-request") == "true"

    @contextlib.contextmanager
    def writing(self, lead: bool = False, consented: bool = False) -> Iterator[Session]:
        """A transaction that changes the store, for the person whose cookie this is.

        Args:
            lead: only leads may. consented: only who has agreed to the newest consent text may.
        """
        self._has_cookie()
        with self.site.database.write() as session:
            self._meet(session, lead, consented, writes=True)
            yield session

    @contextlib.contextmanager
    def reading(self, lead: bool = False, consented: bool = False) -> Iterator[Session]:
        """One that changes nothing; else as `writing`."""
        self._has_cookie()
        with self.site.database.read() as session:
            self._meet(session, lead, consented)
            yield session

    def _has_cookie(self) -> None:
        if self.cookie is None:
            raise Unknown(NOBODY)

    def _meet(self, session: Session, lead: bool, consented: bool, writes: bool = False) -> None:
        assert self.cookie is not None
        self.person = people.visitor(session, self.cookie, writes)
        self.site.limiter.remember(self.cookie)
        self.settings = settings_of(session)
        if lead:
            people.only_lead(self.person)
        if consented and not people.has_consented(session, self.person):
            if self.person.consent_version is None:
                raise NoConsent("Read the consent text, and agree to it, before you begin: /consent.")
            raise NoConsent(
                "The consent text has changed meanwhile. Agree to it in another window (/consent), then do this again."
            )

    def page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page of our templates. It finds `call` (person, settings, csrf) besides `values`."""
        return HTMLResponse(
            without_halves(self.site.templates.get_template(template).render(call=self, **values)), status
        )

    def json(self, value: Any, status: int = 200) -> Response:
        told = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return Response(without_halves(told), status, media_type="application/json")

    def go(self, path: str) -> Response:
        """On to another page of ours."""
        if self.is_fragment:
            return Response(status_code=204, headers={"hx-redirect": path})
        return RedirectResponse(path, 303)


def without_halves(text: str) -> str:
    """Text that can be sent: a model, and a file, can hold half of a surrogate pair, which no encoding can."""
    return HALVES.sub("\ufffd", text)


def csrf_of(cookie: str) -> str:
    """What proves that a change comes from a page that we gave to this cookie's browser."""
    return hashlib.sha256(f"csrf {cookie}".encode()).hexdigest()


async def asked(request: Request) -> Call:
    """A request that brings nothing along."""
    return Call(request, request.app.state.site)


async def brought(request: Request) -> Call:
    """A request with a body, of somebody who need not have come in yet: no cookie is asked for."""
    call = Call(request, request.app.state.site)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        call.fields = _json(await request.body())
    elif kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
        try:
            form = await request.form(max_files=0)
        except ValueError:  # a character set that is none
            raise DataError("The form cannot be read; it is UTF-8.") from None
        call.fields = {}
        for name in form:
            values = [_clean(value) for value in form.getlist(name) if isinstance(value, str)]
            call.fields[name] = values[0] if len(values) == 1 else values
    elif await request.body():
        raise DataError(f"The body is {kind or 'of no kind'}; it is JSON (application/json) or a form.")
    return call


async def posted(request: Request) -> Call:
    """A change: it has a cookie, and the token that goes with it."""
    if visit_cookie(request.headers) is None:
        raise Unknown(NOBODY)
    call = await brought(request)
    told = request.headers.get("x-csrf-token") or call.fields.pop("csrf", "")
    if not isinstance(told, str) or not hmac.compare_digest(told.encode(), call.csrf.encode()):
        raise Forbidden("This request does not come from a page that you were given. Load the page again.")
    return call


Asked = Annotated[Call, Depends(asked)]
Brought = Annotated[Call, Depends(brought)]
Posted = Annotated[Call, Depends(posted)]


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body or b"{}", parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise DataError("The body is no JSON.") from None
    if not isinstance(found, dict):
        raise DataError("The body is no JSON object.")
    return {_clean(name): _clean(value) for name, value in found.items()}


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _clean(value: Any, depth: int = 0) -> Any:
    """As it came, where both databases can hold it.

    Raises:
        DataError: for NUL and half characters, which one of them refuses and no page can show; and for what lies
            deeper in lists and objects than anything that is asked for.
    """
    if depth > DEEPEST:
        raise DataError(f"The body has lists and objects in each other, more than {DEEPEST} deep.")
    if isinstance(value, str):
        if "\x00" in value or any("\ud800" <= sign <= "\udfff" for sign in value):
            raise DataError("A text holds a NUL or half a character; leave it out.")
        return value.replace("\r\n", "\n")
    if isinstance(value, list):
        return [_clean(one, depth + 1) for one in value]
    if isinstance(value, dict):
        return {_clean(name): _clean(one, depth + 1) for name, one in value.items()}
    return value
