"""SIGTERM ends a training in time, with a checkpoint from which the same bits come as without it."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from ppo_helpers import make_trainer

from llm_rlhf import interruption, stopping
from llm_rlhf.interruption import Terminated
from llm_rlhf.ppo import checkpoint
from llm_rlhf.ppo.trainer import PPOTrainer

KEPT_BACK = [{"prompt": [{"role": "user", "content": f"kept back {i}"}], "objective": "helpful"} for i in range(4)]
STEPS = 4  # optimizer steps of a rollout; there are four rollouts of four responses


@pytest.fixture(autouse=True)
def nobody_ends_the_tests(monkeypatch) -> None:
    """The thread that ends a process in time would end pytest."""
    monkeypatch.setattr(interruption, "_end_in_time", lambda *args: None)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def at_call(number: int, function: Any) -> Any:
    """The function; when it is called for the so-manieth time, SIGTERM comes first."""
    calls = iter(range(1, 10**6))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            terminate()
        return function(*args, **kwargs)

    return wrapped


def ppo(base: Path, reward: Path, folder: Path, **options: Any) -> PPOTrainer:
    trainer = make_trainer(
        base, folder, reward, per_device_train_batch_size=1, num_mini_batches=2, num_ppo_epochs=2, total_episodes=16,
        gradient_accumulation_steps=2, save_strategy="steps", save_rollouts=100, adaptive_kl_target=0.05,
        adaptive_kl_horizon=100, score_normalization="whiten", eval_dataset=Dataset.from_list(KEPT_BACK),
        eval_strategy="steps", eval_rollouts=1, per_device_eval_batch_size=2, **options,
    )  # fmt: skip
    trainer.samples_file = folder / "samples.jsonl"
    return trainer


def train(trainer: PPOTrainer, found: Path | None = None) -> None:
    stopping.train(trainer, found, trainer.args.steps_per_rollout)


PLACES = {  # of the PPO trainer: which method is called for the so-manieth time as the signal comes, and what is saved
    "first rollout": ("_generate_part", 3, 0),  # after two batches of the evaluation of the start
    "sampling": ("_generate_part", 8, 8),  # rollouts and evaluations in turns: 2, 1, 2, 1, 2, 1, 2, 1, 2
    "scoring": ("_score", 17, 8),
    "evaluation": ("_generate_part", 7, 8),
    "between": ("finish_step", 8, 8),
    "update": ("finish_step", 6, 8),
    "last step": ("finish_step", 16, 16),
}


@pytest.fixture(scope="module")
def whole(base_folder, reward_folder, tmp_path_factory) -> PPOTrainer:
    """The training that nothing disturbs."""
    trainer = ppo(base_folder, reward_folder, tmp_path_factory.mktemp("whole"))
    train(trainer)
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("place", list(PLACES))
def test_fault_05_a_terminated_ppo_ends_with_the_same_bits(place, whole, base_folder, reward_folder, tmp_path) -> None:
    method, call, saved = PLACES[place]
    stopped = ppo(base_folder, reward_folder, tmp_path / "again")
    setattr(stopped, method, at_call(call, getattr(stopped, method)))
    with interruption.listening(), pytest.raises(Terminated) as ended:
        train(stopped)
    assert ended.value.code == 143
    found = checkpoint.latest(tmp_path / "again")
    assert (0 if found is None else checkpoint.step_of(found)) == saved
    assert ended.value.told == (
        f"the newest checkpoint is of optimizer step {saved}"
        if saved
        else "this stage has no checkpoint yet and begins anew"
    )
    again = ppo(base_folder, reward_folder, tmp_path / "again")
    if found is None:
        shutil.rmtree(tmp_path / "again")
        (tmp_path / "again").mkdir()
    train(again, found)
    expected = dict(whole.model.named_parameters())
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    for log in ("samples.jsonl", "snapshots.jsonl", "watch.jsonl"):
        old, new = ((Path(trainer.args.output_dir) / log).read_text() for trainer in (whole, again))
        assert old == new, log
    histories = [[dict(line) for line in trainer.state.log_history] for trainer in (whole, again)]
    for line in (*histories[0], *histories[1]):
        for clock in [k for k in line if "time" in k or "per_second" in k or k == "train_loss"]:
            del line[clock]
    assert histories[0] == histories[1]
    assert again.kl_controller.value == whole.kl_controller.value != whole.args.kl_coef
    assert again.score_moments.state_dict() == whole.score_moments.state_dict()
