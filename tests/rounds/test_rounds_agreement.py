"""What people say of chosen pairs tells of all pairs, once weighed."""

import numpy as np
import pytest
from scipy import stats

from llm_rlhf.feedback import queue, saying
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.people import invite
from llm_rlhf.feedback.selection import choose
from llm_rlhf.rounds.agreement import Answered, agreement, answered_of


def test_the_weighed_share_by_hand() -> None:
    # weights 2 and 10; agreed on the first alone: 2 / 12
    found = agreement([Answered(1.0, 0.5, False), Answered(0.0, 0.1, True)])
    assert found["all"].estimate == pytest.approx(2 / 12)
    assert "slice" not in found  # one question alone
    assert agreement([]) == {}


def test_the_interval_by_hand() -> None:
    """Eight of eight: Wilson's upper half, with Student's quantile of 7, of Kish's (8 w)^2 / (8 w^2) = 8 questions.

    A bootstrap said 100 % [100, 100], which held the truth of 90 % in three of five draws.
    """
    found = agreement([Answered(1.0, 0.25, True)] * 8)
    t = stats.t.ppf(0.975, 7)
    for interval in found.values():
        assert (interval.estimate, interval.high, interval.n) == (1.0, 1.0, 8)
        assert interval.low == pytest.approx(8 / (8 + t**2), abs=1e-4)
    unequal = agreement([Answered(1.0, 0.25, False)] * 4 + [Answered(1.0, 1.0, False)] * 4)["all"]
    rows = 20**2 / (4 * 16 + 4)
    assert unequal.low == pytest.approx(rows / (rows + t**2), abs=1e-4)


def test_it_tells_of_all_pairs_where_the_plain_share_does_not() -> None:
    """A model that is right where it is sure, and is asked about where it is not."""
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 3, 400)
    right = rng.random(400) < 1 / (1 + np.exp(-abs(margin)))
    weighed, slices, plain = [], [], []
    for seed in range(300):
        found = choose("mixed", 80, 400, seed, margin=margin)
        rows = [
            Answered(float(right[place]), float(propensity), strategy == "random")
            for place, propensity, strategy in zip(found.places, found.propensities, found.strategies, strict=True)
        ]
        weights = np.array([1 / row.propensity for row in rows])
        agreed = np.array([row.agrees for row in rows])
        weighed.append((weights * agreed).sum() / weights.sum())
        slices.append(np.mean([row.agrees for row in rows if row.uniform]))
        plain.append(agreed.mean())
    assert abs(np.mean(weighed) - right.mean()) < 0.01  # a ratio's bias is of the order of 1 / n
    assert abs(np.mean(slices) - right.mean()) < 4 * np.std(slices) / np.sqrt(300)
    assert right.mean() - np.mean(plain) > 0.05


def test_what_people_said_is_held_against_the_margin(database: Database) -> None:
    prompt = [{"role": "user", "content": "q"}]
    with database.write() as session:
        questions = [
            queue.Question(
                "compare", prompt, [{"text": f"a{n}"}, {"text": f"b{n}"}], strategy="random" if n else "mixed",
                propensity=0.5, facts={"margin": margin},
            )
            for n, margin in enumerate((-1.0, -1.0, 2.0, 2.0))
        ]  # fmt: skip
        batch = queue.add(session, questions, "select", {}).batch
        person, _ = invite(session)
        said = [("better", 0), ("better", 1), ("better", 1), ("tie", None)]
        for choice, better in said:
            assignment = queue.next_for(session, person)
            assert assignment is not None
            value = {"choice": choice}
            if better is not None:
                value |= {"better": assignment.order.index(better), "strength": 1}
            saying.record(session, assignment, value, 5.0)
    found = answered_of(database, batch)
    assert [(one.agrees, one.uniform) for one in found] == [(1.0, False), (0.0, True), (1.0, True)]
