"""A model's layers compiled, each by itself: of a layer's operations half are left (benchmarks/OPERATIONS.md).

Layers alone, since what is around them is small, and since one graph serves all layers of a kind, however many there
are. The joint call, heads and sampling stay as they are.

What PPO stands on must hold in compiled kernels too, which may round otherwise than the operations they are made of:

- Every operation rounds to its own type, as it does by itself (`emulate_precision_casts`; by default a fused kernel
  carries float32 along), so that a policy that has not been trained is its reference to the bit. In bfloat16 on CPUs
  that takes torch 2.13.
- What is scored without gradient goes through the kernels of the update, which are other ones where torch is not told
  that a gradient may follow (but for the first layer where embeddings train, in `model.lora: none`). So the first
  ratio is exactly 1 wherever kernels add up in one order.

A forward with a cache, as sampling makes them, is not compiled: each layer has its own number in the cache, and would
be a graph of its own (sampler.py compiles the whole step).
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from llm_rlhf.models.sampler import GRAPHS
from llm_rlhf.recipe.sections import ModelSection

OPTIONS = {"emulate_precision_casts": True}  # of inductor's


def compile_layers(model: Any, backend: str | Callable[..., Any] = "inductor") -> Any:
    """Let every layer of a model compile itself when it is first used: the same model, in place.

    After adapters are put into it, and hooks: those that are added once a layer was used are not seen. Batches of every
    shape share a graph (`dynamic`). There is one for each role that is switched on, each in training and evaluation
    mode, with and without padding, with and without a gradient to hand on; beyond torch's limit, which is raised for
    the process, a layer would run as it is.

    Args:
        backend: torch.compile's.

    Raises:
        ValueError: where the model has no layers of transformers' kind, or `check_adapters` says so.
    """
    check_adapters(model)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no layers of transformers' own kind (GradientCheckpointingLayer), so that "
            "they cannot be compiled; remove model.compile."
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    forwards = {kind: _forward(kind, backend) for kind in {type(layer) for layer in layers}}
    for layer in layers:
        layer.forward = types.MethodType(forwards[type(layer)], layer)
    model.layers_are_compiled = True
    return model


def check_adapters(model: Any) -> None:
    """Whether adapters leave layers that are compiled once: PEFT takes stacked experts apart anew in every forward.

    Raises:
        ValueError: where one reaches into them.
    """
    if any(isinstance(module, ParamWrapper) for module in model.modules()):
        raise ValueError(
            "model.compile is true, but the adapter reaches into stacked experts, for which every step would be "
            "compiled anew; name the linear layers in model.lora.target_modules, or remove model.compile."
        )


def compile_if_asked(model: Any, section: ModelSection) -> None:
    """`compile_layers` where the recipe says `model.compile: true`."""
    if section.compile:
        compile_layers(model)


def _forward(kind: Any, backend: str | Callable[..., Any]) -> Callable[..., Any]:
    """In the place of the forward of layers of one class."""
    plain, checkpoints = _own_forward(kind)
    options: Any = OPTIONS if backend == "inductor" else None
    compiled = torch.compile(plain, dynamic=True, backend=backend, options=options)

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
            return plain(self, *args, **kwargs)
        if not torch.is_grad_enabled():
            with torch.enable_grad():
                return _cut_off(compiled(self, *args, **kwargs))
        if checkpoints and self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(functools.partial(compiled, self, **kwargs), *args)
        return compiled(self, *args, **kwargs)

    return forward


def _own_forward(kind: Any) -> tuple[Any, bool]:
    """A layer's forward as its class defines it, and whether checkpointing is around it (else it is around `__call__`).

    transformers 5.17 has it around `__call__`, 5.23 around `forward`, by a wrapper without a public name;
    tests/models/test_compiled_layers.py fails when that moves. It must stay outside of what is compiled: recomputing
    asks which adapters were on.
    """
    forward = kind.forward
    around = forward.__code__.co_name == "forward_with_checkpointing"
    return (forward.__wrapped__ if around else forward), around


def _cut_off(output: Any) -> Any:
    """A layer's output without what made it, still flagged as one that hands a gradient on, for the layer after it."""
    if isinstance(output, tuple):
        return tuple(map(_cut_off, output))
    if isinstance(output, Tensor) and output.requires_grad:
        return output.detach().requires_grad_()
    return output
