"""Rounds on a tiny world: labels become the next round's data, nothing is done twice, and evaluation stays the same."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from chain_helpers import write_recipe
from sqlalchemy import select
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.cli.next_steps import after_rounds
from llm_rlhf.data.checks import prompt_share
from llm_rlhf.data.splits import load_splits
from llm_rlhf.errors import DataError, RecipeError, RunFolderError
from llm_rlhf.evaluation.gate import GateLine
from llm_rlhf.feedback import queue, saying
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.documents import current_version
from llm_rlhf.feedback.people import consent, invite
from llm_rlhf.feedback.tables import Batch, Item, Label, Person
from llm_rlhf.json_lines import read_json_lines
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.people_sections import RoundsSection
from llm_rlhf.recipe.sections import DataSection, Recipe, Source
from llm_rlhf.rounds import chain, gates
from llm_rlhf.rounds.chain import run_rounds
from llm_rlhf.rounds.labels import labels_folder, other_pairs, pairs_about
from llm_rlhf.rounds.page import headline, text_of
from llm_rlhf.rounds.recipes import mixed_data, weight_of


def _recipe(folder: Path, **rounds: Any) -> Recipe:
    path = write_recipe(folder, rounds={"count": 2, "budget": 12, **rounds}, output_dir=str(folder / "out"))
    return load_recipe(path)


def test_weights_of_rounds_by_hand() -> None:
    assert [weight_of(RoundsSection(label_weight=2.0), n) for n in (1, 2)] == [2.0, 2.0]
    assert [weight_of(RoundsSection(label_weight=[0.5, 3.0]), n) for n in (1, 2, 3)] == [0.5, 3.0, 3.0]


def test_a_mixture_has_every_source_with_its_weight(tmp_path: Path) -> None:
    data = DataSection(preferences=[Source(source="a.jsonl", weight=2.0)])
    for about in (1, 2):
        pairs_about(tmp_path, about).write_text("{}\n")
    pairs_about(tmp_path, 3).write_text("")  # nobody said anything that makes a pair

    def of(**rounds: Any) -> list[tuple[str, float]]:
        mixed = mixed_data(data, RoundsSection(**rounds), tmp_path, 4)
        return [(Path(str(source.source)).name, source.weight) for source in mixed.preferences]

    about = ["about-round-1.jsonl", "about-round-2.jsonl"]
    assert of() == [("a.jsonl", 2.0), (about[0], 1.0), (about[1], 1.0)]
    assert of(initial_weight=0.5, label_weight=[3, 4]) == [("a.jsonl", 1.0), (about[0], 3), (about[1], 4)]
    assert of(initial_weight=0, label_weight=[0, 1]) == [("a.jsonl", 0.0), (about[1], 1)]
    assert data.preferences[0].weight == 2.0
    other_pairs(tmp_path).write_text("{}\n")  # weighs as the newest labels do
    assert of(label_weight=[3, 4, 5])[1:] == [(about[0], 3), (about[1], 4), ("others.jsonl", 5)]
    assert of(label_weight=[3, 0])[1:] == [(about[0], 3)]


def test_without_the_recipes_own_pairs_evaluation_stays_what_it_was(tmp_path: Path) -> None:
    own = [{"prompt": f"question {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(80)]
    asked = [row["prompt"] for row in own if prompt_share([{"role": "user", "content": row["prompt"]}], "split") >= 0.1]
    said = [{"prompt": prompt, "chosen": "yes", "rejected": "no"} for prompt in asked[:20]]
    for file, rows in ((tmp_path / "own.jsonl", own), (pairs_about(tmp_path, 1), said)):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSection(
        preferences=[Source(source=str(tmp_path / "own.jsonl"))],
        prompts=[Source(from_="preferences")],
        evaluation_prompts=[Source(from_="preferences")],
        heldout_share=0.0,
    )
    first, _ = load_splits(data)
    second, _ = load_splits(mixed_data(data, RoundsSection(initial_weight=0), tmp_path, 2))
    assert list(second.evaluation_pairs) == list(first.evaluation_pairs)
    assert {str(one.messages) for one in second.evaluation_prompts} == {
        str(o.messages) for o in first.evaluation_prompts
    }
    assert {str(one.messages) for one in second.prompts} == {str(one.messages) for one in first.prompts}
    assert [pair.chosen for pair in second.reward_pairs] == ["yes"] * 20
    held = dataclasses.replace(data, heldout_share=0.1)
    pairs_about(tmp_path, 1).write_text(json.dumps(said[0]) + "\n")
    with pytest.raises(DataError, match=r"split (heldout_pairs|reward_pairs) is empty"):
        load_splits(mixed_data(held, RoundsSection(initial_weight=0), tmp_path, 2))


def test_labels_alone_are_trained_on_whole_where_there_are_no_pairs_of_ones_own(tmp_path: Path) -> None:
    """KTO from thumbs: nothing was evaluated on before, and nothing of what people were asked may be missing for it."""
    thumbs = [{"prompt": f"what is {n}?", "completion": "a thing", "label": n % 2 == 0} for n in range(40)]
    (tmp_path / "thumbs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in thumbs))
    said = [{"prompt": f"why is {n}?", "chosen": "so", "rejected": "no"} for n in range(30)]
    pairs_about(tmp_path, 1).write_text("".join(json.dumps(row) + "\n" for row in said))
    data = DataSection(ratings=[Source(source=str(tmp_path / "thumbs.jsonl"))], prompts=[], heldout_share=0.0)
    data.demonstrations, data.evaluation_prompts = [], []
    found, _ = load_splits(mixed_data(data, RoundsSection(), tmp_path, 2))
    assert (len(found.reward_pairs), len(found.evaluation_pairs)) == (30, 0)


def test_labels_that_nothing_learns_from_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing that learns from what people say.*'ppo' learns from no pairs"):
        load_recipe(write_recipe(tmp_path, rounds=2, reward={"model": "somewhere"}))


@pytest.mark.parametrize(("imitation", "begun"), [(0.0, "round-1"), (1.0, "sft-alone")])
def test_what_was_collected_before_the_first_round_is_not_counted_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, imitation: float, begun: str
) -> None:
    recipe = _recipe(tmp_path, imitation=imitation)
    card = recipe.folder / begun / "collect" / "card.json"
    card.parent.mkdir(parents=True)
    card.write_text('{"export": "of what was collected"}')
    given = Mock(side_effect=DataError("Nobody has answered."))
    monkeypatch.setattr(chain, "write_labels", given)
    monkeypatch.setattr(chain, "batch_of", lambda *arguments, **details: Batch(id=1))
    with pytest.raises(DataError, match="Nobody"):
        chain._write_labels(recipe, 2, tmp_path / "run", tmp_path / "labels", Mock(), print)
    assert given.call_args.args[-2:] == ("of what was collected", 0.1)
    recipe.rounds.budget = 0  # type: ignore[union-attr]
    chain._write_labels(recipe, 2, tmp_path / "run", tmp_path / "labels", Mock(), print)
    assert given.call_args.args[3] == {}, "nobody was asked, and nobody has said anything"


def test_a_source_that_is_only_held_out_of_may_weigh_nothing(tmp_path: Path) -> None:
    assert load_recipe(write_recipe(tmp_path), ["feedback={store: x.db, weight: 1}"])
    with pytest.raises(RecipeError, match="must be over 0"):
        load_recipe(write_recipe(tmp_path), ["feedback={store: x.db, weight: 0}"])


def test_a_round_that_failed_excuses_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Round 1 lost refusals and is not out; round 2, no worse than it, must still not have lost them to the start."""
    recipe = _recipe(tmp_path)
    for number in (1, 2):
        run = recipe.folder / f"round-{number}"
        run.mkdir(parents=True)
        (run / "report.json").write_text(json.dumps({"estimates": []}))
    good = GateLine("harmful_refusals", "pass", "harmful_refusals: as round 1.", 10.0)
    lost = GateLine("harmful_refusals", "FAIL", "harmful_refusals: 50 points fewer than the start.", 10.0)
    monkeypatch.setattr(chain, "compare", lambda run, other: {"estimates": []})
    monkeypatch.setattr(chain, "check_promotion", lambda *arguments: [good])
    monkeypatch.setattr(chain, "check_first", lambda *arguments: [lost])
    monkeypatch.setattr(chain, "_labels", lambda *arguments: {})
    monkeypatch.setattr(chain, "answered_of", lambda *arguments: [])
    monkeypatch.setattr(chain, "batch_of", lambda *arguments, **details: Batch(id=1))
    one = dataclasses.replace(recipe, rounds=None)

    told: list[str] = []

    def promoted(out: int | None) -> bool:
        table = {"promoted": out, "rounds": []}
        return chain._judged(recipe, recipe.folder, 2, one, table, None, told.append)["promoted"]  # type: ignore[arg-type]

    assert not promoted(None)
    assert "      since its start, harmful_refusals: 50 points fewer than the start." in told  # and not since round 1
    (recipe.folder / "round-2" / "manifest.json").unlink()
    assert promoted(1)


def test_losses_within_the_limits_do_not_add_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rounds 1 and 2 are out one after the other; round 3 is fine beside round 2, and has lost against round 1."""
    recipe = _recipe(tmp_path, count=3)
    run = recipe.folder / "round-3"
    run.mkdir(parents=True)
    (run / "report.json").write_text(json.dumps({"estimates": []}))
    good = GateLine("harmful_refusals", "pass", "harmful_refusals: 6 points fewer.", 10.0)
    lost = GateLine("harmful_refusals", "FAIL", "harmful_refusals: 12 points fewer.", 10.0)
    monkeypatch.setattr(chain, "compare", lambda run, other: {"estimates": [], "of": other.name})
    monkeypatch.setattr(chain, "check_promotion", lambda *arguments: [good])
    monkeypatch.setattr(gates, "check_gate", lambda found, *rest: [lost if found["of"] == "round-1" else good])
    monkeypatch.setattr(chain, "_labels", lambda *arguments: {})
    monkeypatch.setattr(chain, "answered_of", lambda *arguments: [])
    monkeypatch.setattr(chain, "batch_of", lambda *arguments, **details: Batch(id=1))
    one = dataclasses.replace(recipe, rounds=None)
    earlier = [{"round": number, "promoted": True} for number in (1, 2)]
    record = chain._judged(recipe, recipe.folder, 3, one, {"promoted": 2, "rounds": earlier}, None, lambda _: None)  # type: ignore[arg-type]
    assert not record["promoted"]
    assert record["gates"][-1]["text"] == "since round 1, harmful_refusals: 12 points fewer."
    earlier[0]["promoted"] = False  # what was never out is no measure
    (run / "manifest.json").unlink()
    assert chain._judged(recipe, recipe.folder, 3, one, {"promoted": 2, "rounds": earlier}, None, lambda _: None)[  # type: ignore[arg-type]
        "promoted"
    ]


def test_questions_about_another_folder_of_the_same_name_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other" / "round-1"
    other.mkdir(parents=True)
    batch = Batch(id=1, details={"rounds": "tiny", "run": str(other)})
    database = Database.of(tmp_path / "shared.db")
    chain._check_own(batch, other, database)
    chain._check_own(batch, tmp_path / "moved" / "round-1", database)  # nothing lies there any more
    (other / "manifest.json").write_text("{}")
    chain._check_own(batch, other, database)
    with pytest.raises(RecipeError, match="rounds of one name share a store"):
        chain._check_own(batch, tmp_path / "out" / "round-1", database)
    database.close()


def test_who_is_asked_is_shown_where_the_store_is(tmp_path: Path) -> None:
    steps = after_rounds(tmp_path, ["r.yaml"], tmp_path / "rounds.html", None, "shared.db")
    assert ("Let people answer", ["feedback", "serve", "shared.db"]) in steps
    assert len(after_rounds(tmp_path, ["r.yaml"], tmp_path / "rounds.html", None, None)) == 1


def test_a_recipe_that_has_changed_is_told_what_rounds_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def changed(recipe: Recipe) -> None:
        raise RunFolderError("made by another recipe. Run with --from reward.")

    monkeypatch.setattr(chain, "run_recipe", changed)
    recipe = _recipe(tmp_path)
    with pytest.raises(RunFolderError, match=r"rounds take no --from.*begin in another output_dir"):
        run_rounds(recipe)
    with pytest.raises(RunFolderError, match=r"move .*out and later rounds away"):
        chain._run(recipe, 2)


@pytest.mark.parametrize(
    ("rounds", "told"),
    [
        ({"budget": 1, "people_per_item": 2, "simulated": {"people": 2}}, "not one comparison could be asked"),
        ({"enough": 1.5}, "'rounds.enough' is 1.5"),
        ({"label_weight": []}, "'rounds.label_weight' is empty"),
        ({"simulated": {"noise": 0}}, "it must be over 0"),
        ({"strategy": "best"}, "rounds.strategy"),
    ],
)
def test_rounds_that_cannot_be_are_refused(tmp_path: Path, rounds: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        _recipe(tmp_path, **rounds)


def test_a_number_of_rounds_stands_for_the_section(tmp_path: Path) -> None:
    found = load_recipe(write_recipe(tmp_path, rounds=4), ["rounds.budget=7"])
    assert found.rounds == RoundsSection(count=4, budget=7)
    laid_over = ["rounds=2", "rounds.budget=9"]
    assert load_recipe(write_recipe(tmp_path), laid_over).rounds == RoundsSection(count=2, budget=9)
    assert "rounds" not in load_recipe(write_recipe(tmp_path)).as_dict()
    with pytest.raises(RecipeError, match="makes a policy of each round and measures it; add 'evaluate'"):
        load_recipe(write_recipe(tmp_path, rounds=2, evaluate=None))


def test_a_run_is_no_folder_of_rounds(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    recipe.folder.mkdir()
    (recipe.folder / "manifest.json").write_text("{}")
    with pytest.raises(RecipeError, match="is a run of its own"):
        run_rounds(recipe)


def _times(folder: Path) -> dict[str, int]:
    """When every file was written, but those that each launch writes."""
    written = ("manifest.json", "recipe.yaml", "rounds.json", "rounds.html", ".lock", ".rounds.lock", "counts.json")
    files = [path for path in folder.rglob("*") if path.is_file() and "feedback.db" not in path.name]
    files = [path for path in files if path.name not in written and not path.match("round-*/report.*")]
    return {str(path): path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_two_rounds_with_simulated_people(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, annotators="simulated", label_weight=2.0, strategy="mixed")
    told: list[str] = []
    table, waiting = run_rounds(recipe, say=told.append)
    out = recipe.folder
    assert waiting is None
    assert [record["round"] for record in table["rounds"]] == [1, 2]
    assert json.loads((out / "rounds.json").read_text()) == json.loads(json.dumps(table))
    assert headline(table) in text_of(table)
    page = (out / "rounds.html").read_text()
    assert "labels are there" not in page  # nobody is waited for
    assert "asked about round 1, and labelled: 12 (" in page
    first, second = (json.loads((out / f"round-{n}" / "manifest.json").read_text())["round"] for n in (1, 2))
    _check_record(second)
    assert first["parent"] is None
    _check_labels(out)
    reports = [json.loads((out / f"round-{n}" / "report.json").read_text()) for n in (1, 2)]
    asked = [{k: v for k, v in r["provenance"]["hashes"].items() if k.startswith("prompts")} for r in reports]
    assert asked[0] == asked[1]
    assert asked[0]
    sizes = [r["data"]["splits"] for r in reports]
    assert sizes[0]["evaluation_pairs"] == sizes[1]["evaluation_pairs"]  # frozen: no label falls there
    grown = sum(sizes[1][name] - sizes[0][name] for name in ("reward_pairs", "heldout_pairs"))
    assert grown == 2 * second["labels"]["files"]["preferences.jsonl"]["rows"]  # a weight of 2
    assert 1 <= reports[1]["feedback"]["simulated_people"] <= 4  # whoever was fast enough
    before = _times(out)
    again, _ = run_rounds(recipe, say=told.append)
    assert _times(out) == before
    assert again == table


def _check_record(record: dict[str, Any]) -> None:
    assert record["parent"] == {"round": 1, "run": "round-1", "compared_with": 1}
    assert [source["weight"] for source in record["mixture"]] == [1.0, 2.0]
    assert record["labels"]["labels"] == 12
    assert record["labels"]["guidelines_versions"] == [1]
    assert record["labels"]["consent_versions"] == [1]
    (batch,) = record["labels"]["batches"]
    assert batch["details"]["strategy"] == "mixed"
    assert batch["details"]["policies"]["ppo"]["adapter"]
    assert {"kl", "gain", "helpful", "harmless", "harmful_refusals", "over_refusal", "reward_on_old_data"} <= {
        line["check"] for line in record["gates"]
    }
    assert all(len(digest) == 64 for digest in record["hashes"].values())


def _check_labels(out: Path) -> None:
    """What was asked is nothing of evaluation's, with its propensity; what was said is what was trained on."""
    database = Database.of(out / "feedback.db")
    with database.read() as session:
        items, labels = session.scalars(select(Item)).all(), session.scalars(select(Label)).all()
    database.close()
    assert len(items) == 12
    assert all(0 < item.propensity <= 1 and item.facts["animal"] for item in items if item.propensity is not None)
    assert sum(item.strategy == "random" for item in items) >= 3  # a fifth of 12, rounded up
    assert {item.strategy for item in items} == {"random", "mixed"}
    evaluated = [row["prompt"] for row in read_json_lines(out / "round-1" / "world" / "evaluation_prompts.jsonl")]
    assert not [item for item in items if item.prompt in evaluated]
    assert len(labels) >= 12
    rows = read_json_lines(pairs_about(labels_folder(out, 2), 1))
    assert {row["provenance"]["item"] for row in rows} <= {item.id for item in items}


@pytest.mark.parametrize(("said", "told"), [(7, "rounds.enough=0.07."), (99, "rounds.enough=0.99."), (0, None)])
def test_who_waits_is_told_how_to_go_on_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: int, told: str | None
) -> None:
    waiting = chain.Waiting(1, said, 100, "feedback.db")
    table = {"name": "tiny", "promoted": None, "rounds": []}
    monkeypatch.setattr(chain, "run_rounds", lambda recipe: (table, waiting))
    path = write_recipe(tmp_path, rounds={"count": 2}, output_dir=str(tmp_path / "out"))
    shown = CliRunner().invoke(app, ["run", str(path)]).output
    assert f"{said} of 100 labels about round 1 are there" in shown
    assert (told in shown) if told else ("rounds.enough=" not in shown)


def test_a_share_of_what_is_there_is_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Though 0.07 of 100 is a little more than 7 in binary."""
    recipe = _recipe(tmp_path)
    assert recipe.rounds is not None
    monkeypatch.setattr(chain, "batch_of", lambda *arguments, **details: Batch(id=1))
    for said in range(1, 101):
        recipe.rounds.enough = said / 100
        monkeypatch.setattr(chain, "progress_of", lambda *arguments, said=said: (said, 100))
        assert chain._ask(recipe, recipe.folder, 1, Mock(), print) is None, said
        monkeypatch.setattr(chain, "progress_of", lambda *arguments, said=said: (said - 1, 100))
        assert chain._ask(recipe, recipe.folder, 1, Mock(), print) is not None, said


@pytest.mark.slow
def test_rounds_wait_for_people_and_go_on(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, people_per_item=2, enough=0.5)
    assert recipe.evaluate is not None
    recipe.evaluate.perplexity_rows = 0
    recipe.gate.required.append("perplexity")
    told: list[str] = []
    table, waiting = run_rounds(recipe, say=told.append)
    assert waiting is not None
    assert any(line.startswith("warning: perplexity is never measured with this recipe") for line in told)
    assert (waiting.round, waiting.said, waiting.wanted) == (1, 0, 12)  # 6 questions, of two people each
    assert [record["round"] for record in table["rounds"]] == [1]
    assert "0 of 12 labels" in (recipe.folder / "rounds.html").read_text()
    _label(recipe.folder / "feedback.db", 5)
    assert run_rounds(recipe, say=told.append)[1] == dataclasses.replace(waiting, said=5)
    _import(recipe.folder / "feedback.db")
    _label(recipe.folder / "feedback.db", 1)  # of what was imported, which nobody waits for
    assert run_rounds(recipe, say=told.append)[1] == dataclasses.replace(waiting, said=5)
    _label(recipe.folder / "feedback.db", 1)
    assert _stopped_in(recipe, "llm_rlhf.rounds.chain.compare")
    table, waiting = run_rounds(recipe, say=told.append)
    assert waiting is None
    assert table["rounds"][1]["labels"]["people"] == 1
    assert table["rounds"][1]["agreement"]["about"] == 1
    assert Path(table["rounds"][1]["mixture"][-1]["source"]).name == "others.jsonl"
    assert sum("asked about" in line for line in told) == 1  # once, whatever was interrupted


def _label(store: Path, count: int) -> None:
    """One person says so much."""
    database = Database.of(store)
    with database.write() as session:
        person = session.scalar(select(Person)) or invite(session)[0]
        consent(session, person, current_version(session, "consent"))
        for _ in range(count):
            assignment = queue.next_for(session, person, rng=random.Random(0))
            assert assignment is not None
            saying.record(session, assignment, {"choice": "better", "better": 0, "strength": 2}, 1.0)
    database.close()


def _import(store: Path) -> None:
    """A question that no round has asked for, which comes before the others."""
    database = Database.of(store)
    asked = [{"role": "user", "content": "which of them is the better one?"}]
    with database.write() as session:
        question = queue.Question("compare", asked, [{"text": "this"}, {"text": "that"}], priority=9.0)
        queue.add(session, [question], "import", {"file": "mine.jsonl"})
    database.close()


def _stopped_in(recipe: Recipe, function: str) -> bool:
    """Whether the rounds are stopped where this is called."""

    class StoppedError(Exception):
        pass

    def stop(*arguments: Any) -> None:
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function, stop)
        try:
            run_rounds(recipe, say=lambda _: None)
        except StoppedError:
            return True
    return False
