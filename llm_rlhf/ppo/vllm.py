"""Sampling by vLLM: what it is asked, and the weights that it is sent.

TRL starts it, talks to it and synchronises weights; what TRL would do otherwise than PPO needs is replaced here.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import DistributedType
from peft import PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from llm_rlhf.models.adapters import POLICY
from llm_rlhf.models.architecture import unwrapped
from llm_rlhf.models.merged import plain_modules
from llm_rlhf.models.whole import own_module
from llm_rlhf.ppo.config import PPOConfig
from llm_rlhf.ppo.sampling import SamplingError


def check_adapter_can_be_sent(config: Any) -> None:
    """Whether the policy is its base with something added to matrices, or with copies of modules in their places.

    Raises:
        ValueError: naming the option and the remedy.
    """
    if config is None:
        return
    if config.peft_type != PeftType.LORA:
        raise ValueError(
            f"use_vllm is set, but the policy's adapter is {config.peft_type.value}; only LoRA can be sent to vLLM. "
            "Use LoRA, or leave use_vllm out."
        )
    for name in ("trainable_token_indices", "use_dora", "lora_bias"):
        if value := getattr(config, name, None):
            raise ValueError(
                f"use_vllm is set, but the policy's adapter has {name} {value!r}, which cannot be sent to vLLM. Take "
                f"{name} away, or leave use_vllm out."
            )


def check_server(client: Any, args: PPOConfig) -> None:
    """Whether a server's log-probabilities are of what it samples from: of logits divided by the temperature.

    Raises:
        ValueError: where it reports those of the raw logits and PPO samples at another temperature than 1.
    """
    mode = client.get_server_info().get("model_config", {}).get("logprobs_mode", "raw_logprobs")  # vLLM's default
    if mode != "processed_logprobs" and (args.temperature != 1 or args.samples_with_bias):
        raise ValueError(
            f"The vLLM server reports {mode}, which are not those of sampling at temperature {args.temperature:g}: "
            "every importance weight would be wrong. Restart it with --logprobs-mode processed_logprobs."
        )


def keep_engine_logprobs(vllm_generation: Any, keep: Any) -> None:
    """Make TRL's vLLM generation ask for the sampled tokens' log-probabilities and hand them to `keep(rows)`.

    TRL's online trainer asks for none and drops what comes.
    """
    generate = vllm_generation.generate
    vllm_generation.logprobs = 0  # vLLM's way to say: of the sampled token alone

    def generate_and_keep(*args: Any, **kwargs: Any) -> Any:
        answer = generate(*args, **kwargs)
        _, completion_ids, logprobs, _ = answer
        if logprobs is None:
            raise SamplingError("vLLM returned no log-probabilities; start its server without --max-logprobs 0.")
        rows = [[token[0] for token in row] for row in logprobs]
        for ids, row in zip(completion_ids, rows, strict=True):
            if len(ids) != len(row) or any(value is None for value in row):
                raise SamplingError(
                    "vLLM returned a response with log-probabilities missing; its logits were not finite."
                )
        keep(rows)
        return answer

    vllm_generation.generate = generate_and_keep


def stop_replies_at(vllm_generation: Any, token_ids: list[int]) -> None:
    """Make vLLM end a reply at each of these tokens, the last of it.

    By itself it knows those of its base's files; the token that ends a turn of the chat template may be another.
    """
    asked = vllm_generation.generation_kwargs
    vllm_generation.generation_kwargs = {**asked, "stop_token_ids": [*token_ids, *asked.get("stop_token_ids", ())]}


def send_policy_weights(vllm_generation: Any, model: Any) -> None:
    """Send vLLM the language model with the policy's adapter added, and leave the base untouched.

    TRL merges the adapter into the base and takes it out again at every synchronisation: in bfloat16 each round moves
    the base, and with it the reference, by its rounding. It would also send our scalar heads, which vLLM has no place
    for. Replaces TRL's private `_iter_named_params`; tests/ppo/test_trl_contract.py fails when it goes. Under FSDP or
    DeepSpeed, where the weights must be gathered, TRL's own way stays, without the heads.
    """
    check_ties(model)
    every = vllm_generation._iter_named_params
    distributed = vllm_generation._dist
    plain = not distributed.is_fsdp and vllm_generation.accelerator.distributed_type != DistributedType.DEEPSPEED

    def language_model() -> Iterator[tuple[str, Tensor]]:
        if plain:
            base = model.get_base_model() if isinstance(model, PeftModel) else model
            yield from as_in_checkpoints(base, _without_heads(policy_weights(model)))
        else:  # each weight is there only until the next is asked for
            yield from _without_heads(every())

    vllm_generation._iter_named_params = language_model


def check_ties(model: Any) -> None:
    """Whether an engine that ties its head to the embeddings would hold the policy's.

    Raises:
        ValueError: where the policy has copies of both that are not one, or of one alone.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is None or unwrapped(head).weight is not unwrapped(embeddings).weight:
        return
    if own_module(embeddings, POLICY).weight is not own_module(head, POLICY).weight:
        raise ValueError(
            "use_vllm is set, but the policy's modules_to_save untie the head from the embeddings, which vLLM holds as "
            "one. Set ensure_weight_tying in its LoraConfig, or leave use_vllm out."
        )


def _without_heads(named: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    return ((name, weight) for name, weight in named if not name.startswith(("value_head.", "score_heads.")))


def as_in_checkpoints(base: Any, named: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Names and shapes as the architecture's checkpoints have them, which is what vLLM loads.

    In memory transformers stacks a layer's experts into one tensor, and renames some parameters. Every such change is
    within a layer, so that a layer at a time is turned back.
    """
    quantizer = getattr(base, "hf_quantizer", None)
    if quantizer is not None and quantizer.pre_quantized:  # its conversions are of packed weights, and these are plain
        yield from named
        return
    for _, layer in itertools.groupby(named, key=lambda one: _layer_of(one[0])):
        yield from revert_weight_conversion(base, dict(layer)).items()


def _layer_of(name: str) -> str:
    """A name up to its first number: all parameters of `model.layers.3`; any other name is its own."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: number + 1])


@torch.no_grad()
def policy_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Name and full weight of every parameter of the language model, the policy's adapter added, one at a time.

    Tied weights come once, as in `named_parameters`. A quantised layer is given in the adapter's compute type. Of
    modules that adapters have copied, the policy's copy, in the type of the base's own, or the base's own.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    seen: set[int] = set()
    for source in plain_modules(base, POLICY):
        adapted = isinstance(source.wrapped, BaseTunerLayer)
        added = _added(source.wrapped)
        for name, parameter in source.module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            weight = dequantize_module_weight(source.module) if adapted and name == "weight" else parameter.data
            if name in added:
                weight = (weight.float() + added[name].float()).to(weight.dtype)
            if source.module is not source.original:  # a copy, which may be of the type that it trains in
                weight = weight.to(source.original.get_parameter(name).dtype)
            yield f"{source.name}.{name}".removeprefix("."), weight


def _added(module: Any) -> dict[str, Tensor]:
    """What the policy's adapters add to a module's parameters, by name.

    An adapter of one of several parameters of a module (stacked experts) is wrapped around that of another.
    """
    added = {}
    while isinstance(module, BaseTunerLayer):
        if POLICY in module._all_available_adapter_names():
            added[getattr(module, "parameter_name", "weight")] = module.get_delta_weight(POLICY)
        module = module.base_layer
    return added
