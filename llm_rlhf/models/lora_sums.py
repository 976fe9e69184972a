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
from torch import Tensor, nn
from torch.nn.functional import linear


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
    """PEFT's forward of a linear layer, (..., in) to (..., out). Small models wait for its Python: it asks little."""
    if args or kwargs or self.disable_adapters or self.merged or self.lora_variant or True in self.lora_bias.values():
        return type(self).forward(self, x, *args, **kwargs)
    factors_A, factors_B, adapters = self.lora_A, self.lora_B, []
    for name in self.active_adapters:
        if name in factors_A:
            weight = factors_A[name].weight
            if weight.dtype != x.dtype and self.cast_input_dtype_enabled:
                return type(self).forward(self, x)
            adapters.append((name, weight, factors_B[name].weight))
    result: Tensor = self.base_layer(x)
    for name, A, B in adapters:
        dropout, scaling = self.lora_dropout[name], self.scaling[name]
        low = linear(x if type(dropout) is nn.Identity else dropout(x), A)
        if result.dtype == low.dtype:
            rows = torch.addmm(result.reshape(-1, result.size(-1)), low.reshape(-1, low.size(-1)), B.t(), alpha=scaling)
            result = rows.view(result.shape)
        else:  # a layer that is kept in another type than autocast's
            result = (result + linear(low, B) * scaling).to(result.dtype)
    return result
