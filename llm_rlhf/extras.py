"""What a recipe asks of packages that are not always there: bitsandbytes, Liger's kernels, vLLM. For ahead.py."""

from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import is_bitsandbytes_available, is_flash_attn_2_available
from transformers.utils.import_utils import is_flash_attn_3_available
from trl.import_utils import LIGER_KERNEL_MIN_VERSION, is_liger_kernel_available, is_vllm_available

from llm_rlhf.errors import RecipeError
from llm_rlhf.launch import processes
from llm_rlhf.models import liger
from llm_rlhf.models.adapters import POLICY
from llm_rlhf.models.base import adapter_config, announce
from llm_rlhf.models.compiled_layers import check_adapters
from llm_rlhf.models.compiler import missing
from llm_rlhf.ppo.vllm_adapter import check_config, check_weights, sends_adapter
from llm_rlhf.recipe.sections import Recipe

LIGER = f"liger-kernel>={LIGER_KERNEL_MIN_VERSION}"
MASKED = (
    "'ppo.use_transformers_continuous_batching' without flash attention: each reply then attends to the tokens "
    "of all others under a mask, so that attention takes as many times its work as there are replies at once. Install "
    "flash-attn, or leave the key out (docs/ppo.md says where it can win)."
)


def check_packages(recipe: Recipe, configs: dict[str, Any], for_this_machine: bool) -> None:
    """Whether the packages that a recipe names are here, and what they take.

    Args:
        configs: of the trainers of those stages that train.
        for_this_machine: False: only a plan is made, which may be for another machine: vLLM and Liger need not be here.

    Raises:
        RecipeError: naming the key and the remedy.
    """
    needed = [("model.quantization", recipe.model.quantization != "none", "bitsandbytes", is_bitsandbytes_available)]
    for stage, config in configs.items():
        if for_this_machine:
            needed.append((f"{stage}.use_liger_kernel", config.use_liger_kernel, LIGER, is_liger_kernel_available))
            needed.append((f"{stage}.use_vllm", getattr(config, "use_vllm", False), "vllm", is_vllm_available))
        if getattr(config, "activation_offloading", False) and not torch.accelerator.is_available():
            raise RecipeError(f"Recipe key '{stage}.activation_offloading' takes a GPU, and there is none; remove it.")
    for key, is_set, package, available in needed:
        if is_set and not available():
            # vLLM by itself, pip would take in a version that TRL warns of.
            install = {"vllm": "'llm-rlhf[vllm]'", LIGER: f"'{LIGER}'"}.get(package, package)
            raise RecipeError(f"Recipe key {key!r} takes {package}, which is not installed: pip install {install}.")
    asked = {
        "model.compile": bool(configs) and recipe.model.compile,
        "ppo.decoding": "ppo" in configs and configs["ppo"].decoding == "compiled",
        "evaluate.decoding": recipe.evaluate is not None and recipe.evaluate.decoding == "compiled",
    }
    for key, is_set in asked.items():
        if for_this_machine and is_set and (reason := missing(processes().device.type)):
            raise RecipeError(f"Recipe key {key!r}: {reason}, or remove the key.")
    continuous = "ppo" in configs and configs["ppo"].use_transformers_continuous_batching
    if continuous and for_this_machine and not has_flash_attention():
        announce(MASKED)
    for stage, config in configs.items():
        if config.use_liger_kernel and for_this_machine and not liger.runs_here():
            raise RecipeError(f"Recipe key '{stage}.use_liger_kernel' takes a GPU, and there is none; remove it.")
        if config.use_liger_kernel and recipe.model.compile:
            raise RecipeError(
                f"Recipe key '{stage}.use_liger_kernel' is true, and so is 'model.compile'; both put other kernels "
                "into the layers, and together they have never been tried. Remove one."
            )
        if config.liger_kernel_config and not config.use_liger_kernel:
            raise RecipeError(
                f"Recipe key '{stage}.liger_kernel_config' is set, but '{stage}.use_liger_kernel' is false, so that it "
                "would do nothing; set that to true, or remove the key."
            )


def has_flash_attention() -> bool:
    """Whether continuous batching finds it, by the questions of its `switch_to_cb_friendly_attn`."""
    return bool(
        is_flash_attn_3_available(kernels_fallback_ok=True) or is_flash_attn_2_available(kernels_fallback_ok=True)
    )


def check_compiles(recipe: Recipe, config: Any) -> None:
    """Whether the recipe's adapter on the base's architecture can be compiled, layer by layer.

    Raises:
        RecipeError: naming the key and the remedy.
    """
    if recipe.model.compile:
        try:
            check_adapters(on_meta(recipe, config))
        except ValueError as error:
            raise RecipeError(f"Recipe key 'model.compile': {error}") from None


def check_vllm(recipe: Recipe, ppo: Any, config: Any, tokenizer: Any) -> None:
    """Whether vLLM can be sent the policy in the way that the recipe says.

    Args:
        ppo: the trainer's configuration.
        config: the base's.

    Raises:
        RecipeError: naming the key and the remedy.
    """
    try:
        check_weights(ppo, recipe.model.quantization, whole=isinstance(recipe.model.lora, str))
        if sends_adapter(ppo):
            check_config(on_meta(recipe, config).peft_config[POLICY])
    except ValueError as error:
        raise RecipeError(f"Recipe section 'ppo': {error}") from None
    rows = getattr(config, "vocab_size", None)
    if sends_adapter(ppo) and recipe.sft is None and rows is not None and len(tokenizer) > rows:
        raise RecipeError(  # a model that SFT has left holds them
            f"Recipe key 'ppo.vllm_weights' is 'adapter', but the base has {rows} tokens and its tokenizer "
            f"{len(tokenizer)}: vLLM loads it without the new ones. Set it to merged, or add an 'sft' section."
        )


def on_meta(recipe: Recipe, config: Any) -> Any:
    """The recipe's adapter on the base's architecture, without weights.

    Raises:
        RecipeError: where it does not fit.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=recipe.model.trusts_base)
    try:
        return get_peft_model(model, adapter_config(recipe.model, "CAUSAL_LM", model))
    except ValueError as error:
        lora = recipe.model.lora
        key, value = ("", lora) if isinstance(lora, str) else (".target_modules", lora.target_modules)
        raise RecipeError(f"Recipe key 'model.lora{key}' is {value!r}: {error}") from None


def check_liger(stage: str, of_stage: Any, config: Any, trusted: bool) -> None:
    """Put Liger's kernels into the base's architecture, without weights.

    Raises:
        RecipeError: where that cannot be, or is not wanted.
    """
    if not is_liger_kernel_available():  # a plan for another machine
        return
    kind = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
    try:
        liger.check_kernels(config, of_stage.liger_kernel_config)
        with torch.device("meta"):
            model = kind.from_config(config, trust_remote_code=trusted)
        liger.put_into(model, of_stage.liger_kernel_config)
    except (ValueError, ImportError) as error:
        raise RecipeError(f"Recipe section '{stage}': {error}") from None
