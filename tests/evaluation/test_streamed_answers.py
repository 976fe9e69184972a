"""Answers that a chat endpoint sends in pieces, from a scripted server."""

import json
from typing import Any

import pytest
from endpoint_stand_in import RESET, Raw, StandIn, failed, reply

from llm_rlhf.evaluation.chat_wire import Answer, EndpointError
from llm_rlhf.evaluation.endpoints import Endpoint

KEY = "sk-0123456789abcdef"
ASK = [{"role": "user", "content": "why?"}]


def stream(*deltas: Any, finish: str | None = "stop", end: str = "data: [DONE]\n\n") -> Raw:
    """Server-sent events as OpenAI and vLLM write them; a delta that is text is of the content."""
    told = [{"content": delta} if isinstance(delta, str) else delta for delta in deltas]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in told]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    events = [{"id": "x", "model": "served", "choices": [choice]} for choice in choices]
    events.append({"id": "x", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}})
    body = ": a comment\n\n" + "".join(f"data: {json.dumps(event)}\n\n" for event in events) + end
    return Raw(body=body, headers={"Content-Type": "text/event-stream; charset=utf-8"})


def heard(server: StandIn, **options: Any) -> list[Answer]:
    endpoint = Endpoint(server.url, "asked", **options)
    return list(endpoint.stream(ASK, max_tokens=7, temperature=0.5, seed=3))


def test_an_answer_grows_to_what_it_is(serve) -> None:
    server = serve(lambda body, count: stream({"role": "assistant", "content": ""}, "Be", "cause", " é."))
    found = heard(server)
    assert [answer.text for answer in found][:5] == ["", "Be", "Because", "Because é.", "Because é."]
    last = found[-1]
    assert (last.text, last.stopped, last.completion_tokens, last.model) == ("Because é.", True, 5, "served")
    assert server.bodies == [
        {"model": "asked", "messages": ASK, "max_tokens": 7, "temperature": 0.5, "seed": 3, "stream": True}
    ]


def test_thoughts_under_a_key_and_in_the_text(serve) -> None:
    found = heard(serve(lambda body, count: stream({"reasoning_content": "Hm"}, {"reasoning_content": "m."}, "Yes.")))
    assert [(answer.thought, answer.text) for answer in found][1:3] == [("Hmm.", ""), ("Hmm.", "Yes.")]
    found = heard(serve(lambda body, count: stream("<think>", "Hmm.", "</thi", "nk>", "Yes.")))
    assert (found[-1].thought, found[-1].text) == ("Hmm.", "Yes.")


def test_a_server_that_does_not_stream_is_heard_at_once(serve) -> None:
    assert [answer.text for answer in heard(serve(lambda body, count: reply("Whole.")))][-1] == "Whole."


def test_the_length_has_another_name_for_some(serve) -> None:
    def script(body, count) -> Raw:
        if "max_tokens" in body:
            return failed(400, "Unsupported parameter: use 'max_completion_tokens' instead.")
        return stream("Yes.")

    server = serve(script)
    assert heard(server)[-1].text == "Yes."
    assert server.bodies[1]["max_completion_tokens"] == 7


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (failed(404, "no such model"), "Check the URL"),
        (failed(503, "busy"), "HTTP 503: busy"),
        (RESET, "Connection"),
        (Raw(body="data: nonsense\n\n", headers={"Content-Type": "text/event-stream"}), "not JSON"),
        (Raw(body="data: 7\n\n", headers={"Content-Type": "text/event-stream"}), "holds no choice"),
        (Raw(body="", headers={"Content-Type": "text/event-stream"}), "ended before it began"),
        (
            stream("Ye", finish=None, end='data: {"error": {"message": "out of memory"}}\n\n'),
            "broke off: out of memory",
        ),
    ],
)
def test_trouble_is_one_message(serve, answer, told) -> None:
    with pytest.raises(EndpointError, match=told):
        heard(serve(lambda body, count: answer))


def test_the_key_is_cut_out_of_what_comes_in_pieces(serve, monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server = serve(lambda body, count: stream("Your key is ", KEY[:6], KEY[6:11], KEY[11:], "."))
    found = heard(server, key_variable="MY_KEY")
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert found[-1].text == "Your key is [key]."
    assert not any(KEY[:2] in answer.text for answer in found), "not even its beginning"
    with pytest.raises(EndpointError, match=r"broke off: \[key\]"):
        heard(serve(lambda body, count: stream(end=f'data: {{"error": "{KEY}"}}\n\n')), key_variable="MY_KEY")
