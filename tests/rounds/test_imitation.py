"""A demonstration is preferred to what the policy says to its prompt, where the two differ."""

import json
from pathlib import Path
from typing import Any

import pytest
from chain_helpers import TINY, write_recipe

from llm_rlhf.data.checks import prompt_share
from llm_rlhf.data.rows import Demonstration, Origin, Prompt
from llm_rlhf.data.splits import load_splits
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.json_lines import read_json_lines
from llm_rlhf.models.inference import Reply
from llm_rlhf.plan.forecast import Forecast
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.sections import DataSection, Recipe, Source
from llm_rlhf.rounds.chain import run_rounds
from llm_rlhf.rounds.imitation import demonstrated, foreseen, pair_of
from llm_rlhf.world.base_model import shipped_base


def _row(question: str, reply: str, number: int = 1) -> Demonstration:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return Demonstration(messages, Origin("demonstrations.jsonl", number))


def test_each_prompt_has_what_was_first_written_to_it() -> None:
    rows = [_row("what is it?", "a fox."), _row("what is it?", "an owl.", 2), _row("where?", "there.", 3)]
    found = demonstrated(rows, 0.0)
    assert [(prompt.messages[0]["content"], reply) for prompt, reply in found.values()] == [
        ("what is it?", "a fox."),
        ("where?", "there."),
    ]


def test_those_of_evaluation_are_left_out() -> None:
    rows = [_row(f"question {n}?", "yes.") for n in range(200)]
    found = demonstrated(rows, 0.25)
    assert 120 < len(found) < 180
    assert all(prompt_share(prompt.messages, "split") >= 0.25 for prompt, _ in found.values())
    opens = Demonstration([{"role": "assistant", "content": "a line alone."}], Origin("f", 1))
    assert not demonstrated([opens], 0.0)


def test_a_pair_by_hand() -> None:
    prompt = Prompt([{"role": "user", "content": "what is it?"}], "overall", Origin("f", 1))
    row = {
        "prompt": prompt.messages,
        "chosen": [{"role": "assistant", "content": "a fox."}],
        "rejected": [{"role": "assistant", "content": "an owl."}],
        "objective": "overall",
    }
    assert pair_of(prompt, (prompt, " a fox. "), _said("an owl.\n")) == row
    assert pair_of(prompt, (prompt, "a fox."), _said("an owl.", stopped=False)) == {**row, "rejected_stopped": False}
    assert pair_of(prompt, (prompt, "a fox."), _said(" a fox.")) is None
    assert pair_of(prompt, (prompt, "a fox."), _said(" ")) is None
    assert pair_of(prompt, None, _said("an owl.")) is None


def _said(text: str, stopped: bool = True) -> Reply:
    return Reply([], [], text, stopped)


def _recipe(folder: Path, **changes: Any) -> Recipe:
    rounds = {"count": 2, "budget": 0, "imitation": 1.0}
    return load_recipe(write_recipe(folder, rounds=rounds, output_dir=str(folder / "out"), **changes))


def test_who_imitates_needs_no_pairs_of_their_own(tmp_path: Path) -> None:
    assert _recipe(tmp_path, world={**TINY["world"], "preferences": 0})
    with pytest.raises(RecipeError, match=r"world\.preferences"):
        load_recipe(write_recipe(tmp_path, world={**TINY["world"], "preferences": 0}))
    with pytest.raises(RecipeError, match=r"rounds\.budget"):
        load_recipe(write_recipe(tmp_path, rounds={"budget": 0}))
    with pytest.raises(RecipeError, match="there is no 'sft'"):
        _recipe(tmp_path, sft=None)


def test_what_would_end_the_first_round_is_told_before_sft_alone_is_trained(tmp_path: Path) -> None:
    """A function that is not there, and prompts that leave no room for a reply."""
    with pytest.raises(RecipeError, match=r"no_such_module"):
        run_rounds(_recipe(tmp_path, ppo={**TINY["ppo"], "reward_funcs": ["no_such_module:f"]}))
    shown = [{"prompt": f"what is {n}?", "completion": f"a {n}."} for n in range(60)]
    long = [{"prompt": "so " * 600 + f"{n}?"} for n in range(40)]
    for name, rows in (("shown", shown), ("long", long), ("asked", [{"prompt": f"where is {n}?"} for n in range(40)])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {"demonstrations": "shown", "prompts": "long", "evaluation_prompts": "asked"}
    data = {name: [{"source": str(tmp_path / f"{file}.jsonl")}] for name, file in sources.items()}
    with pytest.raises(DataError, match=r"ppo.*(room|fit)|(room|fit).*ppo"):
        run_rounds(_recipe(tmp_path, world=None, model={"base": str(shipped_base())}, data=data))
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("own", [0, TINY["world"]["preferences"]])
def test_a_reward_is_learned_from_demonstrations_over_rounds(tmp_path: Path, own: int) -> None:
    """Every demonstration beside what SFT alone says, and in the second round beside what the first's policy says."""
    recipe, told = _recipe(tmp_path, world={**TINY["world"], "preferences": own}), list[str]()
    table, waiting = run_rounds(recipe, say=told.append)
    assert waiting is None
    assert [record["round"] for record in table["rounds"]] == [1, 2]
    out = recipe.folder
    mixtures = [[Path(source["source"]) for source in record["mixture"]] for record in table["rounds"]]
    assert [len(one) for one in mixtures] == [1 + (own > 0), 2 + (own > 0)]
    assert mixtures[0] == mixtures[1][:-1]
    about = [file.name.rpartition("-")[0] for file in mixtures[1][-2:]]
    assert about == ["sft-alone", "round-1"]
    written = {
        str(row["messages"][-1]["content"]) for row in read_json_lines(out / "sft-alone/world/demonstrations.jsonl")
    }
    for file in mixtures[1][-2:]:
        pairs = read_json_lines(file)
        assert {row["chosen"][0]["content"] for row in pairs} <= written
        assert all(row["chosen"] != row["rejected"] for row in pairs)
    reports = [json.loads((out / f"round-{n}" / "report.json").read_text()) for n in (1, 2)]
    sizes = [report["data"]["splits"] for report in reports]
    assert sizes[0]["evaluation_pairs"] > 0
    if own:  # what they are evaluated on stays what it was
        assert sizes[0]["evaluation_pairs"] == sizes[1]["evaluation_pairs"]
    assert not (out / "sft-alone" / "reward").exists()
    assert "snapshot" not in (out / "rounds.html").read_text()
    again, _ = run_rounds(recipe, say=told.append)
    assert again == table
    assert sum("demonstrations beside what" in line for line in told) == 2  # sampled once


@pytest.mark.parametrize("own", [False, True])
def test_what_will_be_imitated_is_planned_as_it_will_be_divided(tmp_path: Path, own: bool) -> None:
    """A pair falls to the side of its prompt's hash; beside pairs of the recipe's own none is evaluated on."""

    def write(name: str, rows: list[Any]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    asked = [{"role": "user", "content": f"question {number}?"} for number in range(300)]
    shown = write("shown.jsonl", [{"messages": [one, {"role": "assistant", "content": "yes"}]} for one in asked])
    mine = write("mine.jsonl", [{"prompt": f"another {n}?", "chosen": "a", "rejected": "b"} for n in range(90)])
    data = DataSection(
        preferences=[Source(source=mine)] if own else [],
        demonstrations=[Source(source=shown)],
        prompts=[Source(source=shown)],
        evaluation_prompts=[],
        heldout_share=1 / 3,
    )
    before, _ = load_splits(data)
    planned = foreseen(before, data)
    known = demonstrated(before.demonstrations, 0.1 if own else 0.0)
    made = write("made.jsonl", [pair_of(prompt, (prompt, reply), _said("no")) for prompt, reply in known.values()])
    data.preferences.append(Source(source=made, format="preference"))
    after, _ = load_splits(data)
    for name in ("reward_pairs", "heldout_pairs", "evaluation_pairs"):
        assert len(getattr(planned, name)) == len(getattr(after, name)) > 0, name


def test_a_recipe_without_pairs_that_imitates_is_planned(tmp_path: Path) -> None:
    lists = Forecast(_recipe(tmp_path, world={**TINY["world"], "preferences": 0}), "cpu").lists
    assert lists.reward
    assert {"joint", "heldout"} <= lists.reward.keys()
