"""What to lower where a stage does not fit: each key is put into the recipe, and the stage is planned again."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llm_rlhf.plan.forecast import Forecast, StagePlan, with_value
from llm_rlhf.recipe.loading import length_key, sampling, trainer_config
from llm_rlhf.recipe.sections import LoraSection, Recipe, stage_options

TRAINERS = ("sft", "reward", "ppo", "grpo", "rloo", "dpo", "kto", "best_of_n")
LORA = LoraSection()
SHORTEST = 64  # tokens: shorter rows and replies are not proposed
Changes = dict[str, Any]


@dataclass(frozen=True)
class Remedy:
    """Other values of recipe keys, and the bytes that the stage's tensors would take then."""

    changes: Changes
    bytes: int
    together: bool = False  # all of the others' changes, as none is enough by itself

    @property
    def told(self) -> str:
        """As overrides are written behind a recipe."""
        return " ".join(f"{key}={_told(value)}" for key, value in self.changes.items())


def _told(value: Any) -> str:
    if isinstance(value, LoraSection):
        return f"'{{r: {value.r}, alpha: {value.alpha}}}'"
    return str(value).lower() if value is True else str(value)


def remedies(forecast: Forecast, plan: StagePlan, room: int) -> list[Remedy]:
    """What makes the stage smaller, the most effective first; what does not by a fiftieth is left out.

    Each is the mildest value of its key with which the stage fits, or the strongest where none does. Where none of them
    is enough by itself, the last is all of them together.

    Args:
        room: bytes that the stage's tensors may take.
    """
    tried = (_mildest(forecast, plan, list(values), room) for values in _keys(forecast.recipe, plan))
    found = sorted((remedy for remedy in tried if remedy is not None), key=lambda remedy: remedy.bytes)
    if len(found) > 1 and found[0].bytes > room:
        everything = {key: value for remedy in reversed(found) for key, value in remedy.changes.items()}
        together = _try(forecast, plan, everything)
        found += [replace(together, together=True)] if together is not None else []
    return found


def _mildest(forecast: Forecast, plan: StagePlan, values: list[Changes], room: int) -> Remedy | None:
    """Of values that go from mild to strong; None where the strongest that the trainer takes hardly helps."""
    found = None
    while values and found is None:
        found = _try(forecast, plan, values.pop())
    if found is None or found.bytes > 0.98 * plan.bytes:
        return None
    low = 0
    while found.bytes <= room and low < len(values):  # the mildest that fits is among values[low:], or it is `found`
        middle = (low + len(values)) // 2
        milder = _try(forecast, plan, values[middle])
        if milder is not None and milder.bytes <= room:
            found, values = milder, values[:middle]
        else:
            low = middle + 1
    return found


def _try(forecast: Forecast, plan: StagePlan, changes: Changes) -> Remedy | None:
    recipe = forecast.recipe
    for key, value in changes.items():
        recipe = with_value(recipe, key, value)
    try:
        return Remedy(changes, forecast.stage(recipe, plan.stage).bytes)
    except ValueError:  # the trainer's configuration refuses the value beside the recipe's others
        return None


def _keys(recipe: Recipe, plan: StagePlan) -> Iterator[Iterable[Changes]]:
    """For each key that may make the stage's largest step smaller, values from mild to strong."""
    stage = plan.stage
    if stage == "evaluate":
        assert recipe.evaluate is not None
        yield _halved("evaluate.batch_size", recipe.evaluate.batch_size)
    elif stage in TRAINERS:
        yield from _of_trainer(recipe, stage, plan.largest)
    yield from _lengths(recipe, plan)
    if isinstance(recipe.model.lora, str):
        yield [{"model.lora": LORA}]
    elif recipe.model.quantization == "none":
        yield [{"model.quantization": "nf4"}]
    if recipe.model.dtype == "float32":
        yield [{"model.dtype": "bfloat16"}]


def _of_trainer(recipe: Recipe, stage: str, largest: str) -> Iterator[Iterable[Changes]]:
    config = trainer_config(recipe, stage, recipe.folder / stage)
    rows, accumulated = config.per_device_train_batch_size, config.gradient_accumulation_steps
    if isinstance(recipe.model.lora, str) and "8bit" not in str(config.optim):
        yield [{f"{stage}.optim": "adamw_bnb_8bit"}]
    if not config.gradient_checkpointing:
        yield [{f"{stage}.gradient_checkpointing": True}]
    if stage == "ppo" and largest.startswith("evaluation"):
        yield _halved("ppo.per_device_eval_batch_size", config.per_device_eval_batch_size)
    elif stage == "ppo" and largest.startswith("sampling"):  # fewer replies at once; as many in all
        yield _halved("ppo.num_mini_batches", config.num_mini_batches)
    elif stage in ("grpo", "rloo") and largest.startswith("sampling"):
        yield _halved(f"{stage}.steps_per_generation", config.steps_per_generation)
    elif stage == "best_of_n" and largest != "update":
        yield _halved("best_of_n.sampling_batch_size", stage_options(recipe, stage).sampling_batch_size)
    elif stage == "reward" and largest.startswith("sampling"):
        yield _halved("reward.reference_samples", stage_options(recipe, stage).reference_samples)
    shares = [2**power for power in range(1, rows.bit_length()) if rows % 2**power == 0]
    yield [  # as many rows in an optimizer step
        {f"{stage}.per_device_train_batch_size": rows // n, f"{stage}.gradient_accumulation_steps": n * accumulated}
        for n in shares
    ]
    if stage == "ppo":
        yield [{"ppo.merge_for_sampling": False}]
        yield [{"ppo.decoding": "plain"}]
        if config.use_vllm and not config.vllm_enable_sleep_mode:
            yield [{"ppo.vllm_enable_sleep_mode": True}]
        if config.value == "adapter":
            yield [{"ppo.value": "shared"}]


def _lengths(recipe: Recipe, plan: StagePlan) -> Iterator[Iterable[Changes]]:
    """Shorter replies, shorter rows, and less room for the prompts before replies: powers of two."""
    stage, longest = plan.stage, max((rows.longest for rows in plan.rows.values()), default=0)
    if stage in ("sft", "reward", "dpo", "kto"):
        yield [{f"{stage}.max_length": length} for length in _shorter(longest)]
        return
    replies, _ = sampling(recipe) or (0, 0)
    if stage == "evaluate":
        assert recipe.evaluate is not None
        replies = recipe.evaluate.response_length or replies
    key = "response_length" if stage == "evaluate" else length_key(recipe)
    yield [{f"{stage}.{key}": length} for length in _shorter(replies)]
    yield [{"model.context_length": length + replies} for length in _shorter(longest)]


def _shorter(length: int) -> Sequence[int]:
    return [2**power for power in range(length.bit_length(), 0, -1) if SHORTEST <= 2**power < length]


def _halved(key: str, value: int) -> list[Changes]:
    return [{key: value // 2**power} for power in range(1, value.bit_length())]
