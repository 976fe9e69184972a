"""How public data sets write their rows, brought into our columns: one line of SHAPES for each.

A shape has the columns by which it is known and a function that makes of a row the same row in our columns, or several
where it holds several pairs. The formats of table.py then read these. Several shapes may hold for one row.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from llm_rlhf.data.cells import as_number, thumb
from llm_rlhf.data.checks import BadRow, extract
from llm_rlhf.data.messages import is_message

Fields = dict[str, Any]

# Columns of one label for each of several people.
_VOTES = re.compile(r"(?i)(?:label[_ ])?(?:annotator|rater|vote|judge)[_ ]?(?:label[_ ]?)?\d+(?:[_ ]label)?")
_NUMBERED = re.compile(r"(?i)(?:label|preference)[_ ]?\d+")


class Shape(NamedTuple):
    data_set: str
    needs: tuple[str, ...]  # columns that must be there
    rows: Callable[[Fields], list[Fields] | None]  # None: the row is of another shape after all


def shaped(row: Fields) -> tuple[list[Fields], frozenset[str]]:
    """The row in our columns, as one or as several, and which of its columns the shapes have read."""
    votes, shapes = _of_columns(tuple(row))
    if not votes and not shapes:
        return [row], frozenset()
    rows, taken = [row], set()
    if votes and row.get("label") is None:
        rows, taken = [_without(row, votes) | {"label": [row[name] for name in votes]}], set(votes)
    for shape in shapes:
        if all(one.get(name) is not None for one in rows for name in shape.needs):  # an earlier shape may have read it
            made = [shape.rows(one) for one in rows]
            if all(one is not None for one in made):
                before, rows = rows, [one for several in made for one in several or ()]
                taken |= {*shape.needs, *(before[0].keys() - rows[0].keys())}
    return rows, frozenset(taken)


@lru_cache(maxsize=64)
def _of_columns(names: tuple[Any, ...]) -> tuple[list[str], list["Shape"]]:
    """The columns with one person's label each, and the shapes that a row with these columns may have.

    Two numbered labels may as well be one of each reply; three are of three people.
    """
    texts = [name for name in names if isinstance(name, str)]
    votes = [name for name in texts if _VOTES.fullmatch(name)]
    numbered = [name for name in texts if _NUMBERED.fullmatch(name)]
    votes = votes if len(votes) > 1 else numbered if len(numbered) > 2 else []
    return votes, [shape for shape in SHAPES if set(shape.needs) <= set(texts)]


def _styles(row: Fields) -> list[Fields] | None:
    """RM-Bench: the replies in several styles; those of one style are compared."""
    chosen, rejected = row["chosen"], row["rejected"]
    if not (isinstance(chosen, list) and isinstance(rejected, list) and chosen and rejected):
        return None
    if not all(isinstance(reply, str) for reply in (*chosen, *rejected)):
        return None
    if len(chosen) != len(rejected):
        raise BadRow("chosen and rejected of different number", f"{len(chosen)} and {len(rejected)} texts")
    return [row | {"chosen": one, "rejected": other} for one, other in zip(chosen, rejected, strict=True)]


def _better_and_safer(row: Fields) -> list[Fields] | None:
    """PKU-SafeRLHF: one pair judged twice."""
    both = {"helpful": row["better_response_id"], "harmless": row["safer_response_id"]}
    rest = _without(row, ("better_response_id", "safer_response_id"))
    if row.get("label") is not None:
        return None
    return [rest | {"label": label, "objective": objective} for objective, label in both.items()]


def _signed(name: str) -> Callable[[Fields], list[Fields] | None]:
    """HelpSteer2 and 3: from -3, the first reply is much better, to 3, the second is."""

    def rows(row: Fields) -> list[Fields] | None:
        value = as_number(row[name])
        if value is None:
            raise BadRow("unusable label", f"{name} is {extract(row[name])}")
        asked = {"prompt": row["context"]} if row.get("prompt") is None and row.get("context") is not None else {}
        label = {"label": "tie" if value == 0 else 1 if value < 0 else 2, "margin": abs(value)}
        return [_without(row, (name, *(["context"] if asked else []))) | asked | label]

    return rows


def _is_safe(row: Fields) -> list[Fields] | None:
    """BeaverTails: whether a reply is safe, which is a thumb on how harmless it is."""
    return [_without(row, ("is_safe",)) | {"label": row["is_safe"], "objective": row.get("objective") or "harmless"}]


def _pair_after_messages(row: Fields) -> list[Fields] | None:
    """LLaMA-Factory: a conversation that waits for a reply, and two replies to it."""
    messages = row["messages"]
    replies = [[row[name]] if is_message(row[name]) else row[name] for name in ("chosen", "rejected")]
    single = all(isinstance(reply, str) or (isinstance(reply, list) and len(reply) == 1) for reply in replies)
    if row.get("prompt") is not None or not isinstance(messages, list) or not single:
        return None
    return [_without(row, ("messages",)) | {"prompt": messages, "chosen": replies[0], "rejected": replies[1]}]


def _labelled_messages(row: Fields) -> list[Fields] | None:
    """A conversation with a thumb on its last reply (KTO)."""
    messages = row["messages"]
    if not isinstance(messages, list) or len(messages) < 2 or row.get("prompt") is not None:
        return None
    if thumb(row["label"]) is None:
        return None
    return [row | {"prompt": messages[:-1], "completion": messages[-1:]}]


def _scores_of_both(row: Fields) -> list[Fields] | None:
    """UltraFeedback, binarized: the score of either reply, so how much better the chosen one is."""
    scores = [as_number(row[name]) for name in ("score_chosen", "score_rejected")]
    if row.get("margin") is not None or scores[0] is None or scores[1] is None:
        return None
    if scores[0] == scores[1]:
        raise BadRow("tie", f"chosen and rejected score {scores[0]:g}")
    return [_without(row, ("score_chosen", "score_rejected")) | {"margin": scores[0] - scores[1]}]


SHAPES = (
    Shape("RM-Bench", ("chosen", "rejected"), _styles),
    Shape("PKU-SafeRLHF", ("better_response_id", "safer_response_id"), _better_and_safer),
    Shape("HelpSteer3", ("response_1", "response_2", "overall_preference"), _signed("overall_preference")),
    Shape("HelpSteer2", ("response_1", "response_2", "preference_strength"), _signed("preference_strength")),
    Shape("BeaverTails", ("prompt", "response", "is_safe"), _is_safe),
    Shape("LLaMA-Factory", ("messages", "chosen", "rejected"), _pair_after_messages),
    Shape("KTO", ("messages", "label"), _labelled_messages),
    Shape("UltraFeedback, binarized", ("chosen", "rejected", "score_chosen", "score_rejected"), _scores_of_both),
)


def _without(row: Fields, names: Iterable[str]) -> Fields:
    return {name: value for name, value in row.items() if name not in names}
