"""A small client of OpenAI-compatible chat endpoints: vLLM, `transformers serve`, llama.cpp, the clouds.

Judges ask it, and a policy that can only be reached by URL is sampled through it. It sends `POST URL/chat/completions`
from a few threads and returns answers in the caller's order. What it takes care of:

- **The key** never leaves the one header it is for (chat_wire.py).
- **Trouble that passes** (time-outs, broken connections, 408, 409, 429, 5xx, answers that are no JSON or hold no
  choice) is tried again after an exponential back-off with jitter, or after what Retry-After asks. Trouble that does
  not pass (401, 403, 404, a spent quota) stops everything at once. What is left is a `Failure` in the answer's place.
- **Answers are kept** as lines of a JSON-lines file under a hash of their request, so that a run that was killed asks
  only for what is missing. Failures are not kept: they are asked again.

Sources: the fields of OpenAI's API reference and of vLLM's `ChatCompletionRequest`; waiting as in openai-python's
`_base_client.py` (Retry-After up to two minutes, else doubled waits, less up to a quarter by chance).
"""

import contextlib
import dataclasses
import hashlib
import json
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from accelerate.utils import gather_object

from llm_rlhf.data.rows import Conversation
from llm_rlhf.errors import RecipeError, first_line
from llm_rlhf.evaluation.chat_wire import Answer, EndpointError, PassingError, Token, Wire, joined, read_answer
from llm_rlhf.json_lines import lines_of, parse_json
from llm_rlhf.launch import processes
from llm_rlhf.progress import bar, tell

LONGEST_RETRY_AFTER = 120.0  # seconds a server may ask us to wait; beyond it the request has failed
LONGEST_BACK_OFF = 30.0  # seconds
_OURS = frozenset(
    {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "seed", "logprobs", "top_logprobs"}
    | {"stream", "n"}
)


@dataclass(frozen=True)
class Failure:
    """Stands where an answer is missing."""

    kind: str  # EndpointError's
    reason: str
    retries: int = 0


class _Request(NamedTuple):
    """One request, without what does not change its answer."""

    messages: Conversation
    max_tokens: int
    temperature: float | None
    seed: int | None
    top_logprobs: int


def tell_of_silence(url: str, key: str) -> None:
    """A note where nobody answers at a URL yet: a server may be meant to start when the GPU is free again.

    Args:
        url: where it is none, nothing is looked for.
        key: of the recipe, as the note calls it.
    """
    place = urlsplit(url)
    if place.scheme not in ("http", "https") or place.hostname is None or not processes().is_main_process:
        return
    if place.scheme in getproxies() and not proxy_bypass(place.hostname):  # which is asked, and knows other names
        return
    try:
        socket.create_connection((place.hostname, place.port or (443 if place.scheme == "https" else 80)), 5).close()
    except (OSError, UnicodeError) as error:  # a name that cannot be one is the latter
        tell(f"  note: nobody answers at {place.netloc} yet ({first_line(error)}); '{key}' asks at the run's end.")


class Endpoint:
    """A model behind `URL/chat/completions`.

    Args:
        url: up to and including the version, e.g. "http://localhost:8000/v1".
        model: the name that the server knows it by.
        key_variable: name of the environment variable that holds the API key; None where none is needed.
        timeout: seconds that one attempt may take, answer included.
        attempts: how often one request is sent at most.
        concurrency: requests under way at once, over all processes of a launch.
        cache: a JSON-lines file of answers, read at the start and added to; None keeps them in memory only.
        extra: further fields of every request, e.g. {"top_p": 0.9} or, for vLLM,
            {"chat_template_kwargs": {"enable_thinking": False}}.
        clock, sleep: seconds since the epoch, and waiting; tests put their own here.

    Raises:
        RecipeError: where the URL cannot be one, or the variable is not set.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str | None = None,
        *,
        timeout: float = 180.0,
        attempts: int = 5,
        concurrency: int = 8,
        cache: str | Path | None = None,
        extra: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.wire = Wire(url, key_variable, timeout, clock)
        self.url, self.model = self.wire.url, model
        for name, value in (("attempts", attempts), ("concurrency", concurrency), ("timeout", timeout)):
            if not value > 0:
                raise RecipeError(f"The endpoint's {name} is {value}; it must be above 0.")
        self.attempts, self.concurrency, self.sleep = attempts, concurrency, sleep
        self.extra = dict(extra or {})
        if taken := sorted(_OURS & set(self.extra)):
            raise RecipeError(f"The endpoint's extra field {taken[0]!r} is set by the evaluation itself; remove it.")
        self.cache = _Cache(cache)
        self.served_as: set[str] = set()  # names that the server reported
        self._length_field = "max_tokens"

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, {self.model!r})"

    def identity(self) -> dict[str, Any]:
        """What to record of it: address, the model's name here and as reported, fields sent with every request."""
        return {
            "kind": "endpoint",
            "url": self.url,
            "model": self.model,
            "served_as": sorted(self.served_as),
            "extra": self.extra,
        }

    def complete(
        self,
        messages: Conversation,
        *,
        max_tokens: int,
        temperature: float | None = 0.0,
        seed: int | None = None,
        top_logprobs: int = 0,
    ) -> Answer:
        """One answer. Asked once and not kept; `answers` keeps.

        Args:
            temperature: None leaves it to the server (reasoning models refuse to be told).
            top_logprobs: how many tokens to report at each place; 0 asks for no log-probabilities.

        Raises:
            EndpointError: where there is none.
        """
        answer = self._ask(_Request(messages, max_tokens, temperature, seed, top_logprobs))
        self.served_as |= {answer.model} - {""}
        return answer

    def stream(
        self, messages: Conversation, *, max_tokens: int, temperature: float | None, seed: int | None
    ) -> Iterator[Answer]:
        """One answer as far as it goes, again and again, as its pieces come; asked once, and not kept.

        Raises:
            EndpointError: where there is none, or it breaks off.
        """
        request = _Request(messages, max_tokens, temperature, seed, 0)
        for _ in ("as it is", "with the length under its other name"):
            body = self._body(request) | {"stream": True}
            try:
                yield from joined(self.wire.stream(body), self.wire.key())
                return
            except PassingError as trouble:
                raise EndpointError(f"{self.url}: {trouble}", trouble.kind) from None
            except EndpointError as error:
                self._rename_length(body, error)

    def answers(
        self,
        prompts: Sequence[Conversation],
        *,
        max_tokens: int,
        temperature: float | None = 0.0,
        seed: int | None = 0,
        top_logprobs: int = 0,
        progress: str | None = None,
        most_failures: int | None = None,
    ) -> list[Answer | Failure]:
        """An answer to every prompt, in the prompts' order; the processes of a launch share them out.

        Equal requests are sent once. A prompt that occurs k times gets k answers all the same: its n-th occurrence is
        asked with `seed` + n.

        Args:
            seed: None sends none, for servers that take none; every prompt must then be there once, or temperature 0.
            most_failures: stop as soon as more than this many have failed.

        Raises:
            EndpointError: where the trouble will not pass, or too many failed. Answers that came are in the cache.
        """
        requests = self._requests(prompts, max_tokens, temperature, seed, top_logprobs)
        keys = [self._hash(request) for request in requests]
        found: dict[str, Answer | Failure] = {
            key: _again(self.cache.answers[key]) for key in keys if key in self.cache.answers
        }
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in found}
        found |= self._asked(missing, progress, most_failures, len(found))
        self.served_as |= {outcome.model for outcome in found.values() if isinstance(outcome, Answer) and outcome.model}
        results: list[Answer | Failure] = []
        given = set()
        for key in keys:
            outcome = found[key]
            if key in given and isinstance(outcome, Answer):
                outcome = _again(outcome)
            results.append(outcome)
            given.add(key)
        return results

    def _requests(
        self,
        prompts: Sequence[Conversation],
        max_tokens: int,
        temperature: float | None,
        seed: int | None,
        top_logprobs: int,
    ) -> list[_Request]:
        seen: dict[str, int] = {}
        requests = []
        for prompt in prompts:
            text = json.dumps(prompt, sort_keys=True)
            occurrence = seen.get(text, 0)
            seen[text] = occurrence + 1
            if seed is None and occurrence and temperature != 0:
                raise ValueError(
                    "A prompt occurs twice and no seed is sent, so that its samples would be one; set a seed."
                )
            own_seed = None if seed is None else seed + (occurrence if temperature != 0 else 0)
            requests.append(_Request(prompt, max_tokens, temperature, own_seed, top_logprobs))
        return requests

    def _asked(
        self, missing: dict[str, _Request], progress: str | None, most_failures: int | None, known: int
    ) -> dict[str, Answer | Failure]:
        """The missing answers by key, asked by all processes together; an error of one is raised in each."""
        state = processes()
        # By the hash: what a process finds in the file depends on when it read it.
        mine = [item for item in missing.items() if int(item[0], 16) % state.num_processes == state.process_index]
        found: list[tuple[str, Answer | Failure]] = []
        error: EndpointError | None = None
        failures: list[Failure] = []
        try:
            with (
                contextlib.closing(self._in_threads(mine, max(1, self.concurrency // state.num_processes))) as finished,
                bar(
                    desc=progress or "",
                    total=known + len(mine),
                    initial=known,
                    leave=False,
                    disable=progress is None or not state.is_main_process,
                ) as shown,
            ):
                for key, outcome in finished:
                    shown.update()
                    if isinstance(outcome, Answer):
                        self.cache.keep(key, outcome)
                        found.append((key, outcome))
                        continue
                    if outcome.stops:
                        raise outcome
                    failures.append(Failure(outcome.kind, str(outcome), outcome.retries))
                    found.append((key, failures[-1]))
                    shown.set_postfix(failed=len(failures))
                    if most_failures is not None and len(failures) > most_failures:
                        raise EndpointError(_too_many(self, failures, len(found)), "too many")
        except EndpointError as caught:
            error = caught
        shared = gather_object([(found, error and (str(error), error.kind))])
        for _, trouble in shared:
            if trouble is not None:
                raise EndpointError(trouble[0], trouble[1], stops=True) from None
        everything = {key: outcome for part, _ in shared for key, outcome in part}
        self.cache.answers.update({key: a for key, a in everything.items() if isinstance(a, Answer)})
        return everything

    def _in_threads(
        self, requests: Sequence[tuple[str, _Request]], threads: int
    ) -> Generator[tuple[str, Answer | EndpointError]]:
        """Outcomes as they come. Threads are daemons, so that Ctrl-C need not wait for a server."""
        todo: queue.SimpleQueue[tuple[str, _Request]] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[str, Answer | BaseException]] = queue.SimpleQueue()
        over = threading.Event()
        for item in requests:
            todo.put(item)

        def work() -> None:
            while not over.is_set():
                try:
                    key, request = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((key, self._ask(request, over)))
                except BaseException as error:  # handed to the caller, who waits for it
                    done.put((key, error))

        for _ in range(min(threads, len(requests))):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in requests:
                key, outcome = done.get()
                if not isinstance(outcome, Answer | EndpointError):
                    raise outcome
                yield key, outcome
        finally:
            over.set()

    def _ask(self, request: _Request, over: threading.Event | None = None) -> Answer:
        """Send one request until it is answered, its attempts are used up, or the trouble will not pass."""
        for attempt in range(self.attempts):
            try:
                return read_answer(self._send(request), attempt)
            except PassingError as trouble:
                last = trouble
                if attempt + 1 == self.attempts or last.wait > LONGEST_RETRY_AFTER or (over and over.is_set()):
                    break
                back_off = min(LONGEST_BACK_OFF, 2.0**attempt) * (1 - 0.25 * random.random())
                self.sleep(max(last.wait, back_off))
            except EndpointError as error:
                error.retries = attempt
                raise
        asked = f"; it asks to wait {last.wait:.0f} s" if last.wait > LONGEST_RETRY_AFTER else ""
        raise EndpointError(f"{self.url}: {last} ({attempt + 1} attempts{asked})", last.kind, retries=attempt) from None

    def _send(self, request: _Request) -> Any:
        body = self._body(request)
        try:
            return self.wire.post(body)
        except EndpointError as error:
            self._rename_length(body, error)
            return self.wire.post(self._body(request))

    def _rename_length(self, body: dict[str, Any], error: EndpointError) -> None:
        """OpenAI's reasoning models take the length under another name only; any other error is raised again."""
        if "max_tokens" not in body or "max_completion_tokens" not in str(error):
            raise error
        self._length_field = "max_completion_tokens"

    def _body(self, request: _Request) -> dict[str, Any]:
        said = [{"role": turn["role"], "content": turn["content"]} for turn in request.messages]  # no thoughts
        body: dict[str, Any] = {"model": self.model, "messages": said, **self.extra}
        body[self._length_field] = request.max_tokens
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.seed is not None:
            body["seed"] = request.seed
        if request.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        return body

    def _hash(self, request: _Request) -> str:
        asked = {"url": self.url, "model": self.model, "extra": self.extra, **request._asdict()}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class _Cache:
    """Answers by the hash of their request, in memory and, where a path is given, as lines of a file."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.answers: dict[str, Answer] = {}
        self._broken = False  # the last line was cut short by a kill
        if self.path is None or not self.path.is_file():
            return
        data = self.path.read_bytes()
        self._broken = bool(data) and not data.endswith(b"\n")
        for _, line in lines_of(data):
            try:
                entry = parse_json(line)
                fields = entry["answer"]
                fields["logprobs"] = fields["logprobs"] and [Token(*token) for token in fields["logprobs"]]
                self.answers[entry["request"]] = Answer(**fields)
            except (ValueError, KeyError, TypeError):
                continue  # cut short by a kill, or of another version: it is asked again

    def keep(self, key: str, answer: Answer) -> None:
        """Remember an answer; one write a line, so that a kill leaves at most its last line half-written."""
        self.answers[key] = answer
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"request": key, "answer": dataclasses.asdict(answer)}) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(b"\n" * self._broken + line.encode())
        self._broken = False


def _again(answer: Answer) -> Answer:
    return dataclasses.replace(answer, cached=True, retries=0)


def _too_many(endpoint: Endpoint, failures: Sequence[Failure], asked: int) -> str:
    kinds = sorted({failure.kind for failure in failures})
    counted = ", ".join(f"{kind} {sum(f.kind == kind for f in failures)}" for kind in kinds)
    kept = f" What was answered is kept in {endpoint.cache.path}." if endpoint.cache.path else ""
    last = failures[-1].reason
    return f"{len(failures)} of {asked} requests to {endpoint.url} failed ({counted}); the last: {last}.{kept}"
