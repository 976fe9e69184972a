"""Who withdraws is found in what was exported before, and in no export after."""

import json
from pathlib import Path

import pytest
from sqlalchemy import func, select

from llm_rlhf.feedback import people, queue, saying, snapshot
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.queue import Question
from llm_rlhf.feedback.refusals import Unknown
from llm_rlhf.feedback.settings import change
from llm_rlhf.feedback.tables import Export, ExportedLabel, Identity, Label, Person
from llm_rlhf.feedback.withdrawals import Affected, withdrawals


@pytest.fixture
def answered(database: Database) -> tuple[Database, Person, str]:
    """Two people have said three things each; the second one, with their link, is to withdraw."""
    answers = [{"text": "One.", "source": "sft"}, {"text": "Two.", "source": "ppo"}]
    with database.write() as session:
        change(session, {"gold_share": 0.0, "repeat_share": 0.0, "people_per_item": 2})
        prompts = ([{"role": "user", "content": f"And what of {n}?"}] for n in range(3))
        queue.add(session, [Question("compare", prompt, answers) for prompt in prompts], "import", {})
        persons = [people.invite(session, name=name) for name in ("Ada", "Bo")]
        for person, _ in persons:
            while (assignment := queue.next_for(session, person)) is not None:
                saying.record(session, assignment, {"choice": "better", "better": 0, "strength": 1})
    return database, *persons[1]


def exported(database: Database, name: str, made_for: str | None = None) -> None:
    """What a snapshot notes in the store: the labels of everybody who has not withdrawn."""
    with database.write() as session:
        session.add(Export(id=name, details={"folder": f"/somewhere/{name}", "made_for": made_for}))
        session.flush()
        theirs = select(Label).join(Person, Person.id == Label.person_id).where(Person.withdrawn.is_(None))
        for label in session.scalars(theirs):
            session.add(ExportedLabel(export_id=name, label_id=label.id, person_id=label.person_id))


def run(folder: Path, export: str | None, recipe: str = "name: one\n") -> Path:
    (folder / "collect").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "recipe.yaml").write_text(recipe)
    if export is not None:
        (folder / "collect/card.json").write_text(json.dumps({"export": export}))
    return folder


def test_exports_and_runs_that_hold_labels_of_theirs_are_named(
    answered: tuple[Database, Person, str], tmp_path: Path
) -> None:
    database, person, _ = answered
    runs = tmp_path / "runs"
    first = run(runs / "first", "e1")
    later = run(runs / "nested/later", None, f"model: {{base: {first}/sft/model}}\n")
    last = run(runs / "last", None, f"data: {{demonstrations: [{{source: {later}/replies.jsonl}}]}}\n")
    run(runs / "other", "e-of-another-store")
    run(runs / "beside", None, f"model: {{base: {first}-b/sft/model}}\n")
    (runs / "beside/collect/card.json").write_text("damaged")
    exported(database, "e1")
    exported(database, "e2", made_for=str(runs / "gone"))
    with database.write() as session:
        people.withdraw(session, session.get_one(Person, person.id))
    exported(database, "e3")
    run(runs / "after", "e3")
    with database.read() as session:
        (found,) = withdrawals(session, [runs])
    assert (found.person, found.kept) == (person.pseudonym, 3)
    assert [(one.id, one.labels) for one in found.exports] == [("e1", 3), ("e2", 3)]
    assert found.runs == [
        Affected(str(first), "e1"),
        Affected(str(runs / "gone"), "e2"),
        Affected(str(later), None, str(first)),
        Affected(str(last), None, str(later)),
    ]
    assert found.as_json()["exports"][0]["created"].endswith("Z")


def test_rounds_are_found_by_their_labels_and_by_the_exported_policy_that_they_begin_from(
    answered: tuple[Database, Person, str], tmp_path: Path
) -> None:
    database, person, _ = answered
    exported(database, "e1")
    with database.write() as session:
        people.withdraw(session, session.get_one(Person, person.id))
    labels = tmp_path / "labels/round-2"
    labels.mkdir(parents=True)
    (labels / "card.json").write_text(json.dumps({"export": "e1"}))
    pairs = f"data: {{preferences: [{{source: {labels}/about-round-1.jsonl}}]}}\n"
    second = run(tmp_path / "round-2", None, pairs)
    third = run(tmp_path / "round-3", None, f"model: {{base: {tmp_path}/warm/round-2}}\n")
    run(tmp_path / "other", None, f"model: {{base: {tmp_path}/warm/other}}\n")
    (second / "ppo").mkdir()
    (second / "ppo/manifest.json").write_text(json.dumps({"files": {"policy/a.safetensors": {"sha256": "abc"}}}))
    for name, digest in (("round-2", "abc"), ("other", "def")):
        (tmp_path / "warm" / name).mkdir(parents=True)
        (tmp_path / "warm" / name / "export.json").write_text(json.dumps({"weights": {"0/a.safetensors": digest}}))
    with database.read() as session:
        (found,) = withdrawals(session, [tmp_path])
    assert found.runs == [Affected(str(second), "e1"), Affected(str(third), None, str(second))]


def test_where_nobody_has_withdrawn_there_is_nothing_to_tell(answered: tuple[Database, Person, str]) -> None:
    with answered[0].read() as session:
        assert withdrawals(session, [Path("nowhere")]) == []


def test_a_name_is_deleted_and_the_link_lets_nobody_in(answered: tuple[Database, Person, str]) -> None:
    database, person, token = answered
    with database.write() as session:
        cookie = people.enter(session, token)[1]
    with database.write() as session:
        people.withdraw(session, session.get_one(Person, person.id))
    with database.write() as session:
        assert session.scalars(select(Identity.name)).all() == ["Ada"]
        with pytest.raises(Unknown, match="not known"):
            people.enter(session, token)
        with pytest.raises(Unknown, match="not logged in"):
            people.visitor(session, cookie)
        with pytest.raises(people.DataError, match="has withdrawn"):
            people.link_for(session, session.get_one(Person, person.id))


def test_the_next_export_holds_nothing_of_theirs(answered: tuple[Database, Person, str], tmp_path: Path) -> None:
    database, person, _ = answered
    runs = tmp_path / "runs"
    with database.write() as session:
        for one in session.scalars(select(Person)):
            people.consent(session, one, 1)
    folders = [runs / name / "collect" for name in ("before", "after")]
    for folder in folders:
        folder.mkdir(parents=True)
    before = snapshot.write(database, folders[0], made_for=str(folders[0].parent))
    with database.write() as session:
        people.withdraw(session, session.get_one(Person, person.id))
    after = snapshot.write(database, folders[1], made_for=str(folders[1].parent))
    assert (before["people"], before["labels"], after["people"], after["labels"]) == (2, 6, 1, 3)
    written = [[path.read_text() for path in sorted(folder.iterdir())] for folder in folders]
    assert any(person.pseudonym in text for text in written[0])
    assert not any(person.pseudonym in text for text in written[1])
    with database.read() as session:
        theirs = select(ExportedLabel).where(ExportedLabel.person_id == person.id)
        assert {one.export_id for one in session.scalars(theirs)} == {before["export"]}
        (found,) = withdrawals(session, [runs])
    assert [one.made_for for one in found.exports] == [str(runs / "before")]
    assert found.runs == [Affected(str(runs / "before"), before["export"])]


def test_their_labels_are_deleted_when_a_lead_says_so_and_exports_are_named_all_the_same(
    answered: tuple[Database, Person, str], tmp_path: Path
) -> None:
    database, person, _ = answered
    exported(database, "e1")
    with database.write() as session:
        gone = session.get_one(Person, person.id)
        people.withdraw(session, gone)
        assert people.forget(session, gone) == 3
    with database.read() as session:
        (found,) = withdrawals(session, [tmp_path])
        assert session.scalar(select(func.count()).select_from(Label)) == 3  # the other's
    assert (found.kept, found.exports[0].labels) == (0, 3)
