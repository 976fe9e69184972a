"""What people said, as rows to train on and to judge by, in the formats that llm_rlhf/data/formats reads.

Two answers. Everybody's vote is 1 for the first, 0 for the second and 1/2 for a tie and for two that are bad. The mean
of the votes says which answer is chosen, and how many agree: the row's confidence. A mean of 1/2 is no pair: a tie.
The margin is the mean of what strengths stand for (MARGINS), counted against the chosen answer where somebody
preferred the other, and never under 0.

Rankings are votes on each pair of their answers, corrections votes on the two they were written for. A correction is
moreover preferred to the answer it corrects. Answers to one prompt that were rated apart are compared, the best with
the worst, as the data page says of scored replies.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

from llm_rlhf.data.rows import mark_of_cut
from llm_rlhf.feedback.counted import Asked, Said
from llm_rlhf.feedback.labels import POINTS, STRENGTHS, preferred
from llm_rlhf.feedback.tables import Item

# Of a comparison's strength, 1 to 4: from 0 to 1 in units of the reward, the small margins of Touvron et al. 2023
# (arXiv:2307.09288), table 27.
MARGINS = tuple(step / (len(STRENGTHS) - 1) for step in range(len(STRENGTHS)))
HALF = "pairs of answers that had not come whole"  # a reward model would learn that good replies break off
FILES = ("preferences.jsonl", "demonstrations.jsonl", "ratings.jsonl", "annotations.jsonl", "verdicts.jsonl")


@dataclass
class TrainingRows:
    """The rows of each file, and how many items, pairs and replies came to none, by reason."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in FILES})
    left_out: Counter[str] = field(default_factory=Counter)


class _Vote(NamedTuple):
    said: Said
    first: float  # share of preference for the first of two answers
    margin: float | None  # for the first, negative for the second; None where nobody said how much better


def training_rows(asked: Iterable[Asked]) -> TrainingRows:
    """The rows of everything that was asked, in the order of its items."""
    made, rated = TrainingRows(), list[Asked]()
    for one in asked:
        kind = one.item.kind
        if kind in ("compare", "chat", "rank", "correct") and len(one.item.answers) > 1:
            for first, second in combinations(range(len(one.item.answers)), 2):
                _add_pair(made, one, first, second)
        if kind == "correct":
            _add_corrections(made, one)
        elif kind == "demonstrate":
            for said in one.said:
                _add_demonstration(made, one.item, said)
        elif kind in ("rate", "thumb"):
            rated.append(one)
        elif kind == "annotate":
            _add_annotations(made, one)
    _add_ratings(made, rated)
    return made


def votes_on(asked: Asked, first: int, second: int) -> list[_Vote]:
    """Everybody's vote on two of an item's answers, by their places there."""
    votes = []
    for said in asked.said:
        margin = None
        if asked.item.kind == "rank":
            ranks = [said.value["ranks"][place] for place in (first, second)]
            share = preferred("rank", {"ranks": ranks})
        elif asked.item.kind == "correct":
            share = 1.0 - said.value["better"]
        else:
            share = preferred(asked.item.kind, said.value)
            margin = 0.0 if share == 0.5 else (2 * share - 1) * MARGINS[said.value["strength"] - 1]  # type: ignore[operator]
        assert share is not None, "an item with two answers"
        votes.append(_Vote(said, share, margin))
    return votes


def _add_pair(made: TrainingRows, asked: Asked, first: int, second: int) -> None:
    item, votes = asked.item, votes_on(asked, first, second)
    if not _are_whole(item, first, second):
        made.left_out[HALF] += bool(votes)
        return
    _add_verdicts(made, asked, first, second, votes)
    if not votes:
        return
    share = sum(vote.first for vote in votes) / len(votes)
    if share == 0.5:
        made.left_out[_why_no_pair(votes)] += 1
        return
    sign = 1 if share > 0.5 else -1
    margins = [vote.margin for vote in votes if vote.margin is not None]
    chosen, rejected = (first, second) if sign > 0 else (second, first)
    good, bad = (item.answers[place] for place in (chosen, rejected))
    margin = max(0.0, sign * sum(margins) / len(margins)) if margins else None
    row = _pair(item, good, bad, [vote.said for vote in votes], max(share, 1 - share), margin)
    made.rows["preferences.jsonl"].append(row)


def _are_whole(item: Item, *places: int) -> bool:
    """Whether these answers are all that was to come: in a chat people may choose before."""
    return all(item.answers[place].get("complete", True) for place in places)


def _why_no_pair(votes: Sequence[_Vote]) -> str:
    if any(vote.first != 0.5 for vote in votes):
        return "pairs on which people are evenly divided"
    bad = sum(vote.said.value.get("choice") == "both bad" for vote in votes)
    return "pairs of which both are bad" if 2 * bad > len(votes) else "pairs that tie"


def _add_verdicts(made: TrainingRows, asked: Asked, first: int, second: int, votes: Sequence[_Vote]) -> None:
    """A line a person, as `people:` judges read: two that are bad are a tie, a skipped pair has no winner."""
    item = asked.item
    pair = {"prompt": item.prompt, "a": item.answers[first]["text"], "b": item.answers[second]["text"]}
    words = {1.0: "a", 0.0: "b", 0.5: "tie"}
    verdicts: list[tuple[str | None, str, dict[str, Any]]] = [
        (words[vote.first], vote.said.pseudonym, _provenance(item, [vote.said])) for vote in votes
    ]
    verdicts += [(None, pseudonym, {"item": item.id}) for pseudonym in asked.skipped]
    made.rows["verdicts.jsonl"] += [
        {**pair, "winner": winner, "annotator": annotator, "objective": item.objective, "provenance": provenance}
        for winner, annotator, provenance in verdicts
    ]


def _add_corrections(made: TrainingRows, asked: Asked) -> None:
    for said in asked.said:
        _add_demonstration(made, asked.item, said)
        corrected = asked.item.answers[said.value["better"]]
        if corrected["text"] == said.value["text"]:
            made.left_out["corrections that changed nothing"] += 1
        elif not _are_whole(asked.item, said.value["better"]):
            made.left_out[HALF] += 1
        else:
            made.rows["preferences.jsonl"].append(
                _pair(asked.item, {"text": said.value["text"]}, corrected, [said], 1.0, None)
            )


def _add_demonstration(made: TrainingRows, item: Item, said: Said) -> None:
    made.rows["demonstrations.jsonl"].append(
        {
            "prompt": item.prompt,
            "completion": _reply(said.value["text"]),
            "provenance": _provenance(item, [said]),
        }
    )


def _add_annotations(made: TrainingRows, asked: Asked) -> None:
    labels = Counter(label for said in asked.said for label in said.value["labels"])
    made.rows["annotations.jsonl"].append(
        {
            "prompt": asked.item.prompt,
            "answer": asked.item.answers[0]["text"],
            "labels": dict(sorted(labels.items())),  # how many people chose each
            "people": len(asked.said),
            "comments": [said.value["comment"] for said in asked.said if said.value.get("comment")],
            "provenance": _provenance(asked.item, asked.said),
        }
    )


class _Rated(NamedTuple):
    item: Item
    said: list[Said]
    points: float  # mean; 0 to 1


def _add_ratings(made: TrainingRows, asked: Sequence[Asked]) -> None:
    """A thumb for each reply and what was rated of it; and the best against the worst reply to one prompt."""
    together: dict[tuple[str, str, str], list[_Rated]] = {}
    for one in asked:
        for objective, rated in _rated(one):
            if rated.points == 0.5:
                made.left_out["replies rated neither good nor bad"] += 1
            else:
                made.rows["ratings.jsonl"].append(
                    {
                        "prompt": one.item.prompt,
                        "completion": _reply(one.item.answers[0]["text"]),
                        **mark_of_cut(one.item.answers[0].get("stopped")),
                        "label": rated.points > 0.5,
                        "objective": objective,
                        "provenance": _provenance(one.item, one.said),
                    }
                )
            key = (one.item.kind, objective, json.dumps(one.item.prompt, sort_keys=True))
            together.setdefault(key, []).append(rated)
    for (kind, objective, _), replies in together.items():
        best, worst = max(replies, key=lambda one: one.points), min(replies, key=lambda one: one.points)
        if best.points == worst.points:
            made.left_out["replies rated alike"] += len(replies) > 1
            continue
        good, bad = (one.item.answers[0] for one in (best, worst))
        margin = best.points - worst.points if kind == "rate" else None
        row = _pair(best.item, good, bad, [*best.said, *worst.said], 1.0, margin)
        row["objective"], row["provenance"]["items"] = objective, [best.item.id, worst.item.id]
        made.rows["preferences.jsonl"].append(row)


def _rated(asked: Asked) -> Iterator[tuple[str, _Rated]]:
    if asked.item.kind == "thumb":
        thumbs = [said.value["good"] for said in asked.said]
        yield asked.item.objective, _Rated(asked.item, asked.said, sum(thumbs) / len(thumbs))
        return
    for objective in ("helpful", "harmless"):
        mean = sum(said.value[objective] for said in asked.said) / len(asked.said)
        yield objective, _Rated(asked.item, asked.said, (mean - 1) / (POINTS - 1))


def _pair(
    item: Item,
    chosen: dict[str, Any],
    rejected: dict[str, Any],
    said: Sequence[Said],
    confidence: float,
    margin: float | None,
) -> dict[str, Any]:
    """A row of format `preference`; replies as messages, so that no text is taken for a transcript."""
    return {
        "prompt": item.prompt,
        "chosen": _reply(chosen["text"]),
        "rejected": _reply(rejected["text"]),
        **mark_of_cut(chosen.get("stopped"), "chosen_stopped"),
        **mark_of_cut(rejected.get("stopped"), "rejected_stopped"),
        "objective": item.objective,
        "confidence": round(confidence, 6),
        **({} if margin is None else {"margin": round(margin, 6)}),
        "provenance": _provenance(item, said),
    }


def _reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _provenance(item: Item, said: Sequence[Said]) -> dict[str, Any]:
    """Where a row comes from: the kind and number of its item, the labels, and who gave them, by their pseudonyms."""
    return {
        "kind": item.kind,
        "item": item.id,
        "labels": [one.label for one in said if one.label is not None],
        "annotators": sorted({one.pseudonym for one in said}),
    }
