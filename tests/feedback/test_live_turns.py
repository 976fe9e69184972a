"""Answers while they come: one at a time, the others in line, stopped when nobody wants them."""

import asyncio
import threading

import pytest
from scripted_speaker import Scripted

from llm_rlhf.feedback.web import turns
from llm_rlhf.feedback.web.turns import Busy, Desk

HELLO = [{"role": "user", "content": "hello"}]


async def followed(desk: Desk, live) -> list[tuple[str, object]]:
    return [event async for event in desk.follow(live)]


def test_both_answers_come_by_turns_to_their_ends() -> None:
    async def walk():
        desk = Desk(Scripted(("a b c", "d")))
        live = desk.ask(1, 1, HELLO)
        events = await followed(desk, live)
        desk.close()
        return live, events

    live, events = asyncio.run(walk())
    assert events[0] == ("place", 0)
    kind, last = events[-1]
    assert kind == "ready"
    assert [(said.text, said.ended) for said in last.answers] == [("a b c", True), ("d", True)]
    pictures = [tuple(said.text for said in picture.answers) for picture in live.pictures]
    assert pictures == [("", ""), ("a", ""), ("a", "d"), ("a b", "d"), ("a b", "d"), ("a b c", "d"), ("a b c", "d")]


def test_what_is_chosen_is_what_the_picture_showed() -> None:
    async def walk():
        desk = Desk(Scripted(("a b c", "d")))
        live = desk.ask(1, 1, HELLO)
        await followed(desk, live)
        return live

    live = asyncio.run(walk())
    early, whole = live.seen(3), live.seen(None)
    assert [(shown.text, shown.complete) for shown in early.answers] == [("a b", False), ("d", False)]
    assert [(shown.text, shown.complete) for shown in live.seen(4).answers] == [("a b", False), ("d", True)]
    assert [(shown.text, shown.complete) for shown in whole.answers] == [("a b c", True), ("d", True)]
    assert live.seen(99).answers == whole.answers
    assert [shown.text for shown in live.seen(-1).answers] == ["", ""]
    assert [shown.source for shown in whole.answers] == ["ppo", "sft"]
    assert sorted(whole.order) == [0, 1]
    assert whole.details["seed"] == live.seed
    assert [said.text for said in live.on_page()] == [("a b c", "d")[place] for place in live.order]


def test_the_order_is_drawn() -> None:
    async def orders():
        desk = Desk(Scripted(("a", "b")))
        return {tuple(desk.ask(1, talk, HELLO).order) for talk in range(40)}

    assert asyncio.run(orders()) == {(0, 1), (1, 0)}


def test_ten_people_wait_in_line_and_are_told_their_place() -> None:
    gate = threading.Semaphore(0)
    speaker = Scripted(("a b", "c d"), gate=gate)

    async def walk():
        desk = Desk(speaker)
        lives = [desk.ask(person, person, HELLO) for person in range(10)]
        assert [desk.before(live) for live in lives] == [0, *range(1, 10)]
        following = [asyncio.create_task(followed(desk, live)) for live in lives]
        await asyncio.sleep(0.1)
        for _ in range(4 * 10):
            gate.release()
        return await asyncio.gather(*following)

    events = asyncio.run(walk())
    for number, found in enumerate(events):
        places = [what for kind, what in found if kind == "place"]
        assert places[0] == number, "told where it stands"
        assert places[-1] == 0
        assert places == sorted(places, reverse=True)
        assert found[-1][0] == "ready"
    assert speaker.most_speaking == 2, "the two answers of one turn"


def test_who_goes_stops_the_model_and_the_next_one_is_answered() -> None:
    gate = threading.Semaphore(0)
    speaker = Scripted(("a b c d e f", "g h i j k l"), gate=gate)

    async def walk():
        desk = Desk(speaker)
        first, second = desk.ask(1, 1, HELLO), desk.ask(2, 2, HELLO)
        gone = asyncio.create_task(followed(desk, first))
        for _ in range(3):
            gate.release()
        await asyncio.sleep(0.1)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        for _ in range(40):
            gate.release()
        events = await followed(desk, second)
        return first, events

    first, events = asyncio.run(walk())
    assert events[-1][0] == "ready"
    assert speaker.closed == 4, "also the streams of the one that went"
    assert not all(said.ended for said in first.now.answers)
    assert first.now.answers[0].text, "what had come is kept for a choice"


def test_asking_again_gives_the_earlier_question_up() -> None:
    gate = threading.Semaphore(0)

    async def walk():
        desk = Desk(Scripted(("a b", "c d"), gate=gate))
        first = desk.ask(1, 1, HELLO)
        waiting = desk.ask(2, 2, HELLO)
        second = desk.ask(1, 1, HELLO)
        assert first.stopped.is_set()
        assert desk.turn_of(1) is second
        third = desk.ask(2, 3, HELLO)  # another conversation of the same person: one at a time
        assert waiting.over
        assert desk.turn_of(2) is waiting, "but what had come of it can still be chosen between"
        for _ in range(20):
            gate.release()
        assert (await followed(desk, second))[-1][0] == "ready"
        assert (await followed(desk, third))[-1][0] == "ready"

    asyncio.run(walk())


def test_a_line_has_an_end(monkeypatch) -> None:
    monkeypatch.setattr(turns, "MOST_WAITING", 2)
    gate = threading.Semaphore(0)

    async def walk():
        desk = Desk(Scripted(gate=gate))
        for person in range(3):
            desk.ask(person, person, HELLO)
        with pytest.raises(Busy, match="2 people wait"):
            desk.ask(3, 3, HELLO)
        for _ in range(3):
            gate.release()
        desk.close()

    asyncio.run(walk())


@pytest.mark.parametrize(
    ("error", "told"), [(None, "The endpoint is gone."), (KeyError("secret"), "The model failed while it answered")]
)
def test_a_failure_is_told_and_the_next_is_answered(error, told) -> None:
    speaker = Scripted(fails=1, error=error)

    async def walk():
        desk = Desk(speaker)
        events = await followed(desk, desk.ask(1, 1, HELLO))
        speaker.fails = None
        return events[-1], (await followed(desk, desk.ask(1, 1, HELLO)))[-1]

    (kind, message), after = asyncio.run(walk())
    assert kind == "failed"
    assert told in message
    assert "secret" not in message
    assert after[0] == "ready"
