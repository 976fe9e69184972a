"""Adapters on one base: which of them is on, and what may be loaded beside others.

An adapter of PEFT may be more than LoRA: `modules_to_save` copies whole modules, `trainable_token_indices` holds rows
of embeddings. All of it is switched together (`active_adapters`), so that the base with no adapter stays the reference
whatever was trained. What cannot be switched, as it changes the base in place or is no part of its layers, is refused.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftType
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, TrainableTokensWrapper
from torch import nn

from llm_rlhf.models.whole import is_whole, with_tied_head

POLICY = "default"  # PEFT's own name for the first adapter: what plain PEFT loads without being told
MERGED = "Merge it into its base (PEFT's merge_and_unload), save the whole model, and give that."

_switched: list[tuple[nn.Module, list[str]]] = []


@contextlib.contextmanager
def active_adapters(model: Any, names: list[str]) -> Iterator[None]:
    """Run forwards with these adapters alone; an empty list is the base model. Trainability is left untouched.

    PEFT's own `set_adapter` and `disable_adapter` also freeze what they leave, so that a policy and a value forward in
    one loss lose gradients without a word. This sets PEFT's private `_active_adapter` and nothing else;
    tests/ppo/test_trl_contract.py fails when LoRA's layers stop reading it, tests/parity/test_saved_modules.py when the
    wrappers do.
    """
    layers = switches(model)
    before = [layer._active_adapter for layer in layers]
    _activate(layers, names)
    _switched.append((model, names))
    try:
        yield
    finally:
        _switched.pop()
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active


def recompute_with_same_adapters() -> tuple[Any, Any]:
    """A `context_fn` for torch's checkpoint: activations are recomputed with the adapters their forward had.

    Without it, a value forward that was checkpointed under its own adapter is recomputed under the policy's, and its
    gradients are silently wrong.
    """
    if not _switched:
        return contextlib.nullcontext(), contextlib.nullcontext()
    model, names = _switched[-1]
    return contextlib.nullcontext(), active_adapters(model, names)


def switches(model: Any) -> list[Any]:
    """Every module that holds weights of adapters beside the base's own: LoRA's layers, and PEFT's auxiliary wrappers.

    The wrappers are of `modules_to_save`, whole copies of a module, and of `trainable_token_indices`.
    """
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def adapters_of(layer: Any) -> set[str]:
    """Names of the adapters that have weights in one of `switches`; by PEFT's private methods, which have no others."""
    wrapper = isinstance(layer, AuxiliaryTrainingWrapper)
    return set(layer._get_available_adapters() if wrapper else layer._all_available_adapter_names())


def _activate(layers: list[Any], names: list[str]) -> None:
    """A layer that has no weights of an adapter is the base's: LoRA passes over the name, other layers stumble."""
    for layer in layers:
        known = names if isinstance(layer, LoraLayer) else adapters_of(layer)  # which takes ten times as long
        layer._active_adapter = [name for name in names if name in known]


# Starts of a LoRA that are taken off the base's own weights, when it is made and when it is loaded again.
_TAKEN_OFF_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
_OUTSIDE_THE_LAYERS = (PeftType.ADAPTION_PROMPT, PeftType.POLY, PeftType.XLORA)


def check_switchable(config: PeftConfig, whose: str, remedy: str, alone: bool = False) -> None:
    """Whether `active_adapters` can take an adapter of this configuration away again, and leave the base as it was.

    Args:
        whose: what the error begins with.
        alone: the base is read with this adapter only, so that it may change the base in place.

    Raises:
        ValueError: naming the option, its value and the remedy.
    """
    bias, start = getattr(config, "bias", None), str(getattr(config, "init_lora_weights", "")).lower()
    found = {
        "bias": (bias not in (None, "none"), "it trains the base's own biases"),
        "init_lora_weights": (start.startswith(_TAKEN_OFF_THE_BASE), "it is taken off the base's own weights"),
        "kasa_config": (getattr(config, "kasa_config", None), "it cuts the base's own weights"),
        "layer_replication": (getattr(config, "layer_replication", None), "it gives the base other layers"),
        "alora_invocation_tokens": (getattr(config, "alora_invocation_tokens", None), "only PEFT's forward knows them"),
        "peft_type": (
            config.is_prompt_learning or config.peft_type in _OUTSIDE_THE_LAYERS, "it is no part of the base's layers"
        ),
    }  # fmt: skip
    for name, (there, why) in found.items():
        if there and not (alone and name in ("bias", "init_lora_weights", "kasa_config", "layer_replication")):
            raise ValueError(
                f"{whose} has {name} {getattr(config, name)!r}: {why}, so that it cannot be switched on and off; the "
                f"reference and the other roles on the base would move with it. {remedy}"
            )


def check_adapter(folder: str | Path, what: str) -> None:
    """`check_switchable` of a saved adapter, before any model is loaded."""
    check_switchable(PeftConfig.from_pretrained(str(folder)), f"The {what} at {folder}", MERGED)


def check_saved(base: Any, folder: str | Path, what: str, alone: bool = False) -> None:
    """Whether a saved adapter can be loaded into a base and leave it as it is.

    Args:
        what: it is called in errors.
        alone: the base is read with this adapter only, so that it may change the base in place.

    Raises:
        ValueError: where it cannot be switched, holds something of another size than the base, would be loaded over
            the base's own weights, or needs a module that another adapter has wrapped otherwise.
    """
    config = PeftConfig.from_pretrained(str(folder))
    named = f"The {what} at {folder}"
    check_switchable(config, named, MERGED, alone)
    copied = tuple(getattr(config, "modules_to_save", None) or ())
    if getattr(config, "ensure_weight_tying", False):
        head = base.get_output_embeddings()
        copied += tuple(name for name, module in base.named_modules() if module is head)
    _check_own_weights(base, folder, copied, named, alone)
    _check_wrappers(base, copied, getattr(config, "trainable_token_indices", None), named)
    _check_kinds(base, config, named)


def _check_own_weights(base: Any, folder: str | Path, copied: tuple[str, ...], named: str, alone: bool) -> None:
    """PEFT saves embeddings that were grown together with the adapter, and loads them over the base's."""
    own = {name.replace(".original_module", ""): p for name, p in base.named_parameters(remove_duplicate=False)}
    for key, saved in load_peft_weights(str(folder), device="cpu").items():
        name = key.removeprefix("base_model.model.")
        if name not in own or is_head(key) or own[name].is_meta or not own[name].numel():  # not here: on other devices
            continue
        if saved.shape != own[name].shape:
            raise ValueError(
                f"{named} holds {name} of shape {tuple(saved.shape)}, the model's is {tuple(own[name].shape)}: it was "
                f"trained with another tokenizer, or on another base. {MERGED}"
            )
        parts = name.split(".")
        copies = any(".".join(parts[:i]).endswith(copied) for i in range(1, len(parts)))  # as PEFT finds them
        if not (copies or alone or torch.equal(saved.to(own[name]), own[name])):
            raise ValueError(
                f"{named} holds a {name} of its own, which would take the place of the base's under every other role. "
                f"{MERGED}"
            )


def _check_wrappers(base: Any, copied: tuple[str, ...], rows: Any, named: str) -> None:
    """PEFT cannot wrap a module twice: one adapter's copy of it, and another's rows of it."""
    embeddings = base.get_input_embeddings(), base.get_output_embeddings()
    for name, module in base.named_modules():
        some = isinstance(module, TrainableTokensWrapper) and name.endswith(copied)
        whole = isinstance(module, ModulesToSaveWrapper) and rows is not None
        if some or (whole and (name.endswith(tuple(rows)) if isinstance(rows, dict) else module in embeddings)):
            raise ValueError(
                f"{named} and another on this base hold {name}, one a copy of it (modules_to_save) and one some of its "
                f"rows (trainable_token_indices); PEFT cannot hold both. {MERGED}"
            )


def _check_kinds(base: Any, config: PeftConfig, named: str) -> None:
    """Copies of whole layers would hold the LoRA that is in them, and LoRA would reach into the copies."""
    lora = any(isinstance(module, BaseTunerLayer) for module in base.modules())
    whole = any(is_whole(other) for other in getattr(base, "peft_config", {}).values())  # PEFT's, of all that are on it
    if (lora and is_whole(config)) or (whole and not is_whole(config)):
        one, other = ("a copy of all weights", "LoRA") if is_whole(config) else ("LoRA", "a copy of all weights")
        raise ValueError(
            f"{named} is {one}, and what is on this base already is {other}; PEFT cannot hold both. {MERGED}"
        )


def grow_for(base: Any, folder: str | Path) -> None:
    """Grow a base's embeddings to the rows that an adapter's file holds of them, before it is loaded."""
    of_input = base.get_input_embeddings()
    name = next(name for name, module in base.named_modules() if module is of_input)
    saved = load_peft_weights(str(folder), device="cpu").get(f"base_model.model.{name}.weight")
    if saved is not None and len(saved) > of_input.num_embeddings:
        base.resize_token_embeddings(len(saved), mean_resizing=False)


def onto_device_of(model: Any) -> dict[str, str]:
    """For PEFT: an adapter's file is read onto its model's device.

    Else it is onto "cuda", which in files means the first GPU: every process of a launch would take memory there.
    """
    return {"torch_device": str(model.device)}


def load_beside(
    model: Any, folder: str | Path, name: str, what: str = "adapter", is_trainable: bool = False, alone: bool = False
) -> list[str]:
    """Load a saved adapter into a PEFT model, whose others stay as they are, the policy switched on.

    Returns:
        Keys of its weights that have no place in this base, and places of this base that its file has no weights for.

    Raises:
        ValueError: from `check_saved`.
    """
    base = model.get_base_model()
    check_saved(base, folder, what, alone)
    mend_token_wrappers(model)
    trains = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    config = PeftConfig.from_pretrained(str(folder))
    if not model.active_adapters:  # PEFT forgets it when an adapter is deleted that had no LoRA
        model.set_adapter(POLICY)
    if getattr(config, "ensure_weight_tying", False):  # PEFT ties a second copy to nothing
        config.inference_mode = not is_trainable
        model.add_adapter(name, with_tied_head(config, base))
    found = model.load_adapter(str(folder), adapter_name=name, is_trainable=is_trainable, **onto_device_of(base))
    mend_token_wrappers(model)
    _activate(switches(model), [POLICY])  # PEFT leaves a wrapper that it just made switched to the new adapter
    for parameter, before in trains:  # and freezes the copies of modules that were on
        parameter.requires_grad_(before)
    return [*found.missing_keys, *found.unexpected_keys]


class _TokensOfSome(TrainableTokensWrapper):
    """PEFT's own asks the wrapper for rows of every adapter that is loaded or saved, also of those that have none.

    And it lets the weight of a head that is tied to the embeddings be read, but not that there is no bias.
    """

    bias = None

    def adapter_state_dict_load_map(self, adapter_name: str) -> Any:
        return super().adapter_state_dict_load_map(adapter_name) if adapter_name in adapters_of(self) else {}

    def adapter_state_dict(self, adapter_name: str, state_dict: Any) -> Any:
        return super().adapter_state_dict(adapter_name, state_dict) if adapter_name in adapters_of(self) else {}


def mend_token_wrappers(model: Any) -> None:
    """Put `_TokensOfSome` in the place of PEFT's own wrappers of `trainable_token_indices`.

    Raises:
        ValueError: where a head with a bias is tied to the embeddings; PEFT leaves the bias out.
    """
    for name, module in model.named_modules():
        if type(module) is TrainableTokensWrapper:
            if getattr(module.original_module, "bias", None) is not None:
                raise ValueError(
                    f"trainable_token_indices reach {name}, which is tied to the embeddings and has a bias that PEFT "
                    "leaves out; take trainable_token_indices away."
                )
            module.__class__ = _TokensOfSome


def is_head(key: str) -> bool:
    """Whether a key of an adapter's file belongs to a score head: `...score.weight`, but no LoRA inside it."""
    return key.split(".")[-2] in SEQ_CLS_HEAD_NAMES
