"""PPO that was killed when its last checkpoint was written, and nothing else was left to do."""

from pathlib import Path
from typing import Any

import pytest
from ppo_helpers import make_trainer


@pytest.mark.slow
def test_no_step_is_taken_behind_the_last(base_folder, reward_folder, tmp_path) -> None:
    """Three rollouts of four prompts, of which there are eight: training ends in the middle of an epoch."""

    def made(**options: Any) -> Any:
        return make_trainer(
            base_folder, tmp_path, reward_folder, per_device_train_batch_size=4, total_episodes=12,
            save_strategy="steps", save_steps=1, perturb=False, **options,
        )  # fmt: skip

    first = made()
    first.train()
    last = first.state.global_step
    checkpoint = tmp_path / f"checkpoint-{last}"
    trained = {name: p.detach().clone() for name, p in first.model.named_parameters() if ".default." in name}
    assert Path(checkpoint).is_dir()
    again = made()
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.state.global_step == last
    found = dict(again.model.named_parameters())
    assert all(found[name].equal(value) for name, value in trained.items())
