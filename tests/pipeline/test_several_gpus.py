"""One process that sees several GPUs keeps to one, where transformers would copy the model to all at every step."""

from functools import cached_property

import pytest
from chain_helpers import write_recipe
from ppo_helpers import make_trainer
from torch import nn
from transformers import TrainingArguments
from typer.testing import CliRunner

from llm_rlhf import PPOConfig
from llm_rlhf.cli.main import app
from llm_rlhf.recipe.loading import load_recipe, trainer_config


@pytest.fixture(autouse=True)
def three_gpus(monkeypatch) -> None:
    """What trainers' configurations count."""
    own = TrainingArguments.__dict__["_setup_devices"].func

    def seen(self):
        device = own(self)
        self._n_gpu = 3
        return device

    counted = cached_property(seen)
    counted.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", counted)


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_recipe_s_trainers_keep_their_batches(tmp_path, stage) -> None:
    assert TrainingArguments(output_dir=str(tmp_path)).n_gpu == 3
    config = trainer_config(load_recipe(write_recipe(tmp_path)), stage, tmp_path)
    assert config.n_gpu == 1
    assert config.train_batch_size == config.per_device_train_batch_size


def test_ppo_as_a_library_does_not_copy_its_model(base_folder, reward_folder, tmp_path) -> None:
    assert PPOConfig(output_dir=str(tmp_path), bf16=False).n_gpu == 1
    trainer = make_trainer(base_folder, tmp_path, reward_folder)
    trainer.train()
    assert not isinstance(trainer.model_wrapped, nn.DataParallel)
    assert trainer.state.train_batch_size == trainer.args.per_device_train_batch_size


@pytest.mark.parametrize(("seen", "told"), [(3, True), (1, False), (0, False)])
def test_that_others_stand_idle_is_told_before_anything_is_trained(tmp_path, monkeypatch, seen, told) -> None:
    monkeypatch.setattr("llm_rlhf.ahead.gpus_of_one", lambda: seen)
    path = write_recipe(tmp_path)
    said = CliRunner().invoke(app, ["run", str(path), f"output_dir={tmp_path / 'run'}", "ppo.response_length=100000"])
    assert said.exit_code == 2  # for its last word
    assert ("3 GPUs are here, and this one process uses the first alone" in said.output) == told
    assert not (tmp_path / "run" / "sft").exists()
