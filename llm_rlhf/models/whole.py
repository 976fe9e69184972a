"""Full fine-tuning: a role's adapter is a copy of all weights, instead of LoRA beside them (`model.lora: none`).

Everything else stays as it is: roles are switched on one base, the base with none of them on is the reference, and an
adapter's folder is what a stage leaves. PEFT's `modules_to_save` makes the copies, of whole decoder layers, so that a
forward through one costs what a plain model's does.

What trains is float32, as steps of 1e-5 round to nothing in bfloat16; its layers compute as those they stand for, under
autocast, so that a copy that has not been trained yet answers bit for bit what the base does. In bfloat16 it does so
but for rounding where an architecture computes in the type of its weights: mixtures of experts, when they sum, and
models that normalise queries and keys (Qwen3).
"""

import copy
from collections import defaultdict
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES, EMBEDDING_LAYER_NAMES
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn


def whole_config(task_type: str, model: Any, **options: Any) -> LoraConfig:
    """PEFT's configuration of an adapter that is a copy of every weight of a model.

    Args:
        options: of LoraConfig; `modules_to_save` beside the copied ones.

    Raises:
        ValueError: where the model ties weights that PEFT would not tie in the copy.
    """
    tied = _check_ties(model)
    copied = [*options.pop("modules_to_save", []), *copied_modules(model)]
    return LoraConfig(
        task_type=task_type,
        target_modules=DUMMY_TARGET_MODULES,  # PEFT's word for none
        modules_to_save=list(dict.fromkeys(copied)),
        ensure_weight_tying=tied,
        **options,
    )


def empty_config(task_type: str) -> LoraConfig:
    """PEFT's configuration of an adapter without weights: a model that others can be loaded beside."""
    return LoraConfig(task_type=task_type, target_modules=DUMMY_TARGET_MODULES)


def is_whole(config: Any) -> bool:
    """Whether a PEFT configuration is `whole_config`'s."""
    return getattr(config, "target_modules", None) == DUMMY_TARGET_MODULES and bool(config.modules_to_save)


def without_language_head(config: Any, model: Any) -> Any:
    """The configuration of a role that never says a token: it needs no copy of the language model's head."""
    if not is_whole(config):
        return config
    head = _name_of(model, model.get_output_embeddings())
    config = copy.deepcopy(config)
    config.modules_to_save = [name for name in config.modules_to_save if name != head]
    config.ensure_weight_tying, config.modules_to_tie = False, None
    return config


def with_tied_head(config: Any, model: Any) -> Any:
    """The configuration, naming the head that PEFT is to tie to the copy of the embeddings.

    PEFT finds it by itself where nothing is wrapped yet, and not beside another copy. `modules_to_tie` is a private
    field of its configurations; tests/models/test_whole.py fails when PEFT no longer reads it.
    """
    config.modules_to_tie = [_name_of(model, model.get_output_embeddings())]
    return config


def copied_modules(model: Any) -> list[str]:
    """Names of a model's decoder layers, and of what else holds weights of its own: together every weight, once."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        own = next(iter(module.parameters(recurse=False)), None) is not None
        if not inside and name and (type(module).__name__ in kinds or own):
            found.append(name)
    return found


def _check_ties(model: Any) -> bool:
    """Whether the head is tied to the embeddings; ValueError where anything else is, or PEFT would not see it."""
    names = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embeddings.weight
    for parameter, shared in names.items():
        if len(shared) == 1:
            continue
        name = _name_of(model, embeddings)
        if not tied or parameter != id(embeddings.weight) or name.split(".")[-1] not in EMBEDDING_LAYER_NAMES:
            raise ValueError(
                f"{type(model).__name__} ties {' and '.join(shared)}, which a copy of all its weights would untie; "
                "use LoRA, or another base."
            )
    return tied


def _name_of(model: Any, module: Any) -> str:
    return next((name for name, found in model.named_modules() if found is module), "")


class CopyInOwnType(ModulesToSaveWrapper):
    """PEFT's wrapper, whose copy may be of another type than the module that it stands for, and computes as that does.

    Overrides PEFT's private `_forward_wrapped`; tests/models/test_whole.py fails when PEFT no longer calls it.
    """

    def _forward_wrapped(self, *args: Any, **kwargs: Any) -> Any:
        active = own_module(self, next(iter(self.active_adapters), None))
        own, of_copy = _dtype(self.original_module), _dtype(active)
        if own is None or own == of_copy:
            return super()._forward_wrapped(*args, **kwargs)
        device = next(self.parameters()).device.type
        with torch.autocast(device, dtype=own, enabled=own != torch.float32):
            return _as(own, super()._forward_wrapped(*args, **kwargs))


def compute_in_own_type(model: Any) -> None:
    """Put `CopyInOwnType` in the place of PEFT's own wrappers of `modules_to_save`."""
    for module in model.modules():
        if type(module) is ModulesToSaveWrapper:
            module.__class__ = CopyInOwnType


def _dtype(module: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


def _as(dtype: torch.dtype, answer: Any) -> Any:
    """What a module returns, its floating point tensors of this type."""
    if isinstance(answer, Tensor):
        return answer.to(dtype) if answer.is_floating_point() else answer
    return type(answer)(_as(dtype, part) for part in answer) if type(answer) in (tuple, list) else answer


def own_module(module: Any, adapter: str | None) -> Any:
    """What computes in the place of one of PEFT's wrappers, with an adapter on; any other module is its own."""
    if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
        return module.modules_to_save[adapter]
    return module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module
