"""Several replies to one prompt, each with a score or a rank, as pairs.

By default one pair a prompt, its best reply against its worst: every prompt then counts the same, no reply is seen more
than once an epoch (k replies make k(k-1)/2 pairs that share them, and a reward model trained on those one by one
overfits: Ouyang et al. 2022, section 3.5), and the widest gap is the label least often wrong. `pairs: all` takes all.
"""

import itertools
from typing import Any, NamedTuple

from llm_rlhf.data.checks import BadRow, extract, is_blank
from llm_rlhf.data.formats.columns import RANKS, REPLY_LISTS, SCORES, TEXTS, beside
from llm_rlhf.data.formats.conversations import asked, objective_of, row_of
from llm_rlhf.data.formats.labelled_replies import TIE, as_number
from llm_rlhf.data.formats.turns import pair_of, reply_of
from llm_rlhf.data.rows import Conversation, Message, Preference, RawRow

BETWEEN = "reply neither the best nor the worst"


class Rated(NamedTuple):
    reply: Message
    score: float  # higher is better; of ranks, less the rank
    position: int  # in the row, from 1


def ranked_pairs(raw: RawRow, objective: str, which: str) -> list[Preference]:
    """Pairs with the gap between scores (or ranks) as margin; what of the row was not used is counted in its parts."""
    row = row_of(raw)
    prompt = asked(row, raw.repairs)
    replies = _rated(row, prompt, raw)
    objective = objective_of(row, objective)
    pairs = []
    for better, worse in chosen_pairs(replies, which, raw):
        try:
            turns, chosen, rejected = pair_of([*prompt, better.reply], [*prompt, worse.reply], raw.repairs)
        except BadRow as bad:
            if bad.reason != "chosen equals rejected":
                raise
            raw.parts[bad.reason] += 1
            continue
        gap = better.score - worse.score
        pairs.append(Preference(turns, chosen, rejected, objective, raw.origin, margin=gap, position=better.position))
    if not pairs:
        raise BadRow("no pair of different replies with different scores", f"{len(replies)} replies")
    return pairs


def chosen_pairs(replies: list[Rated], which: str, raw: RawRow) -> list[tuple[Rated, Rated]]:
    """The pairs to make, better reply first: best and worst, or all. Ties and replies in between are counted."""
    if len(replies) < 2:
        raise BadRow("fewer than two rated replies", f"{len(replies)}")
    ordered = sorted(replies, key=lambda reply: -reply.score)
    if ordered[0].score == ordered[-1].score:
        raise BadRow(TIE, f"all {len(ordered)} replies have the same score")
    if which == "best_worst":
        raw.parts[BETWEEN] += len(ordered) - 2
        return [(ordered[0], ordered[-1])]
    pairs = list(itertools.combinations(ordered, 2))
    raw.parts[TIE] += sum(one.score == other.score for one, other in pairs)
    return [(one, other) for one, other in pairs if one.score != other.score]


def _rated(row: dict[str, Any], prompt: Conversation, raw: RawRow) -> list[Rated]:
    """The replies that can be used; the others are counted in the row's parts."""
    lists = [name for name in REPLY_LISTS if isinstance(row.get(name), list)]
    if len(lists) != 1:
        raise BadRow(
            "ambiguous replies" if lists else "missing field",
            f"columns {', '.join(lists)}; set 'columns: {{responses: NAME}}'" if lists else "responses",
        )
    values = row[lists[0]]
    scores = _scores_beside(row, len(values)) if not any(isinstance(value, dict) for value in values) else None
    found = []
    for number, value in enumerate(values):
        try:
            text, score = _in_itself(value) if scores is None else (value, scores[number])
            reply = reply_of(text, f"reply {number + 1}", prompt)
            if is_blank(reply["content"]):
                raise BadRow("empty reply")
        except BadRow as bad:
            raw.parts[bad.reason] += 1
            continue
        found.append(Rated(reply, score, number + 1))
    return found


def _in_itself(value: Any) -> tuple[Any, float]:
    if not isinstance(value, dict):
        raise BadRow("wrong type", extract(value))
    texts = [name for name in TEXTS if isinstance(value.get(name), (str, list))]
    if not texts:
        raise BadRow("missing field", f"none of {', '.join(TEXTS)}")
    name = _one_of([name for name in (*SCORES, *RANKS) if value.get(name) is not None])
    return value[texts[0]], _score(value[name], name)


def _scores_beside(row: dict[str, Any], length: int) -> list[float]:
    name = _one_of(beside(row, length))
    return [_score(value, name) for value in row[name]]


def _one_of(names: list[str]) -> str:
    """The one column that rates; a score before a rank, as it says more, and never one of two scores."""
    if not names:
        raise BadRow("reply without a score or a rank")
    preferred = [name for name in names if name.rstrip("s") in SCORES] or names
    if "score" in preferred:
        return "score"
    if len(preferred) > 1:
        raise BadRow("ambiguous score", f"{', '.join(preferred)}; set 'columns: {{score: NAME}}'")
    return preferred[0]


def _score(value: Any, name: str) -> float:
    number = as_number(value)
    if number is None:
        raise BadRow("reply without a score or a rank", f"{name} is {extract(value)}")
    return -number if name.rstrip("s") in RANKS else number
