"""A policy as a plain model: the base's class without adapters, with the policy's LoRA added to the matrices.

Two small products beside each of the base's, a cast around each, and Python between them are most of the time of a
decoding step. The copy holds only what differs from the base's own tensors; all others are the base's. Where the
adapter is a copy of whole modules, these take the place of the base's; float32 ones rounded to the nearest, as autocast
rounds them in the policy itself.

Where the copy computes in float32 it is the policy (log-probabilities move by 1e-6). In bfloat16 it is not quite:
a small sum beside a large weight is rounded, so that its samples are corrected by importance weights, as those of any
other engine. Rounding to the nearest would drop most of a small adapter, as each of its numbers is under half a step of
the weight beside it; rounding up or down at random, by how near each is, keeps the sum over a row of them (stochastic
rounding; Gupta et al. 2015, arXiv:1502.02551, section 3.1).
"""

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper
from torch import Tensor, nn

from llm_rlhf.models.adapters import adapters_of
from llm_rlhf.models.products import multiply_faster
from llm_rlhf.models.whole import own_module

QUANTIZED = ("Params4bit", "Int8Params")  # bitsandbytes' weights, by name: it need not be there


class MergedCopy:
    """A plain model, equal to `base` with an adapter switched on.

    Args:
        base: a causal language model, with or without PEFT's layers in it.
        adapter: LoRA on linear layers, or copies of modules; `can_merge` says whether it can be merged.
        dtype: what all weights of the copy are.

    Attributes:
        exact: whether it is the policy but for the last bits.
        model: in evaluation mode. Its weights are the policy's within `refreshed` only.
    """

    def __init__(self, base: Any, adapter: str | None, dtype: torch.dtype) -> None:
        self.base, self.adapter, self.dtype = base, adapter, dtype
        self.exact = is_exact(base, dtype)
        config = copy.deepcopy(base.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            self.model = type(base)(config).eval().requires_grad_(False)
        self.model.generation_config = base.generation_config
        self._own: list[tuple[nn.Parameter, Any]] = []  # the copy's own weights, each with the layer it is made of
        shared: dict[int, nn.Parameter] = {}
        sources = {source.name: source for source in plain_modules(base, adapter)}
        for name, module in self.model.named_modules():
            source = sources[name]
            for part in module._parameters:
                weight = source.module._parameters.get(part)
                if weight is None:
                    module._parameters[part] = None
                elif source.differs(part, base.dtype, dtype):
                    mine = shared.get(id(weight)) if source.adapted is None else None  # tied ones stay tied
                    if mine is None:
                        mine = nn.Parameter(torch.empty(0, dtype=dtype, device=weight.device), requires_grad=False)
                        self._own.append((mine, (source.module, part, source.adapted)))
                        shared[id(weight)] = mine
                    module._parameters[part] = mine
                else:
                    module._parameters[part] = weight
            for part in module._buffers:
                module._buffers[part] = source.module._buffers.get(part)
        multiply_faster(self.model)
        self._generator = torch.Generator(device=base.device)

    @contextlib.contextmanager
    def refreshed(self, seed: int, keep: bool = False) -> Iterator[Any]:
        """The model, with the weights that the policy has now.

        Args:
            seed: of the rounding at random; another each time, so that no weight is rounded the same way for long.
            keep: keep the copy's memory afterwards, so that the next time finds the same addresses.
        """
        self._generator.manual_seed(seed)
        try:
            with torch.no_grad():
                for mine, (source, part, adapted) in self._own:
                    self._write(mine, source, part, adapted)
            yield self.model
        finally:
            if not keep:
                for mine, _ in self._own:
                    mine.data = mine.data.new_empty(0)

    def _write(self, mine: nn.Parameter, source: Any, part: str, adapted: Any) -> None:
        fresh = not mine.numel()
        own = getattr(source, part)
        if fresh:
            mine.data = torch.empty(shape_of(source, part), dtype=self.dtype, device=own.device)
        elif adapted is None and not own.requires_grad:
            return  # neither trains
        whole = dequantized(source) if type(own).__name__ in QUANTIZED else own.detach()
        if adapted is None:
            mine.copy_(whole)
            return
        delta = adapted.get_delta_weight(self.adapter)
        if self.dtype == torch.float32:
            torch.add(whole, delta, out=mine.data)
        else:
            mine.copy_(rounded_at_random(whole.float() + delta.float(), self.dtype, self._generator))


def can_merge(base: Any, adapter: str | None) -> bool:
    """Whether an adapter is plain LoRA on linear layers, or copies of whole modules: no DoRA, no bias, no experts."""
    return all(_can_merge(layer, adapter) for layer in base.modules() if isinstance(layer, LoraLayer)) and not any(
        adapter in adapters_of(module)
        for module in base.modules()
        if isinstance(module, TrainableTokensWrapper)
        or (isinstance(module, BaseTunerLayer) and not isinstance(module, LoraLayer))
    )


def _can_merge(layer: Any, adapter: str | None) -> bool:
    if adapter not in adapters_of(layer):
        return True
    linear = isinstance(layer, LoraLinear) or type(layer).__module__ == "peft.tuners.lora.bnb"
    return linear and adapter not in layer.lora_variant and not layer.lora_bias.get(adapter)


class Plain(NamedTuple):
    """What holds the weights of one module of the plain model."""

    name: str
    wrapped: Any  # as PEFT has it
    module: Any  # the base's own, or the adapter's copy of it
    adapted: Any  # the LoRA layer around it, where that holds the adapter
    original: Any  # the base's own

    def differs(self, part: str, base_dtype: torch.dtype, dtype: torch.dtype) -> bool:
        """Whether a weight has to be copied. What a base keeps in another type than its own stays so."""
        weight, original = self.module._parameters[part], self.original._parameters[part]
        if (self.adapted is not None and part == "weight") or type(weight).__name__ in QUANTIZED:
            return True
        return bool(weight.dtype != (dtype if original.dtype == base_dtype else original.dtype))


def plain_modules(module: Any, adapter: str | None, name: str = "", original: Any = None) -> Iterator[Plain]:
    """Every module of a base as it would be without PEFT's around them."""
    wrapped = module
    adapted = module if isinstance(module, BaseTunerLayer) and adapter in adapters_of(module) else None
    if isinstance(module, AuxiliaryTrainingWrapper):
        module, original = own_module(module, adapter), module.original_module
    elif isinstance(module, BaseTunerLayer):
        module = original = module.get_base_layer()
    original = module if original is None else original
    yield Plain(name, wrapped, module, adapted, original)
    for part, child in module._modules.items():
        if child is not None:
            of_base = None if original is module else original._modules[part]
            yield from plain_modules(child, adapter, f"{name}.{part}".removeprefix("."), of_base)


def shape_of(module: Any, part: str) -> tuple[int, ...]:
    """The shape of a module's parameter; 4-bit weights are packed."""
    if part == "weight" and type(module.weight).__name__ in QUANTIZED:
        return module.out_features, module.in_features
    return tuple(getattr(module, part).shape)


def is_exact(base: Any, dtype: torch.dtype) -> bool:
    """Whether a MergedCopy would be the policy but for the last bits: in float32; int8 rounds states as well."""
    return dtype == torch.float32 and not any(type(p).__name__ == "Int8Params" for p in base.parameters())


def dequantized(module: Any) -> Tensor:
    """The weight of one of bitsandbytes' linear layers, (out, in). PEFT's own function takes the layer its scale."""
    import bitsandbytes

    weight = module.weight
    if type(weight).__name__ == "Params4bit":
        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    scale = module.state.SCB if module.state.SCB is not None else weight.SCB
    return bitsandbytes.functional.int8_vectorwise_dequant(weight.data, scale)


def copied_bytes(base: Any, adapter: str | None, dtype: torch.dtype) -> int:
    """What a MergedCopy would take, in bytes."""
    found = {}
    for source in plain_modules(base, adapter):
        for part, weight in source.module._parameters.items():
            if weight is not None and source.differs(part, base.dtype, dtype):
                found[id(weight)] = math.prod(shape_of(source.module, part)) * dtype.itemsize
    return sum(found.values())


def rounded_at_random(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """float32 values as bfloat16, each up or down with the probability that makes its expectation the value.

    bfloat16 is the upper half of float32's bits: a uniform number is added to the lower half, which is then cut off.
    Values of any other type are rounded to the nearest.
    """
    if dtype != torch.bfloat16:
        return values.to(dtype)
    bits = values.float().contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    return ((bits + noise) & -(1 << 16)).view(torch.float32).to(dtype)
