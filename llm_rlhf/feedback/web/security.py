"""What stands before every route: who may speak to this server at all, how much, how often, and with which headers.

A plain ASGI middleware, so that answers that are streamed stay streamed. It keeps no address of anybody: how often
somebody asks is counted by their visit, and for all who have none together.
"""

import ipaddress
import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 256 * 1024  # of a request's body: a text of labels.MOST_TEXT characters, each written as an escape, fits
MOST_PATH = 1024  # characters of a path and its query
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    # With no-referrer a browser says `Origin: null` of our own forms, which then could not be told from a stranger's.
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
LOOPBACK = "localhost"

logger = logging.getLogger("llm_rlhf.feedback")


@dataclass
class Access:
    """Under which names the page is reached.

    Args:
        host: the address that the server listens on.
        public_url: where it stands behind a proxy, as people's browsers name it; None: nowhere.
    """

    host: str = "127.0.0.1"
    public_url: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine reaches the server itself."""
        return self.host == LOOPBACK or _is_loopback(self.host)

    @property
    def is_https(self) -> bool:
        return (self.public_url or "").startswith("https:")

    def knows_host(self, header: str | None) -> bool:
        """Whether a Host header names us. A page elsewhere whose name was bent to this machine says its own name.

        A number cannot be bent: on a server that others reach, any address is good.
        """
        name = _name(header or "")
        if name is None:
            return False
        if self.public_url and name == _name(urlsplit(self.public_url).netloc):
            return True
        if name == LOOPBACK or _is_loopback(name):
            return True
        ours = {self.host.lower(), socket.gethostname().lower()}
        return not self.is_local and (name in ours or _is_address(name))

    def knows_origin(self, origin: str | None, host: str | None) -> bool:
        """Whether an Origin header, where there is one, is our own."""
        if origin is None:
            return True
        try:
            found = urlsplit(origin)
        except ValueError:
            return False
        if found.scheme not in ("http", "https"):
            return False
        ours = urlsplit(self.public_url) if self.public_url else None
        if ours is not None and (found.scheme, found.netloc) == (ours.scheme, ours.netloc):
            return True
        return bool(host) and found.netloc == host


@dataclass
class Limiter:
    """So many requests a second, and so many at once: a token bucket for each visit, one for all who have none.

    Args:
        rate, burst: of a visit. others_rate, others_burst: of all requests without a visit that is known.
        clock: seconds.
    """

    rate: float = 50.0
    burst: float = 150.0
    others_rate: float = 40.0
    others_burst: float = 300.0
    clock: Callable[[], float] = time.monotonic
    most: int = 10_000  # visits that are remembered
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)
    _others: tuple[float, float] | None = None

    def remember(self, cookie: str) -> None:
        """From now on that visit has a bucket of its own: it was found to be somebody's."""
        if cookie not in self._buckets:
            self._buckets[cookie] = (self.burst, self.clock())
            while len(self._buckets) > self.most:
                self._buckets.popitem(last=False)

    def wait(self, cookie: str | None) -> float:
        """Take one from the bucket; 0, or the seconds until there is one again."""
        if cookie is not None and (bucket := self._buckets.get(cookie)) is not None:
            seconds, self._buckets[cookie] = _take(bucket, self.rate, self.burst, self.clock())
            self._buckets.move_to_end(cookie)
        else:
            seconds, self._others = _take(
                self._others or (self.others_burst, self.clock()), self.others_rate, self.others_burst, self.clock()
            )
        return seconds


def _take(bucket: tuple[float, float], rate: float, burst: float, now: float) -> tuple[float, tuple[float, float]]:
    left, then = bucket
    left = min(burst, left + (now - then) * rate)
    return (0.0, (left - 1, now)) if left >= 1 else ((1 - left) / rate, (left, now))


class Guard:
    """Refuses what is no request to this page, and gives every answer its headers."""

    def __init__(self, app: ASGIApp, access: Access, limiter: Limiter) -> None:
        self.app, self.access, self.limiter = app, access, limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            elif scope["type"] == "websocket":  # nobody is spoken to that way
                await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = _with(message["headers"])
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is None and scope["method"] not in ("GET", "HEAD"):
            try:
                body = await _body(receive, headers)
            except ClientDisconnect:  # half a form can be read as a whole one, with half of what somebody wrote
                return
            if body is None:
                refusal = _said(413, f"This is too much: a request has at most {MOST_BYTES // 1024} KiB.", headers)
            else:
                receive = _again(body, receive)
        try:
            await (refusal or self.app)(scope, receive, with_headers)
        except Exception:
            if not started:
                told = _said(500, "Something went wrong here. Nothing was saved; try again.", headers)
                await told(scope, receive, with_headers)
            raise  # the server logs it

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        raw = bytes(scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        if len(raw) + len(scope.get("query_string", b"")) > MOST_PATH:
            return _said(414, "This address is too long.", headers)
        if not _is_plain(raw) or not _is_plain(scope["path"]) or b"%00" in scope.get("query_string", b""):
            return _said(400, "This address is none of ours.", headers)
        if "transfer-encoding" in headers and "content-length" in headers:  # a proxy may believe the other one
            return _said(400, "This request says its length in two ways.", headers)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.access.knows_host(hosts[0]):
            return _said(
                400, "This server does not go by that name. Behind a proxy, start it with --public-url.", headers
            )
        if scope["method"] not in ("GET", "HEAD") and not self.access.knows_origin(headers.get("origin"), hosts[0]):
            return _said(
                403, "This came from another page. Behind a proxy, start the server with --public-url.", headers
            )
        if scope["path"] != "/health" and (seconds := self.limiter.wait(visit_cookie(headers))):
            return _said(429, "Too many requests; wait a moment.", headers, {"retry-after": str(int(seconds) + 1)})
        return None


def whole_number(text: str, otherwise: int) -> int:
    """A number of at most nine digits as somebody wrote it, 0 or more; `otherwise` where it is none.

    Python's own reading fails at more than 4,300 digits, which take quadratic time.
    """
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else otherwise


def cookie_name(headers: Headers) -> str:
    """What the cookie of a visit is called: browsers give a host's cookies to all its ports, and each may be a page."""
    try:
        port = urlsplit(f"//{headers.get('host', '')}").port
    except ValueError:
        port = None
    return "visit" if port is None else f"visit-{port}"


def visit_cookie(headers: Headers) -> str | None:
    """The cookie of a visit, read as plainly as it was set."""
    ours = cookie_name(headers)
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == ours and value:
            return value
    return None


def _with(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Ours, where an answer has not its own."""
    given = list(headers)
    names = {name.lower() for name, _ in given}
    ours = HEADERS | {"cache-control": "no-store"}
    return given + [(name.encode(), value.encode()) for name, value in ours.items() if name.encode() not in names]


async def _body(receive: Receive, headers: Headers) -> bytes | None:
    """The whole body, or None where it is larger than we take; what it says of its length is not believed.

    Raises:
        ClientDisconnect: where the connection broke before its end.
    """
    if (told := headers.get("content-length")) is not None and not 0 <= whole_number(told, -1) <= MOST_BYTES:
        return None
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """What `receive` would have said, had nobody listened yet."""
    given = False

    async def receiving() -> Message:
        nonlocal given
        if given:
            return await receive()  # that the other side has gone
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


def _is_plain(path: str) -> bool:
    """Whether a path, however often it is decoded, climbs nowhere."""
    for _ in range(4):
        if ".." in path or "\\" in path or any(ord(sign) < 32 for sign in path):
            return False
        path = unquote(path)
    return True


def _said(status: int, text: str, asked: Headers, headers: dict[str, str] | None = None) -> Response:
    if "application/json" in asked.get("accept", ""):
        return JSONResponse({"error": text}, status, headers)
    return PlainTextResponse(text, status, headers)


def _name(netloc: str) -> str | None:
    try:
        return urlsplit(f"//{netloc}").hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback
