"""What a card says is true of every method, and of what was never measured."""

from pathlib import Path

import pytest
import yaml

from llm_rlhf.export.card import model_card
from llm_rlhf.export.folder import make
from llm_rlhf.export.source import source_of

METHODS = {"grpo": "GRPO", "dpo": "DPO", "kto": "KTO", "best_of_n": "imitation of the best of n replies"}


def by(method: str, run: Path) -> Path:
    """The run, as if another method had made its policy."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    del recipe["ppo"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe | {method: {}}))
    return (run / "ppo").rename(run / method).parent


def card(text: str, name: str = "hh") -> str:
    return model_card(source_of(text), "model", name, [], None, licence="mit")


@pytest.mark.parametrize("method", METHODS)
def test_it_names_its_method_and_no_other(hub, make_run, method) -> None:
    told = card(str(by(method, make_run())))
    assert f"by supervised fine-tuning and {METHODS[method]} with llm-rlhf" in told
    assert "PPO" not in told
    drawn = "In training, replies were drawn at temperature\n0.7" in told
    assert drawn == (method == "grpo")  # pairs teach the others, or replies of the start
    assert drawn or "The generation config draws replies at temperature\n0.7" in told


def test_an_sft_model_was_not_trained_on_what_it_draws(hub, make_run) -> None:
    assert "In training, replies" not in card(f"{make_run()}:sft")


def test_without_a_measurement_nothing_is_said_of_how_far_it_holds(hub, make_run) -> None:
    told = card(str(make_run()))
    assert "Nothing was measured of it." in told
    assert "What was measured holds" not in told


def test_the_code_says_that_a_folder_is_one(hub, make_run) -> None:
    run = str(make_run())
    assert 'name = "hh"  # this folder' in card(run)
    assert 'name = "me/hh"\n' in card(run, "me/hh")


def test_a_method_that_is_not_finished_is_told(hub, make_run, tmp_path) -> None:
    """A run is named, and its SFT model is all that it has."""
    run = make_run()
    (run / "ppo").rename(run / "partial-ppo")
    told: list[str] = []
    make(source_of(str(run)), "model", tmp_path / "out", "out", say=told.append)
    assert told[0] == "PPO is not finished; this is the SFT model that it begins from."
    assert told[0] in (tmp_path / "out" / "README.md").read_text()
    assert source_of(f"{run}:sft").unfinished is None
