"""Label Studio's tasks: a JSON file of tasks with annotations, and the labelling configuration that asks for them.

The tasks are those of its JSON export and import, https://labelstud.io/guide/task_format; two answers are compared by
its tag Pairwise, whose template calls them answer1 and answer2, ratings are its Rating of 7 stars.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

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
from llm_rlhf.json_lines import parse_json

VERDICT = "verdict"  # what Pairwise cannot say: that nothing decides


def write(entries: Sequence[Entry], folder: Path, labels: Sequence[str]) -> None:
    """NAME.json, the tasks, and NAME.xml, the project's labelling interface, for each kind of task.

    Args:
        labels: those of annotate tasks.
    """
    for name, of_kind in group(entries).items():
        question = of_kind[0].question
        asked = fields(question.kind, len(question.answers), labels)
        tasks = [_task(number, entry, asked) for number, entry in enumerate(of_kind, start=1)]
        (folder / f"{name}.json").write_text(json.dumps(tasks, indent=1), encoding="utf-8")
        (folder / f"{name}.xml").write_text(_interface(question.kind, len(question.answers), asked), encoding="utf-8")


def is_of(value: Any) -> bool:
    """Whether the values of a JSON file are tasks."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "data" in one for one in value)


def read(path: Path, kind: str | None) -> Iterator[Entry | DataError]:
    """The tasks of a file; for one that cannot be read, why."""
    for number, task in enumerate(parse_json(path.read_text(encoding="utf-8")), start=1):
        where = f"{path.name}, task {number}"
        try:
            ours = (task.get("meta") or {}).get(OURS)
            known = ours is not None
            question = question_of(ours, where) if known else foreign_question(_columns(task["data"]), kind, where)
            yield Entry(question, list(_told(task, question, where)))
        except (DataError, *ODD) as error:
            yield set_aside(error, where)


def _columns(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if value is not None}


def _task(number: int, entry: Entry, asked: Sequence[Field]) -> dict[str, Any]:
    question = entry.question
    answers = {f"answer{place}": answer["text"] for place, answer in enumerate(question.answers, start=1)}
    return {
        "id": number,
        "data": {"prompt": prompt_text(question), **answers},
        "meta": {OURS: described(question)},
        "annotations": [
            {
                "completed_by": {"id": annotator, "email": told.annotator},
                "result": _result(question.kind, told, asked),
                "was_cancelled": False,
                **({} if told.seconds is None else {"lead_time": told.seconds}),
            }
            for annotator, told in enumerate(entry.told, start=1)
        ],
        "predictions": [],
    }


def _result(kind: str, told: Told, asked: Sequence[Field]) -> list[dict[str, Any]]:
    said = parts(kind, told.value)
    compared = kind in ("compare", "chat")
    result = []
    for one in asked:
        if one.name not in said:
            continue
        value = said[one.name]
        if compared and one.name == "better" and value not in (TIE, BAD):
            side = {"selected": "left" if value == "A" else "right"}
            result.append({"from_name": "better", "to_name": "better", "type": "pairwise", "value": side})
            continue
        name = VERDICT if compared and one.name == "better" else one.name
        tag, held = {
            "choice": ("choices", {"choices": [value]}),
            "several": ("choices", {"choices": value}),
            "points": ("rating", {"rating": value}),
            "number": ("number", {"number": value}),
            "text": ("textarea", {"text": [value]}),
        }[one.kind]
        if value != []:
            result.append({"from_name": name, "to_name": "prompt", "type": tag, "value": held})
    return result


def _told(task: dict[str, Any], question: Any, where: str) -> Iterator[Told]:
    for annotation in task.get("annotations") or task.get("completions") or []:
        if annotation.get("was_cancelled"):
            continue
        said: dict[str, Any] = {}
        for region in annotation.get("result") or []:
            _take(said, region, question.kind)
        if not said and question.kind != "annotate":
            continue
        by = annotation.get("completed_by")
        who = by.get("email") or by.get("id") if isinstance(by, dict) else by
        value = whole(question.kind, said, len(question.answers))
        yield Told(str(who if who is not None else "unknown"), value, annotation.get("lead_time"))


def _take(said: dict[str, Any], region: dict[str, Any], kind: str) -> None:
    """One region of an annotation: of a project that is not ours by the only thing that its type can mean."""
    value, name = region.get("value") or {}, region.get("from_name")
    if region.get("type") == "pairwise":
        side = str(value.get("selected"))
        said["better"] = {"left": "A", "right": "B"}.get(side, side)
    elif name == VERDICT:
        said["better"] = value["choices"][0]
    elif "choices" in value:
        said[str(name)] = value["choices"] if name == "labels" else value["choices"][0]
    elif "rating" in value:
        said[str(name)] = value["rating"]
    elif "number" in value:
        said[str(name)] = value["number"]
    elif "text" in value:
        text = value["text"] if isinstance(value["text"], str) else "\n".join(value["text"])
        said["comment" if kind == "annotate" else "text"] = text


def _interface(kind: str, answers: int, asked: Sequence[Field]) -> str:
    """The labelling interface, in Label Studio's XML."""
    lines = ["<View>", '  <Header value="Prompt"/>', '  <Text name="prompt" value="$prompt"/>']
    compared = kind in ("compare", "chat")
    if compared:
        lines.append('  <Pairwise name="better" toName="answer1,answer2"/>')
    for place in range(1, answers + 1):
        title = "" if compared else f'  <Header value="Answer {PLACES[place - 1]}"/>\n'
        lines.append(f'{title}  <Text name="answer{place}" value="$answer{place}"/>')
    for one in asked:
        needed = ' required="true"' if one.needed and not compared else ""
        lines.append(f"  <Header value={quoteattr(one.title)}/>")
        if compared and one.name == "better":
            lines.append(_choices(VERDICT, [TIE, BAD], "single", ""))
        elif one.kind in ("choice", "several"):
            lines.append(_choices(one.name, one.options, "single" if one.kind == "choice" else "multiple", needed))
        else:
            tag = {"points": f'Rating maxRating="{POINTS}"', "number": f'Number min="1" max="{answers}"',
                   "text": 'TextArea rows="6" maxSubmissions="1"'}[one.kind]  # fmt: skip
            tag, _, more = tag.partition(" ")
            lines.append(f'  <{tag} name="{one.name}" toName="prompt" {more}{needed}/>')
    return "\n".join([*lines, "</View>", ""])


def _choices(name: str, options: Sequence[str], how: str, needed: str) -> str:
    inner = "".join(f"<Choice value={quoteattr(option)}/>" for option in options)
    return f'  <Choices name="{name}" toName="prompt" choice="{how}"{needed}>{inner}</Choices>'
