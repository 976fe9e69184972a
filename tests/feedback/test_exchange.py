"""Questions and labels out of a store and into another, in our own lines and in the formats of other tools."""

import contextlib
import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from feedback_helpers import asked, better, says, somebody
from sqlalchemy import select

from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.feedback import people, queue
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.exchange.entries import PLACES, parts, whole
from llm_rlhf.feedback.exchange.exporting import FORMATS, export
from llm_rlhf.feedback.exchange.importing import bring_in
from llm_rlhf.feedback.snapshot import write
from llm_rlhf.feedback.tables import ExportedLabel, Item, Label, Person, Setting

ANSWERS = ["Wide and restless.", "Wet.", 'A lot of <water> & "salt".']
VALUES: dict[str, list[dict[str, Any]]] = {
    "compare": [better(0, 4), better(1, 1), {"choice": "tie"}, {"choice": "both bad"}],
    "rate": [{"helpful": 7, "harmless": 1}, {"helpful": 1, "harmless": 4}],
    "thumb": [{"good": True}, {"good": False}],
    "rank": [{"ranks": [1, 2, 3]}, {"ranks": [2, 1, 1]}],
    "demonstrate": [{"text": "The sea\nis wide: 海."}],
    "correct": [{"better": 1, "text": "Very wet."}],
    "annotate": [{"labels": ["rude", "unsafe"], "comment": "No."}, {"labels": ["rude"], "comment": ""}],
}
SHOWN = {"compare": 2, "rate": 1, "thumb": 1, "rank": 3, "demonstrate": 0, "correct": 2, "annotate": 1}
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "And the sea?"},
]


def filled(database: Database) -> None:
    """A question of each kind, labelled by several, one of several turns, and one that nobody has answered."""
    persons = [somebody(database) for _ in range(4)]
    for kind, values in VALUES.items():
        item = asked(database, kind, f"Describe the sea for {kind}.", ANSWERS[: SHOWN[kind]], objective="helpful")
        for person, value in zip(persons, values, strict=False):
            says(database, person, item, value)
    with database.write() as session:
        answers = [{"text": text, "source": "ppo"} for text in ANSWERS[:2]]
        facts: dict[str, Any] = {"strategy": "mixed", "propensity": 0.25, "facts": {"doubt": 0.5}, "topic": "sea"}
        queue.add(session, [queue.Question("compare", TURNS, answers, **facts)], "select", {})


def said(database: Database) -> list[tuple[Any, ...]]:
    """Every question with what was said of it, whoever said it, as far as every format keeps it."""
    with database.read() as session:
        labels = session.execute(select(Label, Person).join(Person, Person.id == Label.person_id)).all()
        return sorted(
            (
                item.kind,
                json.dumps([item.prompt, item.answers, item.objective, item.topic, item.strategy, item.propensity]),
                sorted(json.dumps(label.value, sort_keys=True) for label, _ in labels if label.item_id == item.id),
            )
            for item in session.scalars(select(Item))
        )


@pytest.mark.parametrize("kind", VALUES)
def test_a_label_in_parts_is_whole_again(kind: str) -> None:
    for value in VALUES[kind]:
        assert whole(kind, parts(kind, value), SHOWN[kind]) == value


@pytest.mark.parametrize("form", FORMATS)
def test_what_goes_out_comes_in_again_with_the_same_labels(form: str, database: Database, tmp_path: Path) -> None:
    filled(database)
    card = export(database, tmp_path / "out", form)
    other = Database.of(tmp_path / "other.db")
    brought = [bring_in(other, path) for path in projects(form, tmp_path / "out")]
    assert said(other) == said(database)
    assert sum(one.labels for one in brought) == card["labels"] == sum(map(len, VALUES.values()))
    assert not any(one.set_aside for one in brought)
    with other.read() as session:
        people_there = session.scalars(select(Person)).all()
        assert {(person.imported, person.pseudonym[:9]) for person in people_there} == {(True, "imported-")}
        assert len(people_there) == 4
    with database.read() as session:
        assert len(session.scalars(select(ExportedLabel)).all()) == card["labels"]
    again = [bring_in(other, path) for path in projects(form, tmp_path / "out")]
    assert sum(one.questions + one.labels + one.people for one in again) == 0
    assert sum(one.known_labels for one in again) == card["labels"]


def projects(form: str, folder: Path) -> list[Path]:
    """What of an exported folder is named to bring it in."""
    if form == "jsonl":
        return [folder / "labels.jsonl"]
    if form == "label-studio":
        return [path for path in sorted(folder.glob("*.json")) if path.name != "card.json"]
    return [path for path in sorted(folder.iterdir()) if path.is_dir()]


def test_imported_labels_are_trained_on_and_counted_apart(database: Database, tmp_path: Path) -> None:
    filled(database)
    export(database, tmp_path / "out", "jsonl")
    other = Database.of(tmp_path / "other.db")
    bring_in(other, tmp_path / "out" / "labels.jsonl")
    (tmp_path / "snapshot").mkdir()
    card = write(other, tmp_path / "snapshot")
    assert (card["people"], card["imported_people"], card["labels"]) == (0, 4, 14)
    for name in ("preferences.jsonl", "demonstrations.jsonl", "ratings.jsonl"):
        mine, theirs = (
            [{k: v for k, v in json.loads(line).items() if k != "provenance"} for line in path.read_text().splitlines()]
            for path in (tmp_path / "out" / name, tmp_path / "snapshot" / name)
        )
        assert mine == theirs


def test_the_same_name_is_the_same_person_of_one_store_and_nobody_in_another(tmp_path: Path) -> None:
    lines = [
        {"kind": "compare", "prompt": [{"role": "user", "content": text}], "answers": [{"text": "a"}, {"text": "b"}],
         "labels": [{"annotator": "ada@example.org", "value": better(0)}]}
        for text in ("One?", "Two?")
    ]  # fmt: skip
    for name, line in zip(("one.jsonl", "two.jsonl"), lines, strict=True):
        (tmp_path / name).write_text(json.dumps(line) + "\n")
    pseudonyms = []
    for name in ("first.db", "second.db"):
        store = Database.of(tmp_path / name)
        assert [bring_in(store, tmp_path / file).people for file in ("one.jsonl", "two.jsonl")] == [1, 0]
        with store.read() as session:
            pseudonyms.append(session.scalars(select(Person)).one().pseudonym)
            assert session.get(Setting, "import_key") is not None
    assert pseudonyms[0] != pseudonyms[1]
    assert "ada" not in "".join(pseudonyms)


def test_a_file_that_lists_the_answers_otherwise_means_the_same_answers(tmp_path: Path) -> None:
    store = Database.of(tmp_path / "store.db")
    item = asked(store, "compare", "One?", ["a", "b"])
    line = {
        "kind": "compare", "prompt": [{"role": "user", "content": "One?"}], "answers": [{"text": "b"}, {"text": "a"}],
        "labels": [{"annotator": "x", "value": better(0)}],
    }  # fmt: skip
    (tmp_path / "labels.jsonl").write_text(json.dumps(line) + "\n")
    found = bring_in(store, tmp_path / "labels.jsonl")
    assert (found.questions, found.known, found.labels) == (0, 1, 1)
    with store.read() as session:
        label = session.scalars(select(Label)).one()
        assert (label.item_id, label.value["better"]) == (item, 1)


def test_files_that_data_check_knows_become_questions(tmp_path: Path) -> None:
    pair = {"prompt": "Name a river.", "chosen": "The Danube.", "rejected": "The A", "rejected_stopped": False}
    files = {
        "pairs.jsonl": {**pair, "margin": 2},
        "prompts.jsonl": {"prompt": "Name a lake."},
        "thumbs.jsonl": {"prompt": "Name a hill.", "completion": "K2.", "label": False},
        "shown.jsonl": {"prompt": "Name a sea.", "completion": "The North Sea."},
    }
    for name, row in files.items():
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    store = Database.of(tmp_path / "store.db")
    for name in files:
        assert bring_in(store, tmp_path / name).questions == 1
    with store.read() as session:
        items = session.scalars(select(Item).order_by(Item.id)).all()
        assert [(item.kind, len(item.answers)) for item in items] == [
            ("compare", 2), ("demonstrate", 0), ("thumb", 1), ("rate", 1)
        ]  # fmt: skip
        assert items[0].facts["file_margin"] == 2
        assert {answer["text"]: answer.get("stopped", True) for answer in items[0].answers} == {
            "The Danube.": True, "The A": False,
        }  # fmt: skip
        assert [label.value for label in session.scalars(select(Label))] == [{"good": False}]
    assert bring_in(store, tmp_path / "pairs.jsonl", kind="annotate").questions == 2
    with pytest.raises(DataError, match=r"shows two replies, and .*prompts.jsonl, row 1 has 0"):
        bring_in(store, tmp_path / "prompts.jsonl", kind="compare")
    with pytest.raises(RecipeError, match="--kind is 'chat'"):
        bring_in(store, tmp_path / "prompts.jsonl", kind="chat")
    with pytest.raises(RecipeError, match="There is no file"):
        bring_in(store, tmp_path / "nothing.jsonl")


def test_several_replies_to_a_prompt_are_ranked(tmp_path: Path) -> None:
    row = {"prompt": "Describe the sea.", "responses": ANSWERS, "scores": [3, 1, 2]}
    (tmp_path / "rated.jsonl").write_text(json.dumps(row) + "\n")
    store = Database.of(tmp_path / "store.db")
    assert bring_in(store, tmp_path / "rated.jsonl", kind="rank").questions == 1
    with store.read() as session:
        assert sorted(answer["text"] for answer in session.scalars(select(Item)).one().answers) == sorted(ANSWERS)


def test_a_reply_that_was_cut_in_one_pair_is_ranked_as_cut(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Describe the sea.", "chosen": "wide", "rejected": "we", "rejected_stopped": False},
        {"prompt": "Describe the sea.", "chosen": "we", "rejected": "salt"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Database.of(tmp_path / "store.db")
    bring_in(store, tmp_path / "pairs.jsonl", kind="rank")
    with store.read() as session:
        answers = session.scalars(select(Item)).one().answers
    assert {answer["text"]: answer.get("stopped", True) for answer in answers} == {
        "wide": True, "we": False, "salt": True,
    }  # fmt: skip


def test_a_pairwise_project_of_label_studio_that_is_not_ours(tmp_path: Path) -> None:
    """As its template for human preferences writes it."""
    tasks = [
        {
            "id": 7,
            "data": {"prompt": "Name a prime.", "answer1": "15", "answer2": "13"},
            "annotations": [
                {"completed_by": 3, "lead_time": 12.5, "result": [
                    {"from_name": "comparison", "to_name": "comparison", "type": "pairwise",
                     "value": {"selected": "right"}}]},
                {"completed_by": 4, "was_cancelled": True, "result": []},
            ],
        },
        {"id": 8, "data": {"image": "s3://x.png"}, "annotations": []},
    ]  # fmt: skip
    (tmp_path / "project.json").write_text(json.dumps(tasks))
    store = Database.of(tmp_path / "store.db")
    found = bring_in(store, tmp_path / "project.json")
    assert (found.format, found.questions, found.labels, found.people) == ("label-studio", 1, 1, 1)
    assert list(found.set_aside) == [
        "project.json, task 2 has no column that is clearly the prompt; its columns: image."
    ]
    with store.read() as session:
        label = session.scalars(select(Label)).one()
        assert (label.value, label.seconds) == ({"choice": "better", "better": 1, "strength": 1}, 12.5)
        assert session.scalars(select(Item)).one().wanted == 1


def test_a_potato_project_of_version_1_that_is_not_ours(tmp_path: Path) -> None:
    project = tmp_path / "project"
    said_by = project / "annotation_output" / "ann"
    said_by.mkdir(parents=True)
    (project / "data").mkdir()
    (project / "config.yaml").write_text(
        "data_files: [data/items.json]\nitem_properties: {id_key: id, text_key: text}\n"
        "annotation_schemes: [{annotation_type: pairwise, name: preference, items_key: text}]\n"
    )
    items = [{"id": "q1", "prompt": "Name a prime.", "text": ["15", "13"]}, {"id": "q2", "text": ["a", "b"]}]
    (project / "data" / "items.json").write_text(json.dumps(items))
    line = {"id": "q1", "displayed_text": "", "label_annotations": {"preference": {"selection": "B"}}}
    (said_by / "annotated_instances.jsonl").write_text(json.dumps(line) + "\n")
    store = Database.of(tmp_path / "store.db")
    found = bring_in(store, said_by / "annotated_instances.jsonl")
    assert (found.format, found.questions, found.labels) == ("potato", 1, 1)
    assert found.set_aside.total() == 1  # q2 has answers, and nothing that was asked
    with store.read() as session:
        assert session.scalars(select(Label)).one().value["better"] == PLACES.index("B")


def test_what_cannot_be_asked_or_said_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    good = {
        "kind": "compare",
        "prompt": [{"role": "user", "content": "One?"}],
        "answers": [{"text": "a"}, {"text": "b"}],
    }
    lines = [
        {**good, "labels": []},
        {**good, "answers": [{"text": "a"}, {"text": "a"}], "labels": []},
        {**good, "labels": [{"annotator": "x", "value": {"choice": "perhaps"}}]},
        {**good, "kind": "guess", "labels": []},
    ]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{\n")
    found = bring_in(Database.of(tmp_path / "store.db"), tmp_path / "labels.jsonl")
    assert (found.questions, found.labels, found.set_aside.total()) == (1, 0, 4)
    told = "\n".join(found.set_aside)
    for part in ("Two answers of a question are the same", "no label of a compare task", "'guess'", "line 5"):
        assert part in told


def test_who_withdrew_and_personal_data_go_out_in_no_format(database: Database, tmp_path: Path) -> None:
    person, gone = somebody(database), somebody(database)
    item = asked(database, "compare", "Name a prime.", ["13", "15"])
    says(database, person, item, better(0))
    says(database, gone, item, better(1))
    asked(database, "compare", "Who is ada@example.com?", ["x", "y"])  # which is held
    with database.write() as session:
        people.withdraw(session, session.get_one(Person, gone.id))
    for form in FORMATS:
        export(database, tmp_path / form, form)
        text = "".join(path.read_text() for path in (tmp_path / form).rglob("*") if path.is_file())
        assert gone.pseudonym not in text
        assert "ada@example.com" not in text
    with pytest.raises(RecipeError, match="is not empty"):
        export(database, tmp_path / "jsonl", "jsonl")


def _pairwise(annotations: list[Any]) -> dict[str, Any]:
    return {"data": {"prompt": "Which?", "answer1": "a", "answer2": "b"}, "annotations": annotations}


def _chose(side: Any, who: Any = 1, **more: Any) -> dict[str, Any]:
    result = [{"from_name": "pw", "to_name": "x", "type": "pairwise", "value": {"selected": side}}]
    return {"completed_by": who, "result": result, "was_cancelled": False, **more}


def test_a_label_that_cannot_be_read_spoils_no_other(tmp_path: Path) -> None:
    bad = [{"completed_by": 3, "result": [{"type": "choices", "from_name": "x", "value": {"choices": []}}]}, "?"]
    task = _pairwise(
        [_chose("left", lead_time="12.5"), *bad, _chose("middle", 4), _chose("right", 2, lead_time="long")]
    )
    (tmp_path / "project.json").write_text(json.dumps([task]))
    store = Database.of(tmp_path / "store.db")
    found = bring_in(store, tmp_path / "project.json")
    assert (found.questions, found.labels, found.people) == (1, 2, 2)
    assert sum(found.set_aside.values()) == 3
    with store.read() as session:
        assert sorted(label.seconds for label in session.scalars(select(Label))) == [0.0, 12.5]
    store.close()


@pytest.mark.parametrize("form", ["label-studio", "argilla", "jsonl", "potato"])
def test_files_that_are_otherwise_than_such_files_are_told_of(form: str, tmp_path: Path) -> None:
    """Rows in which anything is of another type: what fits is brought in, what does not has its reason."""
    junk = [None, [], {}, "x", 3, [None], {"text": None}, [[1]]]
    question = {
        "kind": "compare",
        "prompt": [{"role": "user", "content": "q"}],
        "answers": [{"text": "a"}, {"text": "b"}],
    }
    for number, of in enumerate(junk):
        spoilt = [{**question, name: of} for name in ("kind", "prompt", "answers", "topic", "propensity", "facts")]
        rows: list[Any] = {
            "label-studio": [
                of,
                {"data": of},
                {"data": {}, "meta": of},
                _pairwise([of, _chose(of), _chose("left", of)]),
            ]
            + [{"data": {}, "meta": {"llm_rlhf": one}, "annotations": [_chose("left")]} for one in spoilt],
            "argilla": [of, {"fields": of}, {"fields": {"prompt": "q", "answer": "a"}, "responses": {"rating": of}}]
            + [{"fields": {}, "metadata": {"llm_rlhf": json.dumps(one)}} for one in spoilt],
            "jsonl": [of, {**question, "labels": of}, {**question, "labels": [of]}]
            + [{**one, "labels": [{"annotator": of, "value": of, "seconds": of, "created": of}]} for one in spoilt],
            "potato": [of, {"id": of, "prompt": of}] + [{"id": "1", "llm_rlhf": one} for one in spoilt],
        }[form]
        project = tmp_path / str(number)
        project.mkdir()
        (project / "file.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (project / "file.json").write_text(json.dumps(rows))
        (project / "config.yaml").write_text("data_files: [file.jsonl]\nitem_properties: {id_key: id}\n")
        (project / "user_state.json").write_text(json.dumps({"instance_id_to_label_to_value": {"1": of}}))
        file = {"jsonl": project / "file.jsonl", "potato": project}.get(form, project / "file.json")
        store = Database.of(project / "store.db")
        with contextlib.suppress(DataError):
            assert bring_in(store, file, form).set_aside
        store.close()


def test_a_time_in_another_zone_is_kept_in_ours(tmp_path: Path) -> None:
    question = {"kind": "thumb", "prompt": [{"role": "user", "content": "q"}], "answers": [{"text": "a"}]}
    label = {"annotator": "x", "value": {"good": True}, "created": "2026-11-05T13:00:00+01:00"}
    (tmp_path / "labels.jsonl").write_text(json.dumps({**question, "labels": [label]}) + "\n")
    store = Database.of(tmp_path / "store.db")
    bring_in(store, tmp_path / "labels.jsonl")
    with store.read() as session:
        assert session.scalars(select(Label)).one().created == datetime.datetime(2026, 11, 5, 12)
    store.close()


def test_a_state_of_potato_by_schema_and_an_item_that_was_only_looked_at(tmp_path: Path) -> None:
    """Version 2 also writes an item's labels as an object by schema, and an empty list where nothing was chosen."""
    items = [{"id": str(n), "prompt": f"Which, {n}?", "answers": ["a", "b"]} for n in range(3)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    config = "data_files: [items.jsonl]\nitem_properties: {id_key: id, text_key: prompt}\n"
    (tmp_path / "config.yaml").write_text(config)
    by_item = {"0": {"better": {"A": "true", "B": "false"}}, "1": [[{"schema": "better", "name": "B"}, True]], "2": []}
    state = tmp_path / "annotation_output" / "alice" / "user_state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"user_id": "alice", "instance_id_to_label_to_value": by_item}))
    store = Database.of(tmp_path / "store.db")
    found = bring_in(store, tmp_path)
    assert (found.questions, found.labels, sum(found.set_aside.values())) == (3, 2, 0)
    with store.read() as session:
        labels = session.scalars(select(Label).order_by(Label.item_id)).all()
        assert [label.value["better"] for label in labels] == [0, 1]
    store.close()


def test_half_a_character_is_set_aside(tmp_path: Path) -> None:
    pairs = [
        {"prompt": "Sea?", "chosen": "wet", "rejected": "dry"},
        {"prompt": "Sky?", "chosen": "b\ud83d", "rejected": "c"},
    ]
    ours = [
        {"kind": "compare", "prompt": [{"role": "user", "content": row["prompt"]}], "labels": [],
         "answers": [{"text": row["chosen"]}, {"text": row["rejected"]}]}
        for row in pairs
    ]  # fmt: skip
    for name, rows in (("pairs", pairs), ("labels", ours)):
        file = tmp_path / f"{name}.jsonl"
        file.write_bytes(b"\xef\xbb\xbf" + "".join(json.dumps(row) + "\n" for row in rows).encode())
        store = Database.of(tmp_path / f"{name}.db")
        found = bring_in(store, file)
        assert (found.questions, sum(found.set_aside.values())) == (1, 1), name
        store.close()


@pytest.mark.parametrize("form", FORMATS)
def test_the_folder_of_an_export_is_brought_in_whole(form: str, database: Database, tmp_path: Path) -> None:
    """As the page says: `feedback import project`, whatever lies in it."""
    filled(database)
    export(database, tmp_path / "project", form)
    other = Database.of(tmp_path / "other.db")
    found = bring_in(other, tmp_path / "project")
    assert said(other) == said(database)
    assert found.labels == sum(map(len, VALUES.values()))
    assert (found.format, found.people) == (form, 4)
    other.close()


def test_projects_of_two_tools_in_one_folder_are_not_guessed_at(database: Database, tmp_path: Path) -> None:
    filled(database)
    for form in ("potato", "argilla"):
        export(database, tmp_path / form, form)
    both = tmp_path / "both"
    (tmp_path / "potato" / "rate").rename(both.mkdir() or both / "rate")
    (tmp_path / "argilla" / "rank-3").rename(both / "rank-3")
    with pytest.raises(DataError, match="holds projects of several tools, such as rank-3 \\(argilla\\), rate"):
        bring_in(Database.of(tmp_path / "other.db"), both)
