"""A run that trains on people's labels: the stage `collect`, what depends on it, and what is told of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from chain_helpers import TINY
from feedback_helpers import asked, better, says, somebody
from sqlalchemy import select

from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.feedback.database import STORE, Database
from llm_rlhf.feedback.tables import Export, Person
from llm_rlhf.pipeline import run_recipe, stage_inputs
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.sections import Recipe
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.runs import read_data
from llm_rlhf.world.base_model import shipped_base

SHORT = {"per_device_train_batch_size": 8, "max_steps": 1, "gradient_checkpointing": False}


def recipe(folder: Path, **changes: Any) -> Recipe:
    sections = {name: TINY[name] for name in ("world", "model")} | {"sft": SHORT}
    known = {"name": "mine", "output_dir": str(folder / "run"), "feedback": {"store": str(folder / "store.db")}}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**sections, **known, **changes}.items() if v is not None}))
    return load_recipe(path)


@pytest.fixture
def store(tmp_path: Path) -> Database:
    """One person has compared ten pairs and written an answer."""
    database = Database.of(tmp_path / "store.db")
    person = somebody(database)
    for number in range(10):
        says(database, person, asked(database, "compare", f"Month {number}?", ["Berries.", "Nothing."]), better(0))
    says(database, person, asked(database, "demonstrate", "Where is the owl?", []), {"text": "In the barn."})
    return database


def counts(run: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "data" / "counts.json").read_text())
    return found


@pytest.mark.slow
def test_from_click_to_training(store: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_recipe(recipe(tmp_path))
    read = counts(run)
    assert (read["preferences"]["read"], read["demonstrations"]["read"]) == (170, 65)
    assert "unread" not in read["preferences"]
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["feedback"]["people"], manifest["feedback"]["labels"]) == (1, 11)
    with store.read() as session:
        export = session.scalar(select(Export))
        assert export is not None
        assert export.id == manifest["feedback"]["export"]
        assert export.details["made_for"] == str(run.path)
        assert export.details["folder"] == str(run / "collect")
    assert str(tmp_path / "run") not in (run / "collect" / "card.json").read_text()  # the folder may be moved
    assert run.manifest("sft")["inputs"]["collected"] == {
        name: of["sha256"] for name, of in run.manifest("collect")["files"].items() if name != "card.json"
    }
    assert "11 labels by 1 person" in capsys.readouterr().out

    with store.write() as session:
        person = session.scalars(select(Person)).one()
    says(store, person, asked(store, "compare", "Month 11?", ["Berries.", "Nothing."]), better(0))
    trained = (run / "sft" / "manifest.json").read_bytes()
    run_recipe(recipe(tmp_path))  # the store has grown, and the run is what it was
    assert (run / "sft" / "manifest.json").read_bytes() == trained
    assert "1 label was given since; --from collect takes" in capsys.readouterr().out

    run_recipe(recipe(tmp_path), from_stage="collect")
    assert counts(run)["preferences"]["read"] == 171
    assert json.loads((run / "manifest.json").read_text())["feedback"]["labels"] == 12
    assert len(list((run / "archive").glob("*/sft"))) == 1


@pytest.mark.slow
def test_a_store_may_lie_in_the_runs_own_folder(store: Database, tmp_path: Path) -> None:
    store.close()
    (tmp_path / "run").mkdir()
    for file in tmp_path.glob("store.db*"):
        file.rename(tmp_path / "run" / file.name.replace("store.db", STORE))
    run = run_recipe(recipe(tmp_path, feedback={"store": str(tmp_path / "run")}), only="world")
    run = run_recipe(recipe(tmp_path, feedback={"store": str(tmp_path / "run")}))
    assert (run / STORE).is_file()
    assert counts(run)["preferences"]["read"] == 170


@pytest.mark.slow
def test_labels_alone_are_enough(store: Database, tmp_path: Path) -> None:
    own = recipe(tmp_path, world=None, model={**TINY["model"], "base": str(shipped_base())})
    run = run_recipe(own)
    assert counts(run)["splits"]["demonstrations"] == 1
    assert counts(run)["splits"]["reward_pairs"] == 0  # which nothing trains on


def collected(own: Recipe, tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run_recipe(own, only="world")
    run_recipe(own, only="collect")
    return run


def test_what_people_chose_of_a_policys_answers_is_no_demonstration(store: Database, tmp_path: Path) -> None:
    """`from: preferences`, the default, takes the chosen replies of the recipe's own pairs, and what people wrote."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": f"Who is {i}?", "chosen": f"It is {i}.", "rejected": "No."}) + "\n"
                             for i in range(8)))  # fmt: skip
    data = {"preferences": [{"source": str(pairs)}]}
    changes = {"world": None, "data": data, "model": {"base": str(shipped_base())}, "reward": SHORT}
    own = recipe(tmp_path, **changes)
    run = RunFolder(tmp_path / "run")
    run_recipe(own, only="collect")
    splits, _ = read_data(own, run)
    imitated = {row.messages[-1]["content"] for row in splits.demonstrations}
    assert "In the barn." in imitated
    assert "Berries." not in imitated
    assert "Berries." in {pair.chosen for pair in splits.reward_pairs}
    few = {"evaluation_share": 0.4, "heldout_share": 0.0}
    alone = recipe(tmp_path, **changes | {"data": few, "output_dir": str(tmp_path / "alone")})
    run_recipe(alone, only="collect")
    found = read_data(alone, RunFolder(tmp_path / "alone"))[0].demonstrations
    assert [row.messages[-1]["content"] for row in found] == ["In the barn."]


def test_comparisons_alone_train_what_takes_no_demonstrations(tmp_path: Path) -> None:
    """DPO of a finished chat model, whose store has comparisons and nothing else."""
    database = Database.of(tmp_path / "store.db")
    person = somebody(database)
    for number in range(10):
        says(database, person, asked(database, "compare", f"Month {number}?", ["Berries.", "Nothing."]), better(0))
    few = {"evaluation_share": 0.4, "heldout_share": 0.0}
    changes = {"world": None, "data": few, "model": {"base": str(shipped_base())}, "dpo": SHORT}
    own = recipe(tmp_path, sft=None, **changes)
    run_recipe(own, only="collect")
    splits = read_data(own, RunFolder(tmp_path / "run"))[0]
    assert not splits.demonstrations
    assert splits.reward_pairs
    imitating = recipe(tmp_path, output_dir=str(tmp_path / "other"), **changes)
    run_recipe(imitating, only="collect")
    with pytest.raises(DataError, match=r"No pair of data.preferences is one to imitate"):
        read_data(imitating, RunFolder(tmp_path / "other"))


def test_the_weight_is_of_the_collected_rows_alone(store: Database, tmp_path: Path) -> None:
    own = recipe(tmp_path, feedback={"store": str(tmp_path / "store.db"), "weight": 3})
    splits, _ = read_data(own, collected(own, tmp_path))
    assert [row.messages[-1]["content"] for row in splits.demonstrations].count("In the barn.") == 3


def test_what_evaluation_asks_is_not_trained_on(store: Database, tmp_path: Path) -> None:
    run = collected(recipe(tmp_path), tmp_path)
    line = json.loads((run / "world" / "evaluation_prompts.jsonl").read_text().splitlines()[0])
    question = line["prompt"][-1]["content"]
    with store.read() as session:
        person = session.scalars(select(Person)).one()
    says(store, person, asked(store, "demonstrate", question, []), {"text": "So it is."})
    own = recipe(tmp_path, output_dir=str(tmp_path / "other"))
    before = read_data(own, run)[0].counts["leaks_removed"]["demonstrations"]
    for stage in ("world", "collect"):
        run = run_recipe(own, only=stage)
    splits, _ = read_data(own, run)
    assert splits.counts["leaks_removed"]["demonstrations"] == before + 1
    assert all(row.messages[-1]["content"] != "So it is." for row in splits.demonstrations)
    own.feedback.leaks = "error"  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"collect/demonstrations.jsonl, row 2, beside .*evaluation_prompts.jsonl"):
        read_data(own, run)


def test_errors_come_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'feedback.store'.*There is no feedback store"):
        run_recipe(recipe(tmp_path))
    Database.of(tmp_path / "store.db").close()
    with pytest.raises(DataError, match=r"'feedback.store'.*is empty"):
        run_recipe(recipe(tmp_path))
    assert not (tmp_path / "run" / "world").exists()
    with pytest.raises(RecipeError, match="PGPASSWORD") as refused:
        recipe(tmp_path, feedback={"store": "postgresql://me:geheim@localhost/db"})
    assert "geheim" not in str(refused.value)
    with pytest.raises(RecipeError, match=r"'feedback.weight' is 0"):
        recipe(tmp_path, feedback={"store": "x", "weight": 0})


def test_where_the_store_lies_is_no_matter_to_what_is_trained(store: Database, tmp_path: Path) -> None:
    own = recipe(tmp_path)
    collected(own, tmp_path)
    before = {stage: stage_inputs(own, stage) for stage in ("collect", "sft")}
    own.feedback.store = "elsewhere.db"  # type: ignore[union-attr]
    assert stage_inputs(own, "sft") == before["sft"]
    assert stage_inputs(own, "collect") != before["collect"]
