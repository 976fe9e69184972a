"""Annotators whose habits are known: records as a store would give them, without one."""

import datetime
import random

from llm_rlhf.feedback.records import Passed, Records, Said, Who

DAY = datetime.date(2026, 3, 2)
PLANTED = {"clicker": "chance", "lefty": "left", "lengthy": "longer"}
GOOD = tuple(f"good-{number}" for number in range(7))


def planted(
    seed: int,
    items: int = 200,
    per_item: int = 4,
    noise: float = 0.15,
    long_is_better: float = 0.5,
    people: tuple[str, ...] = (*PLANTED, *GOOD),
    left_lean: float = 0.0,
) -> Records:
    """Comparisons on which `per_item` people each say something.

    Args:
        noise: share of a good annotator's choices that are of the worse answer.
        long_is_better: share of items whose better answer is the longer.
        left_lean: a good annotator's noise goes to the left by this share more often: a harmless habit.
    """
    rng = random.Random(seed)
    said, passed = [], []
    for item in range(items):
        better = rng.randrange(2)
        words = [rng.randint(20, 60), rng.randint(70, 120)]  # the longer one is at 1
        if (rng.random() < long_is_better) != (better == 1):
            words.reverse()
        for person in rng.sample(people, per_item):
            order = [0, 1]
            rng.shuffle(order)
            right = 1 - better if rng.random() < noise else better
            if rng.random() < left_lean:
                right = order[0]
            chosen = {
                "clicker": rng.randrange(2),
                "lefty": order[0] if rng.random() < 0.95 else order[1],
                "lengthy": words.index(max(words)) if rng.random() < 0.95 else words.index(min(words)),
            }.get(person, right)
            if person in GOOD and rng.random() < 0.05:
                passed.append(Passed(person, "cannot judge", DAY))
                continue
            value = {"choice": "better", "better": chosen, "strength": rng.randint(1, 4)}
            if person in GOOD and rng.random() < 0.05:
                value = {"choice": "tie"}
            seconds = rng.lognormvariate(0, 0.4) * (sum(words) + 12) / 4
            said.append(
                Said(person, item, "compare", value, tuple(order), tuple(words), sum(words) + 12, seconds, False, DAY)
            )
    return Records([Who(person) for person in people], said, passed)
