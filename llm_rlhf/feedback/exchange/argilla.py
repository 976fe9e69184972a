"""Argilla's datasets, version 2: a folder as `Dataset.to_disk` writes it, settings and records.

A response belongs to a user by a UUID; ours is made of the pseudonym. Its settings and records are those that argilla
2.8 reads (`Dataset.from_disk`, `Record.from_dict`).
"""

import json
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_rlhf.errors import DataError
from llm_rlhf.feedback.exchange.entries import (
    ODD,
    OURS,
    PLACES,
    Entry,
    Field,
    Told,
    described,
    fields,
    group,
    parts,
    question_of,
    set_aside,
    whole,
)
from llm_rlhf.feedback.exchange.foreign import foreign_question
from llm_rlhf.feedback.labels import POINTS
from llm_rlhf.json_lines import parse_json

RECORDS, SETTINGS, DATASET = "records.json", ".argilla/settings.json", ".argilla/dataset.json"
RANK = "rank"  # the one question that asks for all ranks
_TITLES = uuid.uuid5(uuid.NAMESPACE_DNS, "llm-rlhf")


def write(entries: Sequence[Entry], folder: Path, labels: Sequence[str], guidelines: str) -> None:
    """A folder for each kind of task, which `rg.Dataset.from_disk` takes."""
    for name, of_kind in group(entries).items():
        question = of_kind[0].question
        asked = fields(question.kind, len(question.answers), labels)
        for file, value in {
            RECORDS: [_record(number, entry) for number, entry in enumerate(of_kind, start=1)],
            SETTINGS: _settings(question.kind, len(question.answers), asked, guidelines),
            DATASET: {"name": name},
        }.items():
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def is_of(value: Any) -> bool:
    """Whether the values of a JSON file are records."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "fields" in one for one in value)


def read(path: Path, kind: str | None) -> Iterator[Entry | DataError]:
    """The records of a file; for one that cannot be read, why."""
    for number, record in enumerate(parse_json(path.read_text(encoding="utf-8")), start=1):
        where = f"{path.name}, record {number}"
        try:
            ours = (record.get("metadata") or {}).get(OURS)
            if ours is not None:
                question = question_of(parse_json(ours), where)
            else:
                question = foreign_question(record["fields"], kind, where)
            yield Entry(question, list(_told(record, question)))
        except (DataError, *ODD) as error:
            yield set_aside(error, where)


def _record(number: int, entry: Entry) -> dict[str, Any]:
    question = entry.question
    responses: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for told in entry.told:
        user = str(uuid.uuid5(_TITLES, told.annotator))
        said = parts(question.kind, told.value)
        if question.kind == "rank":
            ranks = [{"value": name.removeprefix("rank_"), "rank": rank} for name, rank in said.items()]
            said = {RANK: ranks}
        for name, value in said.items():
            if value != []:
                responses[name].append({"value": value, "user_id": user})
    answers = {f"answer_{PLACES[place]}": answer["text"] for place, answer in enumerate(question.answers)}
    return {
        "id": str(number),
        "fields": {"prompt": question.prompt, **answers},
        "metadata": {OURS: json.dumps(described(question))},
        "suggestions": {},
        "responses": dict(responses),
        "vectors": {},
        "status": "completed" if entry.told else "pending",
        "_server_id": None,
    }


def _told(record: dict[str, Any], question: Any) -> Iterator[Told]:
    by_user: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, answers in (record.get("responses") or {}).items():
        for answer in answers:
            by_user[str(answer.get("user_id"))][name] = answer["value"]
    for user, said in by_user.items():
        if isinstance(said.get(RANK), list):
            said |= {f"rank_{one['value'].rpartition('_')[2]}": one["rank"] for one in said[RANK]}
        yield Told(user, whole(question.kind, said, len(question.answers)))


def _settings(kind: str, answers: int, asked: Sequence[Field], guidelines: str) -> dict[str, Any]:
    shown = [_shown("prompt", "Prompt", "chat")]
    shown += [_shown(f"answer_{place}", f"Answer {place}", "text") for place in PLACES[:answers]]
    questions = [_question(one) for one in asked]
    if kind == "rank":
        options = [{"value": place, "text": f"Answer {place}", "description": None} for place in PLACES[:answers]]
        ranking = _question(Field(RANK, "ranking", [], "From best to worst"))
        questions = [{**ranking, "settings": {"type": "ranking", "options": options}}]
    return {
        "guidelines": guidelines,
        "questions": questions,
        "fields": shown,
        "vectors": [],
        "metadata": [],
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": 1},
        "mapping": None,
    }


def _shown(name: str, title: str, kind: str) -> dict[str, Any]:
    return {"name": name, "title": title, "required": True, "settings": {"type": kind, "use_markdown": True}}


def _question(one: Field) -> dict[str, Any]:
    options = [{"value": option, "text": option, "description": None} for option in one.options]
    settings: dict[str, dict[str, Any]] = {
        "choice": {"type": "label_selection", "options": options},
        "several": {"type": "multi_label_selection", "options": options, "options_order": "natural"},
        "points": {"type": "rating", "options": [{"value": point} for point in range(1, POINTS + 1)]},
        "text": {"type": "text", "use_markdown": False},
    }
    about = {"name": one.name, "title": one.title, "description": None, "required": one.needed}
    return {**about, "settings": settings.get(one.kind, {})}
