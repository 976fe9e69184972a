"""Answers while they come: one model speaks to one person at a time, the others wait in line and are told their place.

A `Desk` pulls both answers of a turn, a piece of each by turns, in a thread of its own, so that the server goes on
serving. Whoever reads along gets pictures of both (`Picture`), numbered: a choice names the last one it was made by, so
that what is stored is what was seen. A turn stops when somebody has chosen, asked anew, left, or when the browser goes.

All of it is in memory: after a restart a question is asked again. One process serves the page.
"""

import asyncio
import contextlib
import datetime
import itertools
import logging
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from llm_rlhf.data.rows import Conversation
from llm_rlhf.errors import DataError, RecipeError, RunError
from llm_rlhf.feedback.speaker import Answering, Said, Speaker
from llm_rlhf.feedback.tables import now
from llm_rlhf.feedback.talk import Shown, Turn

FRAME = 1 / 15  # seconds between two pictures
BEAT = 5.0  # seconds after which something is sent though there is nothing new, which tells whether anybody is there
MOST_WAITING = 32  # people in line
KEPT = 2_000  # turns that wait for a choice
OLD = datetime.timedelta(minutes=10)
PICTURES = 128  # the last ones of a turn, by which somebody may choose; some seconds

log = logging.getLogger(__name__)


class Busy(Exception):  # noqa: N818 - it is the answer, not a fault of ours
    """The line is too long."""


@dataclass(frozen=True)
class Picture:
    """Both answers at one moment, by their places in the item."""

    number: int
    answers: tuple[Said, Said]


class Live:
    """A turn whose answers come, or have come, and between which nobody has chosen."""

    def __init__(self, person: int, talk: int, messages: Conversation, sources: Sequence[str], details: dict) -> None:
        self.person, self.talk, self.messages = person, talk, messages
        self.sources, self.seed = sources, secrets.randbelow(2**31)
        self.name = secrets.token_hex(8)  # by which a choice says whose answers it is between
        self.details = {**details, "seed": self.seed}
        self.order = secrets.SystemRandom().sample(range(2), 2)
        self.pictures: deque[Picture] = deque([Picture(0, (Said(""), Said("")))], maxlen=PICTURES)
        self.began: datetime.datetime | None = None  # since when there is something to read
        self.failure: str | None = None
        self.stopped = threading.Event()  # nobody wants more of it
        self.over = False  # no more comes
        self.news = asyncio.Event()

    @property
    def now(self) -> Picture:
        return self.pictures[-1]

    def on_page(self, picture: Picture | None = None) -> list[Said]:
        """Both answers as they stand on the page, from the left."""
        picture = picture or self.now
        return [picture.answers[place] for place in self.order]

    def seen(self, number: int | None) -> Turn:
        """What was shown in this picture; None: in the newest."""
        known = [p for p in self.pictures if number is None or p.number <= number]
        picture = known[-1] if known else self.pictures[0]
        answers = [
            Shown(said.text, source, said.ended and not said.cut)
            for said, source in zip(picture.answers, self.sources, strict=True)
        ]
        return Turn(answers, self.order, self.began or now(), self.details)

    def grow_old(self) -> None:
        """Whoever chooses long after the last piece came has seen it: what was shown on the way is kept no longer."""
        if self.over and self.began is not None and now() - self.began > OLD:
            self.pictures = deque([self.now], maxlen=PICTURES)

    def draw(self, place: int, said: Said) -> None:
        """The next picture, with an answer as far as it has come. Called by the thread that pulls."""
        answers = list(self.now.answers)
        answers[place] = said
        if said.text and self.began is None:
            self.began = now()
        self.pictures.append(Picture(self.now.number + 1, (answers[0], answers[1])))


class Desk:
    """One speaker and those who wait for it."""

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker
        self.turns: OrderedDict[int, Live] = OrderedDict()  # by conversation
        self.line: deque[Live] = deque()
        self.speaks: Live | None = None
        self.threads = ThreadPoolExecutor(1, "speaker")

    def ask(self, person: int, talk: int, messages: Conversation) -> Live:
        """Stand in line with a question; what this person waited for before is given up.

        Raises:
            Busy: where the line is too long.
        """
        for earlier in [live for live in self.turns.values() if live.person == person and not live.over]:
            self.stop(earlier)
        self.forget(talk)
        if len(self.line) >= MOST_WAITING:
            raise Busy(f"{len(self.line)} people wait for an answer; try again in half a minute.")
        for waits in self.turns.values():
            waits.grow_old()
        live = Live(person, talk, messages, self.speaker.sources, self.speaker.details)
        self.turns[talk] = live
        while len(self.turns) > KEPT:
            self.stop(self.turns.popitem(last=False)[1])
        self.line.append(live)
        self._next()
        return live

    def put_back(self, person: int, talk: int, messages: Conversation, turn: Turn) -> Live:
        """A turn whose choice was taken back, to be chosen between once more."""
        live = Live(person, talk, messages, [str(a.source) for a in turn.answers], {})
        live.order, live.details, live.began, live.over = list(turn.order), turn.details, turn.asked, True
        first, second = (Said(answer.text, ended=answer.complete) for answer in turn.answers)
        live.pictures.append(Picture(1, (first, second)))
        self.turns[talk] = live
        return live

    def turn_of(self, talk: int) -> Live | None:
        """The turn of a conversation that waits for a choice."""
        return self.turns.get(talk)

    def before(self, live: Live) -> int:
        """How many are answered before this one; 0: it is answered."""
        return self.line.index(live) + 1 if live in self.line else 0

    def stop(self, live: Live) -> None:
        """No more of it; what has come stays."""
        live.stopped.set()
        if live in self.line:
            self.line.remove(live)
            live.over = True
            self._moved()
        live.news.set()

    def forget(self, talk: int) -> None:
        """It is chosen, or nobody will."""
        if (live := self.turns.pop(talk, None)) is not None:
            self.stop(live)

    async def follow(self, live: Live) -> AsyncIterator[tuple[str, Picture | int | str | None]]:
        """What happens to a turn until it is over: ("place", people before), ("text", picture), ("beat", None), then
        ("ready", picture) or ("failed", message). Who stops following stops the turn."""
        try:
            told: int | None = None
            place: int | None = None
            while not live.over:
                live.news.clear()
                if (before := self.before(live)) != place:
                    place = before
                    yield "place", before
                if live.now.number != told and live.now.number:
                    told = live.now.number
                    yield "text", live.now
                    await asyncio.sleep(FRAME)
                if live.over or live.now.number != (told or 0):
                    continue
                try:
                    await asyncio.wait_for(live.news.wait(), BEAT)
                except TimeoutError:
                    yield "beat", None
            yield ("ready", live.now) if live.failure is None else ("failed", live.failure)
        finally:
            self.stop(live)

    def close(self) -> None:
        """Stop what is being said, and take no more."""
        for live in list(self.turns.values()):
            self.stop(live)
        self.threads.shutdown(wait=True, cancel_futures=True)

    def _next(self) -> None:
        if self.speaks is not None or not self.line:
            return
        self.speaks = live = self.line.popleft()
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(self.threads, self._speak, live, loop)
        done.add_done_callback(lambda _: self._over(live))
        self._moved()

    def _over(self, live: Live) -> None:
        live.over, self.speaks = True, None
        live.news.set()
        self._next()

    def _moved(self) -> None:
        for live in self.line:
            live.news.set()
        if self.speaks is not None:
            self.speaks.news.set()

    def _speak(self, live: Live, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread: pull a piece of each answer by turns until both have ended or nobody wants more."""
        streams: Sequence[Answering] = ()
        try:
            streams = self.speaker.answers(live.messages, live.seed)
            going = dict(enumerate(streams))
            for place in itertools.cycle(range(2)):
                if not going or live.stopped.is_set():
                    return
                if place in going:
                    said = next(going[place], None)
                    if said is not None:
                        live.draw(place, said)
                    if said is None or said.ended:
                        del going[place]
                    with contextlib.suppress(RuntimeError):  # the server ends: nobody reads along
                        loop.call_soon_threadsafe(live.news.set)
        except (DataError, RecipeError, RunError) as error:
            live.failure = str(error)
        except Exception:
            log.exception("an answer in a conversation failed")
            live.failure = "The model failed while it answered; whoever runs this page finds why in its log. Ask again."
        finally:
            for stream in streams:
                stream.close()
