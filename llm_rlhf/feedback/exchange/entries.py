"""A question with what was said of it, as every format of the exchange carries it: between a file and a store.

Other tools have no label of several parts. `fields` says which single answers a kind of task takes there, and `parts`
and `whole` turn a label into these and back.
"""

import contextlib
import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from llm_rlhf.data.cells import as_number
from llm_rlhf.errors import DataError
from llm_rlhf.feedback.labels import POINTS, STRENGTHS, checked
from llm_rlhf.feedback.queue import Question
from llm_rlhf.json_lines import parse_json

OURS = "llm_rlhf"  # under which a file of another tool carries what that tool has no place for
PLACES = "ABCDEFGHI"  # of answers, as other tools show them
TIE, BAD = "tie", "both bad"


@dataclass(frozen=True)
class Told:
    """A label as it stands in a file."""

    annotator: str
    value: dict[str, Any]  # as labels.py, by the places of the answers
    seconds: float | None = None
    created: datetime.datetime | None = None  # UTC, without a zone, as the store keeps times

    def __post_init__(self) -> None:
        seconds, created = self.seconds, self.created
        plain = isinstance(seconds, int | float) and not isinstance(seconds, bool) and -1e12 < seconds < 1e12
        if seconds is not None and not plain:
            raise DataError(f"The seconds of a label are {str(seconds)[:40]!r}; they are a number.")
        if created is not None and created.tzinfo is not None:
            object.__setattr__(self, "created", created.astimezone(datetime.UTC).replace(tzinfo=None))


@dataclass
class Entry:
    question: Question
    told: list[Told] = field(default_factory=list)
    unread: list[DataError] = field(default_factory=list)  # labels that are none: they spoil no other


@contextlib.contextmanager
def readable(where: str) -> Iterator[None]:
    """Whatever a file has otherwise than such files have it becomes a DataError that names the place."""
    try:
        yield
    except DataError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"[:200]
        raise DataError(f"{where} is not as such files have it ({why}).") from None


def entry_of(question: Question, labels: Iterable[Callable[[], Told | None]], where: str) -> Entry:
    """A question with those of its labels that can be read.

    Args:
        labels: each makes one, or none where nothing was said.
    """
    entry = Entry(question)
    for label in labels:
        try:
            with readable(f"A label of {where}"):
                if (told := label()) is not None:
                    checked(question.kind, told.value, len(question.answers))
                    entry.told.append(told)
        except DataError as error:
            entry.unread.append(error)
    return entry


def rows_of(path: Path) -> list[Any]:
    """The values of a JSON file that holds a list.

    Raises:
        DataError: where it does not.
    """
    try:
        rows = parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}).") from None
    if not isinstance(rows, list):
        raise DataError(f"{path} holds no list; name the file of tasks or records as it was exported.")
    return rows


def seconds_of(value: Any) -> float | None:
    """How long somebody took, where a number says it."""
    return None if isinstance(value, bool) else as_number(value)


class Field(NamedTuple):
    """A single answer that a task of another tool takes."""

    name: str
    kind: str  # choice, points, number, text or several
    options: Sequence[str] = ()
    title: str = ""
    needed: bool = True


def fields(kind: str, answers: int, labels: Sequence[str] = ()) -> list[Field]:
    """What a task of this kind asks.

    Args:
        answers: how many it shows. labels: of annotate tasks.
    """
    if kind in ("compare", "chat"):
        return [
            Field("better", "choice", ["A", "B", TIE, BAD], "Which answer is better?"),
            Field("strength", "choice", STRENGTHS, "By how much?", needed=False),
        ]
    if kind == "rate":
        scale = f"1 is worst, {POINTS} is best"
        return [Field(name, "points", [], f"How {name} is it? {scale}") for name in ("helpful", "harmless")]
    if kind == "thumb":
        return [Field("thumb", "choice", ["up", "down"], "Is it good?")]
    if kind == "rank":
        title = "Its rank: 1 is best, equal ranks are ties"
        return [Field(f"rank_{place}", "number", [], f"{place}. {title}") for place in PLACES[:answers]]
    if kind == "annotate":
        return [
            Field("labels", "several", labels, "Which of these apply?", needed=False),
            Field("comment", "text", [], "A remark", needed=False),
        ]
    text = Field("text", "text", [], "The ideal answer" if kind == "demonstrate" else "What it should have said")
    if kind == "correct":
        return [Field("better", "choice", list(PLACES[:answers]), "Which one did you correct?"), text]
    return [text]


def parts(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    """A label as single answers, by the names of `fields`."""
    if kind in ("compare", "chat"):
        if value["choice"] != "better":
            return {"better": value["choice"]}
        return {"better": PLACES[value["better"]], "strength": STRENGTHS[value["strength"] - 1]}
    if kind == "thumb":
        return {"thumb": "up" if value["good"] else "down"}
    if kind == "rank":
        return {f"rank_{place}": rank for place, rank in zip(PLACES, value["ranks"], strict=False)}
    if kind == "correct":
        return {"better": PLACES[value["better"]], "text": value["text"]}
    if kind == "annotate":
        return {"labels": value["labels"]} | ({"comment": value["comment"]} if value.get("comment") else {})
    return {name: value[name] for name in ("helpful", "harmless", "text") if name in value}


def whole(kind: str, said: dict[str, Any], answers: int) -> dict[str, Any]:
    """The inverse of `parts`. A comparison without a strength is the slightest, which asks for no margin.

    Raises:
        DataError: where an answer is missing, or is none.
    """
    try:
        if kind in ("compare", "chat"):
            if said["better"] in (TIE, BAD):
                return {"choice": said["better"]}
            strength = STRENGTHS.index(said["strength"]) + 1 if said.get("strength") else 1
            return {"choice": "better", "better": PLACES[:2].index(said["better"]), "strength": strength}
        if kind == "thumb":
            return {"good": {"up": True, "down": False}[said["thumb"]]}
        if kind == "rate":
            return {name: int(said[name]) for name in ("helpful", "harmless")}
        if kind == "rank":
            return {"ranks": _dense([int(said[f"rank_{place}"]) for place in PLACES[:answers]])}
        if kind == "annotate":
            return {"labels": list(said.get("labels") or []), "comment": said.get("comment") or ""}
        if kind == "correct":
            return {"better": PLACES.index(said.get("better", PLACES[0])), "text": said["text"]}
        return {"text": said["text"]}
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"An answer to a task of kind {kind} is missing or none of those asked for: {error}.") from None


def _dense(ranks: list[int]) -> list[int]:
    """Ranks without gaps."""
    order = sorted(set(ranks))
    return [order.index(rank) + 1 for rank in ranks]


def described(question: Question) -> dict[str, Any]:
    """A question as plain values."""
    known = {
        "kind": question.kind,
        "prompt": question.prompt,
        "answers": question.answers,
        "objective": question.objective,
        "topic": question.topic,
        "strategy": question.strategy,
        "propensity": question.propensity,
        "facts": question.facts,
    }
    return {name: value for name, value in known.items() if value not in (None, {})}


def question_of(plain: Any, where: str) -> Question:
    """The question that `described` wrote.

    Raises:
        DataError: where it is none, naming the place.
    """
    try:
        known = {name: plain[name] for name in plain if name in Question.__dataclass_fields__}
        question = Question(**known)
    except (TypeError, KeyError) as error:
        raise DataError(f"{where} holds no question as we write them: {error}.") from None
    propensity = question.propensity
    fits = {
        "kind": isinstance(question.kind, str),
        "prompt": _of_texts(question.prompt, "role", "content"),
        "answers": _of_texts(question.answers, "text"),
        "objective": isinstance(question.objective, str),
        "topic": isinstance(question.topic, str | None),
        "purpose": isinstance(question.purpose, str),
        "expected": isinstance(question.expected, dict | None),
        "wanted": question.wanted is None or (type(question.wanted) is int and question.wanted > 0),
        "priority": seconds_of(question.priority) is not None,
        "strategy": isinstance(question.strategy, str | None),
        "propensity": propensity is None or (isinstance(propensity, float | int) and 0 < propensity <= 1),
        "facts": isinstance(question.facts, dict),
    }
    for name, fit in fits.items():
        if not fit:
            raise DataError(f"{where} holds no question as we write them: {name} is {getattr(question, name)!r:.80}.")
    return question


def _of_texts(rows: Any, *names: str) -> bool:
    """Whether it is a list of objects that have these texts."""
    return isinstance(rows, list) and all(
        isinstance(row, dict) and all(isinstance(row.get(name), str) for name in names) for row in rows
    )


def prompt_text(question: Question) -> str:
    """The conversation as other tools show it: the one turn that there is, or all of them with who speaks."""
    turns = question.prompt
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)


def group(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Entries that fit one project of another tool: of one kind, with as many answers."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        kind, answers = entry.question.kind, len(entry.question.answers)
        groups.setdefault(f"{kind}-{answers}" if kind in ("rank", "correct") else kind, []).append(entry)
    return dict(sorted(groups.items()))
