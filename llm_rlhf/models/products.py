"""Products of float32 matrices by oneDNN, on CPUs with AVX-512 that are not Intel's.

On x86 torch multiplies float32 matrices by MKL, which uses AVX-512 on Intel's CPUs alone; on another's it does half of
what the CPU can. oneDNN, by which torch multiplies bfloat16, uses it on all. Small products stay torch's own, which are
begun sooner, and those of compiled layers, as torch's compiler takes this operator for weights alone that it packed.

The operator is private to torch; tests/models/test_products.py fails when it moves.

Layout: x (..., I), W (O, I), b (O,); N rows of x.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear

LARGE = 2**21  # multiplications from which on oneDNN is the faster, though a call takes it 10 us more
# Of how many shapes oneDNN, and torch's own layer above it, keep what they made: 1,024 each by themselves, which is
# gigabytes where no two batches are of one length. 32 are some 50 MiB, and more than one batch has in most models; a
# shape that is new takes up to 3 ms. Environment variables, which each reads at its first product.
CACHE_CAPACITIES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "LRU_CACHE_CAPACITY": "32"}


def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 faster than what torch takes: MKL, on a CPU with AVX-512 of another make."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # ATEN_CPU_CAPABILITY may say less than the CPU has
        return False
    return "Intel" not in torch.cpu.get_capabilities().get("cpu_name", "Intel")


ONEDNN_IS_FASTER = onednn_is_faster()


def product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b, shape (..., O): `torch.nn.functional.linear` where no gradient is asked for."""
    if _by_onednn(x, weight_OI, bias_O):
        rows: Tensor = torch.ops.mkldnn._linear_pointwise(x.reshape(-1, x.size(-1)), weight_OI, bias_O, "none", [], "")
        # As `linear` does: autograd takes it for no view, so that whoever gets it may write into it, or into a part.
        return torch.ops.aten._unsafe_view(rows, [*x.shape[:-1], weight_OI.size(0)])
    return linear(x, weight_OI, bias_O)


def _by_onednn(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> bool:
    if not ONEDNN_IS_FASTER or x.device.type != "cpu" or not x.dtype == weight_OI.dtype == torch.float32:
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or isinstance(weight_OI, DTensor):
        return False
    if bias_O is not None and not bias_O.is_contiguous():  # whose strides it does not ask for
        return False
    if x.size(-1) != weight_OI.size(1):  # which torch says better
        return False
    return x.numel() * weight_OI.size(0) >= LARGE


def multiply_faster(model: nn.Module) -> None:
    """Let the linear layers of a model multiply by `product`, in place, where oneDNN is faster."""
    if not ONEDNN_IS_FASTER:
        return
    for variable, number in CACHE_CAPACITIES.items():
        os.environ.setdefault(variable, number)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def is_linear(layer: Any) -> bool:
    """Whether a layer is torch's linear one, or what stands for it here, and not of a class of somebody else's."""
    return type(layer) in (nn.Linear, Linear)


class Linear(nn.Linear):
    """torch's, multiplying by `product`, backwards too. Second derivatives are refused, by torch.

    Under torch's name, as a model prints it.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not _by_onednn(input, self.weight, self.bias):
            return linear(input, self.weight, self.bias)
        if torch.is_grad_enabled():
            learned: Tensor = _Product.apply(input, self.weight, self.bias)
            return learned
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
