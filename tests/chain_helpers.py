"""The whole chain on a tiny gold world, by PPO and other methods, and copies of its run folder."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from llm_rlhf.recipe.loading import load_recipe

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


# Other methods' sections, in the place of PPO's.
COMMON = {"gradient_checkpointing": False, "learning_rate": 1e-3, "max_steps": 4, "per_device_train_batch_size": 8}
ONLINE = COMMON | {"num_generations": 4, "max_completion_length": 12}
SECTIONS: dict[str, dict[str, Any]] = {
    "grpo": ONLINE | {"beta": 0.05},
    "rloo": ONLINE,
    "dpo": COMMON,
    "kto": COMMON,
    "best_of_n": COMMON | {"n": 3, "prompts": 12, "response_length": 12, "max_steps": 8},
}


def recipe_of(finished: Path, folder: Path, method: str, *overrides: str, **section: Any) -> Any:
    """A copy of the finished chain without PPO, and the recipe that goes on from it by another method."""
    folder.mkdir(exist_ok=True)
    run = copy(finished, folder)
    for name in ("ppo", "evaluate"):
        shutil.rmtree(run / name)
    tree = {key: value for key, value in TINY.items() if key != "ppo"} | {method: SECTIONS[method] | section}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return load_recipe(folder / "tiny.yaml", [f"output_dir={run}", *overrides])
