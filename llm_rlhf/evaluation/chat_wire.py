"""One exchange with an OpenAI-compatible chat endpoint: a body goes out, an answer or an error comes back.

The API key is read from an environment variable whose *name* is configured, at the moment a request is sent. It is
stored nowhere, a redirect that would carry it elsewhere is refused, and it is cut out of everything a server sends
back, errors included.

Plain urllib, no client library. openai's own was tried (3.57): to keep what is promised here and in endpoints.py it
took hooks of about as many lines as it saved, two headers that its README does not name, three packages, a second or
two of importing and about twice the processor time of a request.

Source: OpenAI's API reference for the fields, which vLLM and `transformers serve` share.
"""

import contextlib
import email.utils
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from llm_rlhf.errors import RecipeError, RunError, bounded
from llm_rlhf.json_lines import parse_json
from llm_rlhf.models.thoughts import WRITTEN, before_mark, split_thought

LARGEST_BODY = 64 * 2**20  # bytes of one response
LONGEST_SAID = 500  # characters quoted of what a server says
SHORTEST_SECRET = 8  # characters; a shorter key ("EMPTY", for vLLM) is no secret and may be a word of an answer
_PASSES = frozenset({408, 409, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_STOPS = frozenset({301, 302, 303, 307, 308, 401, 402, 403, 404, 405})
_THOUGHTS = ("reasoning_content", "reasoning")  # a message's keys, where the server tells thoughts apart
_THOUGHT_PARTS = ("thinking", "reasoning")  # types of a content's parts, likewise
_FILTERED = re.compile(r"content[ _-]?(filter|policy|management policy)|moderation|flagged", re.IGNORECASE)


class EndpointError(RunError):
    """The endpoint did not answer as asked; the message says what it said and what to do.

    Attributes:
        kind: "timeout", "connection", "http", "malformed", "refused" or "too many".
        stops: asking for anything else is of no use.
        retries: how often the request was sent again.
    """

    def __init__(self, message: str, kind: str, stops: bool = False, retries: int = 0) -> None:
        super().__init__(message)
        self.kind, self.stops, self.retries = kind, stops, retries


class PassingError(Exception):
    """Trouble that may pass: worth another attempt after `wait` seconds, or more."""

    def __init__(self, kind: str, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.kind, self.wait = kind, wait


class Token(NamedTuple):
    """One generated token, its log-probability in nats, and the most probable tokens at its place."""

    text: str
    logprob: float
    top: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """What the endpoint said."""

    text: str  # behind the thought; the refusal's text where there is no other
    finish_reason: str | None  # "stop", "length", "content_filter", ...
    refused: bool  # the server says that it is a refusal (`message.refusal`, or a content filter)
    model: str  # the name the server reports
    prompt_tokens: int | None  # None where the server does not say
    completion_tokens: int | None
    logprobs: list[Token] | None  # None where the server gives none
    retries: int = 0
    cached: bool = False  # came from an earlier request
    thought: str = ""  # what the model thought before, where the server shows it

    @property
    def stopped(self) -> bool:
        """Whether the reply ended by itself rather than at `max_tokens`."""
        return self.finish_reason == "stop"


class Wire:
    """Where requests go: `URL/chat/completions`, with the key of an environment variable.

    Raises:
        RecipeError: where the URL cannot be one, or the variable is not set.
    """

    def __init__(self, url: str, key_variable: str | None, timeout: float, clock: Callable[[], float]) -> None:
        self.url, self.key_variable, self.timeout, self.clock = _checked_url(url), key_variable, timeout, clock
        local = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
        self._opener = urllib.request.build_opener(_NoRedirect, *([urllib.request.ProxyHandler({})] if local else []))
        self.key()  # a variable that is not set must be said before anything is loaded

    def post(self, body: dict[str, Any]) -> Any:
        """The parsed JSON of a response, the key cut out of it.

        Raises:
            PassingError: trouble that may pass.
            EndpointError: trouble that will not.
        """
        with self._answering(body) as response:
            return without_key(self.key(), parse_json(_read(response, time.monotonic() + self.timeout)))

    def stream(self, body: dict[str, Any]) -> Iterator[Any]:
        """The parsed JSON of each event of a response that comes in pieces; the key is still in them.

        A server that does not stream sends one whole answer, which is the only event then.

        Raises:
            PassingError, EndpointError: as `post`.
        """
        with self._answering(body) as response:
            if "event-stream" not in (response.headers.get("Content-Type") or ""):
                yield parse_json(_read(response, time.monotonic() + self.timeout))
                return
            size = 0
            while line := response.readline(LARGEST_BODY + 1 - size):  # bounded: a line may have no end
                size += len(line)
                if size > LARGEST_BODY:
                    raise ValueError(f"it is larger than {LARGEST_BODY >> 20} MiB")
                name, _, value = line.decode("utf-8", "replace").strip().partition(":")
                if name == "data" and value.strip() != "[DONE]":
                    yield parse_json(value)

    @contextlib.contextmanager
    def _answering(self, body: dict[str, Any]) -> Iterator[Any]:
        """The response to a body; what goes wrong until the block ends is one of the two errors."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "llm-rlhf"}
        key = self.key()
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        call = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with self._opener.open(call, timeout=self.timeout) as response:
                yield response
                return
        except urllib.error.HTTPError as error:
            code, said = error.code, _said(error, key)
            wait = _retry_after(error.headers.get("Retry-After"), self.clock())
        except TimeoutError:
            raise PassingError("timeout", f"no answer within {self.timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise PassingError("timeout", f"no answer within {self.timeout:g} s") from None
            raise PassingError("connection", f"{type(reason).__name__}: {without_key(key, str(reason))}") from None
        except ValueError as error:
            said = bounded(without_key(key, str(error)), LONGEST_SAID)
            raise PassingError("malformed", f"the answer is not JSON: {said}") from None
        raise self._refusal(code, said, wait)

    def _refusal(self, code: int, said: str, wait: float) -> Exception:
        """The error that an HTTP status and what the server said of it amount to."""
        message = f"HTTP {code}: {said}"
        if code in (400, 403) and _FILTERED.search(said):
            return EndpointError(f"{self.url}: {message}", "refused")
        if (code in _STOPS and "logprobs" not in said) or "insufficient_quota" in said:
            return EndpointError(f"{self.url}: {message}.{self._remedy(code)}", "http", stops=True)
        if code in _PASSES:
            return PassingError("http", message, wait)
        return EndpointError(f"{self.url}: {message}", "http")

    def _remedy(self, code: int) -> str:
        if code in (401, 403):
            where = (
                f"in the environment variable {self.key_variable}" if self.key_variable else "named: set key_variable"
            )
            return f" Check the key {where}."
        if code in (404, 405):
            return " Check the URL (it usually ends in /v1) and the model's name."
        return " Give the final URL." if code < 400 else ""

    def key(self) -> str | None:
        """The API key, as the environment has it now; RecipeError where it cannot be one."""
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key and not re.fullmatch(r"[A-Za-z_]\w{,38}", self.key_variable):
            raise RecipeError(
                f"The variable named to hold the API key of {self.url} cannot be one, and may be the key itself (not "
                "shown here): put the key into the environment, and name its variable, as JUDGE_KEY."
            )
        if not key:
            raise RecipeError(
                f"The environment variable {self.key_variable}, to hold the API key of {self.url}, is not set."
            )
        if not re.fullmatch(r"[!-~]+", key):  # http.client's own complaint would show it
            raise RecipeError(
                f"The API key in {self.key_variable} holds a space or a character that no HTTP header can."
            )
        return key


def read_answer(value: Any, retries: int) -> Answer:
    """The first choice of a response.

    Raises:
        PassingError: where it has none, or is of another shape.
    """
    try:
        choice = value["choices"][0]
        message = choice["message"]
        refusal, finish_reason = _said_as_text(message.get("refusal")), _said_as_text(choice.get("finish_reason"))
        usage = value.get("usage") or {}
        content, told = _text(message.get("content")), _thought(message)
        # A server that knows nothing of thoughts sends them as text; where its template opened one, without the mark.
        thought, text = split_thought(content, WRITTEN, not told and _begun_by_prompt(content))
        return Answer(
            text=text or refusal or "",
            thought=told or thought,
            finish_reason=finish_reason,
            refused=bool(refusal) or finish_reason == "content_filter",
            model=str(value.get("model", ""))[:LONGEST_SAID],
            prompt_tokens=_counted(usage.get("prompt_tokens")),
            completion_tokens=_counted(usage.get("completion_tokens")),
            logprobs=_tokens((choice.get("logprobs") or {}).get("content")),
            retries=retries,
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        found = json.dumps(value, ensure_ascii=False)[:200]
        raise PassingError("malformed", f"the answer holds no choice with a message: {found}") from None


def joined(events: Iterable[Any], key: str | None) -> Iterator[Answer]:
    """The answer as far as the events of a stream make it up, after each of them; the last one says why it ended.

    What may be the beginning of the key, or of the mark that ends a thought, is held back until more has come.

    Raises:
        PassingError: where an event holds no choice, or the stream has none.
    """
    told: dict[str, str] = {}
    whole: dict[str, Any] = {}
    for event in events:
        try:
            if error := event.get("error"):
                said = error.get("message", error) if isinstance(error, dict) else error
                raise PassingError("http", f"it broke off: {without_key(key, str(said))[:LONGEST_SAID]}")
            whole = {"usage": None} | whole | {k: v for k, v in event.items() if k != "choices" and v is not None}
            for choice in event.get("choices") or []:
                for name, text in (choice.get("delta") or choice.get("message") or {}).items():
                    if name in ("content", "refusal", *_THOUGHTS) and text:
                        told[name] = told.get(name, "") + _text(text)
                whole["finish_reason"] = choice.get("finish_reason") or whole.get("finish_reason")
        except (AttributeError, TypeError):
            found = json.dumps(without_key(key, event), ensure_ascii=False)[:200]
            raise PassingError("malformed", f"an event of the stream holds no choice: {found}") from None
        yield _so_far(whole, {name: before_mark(text, key or "") for name, text in told.items()}, key)
    if not whole:
        raise PassingError("malformed", "the stream ended before it began")
    yield _so_far(whole, told, key)


def _so_far(whole: dict[str, Any], told: dict[str, str], key: str | None) -> Answer:
    choice = {"message": told, "finish_reason": whole.get("finish_reason")}
    return read_answer(without_key(key, whole | {"choices": [choice]}), 0)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would send the key along to wherever it is redirected."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        unfit = parts.port == 0 or not url.isascii() or not url.isprintable() or " " in url
    except ValueError:  # of brackets, or of a port that is none
        unfit = True
    if unfit and "@" not in url and "?" not in url:
        raise RecipeError(
            f"The endpoint's URL is {url!r}, which no request can be sent to; write http://HOST:PORT/v1, anything but "
            "plain letters and signs as %XX."
        )
    if unfit or "@" in url or parts.query or parts.fragment:
        where = "" if unfit else f"(on {parts.hostname}) "
        raise RecipeError(
            f"The endpoint's URL {where}holds a user, a password or a query. URLs are written into "
            "reports, so give the key by key_variable, the name of an environment variable."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RecipeError(f"The endpoint's URL is {url!r}; it must begin with http:// or https:// and name a host.")
    return url.rstrip("/").removesuffix("/chat/completions")


def _read(response: Any, deadline: float) -> bytes:
    """The whole body. The socket's own time-out starts anew with every packet; the deadline does not."""
    parts, size = [], 0
    while part := response.read1(2**16):
        parts.append(part)
        size += len(part)
        if size > LARGEST_BODY:
            raise ValueError(f"it is larger than {LARGEST_BODY >> 20} MiB")
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(parts)


def _said(error: urllib.error.HTTPError, key: str | None) -> str:
    """What the body of an error says, on one short line without the key: its message and code where it is JSON."""
    try:
        said = without_key(key, error.read(2**16).decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException):
        return error.reason or "no reason given"
    with contextlib.suppress(ValueError):
        said = without_key(key, parse_json(said))  # again: what is quoted may spell the key in another way
    said = said.get("error", said) if isinstance(said, dict) else said
    if isinstance(said, dict):
        told = said.get("message") or said.get("detail") or said
        said = f"{told} ({said['code']})" if isinstance(said.get("code"), str) else told
    return " ".join(str(said).split())[:LONGEST_SAID] or error.reason or "no reason given"


def _retry_after(value: str | None, now: float) -> float:
    """Seconds that a Retry-After header asks for, as a number or as a date; 0 where there is none."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        parsed = email.utils.parsedate_tz(value)
        with contextlib.suppress(ValueError, OverflowError):  # a date that no calendar has
            return max(0.0, email.utils.mktime_tz(parsed) - now) if parsed else 0.0
        return 0.0


def without_key(key: str | None, value: Any) -> Any:
    """The value with the key cut out of every text in it: servers may send back what they were sent."""
    if key is None or len(key) < SHORTEST_SECRET:
        return value
    if isinstance(value, str):
        return value.replace(key, "[key]")
    if isinstance(value, list):
        return [without_key(key, item) for item in value]
    if isinstance(value, dict):
        return {without_key(key, name): without_key(key, item) for name, item in value.items()}
    return value


def _text(content: Any) -> str:
    """A message's content: a text, or parts of which some are texts; those that are thoughts are left out."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if part.get("type") not in _THOUGHT_PARTS)
    if content is None or isinstance(content, str):
        return content or ""
    raise TypeError("content is neither text nor parts")


def _said_as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError("neither text nor null")


def _counted(value: Any) -> int | None:
    """A number of tokens; None where a server says anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def _thought(message: dict[str, Any]) -> str:
    """What the server tells apart as a thought; nothing where that is no text: the reply stands all the same."""
    for name in _THOUGHTS:
        with contextlib.suppress(TypeError, AttributeError):
            if thought := _text(message.get(name)):
                return thought
    return ""


def _begun_by_prompt(text: str) -> bool:
    """Whether a text begins within a thought that the template's prompt opened: it ends one and opens none.

    Thoughts end with a line; a reply that speaks of the closing mark has it within one.
    """
    before, closed, after = text.partition(WRITTEN.closing)
    if not closed or WRITTEN.opening in text:
        return False
    space_before, space_after = before[len(before.rstrip()) :], after[: len(after) - len(after.lstrip())]
    begins_line = "\n" in space_before or space_before == before
    return begins_line or "\n" in space_after or space_after == after


def _tokens(content: Any) -> list[Token] | None:
    if not content:
        return None
    return [
        Token(
            place["token"],
            float(place["logprob"]),
            {top["token"]: float(top["logprob"]) for top in place.get("top_logprobs") or []},
        )
        for place in content
    ]
