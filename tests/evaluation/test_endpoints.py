"""The client of chat endpoints against a scripted server on this machine. No test waits: sleeping is recorded."""

import contextlib
import email.utils
import json
import socket
import threading
import time
import traceback

import pytest
from endpoint_stand_in import RESET, Raw, StandIn, failed, letters, reply

from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.chat_wire import EndpointError, Token, read_answer
from llm_rlhf.evaluation.endpoints import Answer, Endpoint, Failure

KEY = "sk-a/very+secret=key-0123456789"


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def echo(body, count) -> Raw:
    return reply(f"you said {body['messages'][-1]['content']}")


def client(server: StandIn, **options) -> tuple[Endpoint, list[float]]:
    """An endpoint on the server, and the waits it asked for."""
    waits: list[float] = []
    return Endpoint(server.url, "asked-model", sleep=waits.append, **options), waits


def test_a_request_and_its_answer(serve, monkeypatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    server = serve(lambda body, count: reply("B", logprobs=letters({"B": 0.75, "A": 0.25})))
    endpoint, _ = client(server, key_variable="JUDGE_KEY", extra={"top_p": 0.9})
    answer = endpoint.complete(says("hi"), max_tokens=7, temperature=0.5, seed=3, top_logprobs=2)
    assert server.bodies == [
        {"model": "asked-model", "messages": says("hi"), "max_tokens": 7, "temperature": 0.5, "seed": 3,
         "top_p": 0.9, "logprobs": True, "top_logprobs": 2}
    ]  # fmt: skip
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert (answer.text, answer.finish_reason, answer.stopped, answer.refused) == ("B", "stop", True, False)
    assert (answer.model, answer.prompt_tokens, answer.completion_tokens) == ("served-model", 10, 2)
    (token,) = answer.logprobs
    assert isinstance(token, Token)
    assert token.top == {"B": pytest.approx(-0.28768207), "A": pytest.approx(-1.38629436)}
    assert endpoint.identity()["served_as"] == ["served-model"]


def test_what_is_not_set_is_not_sent(serve) -> None:
    server = serve(echo)
    endpoint, _ = client(server)
    endpoint.complete(says("hi"), max_tokens=7, temperature=None)
    assert server.bodies == [{"model": "asked-model", "messages": says("hi"), "max_tokens": 7}]
    assert "Authorization" not in server.headers[0]


def test_nothing_of_other_clients_settings_is_sent(serve, monkeypatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "BASE_URL"):
        monkeypatch.setenv(f"OPENAI_{name}", "http://127.0.0.1:9/theirs")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: theirs\nX-Own: theirs")
    server = serve(echo)
    client(server)[0].complete(says("hi"), max_tokens=7)
    client(server, key_variable="JUDGE_KEY")[0].complete(says("hi"), max_tokens=7)
    harmless = {"host", "accept", "accept-encoding", "connection", "content-length", "content-type", "user-agent"}
    without, with_key = ({name.lower() for name in headers} for headers in server.headers)
    assert (without - harmless, with_key - harmless) == (set(), {"authorization"})
    assert server.headers[1]["Authorization"] == f"Bearer {KEY}"


def test_proxies_are_for_other_machines(serve, monkeypatch) -> None:
    server, proxy = serve(echo), serve(echo)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert client(server)[0].complete(says("hi"), max_tokens=5).text == "you said hi"
    assert proxy.headers == []
    with pytest.raises(EndpointError, match="HTTP 404: Not Found"):  # the stand-in is no proxy
        Endpoint("http://elsewhere.invalid/v1", "m").complete(says("hi"), max_tokens=5)
    assert [headers["Host"] for headers in proxy.headers] == ["elsewhere.invalid"]


def test_the_time_is_for_the_whole_answer() -> None:
    """A server that sends a blank now and then, as some do while one waits in their queue."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(2**16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                for _ in range(250):
                    if not over.wait(0.02):
                        connection.sendall(b" ")

        threading.Thread(target=drip, daemon=True).start()
        endpoint = Endpoint(f"http://127.0.0.1:{server.getsockname()[1]}/v1", "m", attempts=1, timeout=0.3)
        started = time.monotonic()
        (failure,) = endpoint.answers([says("hi")], max_tokens=5)
        took = time.monotonic() - started
        over.set()
    assert (failure.kind, failure.retries) == ("timeout", 0)
    assert "within 0.3 s" in failure.reason
    assert 0.3 <= took < 5  # packets come 15 times as often; the rest is for a busy machine


def test_an_answer_without_end_is_not_kept(serve, monkeypatch) -> None:
    monkeypatch.setattr("llm_rlhf.evaluation.chat_wire.LARGEST_BODY", 2**20)
    server = serve(lambda body, count: reply("x" * (2**20 if body["messages"] == says("much") else 2**19)))
    endpoint, _ = client(server, attempts=1)
    (much, enough) = endpoint.answers([says("much"), says("enough")], max_tokens=5)
    assert (much.kind, len(enough.text)) == ("malformed", 2**19)
    assert "larger than 1 MiB" in much.reason


def test_answers_keep_the_order_of_their_prompts(serve) -> None:
    last_came = threading.Event()

    def script(body, count):
        if body["messages"][0]["content"] == "7":
            last_came.set()
        assert last_came.wait(10)  # no request is answered before the last one is there
        return echo(body, count)

    endpoint, _ = client(serve(script), concurrency=8)
    answers = endpoint.answers([says(str(i)) for i in range(8)], max_tokens=5)
    assert [answer.text for answer in answers] == [f"you said {i}" for i in range(8)]


@pytest.mark.parametrize(
    "trouble",
    [
        failed(500, "boom"),
        failed(429, "slow down"),
        failed(503, "loading"),
        RESET,
        Raw(200, "<html>gateway</html>"),
        Raw(200, '{"choices": [{"mess'),
        Raw(200, '{"choices": []}'),
        Raw(200, '{"choices": [{"message": null}]}'),
        Raw(200, "[]"),
        Raw(200, "[" * 10_000),
    ],
    ids=["500", "429", "503", "reset", "no JSON", "cut", "no choice", "no message", "a list", "too deep"],
)
def test_trouble_that_passes_is_tried_again(serve, trouble) -> None:
    server = serve(lambda body, count: trouble if count < 2 else reply("fine"))
    endpoint, waits = client(server)
    answer = endpoint.complete(says("hi"), max_tokens=5)
    assert (answer.text, answer.retries, len(server.bodies)) == ("fine", 2, 3)
    assert 0.75 <= waits[0] <= 1 < 1.5 <= waits[1] <= 2  # doubled, less up to a quarter


def test_retry_after_is_waited_for(serve) -> None:
    now = 1_700_000_000.0
    date = email.utils.formatdate(now + 40, usegmt=True)
    script = [failed(429, "slow", Retry_After="7"), failed(503, "slow", Retry_After=date), reply("fine")]
    endpoint, waits = client(serve(lambda body, count: script[count]), clock=lambda: now)
    assert endpoint.complete(says("hi"), max_tokens=5).retries == 2
    assert waits == [7.0, 40.0]


def test_retry_after_beyond_patience_fails_at_once(serve) -> None:
    server = serve(lambda body, count: failed(429, "come back tomorrow", Retry_After="86400"))
    endpoint, waits = client(server)
    (failure,) = endpoint.answers([says("hi")], max_tokens=5)
    assert isinstance(failure, Failure)
    assert "86400 s" in failure.reason
    assert (waits, len(server.bodies)) == ([], 1)


def test_attempts_run_out(serve) -> None:
    server = serve(lambda body, count: echo(body, count) if body["messages"] == says("good") else failed(500, "boom"))
    endpoint, waits = client(server, attempts=3)
    good, bad = endpoint.answers([says("good"), says("bad")], max_tokens=5)
    assert good.text == "you said good"
    assert (bad.kind, bad.retries, len(waits)) == ("http", 2, 2)
    assert "HTTP 500: boom" in bad.reason
    assert "3 attempts" in bad.reason


def test_a_server_that_says_nothing_times_out(serve) -> None:
    over = threading.Event()

    def silent(body, count):
        over.wait(10)
        return reply("too late")

    endpoint, waits = client(serve(silent), timeout=0.05, attempts=2)
    (failure,) = endpoint.answers([says("hi")], max_tokens=5)
    over.set()
    assert (failure.kind, failure.retries, len(waits)) == ("timeout", 1, 1)
    assert "within 0.05 s" in failure.reason


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", "m", attempts=2, timeout=10, sleep=lambda seconds: None)
    (failure,) = endpoint.answers([says("hi")], max_tokens=5)
    assert failure.kind == "connection"
    assert "refused" in failure.reason


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (failed(401, "bad key"), "Check the key in the environment variable JUDGE_KEY"),
        (failed(404, "no such model"), "usually ends in /v1"),
        (failed(429, "you ran out", "insufficient_quota"), "insufficient_quota"),
        (Raw(307, "", {"Location": "http://127.0.0.1:9/v1/chat/completions"}), "Give the final URL"),
    ],
    ids=["401", "404", "quota", "redirect"],
)
def test_trouble_that_does_not_pass_stops_everything(serve, monkeypatch, trouble, words) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = serve(lambda body, count: trouble)
    endpoint, waits = client(server, key_variable="JUDGE_KEY", concurrency=2)
    with pytest.raises(EndpointError, match=words):
        endpoint.answers([says(str(i)) for i in range(100)], max_tokens=5)
    assert len(server.bodies) < 50  # those begun before the first answer was read
    assert waits == []


def test_a_redirect_is_not_followed(serve, monkeypatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    elsewhere = serve(echo)
    target = f"{elsewhere.url}/chat/completions"
    server = serve(lambda body, count: Raw((301, 302, 307, 308)[count], "", {"Location": target}))
    endpoint, _ = client(server, key_variable="JUDGE_KEY")
    for _ in range(4):
        with pytest.raises(EndpointError, match="final URL"):
            endpoint.complete(says("hi"), max_tokens=5)
    assert elsewhere.headers == []


def test_too_many_failures_end_the_work(serve) -> None:
    server = serve(lambda body, count: failed(400, "too long"))
    endpoint, _ = client(server, concurrency=1)
    with pytest.raises(EndpointError, match=r"4 of 4 requests .* failed \(http 4\); the last: .*too long"):
        endpoint.answers([says(str(i)) for i in range(100)], max_tokens=5, most_failures=3)
    assert len(server.bodies) < 50


def test_refusals_by_model_and_by_filter(serve) -> None:
    script = {
        "model": reply(None, message={"refusal": "I will not."}),
        "filter": reply("half a", finish_reason="content_filter"),
        "azure": failed(400, "The prompt triggered the content management policy", "content_filter"),
        "router": failed(403, "Your input was flagged by moderation"),
    }
    endpoint, _ = client(serve(lambda body, count: script[body["messages"][0]["content"]]))
    model, cut, azure, router = endpoint.answers([says(name) for name in script], max_tokens=5)
    assert (model.text, model.refused) == ("I will not.", True)
    assert (cut.text, cut.refused, cut.stopped) == ("half a", True, False)
    assert (azure.kind, router.kind) == ("refused", "refused")


def test_contents_of_other_shapes(serve) -> None:
    script = [
        reply(None),
        reply("", message={"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
    ]
    endpoint, _ = client(serve(lambda body, count: script[count]))
    assert endpoint.complete(says("1"), max_tokens=5).text == ""
    assert endpoint.complete(says("2"), max_tokens=5).text == "ab"


def test_a_thought_is_told_apart_from_the_reply(serve) -> None:
    """Whether the server does so, sends both as text, or left the mark that opens it in the prompt."""
    script = [
        reply("", message={"content": "Sure.", "reasoning_content": "I can't help, but"}),
        reply("", message={"content": "Sure.", "reasoning": "I can't help, but"}),
        reply("<think>\nI can't help, but\n</think>\n\nSure."),
        reply("I can't help, but\n</think>\n\nSure."),
    ]
    endpoint, _ = client(serve(lambda body, count: script[count]))
    for number in range(4):
        answer = endpoint.complete(says(str(number)), max_tokens=5)
        assert (answer.thought, answer.text) == ("I can't help, but", "Sure.")


@pytest.mark.parametrize(
    ("message", "thought", "text"),
    [
        ({"content": "End it with </think> and go on."}, "", "End it with </think> and go on."),
        ({"content": "`</think>` ends it.\nSo it does."}, "", "`</think>` ends it.\nSo it does."),
        ({"content": "Write\n<think>\n</think>"}, "", "Write\n<think>\n</think>"),
        ({"content": "T </think> x\n</think>\n\ny"}, "", "T </think> x\n</think>\n\ny"),  # the first ends no line
        ({"content": "T</think>\ny"}, "T", "y"),
        ({"content": "T\n</think>y"}, "T", "y"),
        ({"content": "T\n</think>"}, "T", ""),
        ({"content": "a\n</think>\nb", "reasoning_content": "T"}, "T", "a\n</think>\nb"),
        ({"content": "<think>T</think>a", "reasoning_content": "T"}, "T", "a"),
        ({"content": None, "reasoning": "T"}, "T", ""),
        ({"content": "a", "reasoning": {"effort": "low"}}, "", "a"),
        ({"content": "a", "reasoning_content": None, "reasoning": 3}, "", "a"),
        ({"content": "a", "reasoning": [{"type": "text", "text": "T"}]}, "T", "a"),
        ({"content": [{"type": "reasoning", "text": "T"}, {"type": "text", "text": "a"}]}, "", "a"),
    ],
)
def test_what_of_a_message_is_its_thought(message, thought, text) -> None:
    value = {"choices": [{"message": message, "finish_reason": "stop"}]}
    answer = read_answer(value, retries=0)
    assert (answer.thought, answer.text) == (thought, text)


def test_a_server_that_takes_another_name_for_the_length(serve) -> None:
    def script(body, count):
        if "max_tokens" in body:
            return failed(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return reply(str(body["max_completion_tokens"]))

    server = serve(script)
    endpoint, _ = client(server, concurrency=4)
    answers = endpoint.answers([says(str(i)) for i in range(12)], max_tokens=5)
    assert [answer.text for answer in answers] == ["5"] * 12
    assert sum("max_tokens" in body for body in server.bodies) <= 4


def test_samples_of_one_prompt_are_asked_with_seeds_of_their_own(serve) -> None:
    server = serve(lambda body, count: reply(f"seed {body.get('seed')}"))
    endpoint, _ = client(server)
    prompts = [says("a"), says("b"), says("a"), says("a")]
    texts = [answer.text for answer in endpoint.answers(prompts, max_tokens=5, temperature=1.0, seed=40)]
    assert texts == ["seed 40", "seed 40", "seed 41", "seed 42"]
    with pytest.raises(ValueError, match="set a seed"):
        endpoint.answers(prompts, max_tokens=5, temperature=1.0, seed=None)


def test_equal_requests_are_sent_once(serve) -> None:
    server = serve(echo)
    endpoint, _ = client(server)
    answers = endpoint.answers([says("a"), says("b"), says("a")], max_tokens=5)
    assert [answer.cached for answer in answers] == [False, False, True]
    assert [answer.cached for answer in endpoint.answers([says("a")], max_tokens=5)] == [True]
    assert endpoint.answers([says("a")], max_tokens=6)[0].cached is False  # another request
    assert len(server.bodies) == 3


def test_a_killed_run_asks_only_for_what_is_missing(serve, tmp_path) -> None:
    server = serve(lambda body, count: reply(f"é {body['messages'][0]['content']}", logprobs=letters({"A": 1.0})))
    prompts = [says(str(i)) for i in range(3)]
    path = tmp_path / "cache" / "answers.jsonl"
    first = client(server, cache=path)[0].answers(prompts, max_tokens=5, top_logprobs=1)
    whole = path.read_bytes()
    last_line = whole.rindex(b"\n", 0, -1) + 1
    for cut in (*range(last_line, len(whole), 37), len(whole) - 2, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:cut])
        before = len(server.bodies)
        for missing in (int(cut < len(whole) - 1), 0):  # only the newline gone: the line can be read
            endpoint, _ = client(server, cache=path)
            again = endpoint.answers(prompts, max_tokens=5, top_logprobs=1)
            assert [a.text for a in again] == [a.text for a in first]
            assert [a.logprobs for a in again] == [a.logprobs for a in first]
            assert len(server.bodies) - before == missing
            before = len(server.bodies)


def test_failures_are_asked_again(serve, tmp_path) -> None:
    server = serve(lambda body, count: failed(400, "no") if count == 0 else reply("fine"))
    for expected in (Failure, Answer):
        endpoint, _ = client(server, cache=tmp_path / "answers.jsonl")
        assert isinstance(endpoint.answers([says("a")], max_tokens=5)[0], expected)


def test_the_key_appears_nowhere(serve, monkeypatch, tmp_path, capfd) -> None:
    """A hostile server sends it back in every place it can."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    long = "x" * (500 - len(KEY) // 2) + KEY  # where an error's text is cut
    script = {
        "text": reply(f"your key is {KEY}", logprobs=letters({KEY: 1.0})),
        "reason": reply("a", finish_reason=KEY),
        "400": failed(400, f"bad key {KEY}"),
        "cut": failed(400, long),
        "plain": Raw(400, f"<html>{KEY}</html>"),
        "detail": Raw(422, json.dumps({"detail": [{"loc": [KEY], "input": KEY}]})),
        "500": failed(500, f"bad key {KEY}"),
        "shape": Raw(200, json.dumps({"choices": [], "key": KEY, KEY: 1})),
        "malformed": Raw(200, f"{KEY} is no JSON"),
        "status": Raw(400, "", {"X-Key": KEY}),
        "reset": RESET,
        "model": Raw(200, reply("a").body.replace("served-model", KEY)),
    }
    server = serve(lambda body, count: script[body["messages"][0]["content"]])
    path = tmp_path / "answers.jsonl"
    endpoint, _ = client(server, key_variable="JUDGE_KEY", cache=path, attempts=2)
    outcomes = endpoint.answers([says(name) for name in script], max_tokens=5, top_logprobs=1, progress="asking")
    shown = [repr(outcomes), repr(endpoint), repr(vars(endpoint)), repr(vars(endpoint.wire)), path.read_text()]
    shown += [repr(endpoint.identity()), *capfd.readouterr()]
    for name in script:
        try:
            endpoint.complete(says(name), max_tokens=5, top_logprobs=1)
        except EndpointError as error:
            shown += ["".join(traceback.format_exception(error)), repr(vars(error))]
    script["400"] = failed(401, f"bad key {KEY}")
    with pytest.raises(EndpointError) as caught:
        endpoint.answers([says("400")], max_tokens=6)
    shown.append("".join(traceback.format_exception(caught.value)))
    assert any("[key]" in text for text in shown)  # the server did try
    for text in shown:
        assert KEY not in text
        assert KEY[: len(KEY) // 2] not in text


def test_a_key_is_cut_out_before_anything_is_quoted(serve, monkeypatch) -> None:
    """Python doubles a backslash where it shows a list, JSON may escape any character."""
    key = "sk-a\\very'odd/key"
    monkeypatch.setenv("JUDGE_KEY", key)
    said = [{"loc": ["body"], "input": key}]
    for body in (json.dumps({"detail": said}), json.dumps(said), json.dumps(f"no {key}").replace("/", "\\/")):
        endpoint, _ = client(serve(lambda _, count, body=body: Raw(422, body)), key_variable="JUDGE_KEY")
        (failure,) = endpoint.answers([says("hi")], max_tokens=5)
        assert "[key]" in failure.reason
        assert "odd" not in failure.reason


def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY[:10] + "\n" + KEY[10:])
    with pytest.raises(RecipeError, match="JUDGE_KEY") as caught:
        Endpoint("http://localhost/v1", "m", "JUDGE_KEY")
    assert KEY[:10] not in "".join(traceback.format_exception(caught.value))


def test_wrong_settings_are_refused(monkeypatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(RecipeError, match=r"environment variable JUDGE_KEY.* is not set"):
        Endpoint("http://localhost/v1", "m", "JUDGE_KEY")
    with pytest.raises(RecipeError, match="must begin with http"):
        Endpoint("localhost:8000/v1", "m")
    for url in (f"http://user:{KEY}@host/v1", f"https://host/v1?api-key={KEY}", f"user:{KEY}@host"):
        with pytest.raises(RecipeError, match="key_variable") as caught:
            Endpoint(url, "m")
        assert KEY not in str(caught.value)
    for url in (
        "http://host:abc/v1",
        "http://host:70000/v1",
        "http://[::1/v1",
        "http://host/a b",
        "http://host/\u00fc",
    ):
        with pytest.raises(RecipeError, match="which no request can be sent to; write http://HOST:PORT/v1"):
            Endpoint(url, "m")
    with pytest.raises(RecipeError, match="key_variable") as caught:
        Endpoint(f"http://user:{KEY}@host:abc/v1", "m")
    assert KEY not in str(caught.value)
    assert Endpoint("http://[::1]:8000/v1", "m").url == "http://[::1]:8000/v1"
    for name in ("temperature", "max_tokens", "stream"):
        with pytest.raises(RecipeError, match=f"'{name}' is set by"):
            Endpoint("http://localhost/v1", "m", extra={name: 1})
    with pytest.raises(RecipeError, match="attempts is 0"):
        Endpoint("http://localhost/v1", "m", attempts=0)
    assert Endpoint("http://localhost/v1/chat/completions", "m").url == "http://localhost/v1"
