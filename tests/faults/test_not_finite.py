"""Losses, gradients and weights that are not finite: nothing is learned from them, and none is kept."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from chain_helpers import copy
from method_helpers import KINDS, make
from ppo_helpers import make_trainer
from safetensors.torch import load_file
from transformers import TrainerCallback

from llm_rlhf import checkpoints
from llm_rlhf.errors import NonFiniteError
from llm_rlhf.evaluation.run_report import skipped_steps
from llm_rlhf.finite import BATCHES, IN_A_ROW, FiniteGradients, check_loss, check_weights, save_batch
from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe

STEPS = 8


def stand_in(folder: Path, stage: str = "sft", step: int = 7) -> Any:
    """Of a trainer, what is asked of it."""
    return SimpleNamespace(
        stage_name=stage,
        state=SimpleNamespace(global_step=step),
        args=SimpleNamespace(output_dir=str(folder)),
        accelerator=SimpleNamespace(process_index=0, num_processes=1),
        step_inputs=[{"input_ids": torch.tensor([[1, 2]]), "said": "no tensor"}, [torch.ones(2)]],
    )


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_fault_23_nothing_is_learnt_from_a_loss_that_is_not_finite(loss, tmp_path) -> None:
    check_loss(torch.tensor(1e30), stand_in(tmp_path))
    assert not list(tmp_path.iterdir())
    told = r"The reward loss is -?(nan|inf) at optimizer step 7; .*Lower reward.learning_rate.*not-finite-step-7-"
    with pytest.raises(NonFiniteError, match=told):
        check_loss(torch.tensor(loss), stand_in(tmp_path, "reward"))
    saved = load_file(next(tmp_path.glob(f"{BATCHES}*")))
    assert {name: tensor.tolist() for name, tensor in saved.items()} == {"0.input_ids": [[1, 2]], "1.0": [1.0, 1.0]}


def test_fault_24_steps_that_deepspeed_passes_over_by_itself_are_told_and_counted(tmp_path, capsys) -> None:
    """Its engine has stepped, or not, when the callback comes; gradients are no longer there to be asked."""
    trainer = stand_in(tmp_path)
    trainer.model, trainer.optimizer = torch.nn.Linear(1, 1), None
    engine = trainer.accelerator
    engine.distributed_type, engine.scaler, engine.is_main_process = DistributedType.DEEPSPEED, None, True
    guard = FiniteGradients(trainer)
    for skipped in (True, True, True, True, False, True, True, True, True):
        engine.optimizer_step_was_skipped = skipped
        guard.on_pre_optimizer_step(trainer.args, trainer.state, None)
    assert capsys.readouterr().out.count("the gradient at optimizer step 7 is not finite; the step is skipped") == 8
    with pytest.raises(NonFiniteError, match="in 5 optimizer steps one after another"):
        guard.on_pre_optimizer_step(trainer.args, trainer.state, None)


def test_a_batch_of_views_of_one_tensor_is_saved(tmp_path) -> None:
    trainer, whole = stand_in(tmp_path), torch.arange(6).view(2, 3)
    trainer.step_inputs = [{"all": whole, "first": whole[:1], "last": whole[:, 1:]}]
    assert load_file(save_batch(trainer))["0.last"].tolist() == [[1, 2], [4, 5]]


def test_weights_that_train_are_looked_at_and_others_where_asked() -> None:
    model = torch.nn.ModuleDict({"frozen": torch.nn.Linear(2, 2), "trained": torch.nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    with torch.no_grad():
        model["frozen"].weight[0, 1] = math.inf
    check_weights(model, "the policy")
    with pytest.raises(NonFiniteError, match=r"The weights frozen.weight are not finite, so that the policy is not"):
        check_weights(model, "the policy", every=True)
    with torch.no_grad():
        model["trained"].bias[0] = math.nan
    with pytest.raises(NonFiniteError, match=r"The weights trained.bias"):
        check_weights(model, "the policy")


class WeightsBefore(TrainerCallback):
    """Keeps the weights before each step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.before: list[dict[str, torch.Tensor]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before.append(weights(self.trainer))


def overflowing(trainer: Any, *at: int, value: float = math.inf) -> WeightsBefore:
    """The gradient of one weight is infinite at these steps."""
    seen = WeightsBefore(trainer)
    first = next(p for name, p in trainer.model.named_parameters() if p.requires_grad and "lora_B" in name)

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        if trainer.state.global_step in at:
            gradient = gradient.clone()
            gradient.view(-1)[0] = value
        return gradient

    first.register_hook(spoil)
    trainer.add_callback(seen)
    return seen


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def alike(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(one[name].equal(two[name]) for name in one)


def of_kind(kind: str, base: Path, reward: Path, folder: Path) -> Any:
    if kind == "ppo":
        return make_trainer(base, folder, reward, total_episodes=STEPS * 4)
    return make(kind, base, folder, {"joint": reward}, max_steps=STEPS)


Made = Callable[[str], Any]


@pytest.fixture
def made(base_folder: Path, reward_folder: Path, tmp_path: Path) -> Made:
    return lambda kind: of_kind(kind, base_folder, reward_folder, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", *KINDS])
def test_fault_24_an_infinite_gradient_skips_its_step_and_no_other(kind, made: Made, tmp_path, capsys) -> None:
    """The last step too: what is left is what was there before it."""
    trainer = made(kind)
    last = STEPS - 1
    seen = overflowing(trainer, 2, last)
    trainer.train()
    assert trainer.state.global_step == STEPS
    assert alike(seen.before[2], seen.before[3])
    assert not alike(seen.before[3], seen.before[4])
    assert alike(seen.before[last], weights(trainer))
    assert sorted(path.name for path in (tmp_path / "run").glob(f"{BATCHES}*")) == [
        f"{BATCHES}{step}-process-0.safetensors" for step in (2, last)
    ]
    assert any(name.endswith("ids") for name in load_file(next((tmp_path / "run").glob(f"{BATCHES}2-*"))))
    assert capsys.readouterr().out.count(f"warning: {trainer.stage_name}: the gradient at optimizer step") == 2


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_fault_24_several_in_a_row_stop_the_run(value, made: Made) -> None:
    trainer = made("dpo")
    first = 1
    seen = overflowing(trainer, *range(first, STEPS), value=value)
    with pytest.raises(NonFiniteError, match=rf"in {IN_A_ROW} optimizer steps one after another, the last at step 5"):
        trainer.train()
    assert alike(seen.before[first], weights(trainer))


def test_fault_24_a_sound_step_between_begins_the_count_anew(made: Made) -> None:
    trainer = made("dpo")
    overflowing(trainer, 0, 1, 2, 3, 5, 6, 7)
    trainer.train()
    assert trainer.state.global_step == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", "dpo"])
def test_weights_that_are_not_finite_reach_no_checkpoint(kind, base_folder, reward_folder, tmp_path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    if kind == "ppo":
        trainer: Any = make_trainer(base_folder, tmp_path, reward_folder, total_episodes=48, **options)
    else:
        trainer = make(kind, base_folder, tmp_path, max_steps=6, **options)

    class Spoils(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                next(p for p in trainer.model.parameters() if p.requires_grad).data.view(-1)[0] = math.nan

    trainer.add_callback(Spoils())
    with pytest.raises(NonFiniteError, match="so that the checkpoint of optimizer step 4 is not written"):
        trainer.train()
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.step == 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_fault_24_of_the_last_step_seals_no_weights_that_are_not_finite(
    stage, finished: Path, tmp_path, monkeypatch, capsys
) -> None:
    import importlib

    run = copy(finished, tmp_path)
    module = importlib.import_module(f"llm_rlhf.stages.{stage}")
    trainer = module._SFTTrainer if stage == "sft" else module._RewardTrainer
    step = trainer.training_step

    def spoiled(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(self, *args, **kwargs)
        if self.state.global_step == 2:  # of three
            next(p for p in self.model.parameters() if p.grad is not None).grad.view(-1)[0] = math.inf
        return loss

    monkeypatch.setattr(trainer, "training_step", spoiled)
    recipe = load_recipe(run.parent / "tiny.yaml", [f"output_dir={run}", "evaluate=null", "ppo=null"])
    run_recipe(recipe, from_stage=stage)
    assert f"{stage}: the gradient at optimizer step 2 is not finite; the step is skipped" in capsys.readouterr().out
    for path in (run / stage).rglob("adapter_model.safetensors"):
        assert all(torch.isfinite(weight).all() for weight in load_file(path).values()), path
    assert list((run / stage).rglob(f"{BATCHES}2-process-0.safetensors"))
    lines = [json.loads(line) for line in next((run / stage).rglob("metrics.jsonl")).read_text().split("\n") if line]
    assert any("train_loss" in line for line in lines)


def test_fault_24_skipped_steps_are_told_in_the_report() -> None:
    files = {f"joint/{BATCHES}{step}-process-{rank}.safetensors": {} for step in (3, 12) for rank in (0, 1)}
    manifests = {"sft": {"files": {"adapter/x": {}}}, "reward": {"files": files | {"joint/adapter": {}}}}
    (line,) = skipped_steps(manifests)
    assert line.startswith("reward: 2 optimizer steps were skipped, as the gradient was not finite")
