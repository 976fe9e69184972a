"""Simulated people, who answer by the true score of a gold world through the page's own requests."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from sqlalchemy import select

from llm_rlhf.errors import RunError
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.people import invite, link_for
from llm_rlhf.feedback.simulated import Habits, Score, Simulated, work_all
from llm_rlhf.feedback.tables import Item, Person
from llm_rlhf.feedback.web.app import create_app
from llm_rlhf.feedback.web.security import Access, Limiter
from llm_rlhf.feedback.web.serving import address_of, bind
from llm_rlhf.recipe.people_sections import SimulatedSection
from llm_rlhf.world.judge import judge

PATIENCE = 30.0  # seconds for the server to begin, or to end


@dataclass
class Attentive(Simulated):
    """One who says so where two answers are as good as each other, within `ties` of the true score; None: never."""

    ties: float | None = None

    def say(self, task: dict[str, Any]) -> dict[str, Any]:
        if task["kind"] == "compare" and self.ties is not None:
            one, other = (self.score(task["prompt"], answer["text"]) for answer in task["answers"])
            blind = self.rng.random() < self.habits.inattention
            if abs(one - other) <= self.ties and not blind:
                return {"choice": "tie"}
        return super().say(task)


def ask_simulated(database: Database, section: SimulatedSection, seed: int) -> int:
    """Have simulated people answer all that is open; those that an interrupted call had invited go on. How many labels.

    Raises:
        RunError: where the page does not answer, or asks about a prompt that is no world's.
    """
    score = true_score(database)
    habits = Habits(section.noise, section.left, section.longer, section.inattention)
    with database.write() as session:
        found = session.scalars(select(Person).where(Person.simulated).order_by(Person.id)).all()
        tokens = [link_for(session, person) for person in found[: section.people]]
        tokens += [invite(session, simulated=True)[1] for _ in range(section.people - len(tokens))]
    people = [(token, Attentive(score, habits, seed * 1000 + n, ties=section.ties)) for n, token in enumerate(tokens)]
    with serving(database) as url:
        said = work_all(url, people)
    return sum(len(one.acknowledged) for one in said)


def true_score(database: Database) -> Score:
    """The world's rule, for the prompts of a store's questions: what it judges by stands in their facts."""
    with database.read() as session:
        items = session.scalars(select(Item)).all()
        facts = {json.dumps(item.prompt, sort_keys=True): item.facts for item in items}

    def score(prompt: list[dict[str, Any]], reply: str) -> float:
        known = facts.get(json.dumps(prompt, sort_keys=True))
        if known is None or "animal" not in known:
            raise RunError("A question came up whose prompt is no world's, so that its true score is not known.")
        return judge(known, reply).score

    return score


@contextlib.contextmanager
def serving(database: Database) -> Iterator[str]:
    """The page over a store, on a free port of this machine, while it lasts; its address.

    Raises:
        RunError: where it does not begin.
    """
    limiter = Limiter(rate=1e6, burst=1e6, others_rate=1e6, others_burst=1e6)  # nobody else knows of it
    access = Access()
    listener = bind(access.host, 0)
    config = uvicorn.Config(create_app(database, access, limiter=limiter), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    began = time.monotonic()
    while not server.started:
        if not thread.is_alive() or time.monotonic() - began > PATIENCE:
            raise RunError("The feedback page did not begin to serve.")
        time.sleep(0.02)
    try:
        yield address_of(access, listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()
