"""A package that stands in for liger-kernel, where that is not installed: it replaces what Liger replaces in a Llama.

Its normalisation is twice the model's, and its rotation none, so that where they work shows.
"""

import sys
import types
from typing import Any

import pytest
from transformers.models.llama import modeling_llama


class PlantedNorm(modeling_llama.LlamaRMSNorm):
    """What stands in modeling_llama after Liger's own patch."""


def twice(self: Any, states: Any) -> Any:
    return 2 * modeling_llama.LlamaRMSNorm.forward(self, states)


def unrotated(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
    return q, k


def put_into_llama(
    rope: bool = True,
    cross_entropy: bool = False,
    fused_linear_cross_entropy: bool = True,
    rms_norm: bool = True,
    swiglu: bool = True,
    model: Any = None,
) -> None:
    """As liger_kernel.transformers.monkey_patch does it at 0.8.5: names of the module first, then the layers."""
    assert not cross_entropy
    assert not fused_linear_cross_entropy, "it would replace the model's forward"
    trunk = getattr(model, model.base_model_prefix)
    if rope:
        modeling_llama.apply_rotary_pos_emb = unrotated
    if rms_norm:
        modeling_llama.LlamaRMSNorm = PlantedNorm
        trunk.norm.forward = types.MethodType(twice, trunk.norm)


def put_into_instance(model: Any, **kernels: bool) -> None:
    """Liger's `_apply_liger_kernel_to_instance`."""
    put_into_llama(model=model, **kernels)


def plant(monkeypatch: pytest.MonkeyPatch) -> None:
    package, inner, patch = (
        types.ModuleType(f"liger_kernel{more}") for more in ("", ".transformers", ".transformers.monkey_patch")
    )
    inner._apply_liger_kernel_to_instance = put_into_instance
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": put_into_llama}
    for module in (package, inner, patch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
