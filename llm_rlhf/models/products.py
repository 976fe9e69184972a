"""Products of float32 matrices by oneDNN, on CPUs where torch's own take twice the time.

On x86 torch multiplies float32 matrices by MKL, which uses AVX-512 on Intel's CPUs alone. oneDNN, which is in torch too
and multiplies its bfloat16, uses it on all. Small products stay torch's own, which begins them sooner.

The operator is private to torch, whose compiler calls it: tests/models/test_products.py fails when it moves.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

SMALLEST = 2**21  # multiplications from which on oneDNN is the faster, counted whole: it takes some 10 us to begin


def onednn_is_faster() -> bool:
    """Whether this is a CPU on which MKL leaves half of the arithmetic unused: with AVX-512, and not Intel's."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # ATEN_CPU_CAPABILITY may say less than there is
        return False
    return "Intel" not in torch.cpu.get_capabilities().get("cpu_name", "Intel")


FASTER = onednn_is_faster()


def product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b, (..., I) to (..., O), as `torch.nn.functional.linear` gives it, where no gradient is asked for."""
    if FASTER and _suits(x, weight_OI):
        return torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")
    return functional.linear(x, weight_OI, bias_O)


def _suits(x: Tensor, weight_OI: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight_OI.dtype == torch.float32
        and x.numel() * weight_OI.size(0) >= SMALLEST
        and not torch.is_autocast_enabled("cpu")
        and not isinstance(weight_OI, DTensor)
    )


def multiply_faster(model: Any) -> None:
    """Let a model's linear layers multiply by `product`, in place; where it would be torch's own, nothing is done."""
    if FASTER:
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear


def is_linear(layer: Any) -> bool:
    """Whether a layer is torch's linear one by class, or stands for it."""
    return type(layer) in (nn.Linear, Linear)


class Linear(nn.Linear):
    """torch's, which multiplies by `product`, backwards too. Under torch's name, as a model prints it."""

    def forward(self, input: Tensor) -> Tensor:
        if not _suits(input, self.weight):
            return functional.linear(input, self.weight, self.bias)
        if torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad):
            return _Product.apply(input, self.weight, self.bias)
        return product(input, self.weight, self.bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight_OI)
        return product(x, weight_OI, bias_O)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI = ctx.saved_tensors
        gradient_NO, x_NI = gradient.reshape(-1, gradient.size(-1)), x.reshape(-1, x.size(-1))
        return (
            product(gradient_NO, weight_OI.t()).view(x.shape) if ctx.needs_input_grad[0] else None,
            product(gradient_NO.t(), x_NI.t()) if ctx.needs_input_grad[1] else None,
            gradient_NO.sum(0) if ctx.needs_input_grad[2] else None,
        )
