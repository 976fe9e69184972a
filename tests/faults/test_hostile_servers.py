"""What a server may send in the place of an answer: a failure of that one request, in a short sentence."""

import json
from collections.abc import Iterator
from http.client import HTTPResponse

import pytest
from endpoint_stand_in import Raw, StandIn, reply

from llm_rlhf.evaluation.chat_wire import LARGEST_BODY, EndpointError
from llm_rlhf.evaluation.endpoints import Endpoint

KEY = "sk-0123456789abcdef"
EVENTS = {"Content-Type": "text/event-stream"}


def choice(**changes: object) -> str:
    whole = json.loads(reply("hello").body)
    for name, value in changes.items():
        place = whole["choices"][0] if name in ("finish_reason", "logprobs", "message") else whole
        place[name] = value
    return json.dumps(whole)


BODIES = {
    "lists": "[" * 100_000,
    "lists closed": "[" * 900 + "]" * 900,
    "mappings": '{"a":' * 500 + "1" + "}" * 500,
    "a deep choice": choice(choices=[]).replace("[]", "[" * 400 + "]" * 400),
    "a number": '{"choices": ' + "1" * 5000 + "}",
    "no choice": choice(choices="x" * 100_000),
    "no text": choice(message={"content": {"a": 1}}),
    "a refusal that is none": choice(message={"content": "", "refusal": {"a": ["b"]}}),
    "an end that is none": choice(finish_reason=["stop"]),
    "a token without a number": choice(logprobs={"content": [{"token": "A", "logprob": "x"}]}),
    "null": "null",
}


@pytest.fixture
def server(request) -> Iterator[StandIn]:
    made = StandIn(lambda body, count: request.param)
    yield made
    made.close()


def endpoint(server: StandIn, monkeypatch, **options) -> Endpoint:
    monkeypatch.setenv("HOSTILE_KEY", KEY)
    return Endpoint(server.url, "model", key_variable="HOSTILE_KEY", attempts=1, **options)


def streamed(asked: Endpoint) -> None:
    list(asked.stream([{"role": "user", "content": "hi"}], max_tokens=5, temperature=0, seed=0))


@pytest.mark.parametrize("server", [Raw(body=body) for body in BODIES.values()], indirect=True, ids=BODIES)
def test_a_body_that_is_no_answer_fails_that_one_request(server: StandIn, monkeypatch) -> None:
    (failure,) = endpoint(server, monkeypatch).answers([[{"role": "user", "content": "hi"}]], max_tokens=5)
    assert failure.kind == "malformed"  # type: ignore[union-attr]
    assert len(failure.reason) < 900  # type: ignore[union-attr]


STREAMED = {name: body for name, body in BODIES.items() if "token" not in name}  # nobody reads tokens of a stream


@pytest.mark.parametrize("of", ["data: {}\n\n", "{}"], ids=["events", "whole"])
@pytest.mark.parametrize("name", STREAMED)
def test_an_event_that_is_none_ends_the_stream(name: str, of: str, monkeypatch) -> None:
    body = of.replace("{}", STREAMED[name])
    server = StandIn(lambda _, count: Raw(body=body, headers=EVENTS if of != "{}" else {}))
    with pytest.raises(EndpointError) as error:
        streamed(endpoint(server, monkeypatch))
    server.close()
    assert len(str(error.value)) < 900


@pytest.mark.parametrize("server", [Raw(body="data: " + "x" * 2**21, headers=EVENTS)], indirect=True)
def test_an_event_without_end_is_not_kept(server: StandIn, monkeypatch) -> None:
    monkeypatch.setattr("llm_rlhf.evaluation.chat_wire.LARGEST_BODY", 2**20)
    taken: list[int] = []
    readline = HTTPResponse.readline
    monkeypatch.setattr(HTTPResponse, "readline", lambda self, limit=-1: taken.append(limit) or readline(self, limit))
    with pytest.raises(EndpointError, match="larger than 1 MiB"):
        list(
            endpoint(server, monkeypatch).stream(
                [{"role": "user", "content": "hi"}], max_tokens=5, temperature=0, seed=0
            )
        )
    assert taken == [2**20 + 1]  # no more than this is held
    assert LARGEST_BODY == 64 * 2**20


@pytest.mark.parametrize("usage", ["x", [1], -1, 10**30, True, 1.5, None, {"a": 1}])
def test_counts_of_tokens_that_are_none_are_not_known(usage: object, monkeypatch) -> None:
    body = choice(usage={"prompt_tokens": usage, "completion_tokens": 3}, model="m" * 10_000)
    server = StandIn(lambda _, count: Raw(body=body))
    answer = endpoint(server, monkeypatch).complete([{"role": "user", "content": "hi"}], max_tokens=5)
    server.close()
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("hello", None, 3)
    assert len(answer.model) == 500


@pytest.mark.parametrize(
    "server",
    [
        Raw(500, "[" * 60_000),
        Raw(500, json.dumps({"error": {"message": "y" * 60_000}})),
        Raw(429, '{"error": ' + "[" * 900 + "]" * 900 + "}", {"Retry-After": "Mon, 31 Feb 99999 99:99:99 GMT"}),
        Raw(503, "z", {"Retry-After": "1e999"}),
        Raw(503, "z", {"Retry-After": "nan"}),
    ],
    indirect=True,
    ids=["lists", "long", "deep", "for ever", "no number"],
)
def test_an_error_without_end_is_told_by_its_beginning(server: StandIn, monkeypatch) -> None:
    (failure,) = endpoint(server, monkeypatch).answers([[{"role": "user", "content": "hi"}]], max_tokens=5)
    assert failure.kind == "http"  # type: ignore[union-attr]
    assert len(failure.reason) < 900  # type: ignore[union-attr]


def test_an_answer_kept_in_a_damaged_cache_is_asked_again(tmp_path, monkeypatch) -> None:
    server = StandIn(lambda body, count: reply(f"answer\u2028{count}"))
    cache = tmp_path / "cache.jsonl"
    prompt = [{"role": "user", "content": "hi"}]
    (first,) = endpoint(server, monkeypatch, cache=cache).answers([prompt], max_tokens=5)
    cache.write_bytes(b"[" * 100_000 + b"\n" + b"\xff\n" + cache.read_bytes() + b'{"request": ')
    (again,) = endpoint(server, monkeypatch, cache=cache).answers([prompt], max_tokens=5)
    server.close()
    assert (again.text, again.cached) == (first.text, True)  # type: ignore[union-attr]
    assert len(server.bodies) == 1
