"""The feedback page as an ASGI application: its routers, what stands before them, and how refusals are told."""

import hashlib
import importlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.refusals import Refusal
from llm_rlhf.feedback.web import entrance, tasks
from llm_rlhf.feedback.web.context import Call, NoConsent, Site, templates
from llm_rlhf.feedback.web.security import Access, Guard, Limiter

STATIC = Path(__file__).parent / "static"
ROUTERS = [entrance.router, tasks.router]
for _name in ("lead", "chat"):
    if importlib.util.find_spec(f"llm_rlhf.feedback.web.{_name}") is not None:
        ROUTERS.append(importlib.import_module(f"llm_rlhf.feedback.web.{_name}").router)

logger = logging.getLogger("llm_rlhf.feedback")


def create_app(
    database: Database, access: Access | None = None, voices: Any = None, limiter: Limiter | None = None
) -> FastAPI:
    """The page over a store.

    Args:
        access: under which names it is reached; None: on this machine alone.
        voices: who answers in live chats; None: nobody, and there is no chat.
        limiter: how much one visit may ask; None: what a quick person never reaches.
    """
    access, limiter = access or Access(), limiter or Limiter()
    version = _version()
    app = FastAPI(title="llm-rlhf feedback", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.site = Site(database, access, limiter, templates(version=version, has_chat=voices is not None), version,
                          voices)  # fmt: skip
    app.mount("/static", Static(directory=STATIC), name="static")
    for router in ROUTERS:
        app.include_router(router)
    app.add_api_route("/health", _health, include_in_schema=False)
    for kind in (
        Refusal,
        DataError,
        RecipeError,
        RequestValidationError,
        HTTPException,
        OperationalError,
        NoConnection,
    ):
        app.add_exception_handler(kind, _told)
    app.add_middleware(Guard, access=access, limiter=limiter)
    return app


class Static(StaticFiles):
    """Files whose address names their version, so that a browser need not ask again."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


def _version() -> str:
    files = sorted(path for path in STATIC.iterdir() if path.suffix in (".css", ".js"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _health() -> dict[str, str]:
    return {"status": "ok"}


def _told(request: Request, error: Exception) -> Response:
    """A refusal in the words that whoever asked can read: JSON, text for htmx, or a page."""
    status, message, headers = _of(error)
    call = Call(request, request.app.state.site)
    if isinstance(error, NoConsent) and not call.wants_json and not call.is_fragment:
        return call.go("/consent")
    if call.wants_json:
        return JSONResponse({"error": message}, status, headers)
    if call.is_fragment:
        return PlainTextResponse(message, status, headers)
    page = call.page("refused.html", status, message=message, number=status)
    page.headers.update(headers or {})
    return page


def _of(error: Exception) -> tuple[int, str, Any]:
    if isinstance(error, Refusal):
        return error.status, str(error), None
    if isinstance(error, DataError | RecipeError):
        return 400, str(error), None
    if isinstance(error, HTTPException):
        told = {404: "There is no such page.", 405: "That cannot be done here."}
        return error.status_code, told.get(error.status_code, str(error.detail)), error.headers
    if isinstance(error, RequestValidationError):
        found = error.errors()[0]
        if found["loc"][0] == "path":
            return 404, "There is no such page.", None
        return 400, f"{'.'.join(map(str, found['loc']))}: {found['msg']}.", None
    logger.error("the store: %s", getattr(error, "orig", error))
    return 503, "The store did not take it. Nothing was saved; try again in a moment.", {"retry-after": "5"}
