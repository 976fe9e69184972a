"""SFT and reward models that were killed and started again end with the very bits of those that were not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from chain_helpers import copy
from transformers import TrainerCallback

from llm_rlhf import checkpoints
from llm_rlhf.errors import RunFolderError
from llm_rlhf.models import adapter_training
from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe

STATEFUL = ("reward.length_control=residual", "reward.max_steps=6", "reward.save_steps=2", "reward.logging_steps=3")


class Killed(TrainerCallback):
    """At the begin of a step, or when the last checkpoint has been written; of the n-th training of a launch."""

    def __init__(self, step: int, training: int = 0) -> None:
        self.step, self.trainings = step, training

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainings -= 1

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainings == -1 and state.global_step == self.step:
            raise KeyboardInterrupt

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainings == -1 and state.global_step == self.step:
            raise KeyboardInterrupt


def run(folder: Path, *overrides: str, **options: Any) -> None:
    run_recipe(load_recipe(folder.parent / "tiny.yaml", [f"output_dir={folder}", *overrides]), **options)


def killed(folder: Path, monkeypatch: Any, killer: Killed, *overrides: str, **options: Any) -> None:
    attach = adapter_training.attach_log
    with monkeypatch.context() as patched:
        patched.setattr(
            adapter_training, "attach_log", lambda trainer, log: (attach(trainer, log), trainer.add_callback(killer))
        )
        with pytest.raises(KeyboardInterrupt):
            run(folder, *overrides, **options)


def without(finished: Path, folder: Path, *stages: str) -> Path:
    folder.mkdir(exist_ok=True)
    left = copy(finished, folder)
    for stage in stages:
        shutil.rmtree(left / stage)
    return left


def logs(stage: Path) -> dict[str, list[dict[str, Any]]]:
    read = {}
    for path in sorted(stage.rglob("metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().split("\n") if line]
        for line in lines:
            for clock in [k for k in line if "time" in k or "per_second" in k or k in ("train_loss", "num_tokens")]:
                del line[clock]  # what a clock says, and sums over this launch's steps only
        read[str(path.relative_to(stage))] = lines
    return read


def assert_same(one: Path, two: Path) -> None:
    names = [sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) for folder in (one, two)]
    assert names[0] == names[1]
    for name in names[0]:
        if not name.endswith(("metrics.jsonl", "manifest.json")):
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert logs(one) == logs(two)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3], ids=["in_training", "at_the_end"])
def test_sft_goes_on(step, finished: Path, tmp_path, monkeypatch, capsys) -> None:
    left = without(finished, tmp_path, "sft", "reward", "ppo", "evaluate")
    killed(left, monkeypatch, Killed(step), "reward=null", "ppo=null", "evaluate=null")
    run(left, "reward=null", "ppo=null", "evaluate=null")
    assert f"sft was interrupted; it goes on from optimizer step {step}." in capsys.readouterr().out
    assert_same(left / "sft", finished / "sft")
    assert not (left / "partial-sft").exists()


@pytest.fixture(scope="module")
def whole(finished: Path, tmp_path_factory) -> Path:
    """A reward stage in which the length's weight is learnt too."""
    left = without(finished, tmp_path_factory.mktemp("whole"), "reward", "ppo", "evaluate")
    run(left, *STATEFUL, "ppo=null", "evaluate=null")
    return left


@pytest.mark.slow
@pytest.mark.parametrize(("step", "training", "told"), [(5, 0, "joint; 4"), (3, 1, "heldout; 2"), (6, 1, "heldout; 6")])
def test_reward_models_go_on_and_those_that_are_done_are_not_trained_again(
    step, training, told, finished: Path, whole: Path, tmp_path, monkeypatch, capsys
) -> None:
    left = without(finished, tmp_path, "reward", "ppo", "evaluate")
    killed(left, monkeypatch, Killed(step, training), *STATEFUL, "ppo=null", "evaluate=null")
    name, at = told.split("; ")
    capsys.readouterr()
    run(left, *STATEFUL, "ppo=null", "evaluate=null")
    out = capsys.readouterr().out
    assert f"reward/{name} was interrupted; it goes on from optimizer step {at}." in out
    assert ("reward/joint was interrupted; it goes on from optimizer step 6." in out) is (training == 1)
    assert_same(left / "reward", whole / "reward")


@pytest.mark.slow
def test_fault_18_half_a_stage_of_another_recipe_is_refused_and_archived_on_request(
    finished: Path, tmp_path, monkeypatch, capsys
) -> None:
    left = without(finished, tmp_path, "sft", "reward", "ppo", "evaluate")
    others = ("reward=null", "ppo=null", "evaluate=null")
    killed(left, monkeypatch, Killed(2), *others)
    there = sorted((left / "partial-sft").rglob("*"))
    with pytest.raises(RunFolderError, match=r"by another recipe: sft.learning_rate: not set -> 0.5.*--from sft"):
        run(left, "sft.learning_rate=0.5", *others)
    assert sorted((left / "partial-sft").rglob("*")) == there
    capsys.readouterr()
    run(left, "sft.save_total_limit=5", "sft.logging_steps=1", *others)  # neither changes what is learnt
    assert "sft was interrupted; it goes on from optimizer step 2." in capsys.readouterr().out
    run(left, "sft.save_total_limit=1", *others)
    assert "sft: done before" in capsys.readouterr().out
    weights = "adapter/adapter_model.safetensors"
    assert (left / "sft" / weights).read_bytes() == (finished / "sft" / weights).read_bytes()


@pytest.mark.slow
def test_fault_18_from_begins_an_interrupted_stage_anew(finished: Path, tmp_path, monkeypatch, capsys) -> None:
    left = without(finished, tmp_path, "sft", "reward", "ppo", "evaluate")
    others = ("reward=null", "ppo=null", "evaluate=null")
    killed(left, monkeypatch, Killed(2), *others)
    capsys.readouterr()
    run(left, *others, from_stage="sft")
    out = capsys.readouterr().out
    assert "goes on" not in out
    assert "partial-sft" in out
    (archived,) = (left / "archive").glob("*/partial-sft")
    assert checkpoints.latest(archived) is not None
    assert_same(left / "sft", finished / "sft")
