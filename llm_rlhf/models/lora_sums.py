"""LoRA's update added as it is multiplied: two operations fewer in each adapted layer.

PEFT computes x A^T B^T, multiplies it by alpha / r and adds it to the layer's output, each over all of the output's
columns. One product that adds to what is there (`addmm`) does the three. Backwards, where alpha / r is not 1, it scales
two narrow gradients in place of one as wide as the output. In bfloat16 it rounds once where they round three times;
B = 0, as adapters begin, leaves the output as it is, to the bit.

The forward of PEFT's LoRA layers is replaced, which is no public hook: tests/models/test_lora_sums.py holds it against
PEFT's own and fails when that moves. The factors are read and not called, so that hooks on them would not be heard.
"""

import functools
from typing import Any

import torch
from peft.import_utils import is_bnb_4bit_available, is_bnb_available
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn.functional import linear


def sum_in_products(model: Any) -> None:
    """Let the LoRA layers of a model add their update by the product itself: in place.

    Layers that are quantised too. DoRA and other variants, LoRA with a bias, rows of several adapters in one batch and
    merged layers stay PEFT's; so does the sum where an output has another type than its update.
    """
    kinds = _kinds()
    for module in model.modules():
        if type(module) in kinds:
            module.__class__ = kinds[type(module)]


class _SumsInProducts:
    """What is mixed into PEFT's LoRA layers, as the first base of a class."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """PEFT's, (..., in) to (..., out). Small models wait for its Python, which is why it asks little."""
        special = args or kwargs or self.disable_adapters or self.merged or self.lora_variant
        if special or True in self.lora_bias.values():
            own: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]  # of the layer behind it
            return own
        result: Tensor = self.base_layer(x)
        dtype, factors_A, factors_B = result.dtype, self.lora_A, self.lora_B
        for name in self.active_adapters:
            if name not in factors_A:
                continue
            A, B = factors_A[name].weight, factors_B[name].weight
            dropout, scaling = self.lora_dropout[name], self.scaling[name]
            if A.dtype != x.dtype and self.cast_input_dtype_enabled:
                x = x.to(A.dtype)
            low = linear(x if type(dropout) is nn.Identity else dropout(x), A)
            if result.dtype == low.dtype:
                rows = torch.addmm(
                    result.reshape(-1, result.size(-1)), low.reshape(-1, low.size(-1)), B.t(), alpha=scaling
                )
                result = rows.view(result.shape)
            else:
                result = result + linear(low, B) * scaling
        return result if result.dtype == dtype else result.to(dtype)


class Linear(_SumsInProducts, lora.Linear):
    """Under PEFT's name, as a model prints it, and at the top of a module, as pickles want it."""


@functools.cache
def _kinds() -> dict[type, type]:
    """PEFT's layers, and what stands for each."""
    kinds: dict[type, type] = {lora.Linear: Linear}
    if is_bnb_available():
        kinds[lora.Linear8bitLt] = type("Linear8bitLt", (_SumsInProducts, lora.Linear8bitLt), {})
    if is_bnb_4bit_available():
        kinds[lora.Linear4bit] = type("Linear4bit", (_SumsInProducts, lora.Linear4bit), {})
    return kinds
