"""A run folder that is moved elsewhere, and used from another working directory: nothing in it says where it was."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from llm_rlhf.evaluation.subjects import start_of, subject_of
from llm_rlhf.export.folder import export
from llm_rlhf.models.adapter_folders import base_of, make_movable
from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.reward.model import RewardModel


@pytest.fixture
def moved(finished: Path, tmp_path, monkeypatch) -> Path:
    run = Path(shutil.copytree(finished, tmp_path / "far" / "away"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return run


def test_no_file_names_the_place_of_the_run(finished: Path) -> None:
    place = str(finished).encode()
    assert [path for path in finished.rglob("*") if path.is_file() and place in path.read_bytes()] == []
    assert "output_dir" not in yaml.safe_load((finished / "recipe.yaml").read_text())
    assert json.loads((finished / "report.json").read_text())["run"]["recipe"] == "recipe.yaml"


def test_nothing_of_the_trainers_own_cards_is_left(finished: Path) -> None:
    cards = sorted(path.relative_to(finished).as_posix() for path in finished.rglob("README.md"))
    assert cards == sorted(
        f"{adapter}/README.md"
        for adapter in ("sft/adapter", "reward/joint", "reward/heldout", "ppo/policy",
                        *(f"ppo/snapshots/step-{step}" for step in (0, 4, 8)))
    )  # fmt: skip
    card = (finished / "ppo/policy/README.md").read_text()
    assert "# run/ppo/policy" in card
    assert "A LoRA adapter on `../../sft/model`" in card
    assert not list(finished.rglob("training_args.bin"))


@pytest.mark.slow
def test_run_again_it_is_done_already(moved: Path, capsys) -> None:
    run_recipe(load_recipe(moved / "recipe.yaml"))
    assert capsys.readouterr().out.count("done before") == 5
    assert not Path("runs").exists()  # it is still that run


def test_its_parts_are_found_on_their_own_base(moved: Path) -> None:
    model = str(moved / "sft" / "model")
    for adapter in ("ppo/policy", "ppo/snapshots/step-4", "reward/joint"):
        assert base_of(moved / adapter) == model, adapter
    assert base_of(moved / "sft/adapter") == str(moved / "world" / "base")
    policy = subject_of(str(moved / "ppo" / "policy"))
    assert (policy.base, policy.adapter) == (model, moved / "ppo" / "policy")


@pytest.mark.slow
def test_its_reward_model_scores_as_before(finished: Path, moved: Path) -> None:
    said = [("who?", "me."), ("where is the fox?", "in the barn.")]
    before = RewardModel.from_pretrained(finished / "reward" / "joint").score(said)
    np.testing.assert_array_equal(RewardModel.from_pretrained(moved / "reward" / "joint").score(said), before)


def test_policy_and_start_have_the_same_tokens(moved: Path) -> None:
    """The policy has a tokenizer beside it; that is no reason not to measure how far it went."""
    from llm_rlhf.evaluation.request import Evaluation

    policy = subject_of(str(moved))
    assert (policy.adapter / "tokenizer.json").is_file()
    assert Evaluation(policy, start_of(policy), moved / "nowhere").one_base


def test_a_policy_says_where_it_stops_and_how_it_samples(finished: Path) -> None:
    from transformers import GenerationConfig

    config = GenerationConfig.from_pretrained(finished / "ppo" / "policy")
    assert (config.eos_token_id, config.pad_token_id, config.do_sample) == ([0], 1, True)
    assert (config.temperature, config.top_k, config.top_p) == (1.0, 0, 1.0)


@pytest.mark.slow
def test_its_export_says_what_its_report_says(moved: Path) -> None:
    """Of the gold world: whole weights, every number of the policy with its interval, and nothing of this machine."""
    told: list[str] = []
    made = export(str(moved), say=told.append)
    assert "its base is the gold world's own" in told[0]
    card, report = (made.folder / "README.md").read_text(), json.loads((moved / "report.json").read_text())
    assert report["headline"]["text"] in card.replace("\\", "")
    assert card.count("| Gold score ") == 9  # all, helpful, harmful: of the policy, of its start, and their difference
    assert "## What you should know" in card
    assert "by the rules of the world" in card
    assert "Reward-model accuracy" not in card  # the report's
    assert "| preferences | 160 | 160 |" in card
    assert str(moved.parent) not in card
    assert made.difference is not None
    assert made.difference.largest < 1e-4  # float32 sums in another order
    index = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    gain = next(m for r in index for m in r["metrics"] if m["type"] == "gold_gain")
    assert gain["value"] == next(e["estimate"] for e in report["estimates"] if e["name"] == "gold_gain")


class TestMakeMovable:
    @pytest.fixture
    def run(self, tmp_path) -> Path:
        run = tmp_path / "runs" / "x"
        (run / "sft" / "model").mkdir(parents=True)
        (run / "sft" / "model" / "config.json").write_text("{}")
        return run

    def adapter(self, folder: Path, base: str) -> Path:
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": 4}))
        return folder

    @pytest.mark.parametrize(
        ("place", "base", "named"),
        [
            ("policy", "{run}/sft/model", "../../sft/model"),
            ("policy", "runs/x/sft/model", "../../sft/model"),  # from the working directory
            ("value/value", "../../sft/model", "../../../sft/model"),  # began as a reward adapter
            ("policy", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
            ("policy", "/models/qwen", "/models/qwen"),  # as the recipe has it
        ],
    )
    def test_bases_are_named_from_the_adapter(self, run, monkeypatch, place, base, named) -> None:
        monkeypatch.chdir(run.parent.parent)
        adapter = self.adapter(run / "partial-ppo" / place, base.format(run=run))
        make_movable(run / "partial-ppo", run)
        config = json.loads((adapter / "adapter_config.json").read_text())
        assert config == {"base_model_name_or_path": named, "r": 4}

    def test_texts_name_files_of_a_run_that_was_named_from_the_working_directory(self, run, monkeypatch) -> None:
        monkeypatch.chdir(run.parent.parent)
        folder = run / "partial-evaluate"
        folder.mkdir()
        text = '{"a": "runs/x/world/pairs.jsonl", "b": "runs/x-2/other", "said": "look at runs/x/world"}'
        (folder / "report.json").write_text(text)
        make_movable(Path("runs/x/partial-evaluate"), Path("runs/x"))
        found = json.loads((folder / "report.json").read_text())
        assert found == {"a": "world/pairs.jsonl", "b": "runs/x-2/other", "said": "look at runs/x/world"}

    def test_texts_name_files_of_the_run_from_its_folder(self, run) -> None:
        folder = run / "partial-evaluate"
        folder.mkdir()
        text = '{{"a": "{0}/reward/joint", "b": "{0}", "c": "{0}-2/other"}}'
        (folder / "report.json").write_text(text.format(run))
        make_movable(folder, run)
        found = json.loads((folder / "report.json").read_text())
        assert found == {"a": "reward/joint", "b": ".", "c": f"{run}-2/other"}

    def test_an_adapter_made_before_is_found_from_where_it_was_made(self, run, monkeypatch) -> None:
        adapter = self.adapter(run / "elsewhere" / "deep" / "down" / "to" / "policy", "runs/x/sft/model")
        monkeypatch.chdir(run.parent.parent)
        assert base_of(adapter) == "runs/x/sft/model"

    def test_an_adapter_made_before_stands_on_its_own_run(self, run) -> None:
        adapter = self.adapter(run / "ppo" / "snapshots" / "step-4", "runs/before/sft/model")
        assert base_of(adapter) == str(run / "sft" / "model")

    def test_a_hub_id_is_no_folder_above_the_adapter(self, run) -> None:
        for above in (run, run.parent, run / "ppo"):
            (above / "org" / "Chat-1B").mkdir(parents=True)
            (above / "org" / "Chat-1B" / "config.json").write_text("{}")
        adapter = self.adapter(run / "ppo" / "policy", "org/Chat-1B")
        assert base_of(adapter) == "org/Chat-1B"

    def test_a_base_that_is_not_there_is_told_with_the_places(self, run) -> None:
        adapter = self.adapter(run / "ppo" / "policy", "../../sft/gone")
        with pytest.raises(ValueError, match=r"stands on \.\./\.\./sft/gone, which is not there; nor is .*x/sft/gone"):
            base_of(adapter)
