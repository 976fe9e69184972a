"""What a number in a recipe may be; a RecipeError names its key."""

import math
from collections.abc import Mapping
from typing import Any

from llm_rlhf.errors import RecipeError


def at_least(key: str, value: float | None, low: int) -> None:
    if value is not None and not value >= low:  # NaN is neither
        raise RecipeError(f"Recipe key {key!r} is {value}; it must be at least {low}.")


# Of trainers' configurations, which take any number: less would end in a library's own words, or train nothing.
_LEAST = {
    **dict.fromkeys(
        (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "steps_per_generation",
            "generation_batch_size",
            "num_mini_batches",
            "num_ppo_epochs",
            "num_iterations",
            "num_generations",
            "total_episodes",
            "response_length",
            "max_completion_length",
            "max_length",
        ),
        1,
    ),
    **dict.fromkeys(
        (
            "learning_rate",
            "weight_decay",
            "warmup_steps",
            "dataloader_num_workers",
            "neftune_noise_alpha",
        ),
        0,
    ),
}


def check_training(stage: str, section: Mapping[str, Any]) -> None:
    """RecipeError where a number of a trainer's section is none that trains."""
    for name, low in _LEAST.items():
        at_least(f"{stage}.{name}", section.get(name), low)
    epochs, steps = section.get("num_train_epochs"), section.get("max_steps")
    if epochs is not None and not 0 < epochs < math.inf:
        raise RecipeError(
            f"Recipe key '{stage}.num_train_epochs' is {epochs}; it must be over 0. A stage whose section is left out "
            "is skipped."
        )
    if steps is not None and steps != -1 and steps < 1:
        raise RecipeError(
            f"Recipe key '{stage}.max_steps' is {steps}; it must be at least 1, or -1: num_train_epochs counts."
        )


def check_share(key: str, value: float, most: int | None = None) -> None:
    """RecipeError where a value is no share: from 0, under 1, or, where `most` is 1, that itself."""
    if not (0 <= value < 1 or value == most):
        top = "under 1" if most is None else f"at most {most}"
        raise RecipeError(f"Recipe key {key!r} is {value}; it is a share and must be at least 0 and {top}.")


def check_weight(key: str, weight: float, least: bool = False) -> None:
    """RecipeError where a weight is none.

    Args:
        least: 0 is one: rows are held out to evaluate on, and not trained on.
    """
    if not (0 < weight <= 100 or (least and weight == 0)):
        raise RecipeError(
            f"Recipe key {key!r} is {weight}; it must be {'at least' if least else 'over'} 0 and at most 100."
        )
