"""How much is left for somebody, told so that it does not tell known questions and repeats from new ones.

These come among the others and take no place in the queue: a number that is the queue's own would stand still whenever
one of them is shown. So those that are to come are counted in, as many as are expected, and each falls away like any
other question.
"""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from llm_rlhf.feedback import places
from llm_rlhf.feedback.settings import Settings
from llm_rlhf.feedback.tables import Assignment, Item, Person


def left(
    session: Session, person: Person, settings: Settings, kind: str | None = None, topic: str | None = None
) -> int:
    """Questions to come for a person, the one that is open aside; 0 where none is new.

    Args:
        kind, topic: of which; None: of any.
    """
    real = places.remaining(session, person, kind, topic)
    if not real or not (settings.gold_share or settings.repeat_share):
        return real
    had = (
        select(Item.purpose, Assignment.turn, func.count())
        .select_from(Assignment)
        .join(Item, Item.id == Assignment.item_id)
        .where(Assignment.person_id == person.id, Assignment.state != "expired")
        .where(Item.purpose != "entry", places.is_asked())
        .group_by(Item.purpose, Assignment.turn)
    )
    new = among = 0  # that this person has had, the one that is open included
    for purpose, turn, number in session.execute(_of(had, kind, topic)):
        if purpose == "gold" or turn > 1:
            among += number
        else:
            new += number
    gold = select(func.count()).select_from(Item).where(Item.state == "open", Item.purpose == "gold")
    known = session.scalar(_of(gold, kind, topic)) or 0
    return max(1, real + _expected(settings, real + new, known) - among)


def _of(query: Any, kind: str | None, topic: str | None) -> Any:
    query = query if kind is None else query.where(Item.kind == kind)
    return query if topic is None else query.where(Item.topic == topic)


def _expected(settings: Settings, new: int, gold: int) -> int:
    """Known questions and repeats among so many new ones."""
    share = settings.gold_share
    known = gold if share >= 1 else min(float(gold), new * share / (1 - share))
    again = min(0.5, (1 - share) * settings.repeat_share)  # of all that is shown
    return round(known + max(0, new - settings.repeat_after) * again / (1 - again))
