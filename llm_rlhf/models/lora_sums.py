"""LoRA's update added as it is multiplied: two operations fewer in each adapted layer.

PEFT computes x A^T B^T, multiplies it by alpha / r and adds it to the layer's output, each over all of the output's
columns. One product that adds to what is there (`addmm`) does the three. Backwards, where alpha / r is not 1, it scales
two narrow gradients in place of one as wide as the output. In bfloat16 it rounds once where they round three times;
B = 0, as adapters begin, leaves the output as it is, to the bit.

The forward of PEFT's LoRA layers is replaced, which is no public hook: tests/models/test_lora_sums.py holds it against
PEFT's own and fails when that moves.
"""

import types
from typing import Any

import torch
from peft.import_utils import is_bnb_4bit_available, is_bnb_available
from peft.tuners import lora
from torch import Tensor


def sum_in_products(model: Any) -> None:
    """Let the LoRA layers of a model add their update by the product itself: in place, and only once.

    Layers that are quantised too. DoRA and other variants, LoRA with a bias, rows of several adapters in one batch,
    merged layers, and forwards whose types PEFT has to bring together stay PEFT's.
    """
    kinds = [lora.Linear]
    if is_bnb_available():
        kinds.append(lora.Linear8bitLt)
    if is_bnb_4bit_available():
        kinds.append(lora.Linear4bit)
    for module in model.modules():
        if type(module) in kinds and "forward" not in vars(module):
            module.forward = types.MethodType(_forward, module)


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """PEFT's forward of a linear layer, (..., in) to (..., out)."""
    names = [name for name in self.active_adapters if name in self.lora_A]
    if args or kwargs or self.disable_adapters or self.merged or not all(_is_plain(self, name) for name in names):
        return type(self).forward(self, x, *args, **kwargs)
    if self.cast_input_dtype_enabled and any(self.lora_A[name].weight.dtype != x.dtype for name in names):
        return type(self).forward(self, x)
    result: Tensor = self.base_layer(x)
    for name in names:
        low = self.lora_A[name](self.lora_dropout[name](self._cast_input_dtype(x, self.lora_A[name].weight.dtype)))
        weight, scaling = self.lora_B[name].weight, self.scaling[name]
        if result.dtype == low.dtype:
            rows, low = result.reshape(-1, result.size(-1)), low.reshape(-1, low.size(-1))
            result = torch.addmm(rows, low, weight.t(), alpha=scaling).view(result.shape)
        else:  # a layer that is kept in another type than autocast's
            result = (result + self.lora_B[name](low) * scaling).to(result.dtype)
    return result


def _is_plain(layer: Any, name: str) -> bool:
    return name not in layer.lora_variant and layer.lora_B[name].bias is None
