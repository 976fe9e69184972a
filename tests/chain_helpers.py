"""The whole chain on a tiny gold world, and copies of its run folder."""

import shutil
from pathlib import Path

import yaml

TINY = {
    "name": "tiny",
    "world": {
        "entities": 3, "demonstrations": 64, "preferences": 160, "prompts": 64, "evaluation_prompts": 24,
    },
    "model": {"lora": {"r": 4, "alpha": 8}},
    "sft": {"per_device_train_batch_size": 16, "max_steps": 3, "gradient_checkpointing": False},
    "reward": {"per_device_train_batch_size": 16, "max_steps": 3, "gradient_checkpointing": False},
    "ppo": {
        "per_device_train_batch_size": 8, "num_mini_batches": 2, "total_episodes": 32, "response_length": 12,
        "learning_rate": 1e-3, "gradient_checkpointing": False,
    },
    "evaluate": {"prompts": 16, "samples": 4, "resamples": 200},
}  # fmt: skip
ADAPTERS = ("sft/adapter", "reward/joint", "reward/heldout", "ppo/policy")


def write_recipe(folder: Path, **changes) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def copy(run: Path, to: Path) -> Path:
    shutil.copy(run.parent / "tiny.yaml", to / "tiny.yaml")
    return Path(shutil.copytree(run, to / "run"))
