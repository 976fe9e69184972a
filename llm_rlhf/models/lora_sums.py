"""LoRA's update added as it is multiplied: two operations fewer in each adapted layer.

PEFT computes x A^T B^T, multiplies it by alpha / r and adds it to the layer's output, each over all of the output's
columns. One product that adds to what is there (`addmm`) does the three. Backwards, where alpha / r is not 1, it scales
two narrow gradients in place of one as wide as the output. In bfloat16 it rounds once where they round three times;
B = 0, as adapters begin, leaves the output as it is, to the bit.

In float32 on a CPU, many rows are multiplied by the merged matrix, to which the update is added anew each time: one
product of the factors stands for two with all rows (`_merging_is_cheaper`).

The forward of PEFT's LoRA layers is replaced, which is no public hook: tests/models/test_lora_sums.py holds it against
PEFT's own and fails when that moves. The factors are read and not called, and a frozen matrix neither while something
learns: hooks on the factors, and torch's global ones, do not hear them. Second derivatives are refused, by torch.
"""

import functools
from typing import Any

import torch
from peft.import_utils import is_bnb_4bit_available, is_bnb_available
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn.functional import linear

from llm_rlhf.models.products import is_linear, multiply_faster, product


def sum_in_products(model: Any) -> None:
    """Let the LoRA layers of a model add their update by the product itself: in place.

    Layers that are quantised too. DoRA and other variants, LoRA with a bias, rows of several adapters in one batch and
    merged layers stay PEFT's; so does the sum where an output has another type than its update.
    """
    multiply_faster(model)  # its matrices too: with an update of 0 they must multiply to the same bits
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
        learns, factors_A, factors_B, base = torch.is_grad_enabled(), self.lora_A, self.lora_B, self.base_layer
        names = [name for name in self.active_adapters if name in factors_A]
        if len(names) == 1 and (learns or x.device.type == "cpu"):
            at_once: Tensor | None = self._at_once(x, names[0])
            if at_once is not None:
                return at_once
        result: Tensor = base(x)
        dtype, add = result.dtype, torch.addmm if learns or _shows_output(base) else Tensor.addmm_
        for name in names:
            A, B = factors_A[name].weight, factors_B[name].weight
            dropout, scaling = self.lora_dropout[name], self.scaling[name]
            if A.dtype != x.dtype and self.cast_input_dtype_enabled:
                x = x.to(A.dtype)
            low = linear(x if type(dropout) is nn.Identity else dropout(x), A)
            if result.dtype == low.dtype:
                rows, low = result.reshape(-1, result.size(-1)), low.reshape(-1, low.size(-1))
                B = B.to(low.dtype)  # as autocast does for a product that is not in place
                result = add(rows, low, B.t(), alpha=scaling).view(result.shape)
            else:
                result = result + linear(low, B) * scaling
        return result if result.dtype == dtype else result.to(dtype)

    def _at_once(self: Any, x: Tensor, name: str) -> Tensor | None:
        """Matrix and update in one step; None where the base is more than a frozen matrix or has another type, and
        where two steps do as well.
        """
        base, A, B = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        if not _is_matrix(base) or type(self.lora_dropout[name]) is not nn.Identity:
            return None
        merged, device = _merging_is_cheaper(x, base.weight), x.device.type
        if not merged and not torch.is_grad_enabled():
            return None
        casts = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if casts else x.dtype
        if base.weight.dtype != dtype or not (casts or A.dtype == dtype):
            return None
        x, A, B, scaling = x.to(dtype), A.to(dtype), B.to(dtype), self.scaling[name]
        if torch.is_grad_enabled():
            learned: Tensor = _AdaptedMatrix.apply(x, base.weight, base.bias, A, B, scaling, merged)
            return learned
        return product(x, _merged_weight(base.weight, A, B, scaling), base.bias)


def _is_matrix(layer: Any) -> bool:
    """Whether a layer is a frozen matrix and nothing else that its forward, or somebody's around it, would add."""
    hooks = layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    if not is_linear(layer) or hooks or _shows_output(layer):
        return False
    return not (layer.weight.requires_grad or (layer.bias is not None and layer.bias.requires_grad))


def _shows_output(layer: Any) -> bool:
    """Whether somebody beside its caller may hold what a layer gives."""
    return bool(layer._forward_hooks) or "forward" in vars(layer)


def _merging_is_cheaper(x: Tensor, weight_OI: Tensor) -> bool:
    """Whether merging, done forwards and backwards, takes less than what it stands for.

    2 O I r multiplications against N O r forwards and N I r backwards. In bfloat16 a small update would be lost in it;
    a vector's product depends, in its last bit, on where in memory it lies; what is compiled serves any number of rows.
    """
    if weight_OI.dtype != torch.float32 or x.device.type != "cpu" or 1 in weight_OI.shape:
        return False
    return not torch.compiler.is_compiling() and x.numel() // x.size(-1) * sum(weight_OI.shape) > 2 * weight_OI.numel()


def _merged_weight(weight_OI: Tensor, A_rI: Tensor, B_Or: Tensor, scaling: float) -> Tensor:
    return torch.addmm(weight_OI, B_Or, A_rI, alpha=scaling)


class _AdaptedMatrix(torch.autograd.Function):
    """A frozen matrix with LoRA, x W^T + b + scaling x A^T B^T, as one step: sums are made in place, backwards too.

    Layout: x (..., I), W (O, I), b (O,), A (r, I), B (O, r); N rows of x. `merged`: W and its update are added first.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        A_rI: Tensor,
        B_Or: Tensor,
        scaling: float,
        merged: bool,
    ) -> Tensor:
        low_Nr = linear(x, A_rI).reshape(-1, A_rI.size(0))
        if merged:
            out = product(x, _merged_weight(weight_OI, A_rI, B_Or, scaling), bias_O)
        else:
            out = product(x, weight_OI, bias_O)
            out.view(-1, out.size(-1)).addmm_(low_Nr, B_Or.t(), alpha=scaling)
        ctx.save_for_backward(x, low_Nr, weight_OI, A_rI, B_Or)
        ctx.scaling, ctx.merged = scaling, merged
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, low_Nr, weight_OI, A_rI, B_Or = ctx.saved_tensors
        gradient_NO = gradient.reshape(-1, gradient.size(-1))
        of_low_Nr = gradient_NO @ B_Or
        if ctx.scaling != 1:
            of_low_Nr.mul_(ctx.scaling)
        of_x = of_A = of_B = None
        if ctx.needs_input_grad[0]:
            if ctx.merged:
                of_x = product(gradient_NO, _merged_weight(weight_OI, A_rI, B_Or, ctx.scaling).t()).view(x.shape)
            else:
                of_x = product(gradient_NO, weight_OI.t()).addmm_(of_low_Nr, A_rI).view(x.shape)
        if ctx.needs_input_grad[3]:
            of_A = of_low_Nr.t() @ x.reshape(-1, x.size(-1))
        if ctx.needs_input_grad[4]:
            of_B = gradient_NO.t() @ low_Nr
            if ctx.scaling != 1:
                of_B.mul_(ctx.scaling)
        return of_x, None, None, of_A, of_B, None, None


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
