"""Several replies to one prompt, each with a score or a rank, as pairs.

By default one pair a prompt, its best reply against its worst: every prompt then counts the same, no reply is seen more
than once an epoch (k replies make k(k-1)/2 pairs that share them, and a reward model trained on those one by one
overfits: Ouyang et al. 2022, section 3.5), and the widest gap is the label least often wrong. `pairs: all` takes all.

The replies stand in one row, or one a row (`scored`), of which those to one prompt are taken together. Where several
aspects of a reply were rated one by one (UltraFeedback's annotations), its score is the mean of the ratings, and comes
before an overall score beside them, which people found to be wrong in that data where the two contradict each other.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

from llm_rlhf.data.bounds import MOST_COMPARED
from llm_rlhf.data.cells import as_number
from llm_rlhf.data.checks import BadRow, check_prompt, extract, is_blank, normalised_prompt
from llm_rlhf.data.formats.columns import RANKS, RATINGS, SCORES, TEXTS, beside, reply_lists
from llm_rlhf.data.formats.conversations import asked, objective_of, row_of
from llm_rlhf.data.formats.labelled_replies import TIE, completion
from llm_rlhf.data.formats.turns import pair_of, reply_of
from llm_rlhf.data.rows import Conversation, Demonstration, Message, Preference, RawRow

ALONE = "no other scored reply to the prompt"
TOO_MANY = "too many replies for all pairs"
BETWEEN = "reply neither the best nor the worst"


class Rated(NamedTuple):
    reply: Message
    score: float  # higher is better; of ranks, less the rank
    position: int  # in the row, from 1


Group: TypeAlias = list[tuple[RawRow, Conversation, Rated]]  # rows with one reply each to one prompt


def ranked_pairs(raw: RawRow, objective: str, which: str) -> list[Preference]:
    """Pairs with the gap between scores (or ranks) as margin; what of the row was not used is counted in its parts."""
    row = row_of(raw)
    prompt = asked(row, raw.repairs)
    replies = _rated(row, prompt, raw)
    pairs = [pair for pair, _, _ in _pairs(prompt, replies, which, raw, objective_of(row, objective))]
    if not pairs:
        raise BadRow("no pair of different replies with different scores", f"{len(replies)} replies")
    return pairs


def scored_rows(
    raws: Iterable[RawRow], objective: str, which: str, best_alone: bool
) -> Iterator[tuple[list[RawRow], Preference | Demonstration | BadRow]]:
    """What becomes of rows with one scored reply each: those to one prompt are compared, in the order of the prompts.

    Args:
        best_alone: the best reply to every prompt as a demonstration, in place of pairs.

    Yields:
        What was made with the rows it uses, and every other row with the BadRow that says why.
    """
    waiting: dict[str, Group] = {}
    for raw in raws:
        try:
            if isinstance(raw.fields, BadRow):
                raise raw.fields
            prompt, rated = _scored(raw)
        except BadRow as bad:
            yield [raw], bad
            continue
        of_prompt = waiting.setdefault(normalised_prompt(prompt), [])
        of_prompt.append((raw, prompt, rated._replace(position=len(of_prompt) + 1)))
    for group in waiting.values():
        yield from _best_of(group) if best_alone else _compared(group, objective, which)


def _scored(raw: RawRow) -> tuple[Conversation, Rated]:
    row = row_of(raw)
    name = _one_of([name for name in RATINGS if row.get(name) is not None])
    prompt = check_prompt(asked(row, raw.repairs), raw.repairs)
    reply = reply_of(completion(row), "completion", prompt)
    if is_blank(reply["content"]):
        raise BadRow("empty reply")
    return prompt, Rated(reply, _score(row[name], name), 1)


def _best_of(group: Group) -> Iterator[tuple[list[RawRow], Demonstration | BadRow]]:
    best = max(group, key=lambda one: one[2].score)
    for raw, prompt, rated in group:
        made = Demonstration([*prompt, rated.reply], raw.origin) if raw is best[0] else BadRow("not the best reply")
        yield [raw], made


def _compared(group: Group, objective: str, which: str) -> Iterator[tuple[list[RawRow], Preference | BadRow]]:
    account = RawRow(group[0][0].origin, None)
    used: set[int] = set()
    reason = BadRow(ALONE)
    if len(group) > 1:
        try:
            objective = objective_of(row_of(group[0][0]), objective)
            replies = [rated for _, _, rated in group]
            for pair, *places in _pairs(group[0][1], replies, which, account, objective):
                used |= set(places)
                rows = [group[place - 1][0] for place in places]
                rows[0].repairs |= account.repairs
                yield rows, pair
            reason = BadRow(next((why for why, count in account.parts.items() if count), TIE))
        except BadRow as bad:
            reason = bad
    yield from (([raw], reason) for raw, _, rated in group if rated.position not in used)


def _pairs(
    prompt: Conversation, replies: list[Rated], which: str, raw: RawRow, objective: str
) -> Iterator[tuple[Preference, int, int]]:
    """The pairs of the replies, each with the positions of both."""
    for better, worse in chosen_pairs(replies, which, raw):
        try:
            turns, chosen, rejected = pair_of([*prompt, better.reply], [*prompt, worse.reply], raw.repairs)
        except BadRow as bad:
            if bad.reason != "chosen equals rejected":
                raise
            raw.parts[bad.reason] += 1
            continue
        gap = better.score - worse.score
        pair = Preference(turns, chosen, rejected, objective, raw.origin, margin=gap, position=better.position)
        yield pair, better.position, worse.position


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
    if len(ordered) > MOST_COMPARED:
        raise BadRow(TOO_MANY, f"{len(ordered)}, over {MOST_COMPARED}; set pairs: best_worst")
    pairs = list(itertools.combinations(ordered, 2))
    raw.parts[TIE] += sum(one.score == other.score for one, other in pairs)
    return [(one, other) for one, other in pairs if one.score != other.score]


def _rated(row: dict[str, Any], prompt: Conversation, raw: RawRow) -> list[Rated]:
    """The replies that can be used; the others are counted in the row's parts."""
    lists = reply_lists(row)
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
    if (rating := _mean_rating(value.get("annotations"))) is not None:
        return value[texts[0]], rating
    name = _one_of([name for name in (*SCORES, *RANKS) if value.get(name) is not None])
    return value[texts[0]], _score(value[name], name)


def _mean_rating(annotations: Any) -> float | None:
    """The mean over the aspects that were rated ("N/A" is none); None where there is no such rating."""
    if not isinstance(annotations, dict):
        return None
    ratings = [aspect.get("Rating") for aspect in annotations.values() if isinstance(aspect, dict)]
    numbers = [number for rating in ratings if (number := as_number(rating)) is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _scores_beside(row: dict[str, Any], length: int) -> list[float]:
    name = _one_of(beside(row, length))
    scores = [_score(value, name) for value in row[name]]
    if name.startswith("ranking") and _may_be_an_order(scores):
        raise BadRow(
            "ambiguous ranking",
            f"{name} may have each reply's rank or replies by number; if ranks, set 'columns: {{ranks: {name}}}'",
        )
    return scores


def _may_be_an_order(scores: list[float]) -> bool:
    """Whether ranks would say something else if they were the numbers of the replies, the best one's first."""
    lowest = -max(scores)
    ranks = [int(-score - lowest) for score in scores]
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    return sorted(ranks) == list(range(len(ranks))) and ranks != order


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
