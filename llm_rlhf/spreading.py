"""What a launch that spreads weights over processes cannot do right, told by its environment before models are loaded.

`accelerate launch` tells its processes by environment variables what its configuration says. FSDP2 spreads the weights
of the model in training, in every stage that trains, which ends as without it (tests/parity/test_processes.py,
tests/pipeline/test_fsdp.py). Under DeepSpeed's ZeRO-2 `sft` and `reward` do
(tests/pipeline/test_zero.py); by its sources the rest goes wrong:

- Its engine casts a model to its compute type in place, heads in float32 and all, and steps within the backward pass,
  before PPO's guards know of it.
- Under ZeRO-3 transformers spreads every model as it is loaded, also those that are only read between trainings.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_rlhf.errors import RecipeError
from llm_rlhf.launch import has_accelerator, is_true, uses_deepspeed, uses_fsdp
from llm_rlhf.recipe.sections import METHODS, ONLINE, Recipe, stage_options
from llm_rlhf.user_code import FUNCTION

DDP = "recipes/accelerate/ddp.yaml"
FSDP2 = "recipes/accelerate/fsdp2.yaml"


def check_spreading(recipe: Recipe, configs: Mapping[str, Any]) -> None:
    """RecipeError where the stages that are about to be made cannot work under the launch's FSDP or DeepSpeed.

    Args:
        configs: of the trainers of these stages.
    """
    for stage, config in configs.items():
        for key in ("fsdp", "deepspeed"):
            if getattr(config, key):
                raise RecipeError(
                    f"Recipe key '{stage}.{key}' is set, but the launch says how weights are spread, for all stages "
                    f"alike: accelerate launch --config_file {FSDP2}; remove the key."
                )
    if uses_fsdp():
        _check_fsdp_launch()
        _check_fsdp_recipe(recipe, configs)
    elif uses_deepspeed():
        _check_deepspeed(configs)


def _check_fsdp_launch() -> None:
    if not has_accelerator():
        raise RecipeError(
            f"The launch asks for FSDP, which accelerate passes over without a GPU; launch with {DDP}, or one process."
        )
    refused = {
        "fsdp_version": (os.environ.get("FSDP_VERSION", "1") != "2", "set it to 2: FSDP1 cannot switch adapters"),
        "fsdp_cpu_ram_efficient_loading": (
            is_true("FSDP_CPU_RAM_EFFICIENT_LOADING"),
            "set it to false: models are read and checked in every process before they are spread",
        ),
        "fsdp_offload_params": (is_true("FSDP_OFFLOAD_PARAMS"), "set it to false: it has never been run"),
    }
    for key, (is_set, remedy) in refused.items():
        if is_set:
            value = os.environ.get(key.upper(), "not set")
            raise RecipeError(f"{key} of the launch's configuration is {value}; {remedy} (see {FSDP2}).")


def _check_fsdp_recipe(recipe: Recipe, configs: Mapping[str, Any]) -> None:
    if recipe.model.quantization != "none" and configs:
        raise RecipeError(
            f"Recipe key 'model.quantization' is {recipe.model.quantization!r}, whose weights FSDP cannot spread: "
            f"every GPU would hold them all. Launch with {DDP}, or set it to none."
        )
    for stage, config in configs.items():
        if config.use_liger_kernel:
            raise RecipeError(
                f"Recipe key '{stage}.use_liger_kernel' is true, but Liger's kernels have never been run on weights "
                "that FSDP has spread; remove it."
            )
        if config.save_strategy != "no":
            raise RecipeError(
                f"Recipe key '{stage}.save_strategy' is {config.save_strategy.value!r}, but a checkpoint cannot be "
                "read back into weights that FSDP has spread; remove it."
            )
    for stage in configs.keys() & set(ONLINE):
        _check_fsdp_sampling(recipe, stage, configs[stage])


def _check_fsdp_sampling(recipe: Recipe, stage: str, config: Any) -> None:
    for key in ("use_vllm", "use_transformers_continuous_batching", "use_transformers_paged"):
        if getattr(config, key, False):
            raise RecipeError(
                f"Recipe key '{stage}.{key}' is true, but how an engine gets weights that FSDP has spread over "
                f"processes has never been run; remove it, or launch with {DDP}."
            )
    named = [name for name in stage_options(recipe, stage).reward_funcs if not FUNCTION.match(name)]
    if recipe.reward is not None and stage_options(recipe, "reward").model is not None:
        named.append(stage_options(recipe, "reward").model)
    if named:
        raise RecipeError(
            f"The reward model {named[0]!r} is one of its own, and such have never been run beside weights that FSDP "
            f"has spread; train one in a 'reward' section, or launch with {DDP}."
        )


def _check_deepspeed(configs: Mapping[str, Any]) -> None:
    if not has_accelerator():
        raise RecipeError(
            "The launch asks for DeepSpeed, which accelerate passes over without a GPU; launch with "
            f"{DDP}, or one process."
        )
    if _zero_stage() == 3:
        raise RecipeError(
            "The launch asks for DeepSpeed's ZeRO-3, under which transformers spreads every model when it loads it, "
            f"too that stages only read between trainings. Launch with {FSDP2}, which spreads weights in training."
        )
    for stage, config in configs.items():
        if config.save_strategy != "no":
            raise RecipeError(
                f"Recipe key '{stage}.save_strategy' is {config.save_strategy.value!r}, but to go on from a checkpoint "
                "of DeepSpeed's has never been run; remove it."
            )
        if stage in METHODS:
            raise RecipeError(
                f"Recipe section '{stage}' cannot run under DeepSpeed: its engine rounds the heads to its compute type "
                "and steps before a step's guards know of it. With adapters there is next to no optimizer state to "
                f"spread: launch with {DDP}, or with {FSDP2} where the base is too large."
            )


def _zero_stage() -> int:
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if file and Path(file).is_file():
        config = json.loads(Path(file).read_text(encoding="utf-8"))
        return int(config.get("zero_optimization", {}).get("stage", 0))
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
