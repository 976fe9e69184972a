"""How public data sets write their rows, brought into our columns: one line of SHAPES for each.

A shape has the columns by which it is known and a function that makes of a row the same row in our columns, or several
where it holds several pairs. The formats of table.py then read these. Several shapes may hold for one row.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from llm_rlhf.data.cells import as_list, as_number, thumb
from llm_rlhf.data.checks import BadRow, check_text, extract
from llm_rlhf.data.messages import TOOLS, is_message

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


def _one_message(row: Fields) -> list[Fields] | None:
    """Each reply as one message that stands alone and not in a list."""
    replies = {name: row[name] for name in ("chosen", "rejected")}
    if not all(is_message(reply) for reply in replies.values()):
        return None
    return [row | {name: [reply] for name, reply in replies.items()}]


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
    replies = [row[name] for name in ("chosen", "rejected")]
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


def _scores_of_two(*names: str) -> Callable[[Fields], list[Fields] | None]:
    """Two replies, first and second, and a score of either, so which is better and by how much (WebGPT)."""
    replies, scores = names[:2], names[2:]

    def rows(row: Fields) -> list[Fields] | None:
        numbers = [as_number(row[name]) for name in scores]
        if row.get("label") is not None or numbers[0] is None or numbers[1] is None:
            return None
        better = "tie" if numbers[0] == numbers[1] else replies[numbers[0] < numbers[1]]
        question = row.get("question")
        asked = {"question": question["full_text"]} if isinstance(question, dict) and "full_text" in question else {}
        return [_without(row, scores) | asked | {"label": better, "margin": abs(numbers[0] - numbers[1])}]

    return rows


def _post_and_replies(row: Fields) -> list[Fields] | None:
    """SHP: the post is called history; labelled_replies.py knows what its labels say."""
    if row.get("prompt") is not None or not isinstance(row["history"], str):
        return None
    return [_without(row, ("history",)) | {"prompt": row["history"]}]


def _summaries(row: Fields) -> list[Fields] | None:
    """Summaries from feedback: a post or an article, as the paper's models were asked, and the number of the better."""
    info, summaries, choice = row["info"], row["summaries"], as_number(row["choice"])
    if not isinstance(info, dict) or not isinstance(summaries, list) or len(summaries) != 2:
        return None
    if choice not in (0, 1):
        raise BadRow("unusable label", f"choice is {extract(row['choice'])}")
    if info.get("article") is not None:
        prompt = f"Article:\n{check_text(info['article'], 'info, article')}\n\nTL;DR:"
    else:
        parts = {name: check_text(info.get(name), f"info, {name}") for name in ("subreddit", "title", "post")}
        prompt = f"SUBREDDIT: r/{parts['subreddit']}\n\nTITLE: {parts['title']}\n\nPOST: {parts['post']}\n\nTL;DR:"
    first, second = (one.get("text") if isinstance(one, dict) else None for one in summaries)
    made = {"prompt": prompt, "response_0": first, "response_1": second, "label": f"response_{int(choice)}"}
    others = [_without(one, ("text",)) for one in summaries if isinstance(one, dict)]  # keys that nothing reads
    rest = {"info": _without(info, ("article", "subreddit", "title", "post")), "summaries": others}
    return [_without(row, ("choice",)) | rest | made]


def _one_of_three(row: Fields) -> list[Fields] | None:
    """LMSYS's 55k and its competition: the turns of either side in lists, and a column for each outcome."""
    outcomes = {"conversation_a": "winner_model_a", "conversation_b": "winner_model_b", "tie": "winner_tie"}
    won = [what for what, name in outcomes.items() if as_number(row[name]) == 1]
    if len(won) != 1:
        raise BadRow("unusable label", f"{len(won)} of {', '.join(outcomes.values())} are 1")
    sides = ("prompt", "response_a", "response_b")
    asked, first, second = (turns if isinstance(turns := as_list(row[name], name), list) else [turns] for name in sides)
    if not len(asked) == len(first) == len(second):
        raise BadRow("prompts and replies of different number", f"{len(asked)}, {len(first)} and {len(second)}")
    talks = {
        name: [turn for q, a in zip(asked, said, strict=True) for turn in (_turn("user", q), _turn("assistant", a))]
        for name, said in (("conversation_a", first), ("conversation_b", second))
    }
    return [_without(row, (*sides, *outcomes.values())) | talks | {"label": won[0]}]


def _judged_turn(row: Fields) -> list[Fields] | None:
    """MT-Bench's judgments: which turn of both conversations was judged; what follows it was not."""
    turn = as_number(row["turn"])
    talks = {name: row[name] for name in ("conversation_a", "conversation_b")}
    if (
        turn is None
        or turn < 1
        or not all(isinstance(talk, list) and all(map(is_message, talk)) for talk in talks.values())
    ):
        return None
    starts = {name: sum(one.get("role") == "system" for one in talk[:1]) for name, talk in talks.items()}
    return [row | {name: talk[: starts[name] + 2 * int(turn)] for name, talk in talks.items()}]


def _preferred_output(row: Fields) -> list[Fields] | None:
    """OpenAI's pairs for fine-tuning."""
    asked = row["input"]
    if not isinstance(asked, dict) or row.get("chosen") is not None or row.get("rejected") is not None:
        return None
    if asked.get("tools"):
        raise BadRow(TOOLS, "the input's tools are not empty")
    replies = {"chosen": row["preferred_output"], "rejected": row["non_preferred_output"]}
    rest = _without(row, ("preferred_output", "non_preferred_output")) | {"input": _without(asked, ("messages",))}
    return [rest | {"prompt": asked.get("messages")} | replies]


def _turn(role: str, text: Any) -> Fields:
    return {"role": role, "content": text}


_WEBGPT = ("answer_0", "answer_1", "score_0", "score_1")
_SCORED = ("response_a", "response_b", "score_a", "score_b")

SHAPES = (
    Shape("LLaMA-Factory, axolotl", ("chosen", "rejected"), _one_message),
    Shape("RM-Bench", ("chosen", "rejected"), _styles),
    Shape("PKU-SafeRLHF", ("better_response_id", "safer_response_id"), _better_and_safer),
    Shape("HelpSteer3", ("response_1", "response_2", "overall_preference"), _signed("overall_preference")),
    Shape("HelpSteer2", ("response_1", "response_2", "preference_strength"), _signed("preference_strength")),
    Shape("BeaverTails", ("prompt", "response", "is_safe"), _is_safe),
    Shape("LLaMA-Factory", ("messages", "chosen", "rejected"), _pair_after_messages),
    Shape("KTO", ("messages", "label"), _labelled_messages),
    Shape("UltraFeedback, binarized", ("chosen", "rejected", "score_chosen", "score_rejected"), _scores_of_both),
    Shape("WebGPT", _WEBGPT, _scores_of_two(*_WEBGPT)),
    Shape("two scored replies", _SCORED, _scores_of_two(*_SCORED)),
    Shape("SHP", ("history", "human_ref_A", "human_ref_B"), _post_and_replies),
    Shape("summarize_from_feedback", ("info", "summaries", "choice"), _summaries),
    Shape(
        "LMSYS 55k",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        _one_of_three,
    ),
    Shape("MT-Bench", ("conversation_a", "conversation_b", "turn"), _judged_turn),
    Shape("OpenAI", ("input", "preferred_output", "non_preferred_output"), _preferred_output),
)


def _without(row: Fields, names: Iterable[str]) -> Fields:
    return {name: value for name, value in row.items() if name not in names}
