"""PPO killed in the middle of a rollout and of an update ends, started again, with the bits of one that was not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from ppo_helpers import make_trainer

from llm_rlhf import checkpoints
from llm_rlhf.ppo.trainer import PPOTrainer

DEMONSTRATIONS = Dataset.from_list([{"input_ids": [20 + i, 30, 40, 50 + i]} for i in range(40)])
STEPS = 4  # optimizer steps a rollout: two mini-batches, twice


def ppo(base: Path, reward: Path, folder: Path) -> PPOTrainer:
    """Four rollouts, a checkpoint behind each, with everything on that has a state."""
    folder.mkdir(exist_ok=True)
    trainer = make_trainer(
        base, folder, reward, per_device_train_batch_size=2, num_mini_batches=2, num_ppo_epochs=2, total_episodes=16,
        save_strategy="steps", save_rollouts=1, save_total_limit=2, adaptive_kl_target=0.05, adaptive_kl_horizon=100,
        score_normalization="whiten", ptx_coef=0.1, ptx_dataset=DEMONSTRATIONS,
    )  # fmt: skip
    trainer.samples_file = folder / "samples.jsonl"
    return trainer


def killed_at(call: int, method: Callable[..., Any], behind: bool) -> Callable[..., Any]:
    """The method, whose so-manieth call is the last thing that the process does. What counts is what is on the disk."""
    calls = 0

    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not behind:
            raise KeyboardInterrupt
        found = method(*args, **kwargs)
        if calls == call:
            raise KeyboardInterrupt
        return found

    return watched


PLACES = {  # which method, its call of the third rollout or in its steps, and whether behind it
    "fault_01_behind_sampling": ("_generate", 3, True),
    "fault_01_before_scoring": ("_score", 5, False),  # two micro-batches a rollout
    "fault_02_between_epochs": ("finish_step", 2 * STEPS + 2, True),
    "fault_02_in_a_micro_batch": ("_micro_batch_loss", 2 * STEPS + 3, True),
}


@pytest.fixture(scope="module")
def whole(base_folder, reward_folder, tmp_path_factory) -> PPOTrainer:
    trainer = ppo(base_folder, reward_folder, tmp_path_factory.mktemp("whole") / "ppo")
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("place", list(PLACES))
def test_started_again_it_ends_with_the_same_bits(place, whole, base_folder, reward_folder, tmp_path) -> None:
    method, call, behind = PLACES[place]
    killed = ppo(base_folder, reward_folder, tmp_path / "ppo")
    setattr(killed, method, killed_at(call, getattr(killed, method), behind))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    found = checkpoints.latest(tmp_path / "ppo")
    assert found is not None
    assert found.step == 2 * STEPS
    again = ppo(base_folder, reward_folder, tmp_path / "ppo")
    again.train(resume_from_checkpoint=True)
    expected = dict(whole.model.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in again.model.named_parameters())
    samples = [(Path(trainer.args.output_dir) / "samples.jsonl").read_text() for trainer in (whole, again)]
    assert samples[0] == samples[1]
    assert again.kl_controller.value == whole.kl_controller.value != whole.args.kl_coef
    assert again.score_moments.state_dict() == whole.score_moments.state_dict()
