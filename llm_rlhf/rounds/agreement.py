"""How often a round's reward model agrees with what people then said of its policy's answers.

The questions were chosen, mostly where models doubt: the plain share would tell of those. Weighed by the inverse of
their propensities they tell of every pair that could have been asked; the uniform slice tells of the same without
weights, from fewer questions.
"""

from typing import NamedTuple

import numpy as np
from sqlalchemy import select

from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.labels import preferred
from llm_rlhf.feedback.selection import RANDOM
from llm_rlhf.feedback.tables import Assignment, Item, Label, Person
from llm_rlhf.statistics.clustered import student_quantile
from llm_rlhf.statistics.intervals import Interval, wilson_bounds


class Answered(NamedTuple):
    """A comparison that people preferred one answer of, and that a reward model had an opinion of."""

    agrees: float  # share of those who preferred one that preferred the model's
    propensity: float
    uniform: bool  # of the slice that was drawn uniformly


def agreement(answered: list[Answered]) -> dict[str, Interval]:
    """Shares with 95 % intervals: `all`, weighed; `slice`, of the uniform slice alone; neither of fewer than two.

    Ties are no part of either: the share is that of pairs of which people prefer one. The weighed one is a ratio of two
    weighed sums (Hajek 1971). Both have Wilson's interval, with Student's quantile, of as many questions as know as
    much: of n weights w, (sum w)^2 / sum w^2 (Kish 1965; Korn and Graubard 1998, Survey Methodology 24).
    """
    found = {}
    if len(answered) > 1:
        weights = 1 / np.array([one.propensity for one in answered])
        found["all"] = _share(answered, weights, "agreement weighed by 1 / propensity")
    uniform = [one for one in answered if one.uniform]
    if len(uniform) > 1:
        found["slice"] = _share(uniform, np.ones(len(uniform)), "agreement")
    return found


def _share(answered: list[Answered], weights: np.ndarray, what: str) -> Interval:
    agreed = np.array([one.agrees for one in answered])
    share = float(weights @ agreed / weights.sum())
    rows = float(weights.sum() ** 2 / (weights @ weights))
    low, high = wilson_bounds(share, rows, student_quantile(len(answered) - 1))
    method = f"{what}; Wilson score interval, {rows:.1f} effective questions"
    return Interval(share, low, high, len(answered), method)


def answered_of(database: Database, batch: int) -> list[Answered]:
    """The comparisons of a batch that somebody preferred one answer of, each person's first label of each."""
    labels = (
        select(Item, Label.value)
        .join(Label, Label.item_id == Item.id)
        .join(Assignment, Assignment.id == Label.assignment_id)
        .join(Person, Person.id == Label.person_id)
        .where(Item.batch_id == batch, Item.kind == "compare", Assignment.turn == 1, Person.withdrawn.is_(None))
        .order_by(Item.id, Label.id)
    )
    votes: dict[int, tuple[Item, list[float]]] = {}
    with database.read() as session:
        for item, value in session.execute(labels):
            first = preferred("compare", value)
            if first in (0.0, 1.0) and item.propensity and item.facts.get("margin"):
                of_item = votes.setdefault(item.id, (item, []))[1]
                of_item.append(float(first == float(item.facts["margin"] < 0)))
    return [
        Answered(sum(agrees) / len(agrees), float(item.propensity or 1), item.strategy == RANDOM)
        for item, agrees in votes.values()
    ]
