"""What to lower where a stage does not fit: each key is tried by itself, and what it would give is told."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llm_rlhf.plan.forecast import Forecast, StagePlan, with_value
from llm_rlhf.recipe.loading import trainer_config
from llm_rlhf.recipe.sections import Recipe, stage_options

TRAINERS = ("sft", "reward", "ppo", "grpo", "rloo", "dpo", "kto", "best_of_n")


@dataclass(frozen=True)
class Remedy:
    """Other values of recipe keys, and the bytes that the stage would hold then."""

    changes: dict[str, Any]
    bytes: int

    @property
    def told(self) -> str:
        return " ".join(
            f"{key}={str(value).lower() if value is True else value}" for key, value in self.changes.items()
        )


def remedies(forecast: Forecast, plan: StagePlan) -> list[Remedy]:
    """What makes the stage smaller, the most effective first; what does not is left out."""
    found = []
    for changes in _candidates(forecast.recipe, plan):
        recipe = forecast.recipe
        for key, value in changes.items():
            recipe = with_value(recipe, key, value)
        less = forecast.stage(recipe, plan.stage).bytes
        if less < 0.98 * plan.bytes:
            found.append(Remedy(changes, less))
    return sorted(found, key=lambda remedy: remedy.bytes)


def _candidates(recipe: Recipe, plan: StagePlan) -> Iterator[dict[str, Any]]:
    """Single changes of a stage that may make its largest step smaller."""
    stage = plan.stage
    if stage == "evaluate":
        assert recipe.evaluate is not None
        if recipe.evaluate.batch_size > 1:
            yield {"evaluate.batch_size": recipe.evaluate.batch_size // 2}
    elif stage in TRAINERS:
        yield from _of_trainer(recipe, stage, plan.largest)
    if recipe.model.quantization == "none":
        yield {"model.quantization": "nf4"}
    if recipe.model.dtype == "float32":
        yield {"model.dtype": "bfloat16"}


def _of_trainer(recipe: Recipe, stage: str, largest: str) -> Iterator[dict[str, Any]]:
    config = trainer_config(recipe, stage, recipe.folder / stage)
    rows, accumulated = config.per_device_train_batch_size, config.gradient_accumulation_steps
    if not config.gradient_checkpointing:
        yield {f"{stage}.gradient_checkpointing": True}
    if stage == "ppo" and largest.startswith("evaluation"):
        if config.per_device_eval_batch_size > 1:
            yield {"ppo.per_device_eval_batch_size": config.per_device_eval_batch_size // 2}
    elif stage == "ppo" and largest.startswith("sampling"):
        if config.num_mini_batches > 1:  # fewer replies at once; as many in all
            yield {"ppo.num_mini_batches": config.num_mini_batches // 2}
    elif stage == "best_of_n" and largest != "update":
        yield {"best_of_n.sampling_batch_size": max(1, stage_options(recipe, stage).sampling_batch_size // 2)}
    if rows > 1 and rows % 2 == 0:  # as many rows in an optimizer step
        halved = {f"{stage}.per_device_train_batch_size": rows // 2}
        yield halved | {f"{stage}.gradient_accumulation_steps": 2 * accumulated}
    if stage == "ppo":
        yield {"ppo.response_length": config.response_length // 2}
        if config.value == "adapter":
            yield {"ppo.value": "shared"}
    elif stage in ("grpo", "rloo"):
        yield {f"{stage}.max_completion_length": config.max_completion_length // 2}
