"""Live chat: a conversation with the policy, in which every turn is a choice between two answers as they come.

`POST /chat/ID/say` answers with server-sent events, each with JSON as its data:

- place {"before": n}: so many are answered before; 0 as the answers begin;
- text {"turn": name, "seen": n, "answers": [{"text", "thinking", "ended", "cut"}, ...]}: as far as both have come, by
  their places on the page, some fifteen times a second at most;
- ready: the same with "html" of each, rendered safely, when no more comes;
- failed {"error": why}: there will be no answers; the question can be asked again.

`POST /chat/ID/choose` takes {"value": a comparison, or {"better", "text"} of a correction, by the places on the page,
"seen" and "turn": of the last event that was read, "seconds"}. It can come while the answers do, which ends them there.
"""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException

from llm_rlhf.data.rows import Conversation
from llm_rlhf.errors import DataError
from llm_rlhf.feedback import queue, talk
from llm_rlhf.feedback.labels import MOST_TEXT, SCALE, STRENGTHS
from llm_rlhf.feedback.refusals import Absent, Forbidden, Settled
from llm_rlhf.feedback.tables import Talk
from llm_rlhf.feedback.web.context import Asked, Call, Posted
from llm_rlhf.feedback.web.forms import seconds_of
from llm_rlhf.feedback.web.shown import shown
from llm_rlhf.feedback.web.turns import Busy, Desk, Live, Picture

router = APIRouter(include_in_schema=False)
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]
MOST_REASON = 2_000  # characters of a report
LATEST = 20  # conversations that are listed
NOBODY = "Nobody is there to talk to: the page was started with a store alone, or with --no-chat. Start it with a run."


@router.get("/chat")
def start(call: Asked) -> Response:
    """Begin a conversation, or go back to one."""
    with call.reading(consented=True) as session:
        talks = talk.talks_of(session, call.person)
        entry = queue.needs_entry_test(session, call.person, call.settings)
    there = call.site.voices is not None
    modes = [mode for mode in talk.MODES if call.settings.red_team or mode != "red-team"]
    if call.wants_json:
        told = [_told_of(found) for found in talks]
        return call.json({"available": there, "modes": modes, "topics": call.settings.topics, "talks": told})
    begun = [found for found in talks if found.messages][:LATEST]
    return call.page("chat.html", there=there, nobody=NOBODY, modes=modes, talks=begun, entry=entry)


@router.post("/chat")
def begin(call: Posted) -> Response:
    mode, topic = call.fields.get("mode", "helpful"), call.fields.get("topic")
    if topic is not None and not isinstance(topic, str):
        raise DataError(f"The topic is {topic!r}; it is a text.")
    if mode == "red-team" and call.fields.get("warned") not in ("yes", True):
        raise DataError("Red-teaming can bring up upsetting text; say that you know that (warned: yes).")
    with call.writing(consented=True) as session:
        _check_may_talk(session, call)
        found = talk.begin(session, call.person, str(mode), topic)
    return call.json({"talk": found.id}) if call.wants_json else call.go(f"/chat/{found.id}")


@router.get("/chat/{number}")
def page(number: Number, call: Asked) -> Response:
    with call.reading(consented=True) as session:
        found = talk.talk_of(session, call.person, number)
    live = _desk(call).turn_of(number) if call.site.voices is not None else None
    if live is not None and not (talk.awaits_choice(found) and live.now.number):
        live = None
    if call.wants_json:
        return call.json(_told_of(found) | {"turn": None if live is None else _picture(live, live.now)})
    waits = talk.awaits_choice(found)
    return call.page(
        "chat_talk.html", talk=found, history=found.messages[:-1] if waits else found.messages,
        asked=found.messages[-1]["content"] if waits else None, turn=None if live is None else _picture(live, live.now),
        there=call.site.voices is not None, nobody=NOBODY, strengths=STRENGTHS, scale=SCALE, most=MOST_TEXT,
    )  # fmt: skip


@router.post("/chat/{number}/say")
async def say(number: Number, call: Posted) -> Response:
    """Ask, and hear both answers as they come. Whoever stops listening stops them; what had come stays."""
    desk, text = _desk(call), call.fields.get("text")
    if not isinstance(text, str):
        raise DataError("Write something first (text).")
    messages = await run_in_threadpool(_ask, call, number, text)
    try:
        live = desk.ask(call.person.id, number, messages)
    except Busy as busy:
        raise HTTPException(429, str(busy), {"retry-after": "30"}) from None
    headers = {"x-accel-buffering": "no"}  # a proxy between us is to pass every piece on
    return StreamingResponse(_events(desk, live), media_type="text/event-stream", headers=headers)


@router.post("/chat/{number}/choose")
async def choose(number: Number, call: Posted) -> Response:
    desk, seen = _desk(call), call.fields.get("seen")
    if seen is not None and not (isinstance(seen, int) and not isinstance(seen, bool)):
        raise DataError(f"seen is {seen!r}; it is the number of the last event that was read.")
    live = desk.turn_of(number)
    if live is not None and call.fields.get("turn", live.name) != live.name:
        raise Settled(
            "These answers have made way for others: it was asked anew in another window. Load the page again."
        )
    chosen = await run_in_threadpool(_choose, call, number, None if live is None else live.seen(seen))
    if live is not None and desk.turn_of(number) is live:
        desk.forget(number)
    return call.json(vars(chosen) | {"html": shown(chosen.text)})


@router.post("/chat/{number}/undo")
async def undo(number: Number, call: Posted) -> Response:
    """Take the last choice back; the two answers stand there again."""
    desk = _desk(call)
    messages, turn = await run_in_threadpool(_take_back, call, number)
    live = None if turn is None else desk.put_back(call.person.id, number, messages, turn)
    told = None if live is None else _picture(live, live.now)
    for answer in [] if told is None else told["answers"]:
        answer["html"] = shown(answer["text"])
    return call.json({"asked": messages[-1]["content"], "turn": told})


@router.post("/chat/{number}/report")
def report(number: Number, call: Posted) -> Response:
    """Tell a lead of the two answers that are there, or of the last ones."""
    kind, text = str(call.fields.get("kind", "report")), call.fields.get("text", "")
    if kind == "report" and not (isinstance(text, str) and text.strip()):
        raise DataError("Say what is wrong with it.")
    live = _desk(call).turn_of(number) if call.site.voices is not None else None
    with call.writing(consented=True) as session:
        found = talk.talk_of(session, call.person, number, changed=True)
        talk.report(session, found, None if live is None else live.seen(None), kind, str(text).strip()[:MOST_REASON])
    return call.json({"reported": True}) if call.wants_json else call.go(f"/chat/{number}")


@router.post("/chat/{number}/end")
async def end(number: Number, call: Posted) -> Response:
    def ended() -> None:
        with call.writing() as session:
            talk.end(session, talk.talk_of(session, call.person, number, changed=True))

    await run_in_threadpool(ended)
    if call.site.voices is not None:
        _desk(call).forget(number)
    return call.json({"ended": True}) if call.wants_json else call.go("/chat")


def _desk(call: Call) -> Desk:
    """The server's one desk, made when it is first needed."""
    if call.site.voices is None:
        raise Absent(NOBODY)
    state = call.request.app.state
    if not hasattr(state, "desk"):
        state.desk = Desk(call.site.voices)
    return state.desk


def _check_may_talk(session: Session, call: Call) -> None:
    if call.site.voices is None:
        raise Absent(NOBODY)
    if queue.needs_entry_test(session, call.person, call.settings):
        raise Forbidden("Answer the entry test's questions first: /tasks.")


def _ask(call: Call, number: int, text: str) -> Conversation:
    with call.writing(consented=True) as session:
        found = talk.talk_of(session, call.person, number, changed=True)
        _check_may_talk(session, call)
        return talk.ask(session, found, text)


def _choose(call: Call, number: int, turn: talk.Turn | None) -> talk.Chosen:
    with call.writing(consented=True) as session:
        found = talk.talk_of(session, call.person, number, changed=True)
        if turn is None:
            raise Settled("The answers to your last question are gone, or were chosen between before: ask (again).")
        return talk.choose(session, found, turn, call.fields.get("value"), _seconds(call))


def _take_back(call: Call, number: int) -> tuple[Conversation, talk.Turn | None]:
    with call.writing(consented=True) as session:
        found = talk.talk_of(session, call.person, number, changed=True)
        turn = talk.take_back(session, found)
        return found.messages, turn


def _seconds(call: Call) -> float | None:
    return seconds_of(call.fields.get("seconds"))


async def _events(desk: Desk, live: Live) -> AsyncIterator[str]:
    async for kind, what in desk.follow(live):
        if kind == "beat":
            yield ": still here\n\n"  # a comment, by which a gone browser is noticed
            continue
        if isinstance(what, Picture):
            told: dict[str, Any] = _picture(live, what)
            if kind == "ready":
                for answer in told["answers"]:
                    answer["html"] = shown(answer["text"])
        else:
            told = {"before" if kind == "place" else "error": what}
        yield f"event: {kind}\ndata: {json.dumps(told)}\n\n"


def _picture(live: Live, picture: Picture) -> dict[str, Any]:
    return {"turn": live.name, "seen": picture.number, "answers": [dict(vars(said)) for said in live.on_page(picture)]}


def _told_of(found: Talk) -> dict[str, Any]:
    return {
        "talk": found.id, "mode": found.mode, "topic": found.topic, "messages": found.messages,
        "ended": found.ended is not None,
    }  # fmt: skip
