"""Liger's Triton kernels in the place of a model's own layers, where a trainer's `use_liger_kernel` asks for them.

transformers puts them in itself when training starts, which does not do here:

- Before that PPO has asked the model whether what it samples is what it scores, and has copied it for a reference; PEFT
  has copied its layers (`model.lora: none`). Checks and copies would be of other layers than those that train.
- It puts a causal language model's forward over a reward model's, which has no such head.
- What it replaces in transformers' own modules stays so for the process, for stages that were not asked to.

So they are put in where the model is loaded, into its layers alone, and transformers' modules stay as they are.
"""

import contextlib
import functools
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

LOSSES = ("cross_entropy", "fused_linear_cross_entropy")
# What each kernel of a gated layer computes whatever the model's configuration says: by key, what it must say.
ACTIVATIONS = {"swiglu": ("silu", "swish"), "geglu": ("gelu_pytorch_tanh",)}
MARK = "liger_kernels"  # attribute of a model that has them


def runs_here() -> bool:
    """Whether Triton's kernels run on this machine: on a GPU, or on CPUs by its interpreter, which is for tests."""
    return torch.accelerator.is_available() or os.environ.get("TRITON_INTERPRET") == "1"


def check_options(options: dict[str, Any] | None) -> None:
    """What of `liger_kernel_config` can be judged without Liger.

    Raises:
        ValueError: naming the key, its value and the remedy.
    """
    for key, value in (options or {}).items():
        if key in LOSSES and value:
            raise ValueError(
                f"liger_kernel_config.{key} is {value!r}, but no loss here is Liger's: log-probabilities are taken in "
                "tiles already, and the model's forward stays its own. Remove it."
            )
        if not isinstance(value, bool):
            raise ValueError(f"liger_kernel_config.{key} is {value!r}; it must be true or false.")


def check_kernels(config: Any, options: dict[str, Any] | None) -> None:
    """Whether Liger has what is asked for, for models of this configuration.

    Raises:
        ValueError: naming the key, its value and the remedy.
        ImportError: where Liger is not installed.
    """
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise ImportError(
            f"use_liger_kernel is true, but liger-kernel cannot be imported ({error}): pip install liger-kernel"
        ) from None
    check_options(options)
    put_in = MODEL_TYPE_TO_APPLY_LIGER_FN.get(config.model_type)
    if put_in is None:
        raise ValueError(
            f"use_liger_kernel is true, but Liger has no kernels for models of type {config.model_type!r}; remove it."
        )
    known = {name: p.default for name, p in inspect.signature(put_in).parameters.items() if name != "model"}
    kernels = [name for name in known if name not in LOSSES]
    for key in options or {}:
        if key not in known:
            raise ValueError(
                f"liger_kernel_config.{key} is set, but Liger's kernels for models of type {config.model_type!r} are "
                f"{', '.join(kernels)}; remove it."
            )
    text = config.get_text_config()
    activation = getattr(text, "hidden_act", None) or getattr(text, "hidden_activation", None)
    for key, computed in ACTIVATIONS.items():
        if {**known, **(options or {})}.get(key) and activation not in computed:
            raise ValueError(
                f"use_liger_kernel is true, and its {key} computes {computed[0]}, but the model's activation is "
                f"{activation!r}; set liger_kernel_config: {{{key}: false}}."
            )


def add_liger(model: Any, args: Any) -> None:
    """Put Liger's kernels into the layers of a model that was just loaded, where a trainer's arguments ask for them.

    Args:
        model: before adapters copy its layers (`modules_to_save`); LoRA beside its linear maps may be there.

    Raises:
        ValueError: where they cannot be, or are not there for such a model.
        ImportError: where Liger is not installed.
    """
    if not args.use_liger_kernel:
        return
    if isinstance(model, (str, Path)):
        raise ValueError(
            "use_liger_kernel is true, and Liger's kernels are put into a model that is loaded; load it, and give it "
            "in place of its name."
        )
    if not runs_here():
        raise ValueError("use_liger_kernel is true, but its kernels take a GPU, and there is none; remove it.")
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if any(isinstance(module, AuxiliaryTrainingWrapper) for module in base.modules()):
        raise ValueError(
            "use_liger_kernel is true, but an adapter holds copies of the model's layers (modules_to_save), of which "
            "Liger would change one alone; give the model without the adapter, or remove use_liger_kernel."
        )
    put_into(base, args.liger_kernel_config)


def put_into(base: Any, options: dict[str, Any] | None) -> None:
    """`add_liger` without its questions about adapters.

    Raises:
        ValueError: as `check_kernels`; and where the model's class is none of transformers' own.
    """
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    check_kernels(base.config, options)
    kind = type(base)
    if not kind.__module__.startswith("transformers.models."):
        raise ValueError(
            f"use_liger_kernel is true, but {kind.__name__} is code of the model's own, and Liger knows transformers' "
            "classes alone; remove it."
        )
    places = (sys.modules[kind.__module__], nn)
    before = [dict(vars(place)) for place in places]
    try:
        _apply_liger_kernel_to_instance(model=base, **{**(options or {}), **dict.fromkeys(LOSSES, False)})
    except (TypeError, AttributeError) as error:  # what it says of classes that it does not know
        raise ValueError(
            f"use_liger_kernel is true, but Liger cannot put its kernels into {kind.__name__} ({error}); remove it."
        ) from None
    finally:
        for place, names in zip(places, before, strict=True):
            _take_into_layers(base, place, names)
    setattr(base, MARK, True)


def has_liger(model: Any) -> bool:
    """Whether Liger's kernels are in a model's layers."""
    return bool(vars(model).get(MARK, False))


def _take_into_layers(base: Any, place: Any, names: dict[str, Any]) -> None:
    """Give a module its own names back; the layers that call a function by one of them call Liger's from now on."""
    for name, own in names.items():
        kernel = getattr(place, name)
        if kernel is own:
            continue
        setattr(place, name, own)
        if not inspect.isclass(own):
            for layer in base.modules():
                if name in inspect.unwrap(type(layer).forward).__code__.co_names:
                    before = vars(layer).get("forward")
                    forward = type(layer).forward if before is None else before.__func__
                    layer.forward = types.MethodType(_calling(forward, place, name, kernel), layer)


def _calling(forward: Callable[..., Any], place: Any, name: str, kernel: Any) -> Callable[..., Any]:
    """A layer's forward, within which a name of its module is another function."""

    @functools.wraps(forward)
    def with_kernel(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = getattr(place, name)
        setattr(place, name, kernel)
        try:
            return forward(self, *args, **kwargs)
        finally:
            setattr(place, name, own)

    return with_kernel


@contextlib.contextmanager
def in_training(args: Any) -> Iterator[None]:
    """Around `Trainer.train`, which would put the kernels in once more, and in transformers' way."""
    asked, args.use_liger_kernel = args.use_liger_kernel, False
    try:
        yield
    finally:
        args.use_liger_kernel = asked
