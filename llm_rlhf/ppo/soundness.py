"""Is this model one that PPO can be right about? Asked of the model itself, before anything is sampled.

- What trains must switch: a parameter that trains outside the adapters and the value head would move the reference and
  the reward models with the policy.
- The same row must read the same twice: noise in training mode (dropout, router jitter, layers that are skipped) would
  pass for a change of the policy, and pay one response two rewards.
- What is sampled must be what is scored: token by token with a cache and padding, the model must be its own forward.
"""

import functools
import types
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig

from llm_rlhf.models.adapters import POLICY, active_adapters, check_switchable, switches
from llm_rlhf.models.architecture import can_be_read, embedding_rows, positions_of, understood
from llm_rlhf.models.decoding import plain_decoding
from llm_rlhf.models.roles import trunk_inputs

RATE = "drop"  # dropout, layerdrop, attn_pdrop, ...
JITTER = "jitter"  # of a router: jitter_noise, router_jitter_noise, moe_jitter_eps, ...
QUIET = 10.0  # times what two forwards without noise differ by, from which a difference is noise
# Expected difference of log-probabilities, in nats a token. float32: 1e-6 in most families, up to 2e-3 where decoding
# updates a state otherwise than the forward does (Zamba2, Nemotron-H).
DECODES = {True: 0.02, False: 0.3}  # by whether the model computes in float32
CLOSE = {True: 1e-4, False: 0.1}
DECODED = 12  # tokens: what decoding does to a state shows after some


def settle(model: Any, learning_rate: float, generates: bool) -> None:
    """Turn all noise off in a policy that carries its roles, and refuse what PPO could not be right about.

    Args:
        model: a PEFT model, or one that is trained whole.
        generates: whether transformers' `generate` samples, and not an engine of its own.

    Raises:
        ValueError: from one of the checks below.
    """
    adapted = isinstance(model, PeftModel)
    base = turn_off_noise(model.get_base_model() if adapted else model)
    config = base.config.get_text_config()
    if getattr(config, "output_router_logits", False):
        config.output_router_logits = False  # its loss is no part of PPO, and decoding cannot compute it
    if adapted:
        check_trainable(model)
    else:
        warn_of_coarse_weights(base, learning_rate)
    check_quiet(base)
    if generates:
        with active_adapters(base, [POLICY] if adapted else []):
            check_decoding(base)


def check_peft_config(peft_config: Any, whose: str = "peft_config") -> None:
    """What a policy adapter may not ask for, told before the model is loaded.

    Raises:
        ValueError: naming the option, the value and the remedy.
    """
    if peft_config is None:
        return
    check_switchable(peft_config, whose, "Leave it at its default, or train the whole model (no peft_config).")


def check_embeddings(base: Any) -> None:
    """Raise ValueError where an adapter is on the input embeddings; TRL refuses one on the output embeddings."""
    if isinstance(base.get_input_embeddings(), BaseTunerLayer):
        raise ValueError(
            "The policy's adapter is on the input embeddings, which every role shares; take them out of target_modules "
            "('all-linear' leaves them out)."
        )


def check_trainable(model: Any) -> None:
    """Whether a PEFT model trains its adapters and its value head alone.

    Raises:
        ValueError: naming the parameters.
    """
    base = model.get_base_model()
    switched = {id(p) for p in _adapter_parameters(model)} | {id(p) for p in base.value_head.parameters()}
    others = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in switched]
    if others:
        raise ValueError(
            f"{len(others)} parameters train outside the adapters, {others[0]} the first: they would move the "
            "reference and the reward models with the policy. Freeze them (requires_grad_(False)), or train the whole "
            "model (no adapter)."
        )


def _adapter_parameters(model: Any) -> Iterator[nn.Parameter]:
    for layer in switches(model):
        for name in layer.adapter_layer_names:
            part = functools.reduce(lambda found, step: getattr(found, step, None), name.split("."), layer)
            if isinstance(part, (nn.ModuleDict, nn.ParameterDict)):
                yield from part.parameters()


def warn_of_coarse_weights(model: nn.Module, learning_rate: float) -> None:
    """Half-precision weights that train as they are round a small step away."""
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    coarse = trained & {torch.bfloat16, torch.float16}
    if coarse:
        named = str(coarse.pop()).removeprefix("torch.")
        warnings.warn(
            f"Whole weights of the model train in {named}, where most steps of {learning_rate:g} "
            "are lost in the rounding of the weights. Load it in float32 (dtype) and let bf16 compute in bfloat16.",
            stacklevel=4,
        )


def turn_off_noise(model: Any) -> Any:
    """Every rate of dropout and layerdrop to 0, in modules and in the configurations that they read; no router jitter.

    A module with router jitter stays in evaluation mode for good instead: PhiMoE's is also the margin within which
    experts share the weight, in evaluation too, so that at 0 the model would be another.

    A whole model that is saved afterwards keeps the zeros in its config.json.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        _no_rates(module)
        if isinstance(config := vars(module).get("config"), PreTrainedConfig):
            _no_rates(config)
        if any(isinstance(value, float) and value and JITTER in name for name, value in vars(module).items()):
            module.eval()
            module.train = types.MethodType(_stay, module)
    return model


def _no_rates(holder: Any) -> None:
    for name, value in vars(holder).items():
        if isinstance(value, float) and RATE in name:
            setattr(holder, name, 0.0)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """In place of a module's `train`."""
    return module


@torch.no_grad()
def check_quiet(model: Any) -> None:
    """Read two rows in training mode with other random numbers each time: the states must be the same.

    Where kernels themselves add up in no fixed order, evaluation mode shows by how much, and ten times that is allowed;
    so is the last bit of the model's numbers.

    Raises:
        ValueError: naming the architecture and how far the states are apart.
    """
    if not can_be_read(model):
        return
    vocabulary = embedding_rows(model)
    ids_BT = (torch.arange(24, device=model.device).view(2, 12) * 7 + 3) % vocabulary
    inputs = trunk_inputs(model, ids_BT, torch.ones_like(ids_BT))
    was_training = model.training
    try:
        with understood(model, "read two rows in training mode"):
            apart, floor = (_spread(model.train(mode), inputs) for mode in (True, False))
    finally:
        model.train(was_training)
    rounding = 2 * torch.finfo(model.dtype).eps
    if not apart <= max(QUIET * floor, rounding):
        raise ValueError(
            f"{type(model).__name__} reads a row otherwise each time in training mode (its states move by {apart:.2g} "
            "of their size): noise that is not dropout, layerdrop or router jitter by name. PPO would take it for a "
            "change of the policy; turn it off in the model's configuration."
        )


def _spread(model: Any, inputs: dict[str, Any]) -> float:
    """The largest difference between three readings, over the largest state."""
    devices = [model.device] if model.device.type != "cpu" else []
    readings = []
    for seed in range(3):
        with torch.random.fork_rng(devices=devices, device_type=model.device.type):
            torch.manual_seed(seed)
            readings.append(model.base_model(**inputs, use_cache=False).last_hidden_state.float())
    apart = max((other - readings[0]).abs().max().item() for other in readings[1:])
    return apart / max(readings[0].abs().max().item(), 1e-8)


@torch.no_grad()
def check_decoding(model: Any) -> float:
    """Decode twelve tokens after prompts of unequal length (less in a short context), and read them in one forward.

    Returns:
        The largest expected difference of log-probabilities at a token, in nats; 0 where it could not be asked.

    Raises:
        ValueError: where the difference is so large that sampling is not the model that is scored.
    """
    if not can_be_read(model):
        return 0.0
    vocabulary = embedding_rows(model)
    ids_BP = (torch.arange(12, device=model.device).view(2, 6) * 5 + 2) % vocabulary
    mask_BP = torch.ones_like(ids_BP)
    mask_BP[1, :3] = 0
    context = positions_of(model.config)
    decoded = DECODED if context is None else min(DECODED, max(context - ids_BP.size(1), 1))
    was_training = model.training
    model.eval()
    try:
        with (
            warnings.catch_warnings(),
            plain_decoding(model),
            understood(model, "decode after prompts of unequal length"),
        ):
            warnings.simplefilter("ignore")
            sampled = model.generate(
                input_ids=ids_BP,
                attention_mask=mask_BP,
                generation_config=GenerationConfig(
                    max_new_tokens=decoded,
                    min_new_tokens=decoded,
                    do_sample=False,
                    pad_token_id=0,
                    eos_token_id=None,
                    bos_token_id=None,
                    output_logits=True,
                    return_dict_in_generate=True,
                    disable_compile=True,
                ),
            )
            mask_BT = torch.cat([mask_BP, mask_BP.new_ones(len(mask_BP), decoded)], 1)
            read = model(**trunk_inputs(model, sampled.sequences, mask_BT), use_cache=False).logits
            read, seen = read[:, -decoded - 1 : -1], torch.stack(sampled.logits, 1)
    finally:
        model.train(was_training)
    read, seen = (logits.float().log_softmax(-1) for logits in (read, seen))
    apart = float((read.exp() * (read - seen).abs()).sum(-1).max())
    in_float32 = model.dtype == torch.float32
    if not apart <= DECODES[in_float32]:
        raise ValueError(
            f"{type(model).__name__} decodes otherwise than it reads under left padding: token by token with a cache, "
            f"its log-probabilities are {apart:.2g} nats off its own forward. What is sampled would not be the policy "
            "that is scored; sample with an engine of its own (use_vllm), or take a base of another family."
        )
    if apart > CLOSE[in_float32]:
        warnings.warn(
            f"{type(model).__name__} decodes a little otherwise than it reads: {apart:.2g} nats a token, by which "
            "sampling is off the policy.",
            stacklevel=5,
        )
    return apart


def without_gradient(model: Any) -> list[str]:
    """Names of the trainable parameters that the joint call's results do not depend on.

    There are some in models that read a layer's weight past its forward (Mamba's fused kernels), or that compute what
    they do not use. They never train; DDP would wait for their gradients for ever.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not can_be_read(base):
        return []
    vocabulary = embedding_rows(base)
    ids_BT = (torch.arange(24, device=base.device).view(2, 12) * 7 + 3) % vocabulary
    mask_BT = torch.ones_like(ids_BT)
    was_training = model.training
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    model.train()
    with torch.enable_grad():
        now = model(input_ids=ids_BT, attention_mask=mask_BT, response_mask=mask_BT[:, -6:].bool(), with_entropy=False)
        total = now["logprobs"].sum() + now["value_estimates"].sum()
        found = torch.autograd.grad(total, list(trainable.values()), allow_unused=True)
    model.train(was_training)
    return [name for name, gradient in zip(trainable, found, strict=True) if gradient is None]
