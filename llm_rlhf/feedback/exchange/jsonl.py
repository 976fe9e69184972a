"""Our own lines: labels.jsonl, a question with everybody's label of it; and the files that `data check` knows.

A file of pairs asks which is better, one of prompts asks for answers, one of replies asks how good they are. What such
a file itself says of its rows is kept with the question as a fact, and shown to nobody. Thumbs are labels already, and
come in as those of one person, the file's users.
"""

import codecs
import datetime
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_rlhf.audit.check import load_as
from llm_rlhf.data.checks import normalised_prompt
from llm_rlhf.data.rows import Demonstration, Preference, Prompt, Rating, mark_of_cut
from llm_rlhf.data.sources import Loaded
from llm_rlhf.errors import DataError
from llm_rlhf.feedback.exchange.entries import (
    Entry,
    Told,
    described,
    entry_of,
    question_of,
    readable,
    seconds_of,
)
from llm_rlhf.feedback.exchange.foreign import MOST_ANSWERS
from llm_rlhf.feedback.queue import Question
from llm_rlhf.json_lines import lines_of, parse_json
from llm_rlhf.recipe.sections import Source

LABELS = "labels.jsonl"
DEFAULT_KINDS = {"preferences": "compare", "ratings": "thumb", "demonstrations": "rate", "prompts": "demonstrate"}


def write(entries: Sequence[Entry], path: Path) -> None:
    """A line for each question, with everybody's label."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for entry in entries:
            labels = [
                {
                    "annotator": told.annotator,
                    "value": told.value,
                    "seconds": told.seconds,
                    "created": None if told.created is None else told.created.isoformat(),
                }
                for told in entry.told
            ]
            file.write(json.dumps({**described(entry.question), "labels": labels}) + "\n")


def is_of(row: Any) -> bool:
    """Whether a line is one of ours."""
    return isinstance(row, dict) and isinstance(row.get("labels"), list) and {"kind", "prompt", "answers"} <= row.keys()


def read(path: Path, kind: str | None) -> Iterator[Entry | DataError]:
    """The questions of a labels.jsonl; for a line that cannot be read, why."""
    for number, line in lines_of(path.read_bytes().removeprefix(codecs.BOM_UTF8)):
        where = f"{path.name}, line {number}"
        try:
            with readable(where):
                row = parse_json(line)
                question = question_of({"answers": [], **row}, where)
                labels = [functools.partial(_told, label) for label in row["labels"]]
            yield entry_of(question, labels, where)
        except DataError as error:
            yield error


def read_data(path: Path, kind: str | None, source: dict[str, Any]) -> tuple[list[Entry], list[str]]:
    """Questions of a file in a format that `data check` knows, and why rows of it became none.

    Args:
        kind: of task; None: by what the rows are (DEFAULT_KINDS).
        source: further keys of a recipe's source, such as `format` and `columns`.
    """
    serves_as, loaded = _loaded(Source(source=str(path), pairs="all", **source))
    reasons = [*(item.reason for item in loaded.set_aside), *loaded.left_out.elements()]
    kind = kind or DEFAULT_KINDS[serves_as]
    if kind == "rank":
        return _rankings(loaded.rows), reasons
    if kind == "thumb":
        return [_thumb(row, f"users of {path.name}") for row in loaded.rows], reasons
    entries = [Entry(question) for row in loaded.rows for question in _questions(row, kind)]
    return entries, reasons


def _loaded(source: Source) -> tuple[str, Loaded[Any]]:
    try:
        return load_as([source], "ratings")  # each by itself; as pairs they would need one of another opinion
    except DataError as error:
        if "cannot serve as" not in str(error):
            raise
    return load_as([source], None)


def _thumb(row: Rating, who: str) -> Entry:
    return Entry(
        Question("thumb", row.prompt, _answers([(row.reply, row.stopped)]), **_about(row)),
        [Told(who, {"good": row.good})],
    )


def _told(label: dict[str, Any]) -> Told:
    created = label.get("created")
    moment = None if created is None else datetime.datetime.fromisoformat(created)
    if moment is not None and moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    return Told(str(label["annotator"]), label["value"], seconds_of(label.get("seconds")), moment)


def _questions(row: Any, kind: str) -> Iterator[Question]:
    """What a row is asked as: pairs together, or each reply by itself."""
    prompt, replies, facts = _parts(row)
    if kind == "demonstrate":
        yield Question(kind, prompt, [], **_about(row))
    elif kind in ("compare", "correct") and len(replies) == 2:
        if replies[0][0] != replies[1][0]:
            yield Question(kind, prompt, _answers(replies), facts=facts, **_about(row))
    elif kind in ("rate", "annotate", "correct") and replies:
        for reply in replies:
            yield Question(kind, prompt, _answers([reply]), **_about(row))
    else:
        needed = "two replies" if kind == "compare" else "a reply"
        raise DataError(
            f"A task of kind {kind} shows {needed}, and {row.origin} has {len(replies)}. Name another kind, or a file "
            "that has them."
        )


def _parts(row: Any) -> tuple[list[dict[str, str]], list[tuple[str, bool]], dict[str, Any]]:
    if isinstance(row, Preference):
        said = {"file_prefers": 0, "file_margin": row.margin, "file_confidence": row.confidence}
        return row.prompt, list(row.sides), {name: of for name, of in said.items() if of is not None}
    if isinstance(row, Rating):
        return row.prompt, [(row.reply, row.stopped)], {"file_says_good": row.good}
    if isinstance(row, Demonstration):
        return row.messages[:-1], [(row.messages[-1]["content"], True)], {}
    assert isinstance(row, Prompt)
    return row.messages, [], row.facts


def _about(row: Any) -> dict[str, Any]:
    return {"objective": getattr(row, "objective", "overall")}


def _answers(replies: Iterable[tuple[str, bool]]) -> list[dict[str, Any]]:
    return [{"text": text, "source": None, **mark_of_cut(stopped)} for text, stopped in replies]


def _rankings(rows: Sequence[Any]) -> list[Entry]:
    """A question for each prompt, with all replies to it that its pairs have."""
    together: dict[str, tuple[Any, dict[str, bool]]] = {}
    for row in rows:
        if not isinstance(row, Preference):
            raise DataError(
                f"A task of kind rank shows several replies, and {row.origin} has no two. Name another kind."
            )
        _, replies = together.setdefault(normalised_prompt(row.prompt), (row, {}))
        for text, stopped in row.sides:
            replies[text] = replies.get(text, True) and stopped
    return [
        Entry(Question("rank", row.prompt, _answers(list(replies.items())[:MOST_ANSWERS]), **_about(row)))
        for row, replies in together.values()
    ]
