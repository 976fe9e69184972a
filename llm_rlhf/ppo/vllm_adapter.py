"""What vLLM is sent where that is the policy's LoRA alone (`vllm_weights: adapter`), on the base that it loaded itself.

By vLLM's runtime LoRA, which takes an adapter from a folder and knows it by a number: `LLM(enable_lora=True)`,
`LLM.generate(lora_request=...)` and `LLMEngine.remove_lora` are its public interface. TRL knows nothing of it: replaced
are the `LLM` that its module calls, `VLLMGeneration.sync_weights`, and `generate` of the `LLM` it has made
(tests/ppo/test_trl_contract.py fails when TRL calls others).
"""

import contextlib
import functools
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftType, get_peft_model_state_dict
from trl.generation import vllm_generation as trls

from llm_rlhf.models.adapters import POLICY
from llm_rlhf.models.whole import is_whole

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's max_lora_rank may be
MEMORY = Path("/dev/shm")  # where Linux keeps files in memory
# Options of a LoRA that vLLM reads itself, or that only say where it is and how it started. Of an adapter's file it
# passes over what it does not know (rank_pattern, say), and would sample from another policy without a word.
_READ = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "use_rslora",
    "init_lora_weights", "layers_to_transform", "layers_pattern",
}  # fmt: skip
MERGED = "set vllm_weights: merged"


def sends_adapter(args: Any) -> bool:
    """Whether PPO samples by vLLM and sends it the policy's adapter alone."""
    return bool(args.use_vllm and args.vllm_weights == "adapter")


def check_sent(args: Any, model: Any, config: Any) -> None:
    """`check_weights` and `check_config` of a model, or a folder or hub id of one, and its policy's adapter, if any."""
    kinds = {"is_loaded_in_4bit": "nf4", "is_loaded_in_8bit": "int8"}
    quantization = next((kind for name, kind in kinds.items() if getattr(model, name, False)), "none")
    check_weights(args, quantization, whole=config is None or is_whole(config))
    if sends_adapter(args):
        check_config(config)


def check_weights(args: Any, quantization: str, whole: bool) -> None:
    """Whether vLLM can be sent a policy in the way that the configuration says.

    Args:
        quantization: of the policy's base: "none", "nf4" or "int8".
        whole: the policy is no LoRA, but all weights.

    Raises:
        ValueError: naming the option, its value and the remedy.
    """
    if not args.use_vllm:
        return
    if args.vllm_mode == "colocate" and quantization == "int8":
        raise ValueError(
            "use_vllm is set with vllm_mode 'colocate', but the base is quantised to int8, to which vLLM does not "
            "quantise what it loads. Set quantization: nf4 and vllm_weights: adapter, or vllm_mode: server."
        )
    if args.vllm_weights == "merged":
        if args.vllm_mode == "colocate" and quantization == "nf4":
            raise ValueError(
                "vllm_weights is 'merged', but the base is quantised to nf4 and vllm_mode is 'colocate': TRL has vLLM "
                "quantise its own base too, whose packed weights cannot take the policy's. Set vllm_weights: adapter, "
                "or vllm_mode: server."
            )
        return
    if args.vllm_mode != "colocate":
        raise ValueError(
            f"vllm_weights is 'adapter', but vllm_mode is {args.vllm_mode!r}: TRL's client cannot give a server an "
            f"adapter. Set vllm_mode: colocate, or {MERGED}."
        )
    if args.vllm_enable_sleep_mode:
        raise ValueError(
            "vllm_weights is 'adapter', but vllm_enable_sleep_mode is true: asleep, vLLM forgets the base that the "
            f"adapter stands on. Leave vllm_enable_sleep_mode out, or {MERGED}."
        )
    if whole:
        raise ValueError(f"vllm_weights is 'adapter', but the policy trains all weights and has none; {MERGED}.")


def check_config(config: Any) -> None:
    """Whether vLLM reads an adapter of this PEFT configuration as PEFT does.

    Raises:
        ValueError: naming the option, its value and the remedy.
    """
    if config.peft_type != PeftType.LORA:
        raise ValueError(
            f"vllm_weights is 'adapter', but the policy's adapter is {config.peft_type.value}; use LoRA, or {MERGED}."
        )
    if config.target_parameters:  # PEFT's own way into experts that a model holds stacked
        raise ValueError(
            "vllm_weights is 'adapter', but the policy's adapter has target_parameters "
            f"{config.target_parameters!r}: it reaches into stacked experts, which vLLM would look for elsewhere. Name "
            f"linear layers alone (target_modules), or {MERGED}."
        )
    plain = LoraConfig()
    for name in (field.name for field in fields(config) if field.name not in _READ):
        value, usual = getattr(config, name), getattr(plain, name, None)
        if value != usual and (value or usual):
            raise ValueError(
                f"vllm_weights is 'adapter', but the policy's adapter has {name} {value!r}, which vLLM does not read "
                f"from an adapter. Take {name} away, or {MERGED}."
            )
    if config.r > RANKS[-1]:
        raise ValueError(
            f"vllm_weights is 'adapter', but the policy's adapter has r {config.r}, and vLLM takes at most "
            f"{RANKS[-1]}. Lower r, or {MERGED}."
        )


@contextlib.contextmanager
def engine_takes_adapters(args: Any, config: Any) -> Iterator[None]:
    """Where the policy's adapter is to be sent alone: vLLM, which TRL starts within this, takes one of its rank."""
    if not sends_adapter(args) or not hasattr(trls, "LLM"):  # TRL says that vLLM is not installed
        yield
        return
    plain, rank = trls.LLM, next(rank for rank in RANKS if rank >= config.r)
    trls.LLM = functools.partial(plain, enable_lora=True, max_lora_rank=rank, max_loras=1)
    try:
        yield
    finally:
        trls.LLM = plain


def send_policy_adapter(vllm_generation: Any, model: Any) -> None:
    """Make TRL's synchronisation save the policy's adapter and let vLLM sample with it, its base left as it loaded it.

    vLLM samples from the policy where its base is the trainer's: the folder or hub id that the model was loaded from,
    unchanged since. Each synchronisation takes a new number, by which vLLM knows that it has not read this one, and a
    new name, by which its prefix cache does.

    Raises:
        ValueError: where the adapter's file would hold more than LoRA: what it is, and the remedy.
    """
    from vllm.lora.request import LoRARequest  # only here: vLLM may not be installed

    check_config(model.peft_config[POLICY])
    saved = get_peft_model_state_dict(model, adapter_name=POLICY)
    more = [name for name in saved if ".lora_A." not in name and ".lora_B." not in name]
    if more:  # as where the vocabulary was grown when the model was loaded, which vLLM's base was not
        raise ValueError(
            f"vllm_weights is 'adapter', but with the policy's adapter goes {more[0]}, of which vLLM's base has "
            f"another; {MERGED}."
        )
    size = sum(weight.numel() * weight.element_size() for weight in saved.values())
    llm, numbers = vllm_generation.llm, itertools.count(1)
    generate, sent = llm.generate, contextlib.ExitStack()

    def sync_weights() -> None:
        sent.close()  # vLLM forgets the one before, and so does the disk
        number = next(numbers)
        folder = tempfile.TemporaryDirectory(prefix="llm-rlhf-policy-", dir=_in_memory(size))
        sent.callback(folder.cleanup)
        model.save_pretrained(folder.name, selected_adapters=[POLICY])
        request = LoRARequest(f"policy-{number}", number, folder.name)
        sent.callback(llm.llm_engine.remove_lora, number)
        llm.generate = functools.partial(generate, lora_request=request)  # which reads the folder when it first samples
        llm.reset_prefix_cache()

    vllm_generation.sync_weights = sync_weights


def _in_memory(size: int) -> Path | None:
    """Where files of so many bytes stay in memory; None where there is no room (a container's has 64 MiB)."""
    return MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 * size else None
