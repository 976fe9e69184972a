"""Simulated people, who answer by the true score of a gold world through the page's own requests."""

import json
from typing import Any

from sqlalchemy import select

from llm_rlhf.errors import RunError
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.people import invite, link_for
from llm_rlhf.feedback.simulated import Habits, Score, Simulated, work_all
from llm_rlhf.feedback.tables import Item, Person
from llm_rlhf.feedback.web.app import create_app
from llm_rlhf.feedback.web.security import Limiter
from llm_rlhf.feedback.web.serving import in_background
from llm_rlhf.recipe.people_sections import SimulatedSection
from llm_rlhf.world.judge import judge


def ask_simulated(database: Database, section: SimulatedSection, seed: int) -> int:
    """Have simulated people answer all that is open; those that an interrupted call had invited go on. How many labels.

    Raises:
        RunError: where the page does not answer, or asks about a prompt that is no world's.
    """
    score = true_score(database)
    habits = Habits(section.noise, section.left, section.longer, section.inattention, section.ties)
    with database.write() as session:
        found = session.scalars(select(Person).where(Person.simulated).order_by(Person.id)).all()
        tokens = [link_for(session, person) for person in found[: section.people]]
        tokens += [invite(session, simulated=True)[1] for _ in range(section.people - len(tokens))]
    people = [(token, Simulated(score, habits, seed * 1000 + n)) for n, token in enumerate(tokens)]
    # Nobody else knows of this server: nothing is asked too often.
    limiter = Limiter(rate=1e6, burst=1e6, others_rate=1e6, others_burst=1e6)
    with in_background(create_app(database, limiter=limiter)) as port:
        said = work_all(f"http://127.0.0.1:{port}", people)
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
