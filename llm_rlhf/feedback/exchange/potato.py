"""Potato's projects: a folder with config.yaml, the items, and what each annotator said of them.

Written as version 2 reads it, an annotator's user_state.json; read as well are the annotated_instances.jsonl of
version 1 (https://github.com/davidjurgens/potato). An answer there is a schema's name with the names and values of its
labels.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from llm_rlhf.errors import DataError
from llm_rlhf.feedback.exchange.entries import (
    BAD,
    ODD,
    OURS,
    PLACES,
    TIE,
    Entry,
    Field,
    Told,
    described,
    fields,
    group,
    parts,
    prompt_text,
    question_of,
    set_aside,
    whole,
)
from llm_rlhf.feedback.exchange.foreign import foreign_question
from llm_rlhf.feedback.labels import POINTS
from llm_rlhf.json_lines import lines_of, parse_json
from llm_rlhf.recipe.yaml_text import read_yaml

CONFIG, ITEMS, SAID = "config.yaml", "data/items.jsonl", "annotation_output"
TEXT_BOX, NUMBER = "text_box", "number"  # as Potato calls what was typed
JUDGED = "judged"  # the radio buttons beside its pairwise schema, which cannot say that both are bad


def write(entries: Sequence[Entry], folder: Path, labels: Sequence[str]) -> None:
    """A project's folder for each kind of task: `potato start FOLDER/KIND/config.yaml`."""
    for name, of_kind in group(entries).items():
        project = folder / name
        (project / "data").mkdir(parents=True)
        question = of_kind[0].question
        asked = fields(question.kind, len(question.answers), labels)
        config = _config(name, question.kind, asked, len(question.answers))
        (project / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        with (project / ITEMS).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(_item(number, entry)) + "\n" for number, entry in enumerate(of_kind, start=1))
        said: dict[str, dict[str, Any]] = {}
        for number, entry in enumerate(of_kind, start=1):
            for told in entry.told:
                said.setdefault(told.annotator, {})[str(number)] = _labels(question.kind, told, asked)
        for annotator, by_item in said.items():
            path = project / SAID / annotator / "user_state.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(_user_state(annotator, by_item, len(of_kind)), indent=1), encoding="utf-8")


def is_of(path: Path) -> bool:
    """Whether a folder is a project, or a file its configuration or what was said in one."""
    if path.is_dir():
        return (path / CONFIG).is_file() or any(path.glob("**/annotated_instances.jsonl"))
    return path.name in (CONFIG, "annotated_instances.jsonl", "user_state.json")


def read(path: Path, kind: str | None) -> Iterator[Entry | DataError]:
    """The items of a project with what was said of them; for one that cannot be read, why.

    Raises:
        DataError: where there is no configuration that names the items.
    """
    project = _project(path)
    config = read_yaml((project / CONFIG).read_text(encoding="utf-8"), str(project / CONFIG))
    keys = config.get("item_properties") or {}
    said = _said(project)
    for name in config.get("data_files") or []:
        for number, row in enumerate(_rows(project / (name["path"] if isinstance(name, dict) else name)), start=1):
            where = f"{name}, item {number}"
            try:
                ours = row.get(OURS)
                foreign = {column: value for column, value in row.items() if column not in (keys.get("id_key"), OURS)}
                known = ours is not None
                question = question_of(ours, where) if known else foreign_question(foreign, kind, where)
                item = str(row.get(keys.get("id_key", "id")))
                yield Entry(question, [_told(who, found[item], question) for who, found in said if item in found])
            except (DataError, *ODD) as error:
                yield set_aside(error, where)


def _project(path: Path) -> Path:
    for folder in (path, *path.parents):
        if (folder / CONFIG).is_file():
            return folder
    raise DataError(
        f"{path} belongs to no Potato project: there is no {CONFIG} beside or above it, and without the items nobody "
        "knows what was annotated. Name the project's folder."
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    """Items in JSON lines, or in one list."""
    data = path.read_bytes()
    if data.lstrip().startswith(b"["):
        return list(parse_json(data))
    return [parse_json(line) for _, line in lines_of(data)]


def _item(number: int, entry: Entry) -> dict[str, Any]:
    question = entry.question
    texts = [answer["text"] for answer in question.answers]
    shown = {} if not texts else {"completion": texts[0]} if len(texts) == 1 else {"answers": texts}
    return {"id": str(number), "prompt": prompt_text(question), **shown, OURS: described(question)}


def _labels(kind: str, told: Told, asked: Sequence[Field]) -> list[list[Any]]:
    """What somebody said of an item: [{"schema": ..., "name": ...}, value] for each label."""
    said, found = parts(kind, told.value), []
    compared = kind in ("compare", "chat")
    for one in asked:
        value = said.get(one.name)
        if value is None:
            continue
        if compared and one.name == "better":
            found.append([{"schema": "better", "name": "selection"}, value if value in "AB" else TIE])
            if value == BAD:
                found.append([{"schema": JUDGED, "name": BAD}, BAD])
        elif one.kind == "choice":
            found.append([{"schema": one.name, "name": value}, value])
        elif one.kind == "several":
            found += [[{"schema": one.name, "name": label}, label] for label in value]
        elif one.kind == "points":
            found.append([{"schema": one.name, "name": str(value)}, str(value)])
        else:
            found.append([{"schema": one.name, "name": NUMBER if one.kind == "number" else TEXT_BOX}, str(value)])
    return found


def _said(project: Path) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """Who said what: by item, then by schema, the value of its label, or the list of its labels' names."""
    found = []
    for path in sorted(project.glob("**/user_state.json")):
        state = parse_json(path.read_text(encoding="utf-8"))
        by_item = {
            item: _by_schema([(label["schema"], label["name"], value) for label, value in labels])
            for item, labels in (state.get("instance_id_to_label_to_value") or {}).items()
        }
        found.append((str(state.get("user_id", path.parent.name)), by_item))
    for path in sorted(project.glob("**/annotated_instances.jsonl")):
        by_item = {}
        for _, line in lines_of(path.read_bytes()):
            row = parse_json(line)
            labels = row.get("label_annotations") or {}
            told = [(schema, name, value) for schema, named in labels.items() for name, value in named.items()]
            by_item[str(row["id"])] = _by_schema(told)
        found.append((path.parent.name, by_item))
    return found


def _by_schema(labels: Sequence[tuple[str, str, Any]]) -> dict[str, list[tuple[str, Any]]]:
    found: dict[str, list[tuple[str, Any]]] = {}
    for schema, name, value in labels:
        if value not in (None, False, "", "false"):
            found.setdefault(schema, []).append((name, value))
    return found


def _told(who: str, schemas: dict[str, list[tuple[str, Any]]], question: Any) -> Told:
    said: dict[str, Any] = {}
    for schema, labels in schemas.items():
        name, value = labels[0]
        if name == "selection":  # of a pairwise schema, whatever it is called
            said["better"] = value
        elif name == "scale_value":  # of a pairwise one with a slider: below 0 the first
            number = float(value)
            said["better"] = TIE if number == 0 else PLACES[int(number > 0)]
        elif name.removeprefix("scale_").isdigit():  # of a likert one, as versions 1 and 2 write it
            said[schema] = int(name.removeprefix("scale_"))
        elif name in (TEXT_BOX, NUMBER):
            said[schema] = value
        elif schema == "labels":
            said[schema] = [label for label, _ in labels]
        else:
            said[schema] = name
    if said.get(JUDGED) == BAD:
        said["better"] = BAD
    return Told(who, whole(question.kind, said, len(question.answers)))


def _config(name: str, kind: str, asked: Sequence[Field], answers: int) -> dict[str, Any]:
    schemes = []
    for one in asked:
        scheme: dict[str, Any] = {"name": one.name, "description": one.title}
        if kind in ("compare", "chat") and one.name == "better":
            how = {"mode": "binary", "items_key": "answers", "labels": ["A", "B"], "allow_tie": True, "tie_label": TIE}
            schemes.append({"annotation_type": "pairwise", **scheme, **how})
            both = {"name": JUDGED, "description": "Or are both bad? Then choose the tie, and say so."}
            schemes.append({"annotation_type": "radio", **both, "labels": [BAD]})
        elif one.kind in ("choice", "several"):
            typed = "radio" if one.kind == "choice" else "multiselect"
            schemes.append({"annotation_type": typed, **scheme, "labels": list(one.options)})
        elif one.kind == "points":
            scale = {"size": POINTS, "min_label": "worst", "max_label": "best"}
            schemes.append({"annotation_type": "likert", **scheme, **scale})
        else:
            schemes.append({"annotation_type": "number" if one.kind == "number" else "text", **scheme})
    return {
        "annotation_task_name": name,
        "task_dir": ".",
        "output_annotation_dir": f"{SAID}/",
        "data_files": [ITEMS],
        "item_properties": {"id_key": "id", "text_key": "prompt"},
        "instance_display": {"fields": _display(kind, answers)},
        "user_config": {"allow_all_users": True, "users": []},
        "annotation_schemes": schemes,
        "site_dir": "default",
    }


def _display(kind: str, answers: int) -> list[dict[str, Any]]:
    """What an annotator sees above the questions: the prompt, and the answers, which a pairwise schema shows itself."""
    shown: list[dict[str, Any]] = [{"key": "prompt", "type": "text", "label": "Prompt"}]
    if answers == 1:
        shown.append({"key": "completion", "type": "text", "label": "Answer"})
    elif answers and kind not in ("compare", "chat"):
        options = {"labels": list(PLACES[:answers]), "cell_width": "auto"}
        shown.append({"key": "answers", "type": "pairwise", "label": "Answers", "display_options": options})
    return shown


def _user_state(annotator: str, by_item: dict[str, Any], items: int) -> dict[str, Any]:
    return {
        "user_id": annotator,
        "instance_id_ordering": list(by_item),
        "current_instance_index": 0,
        "current_phase_and_page": ["annotation", "annotation"],
        "completed_phase_and_pages": [],
        "max_assignments": items,
        "instance_id_to_behavioral_data": {},
        "instance_id_to_label_to_value": by_item,
        "instance_id_to_span_to_value": {},
        "phase_to_page_to_label_to_value": {},
        "phase_to_page_to_span_to_value": {},
    }
