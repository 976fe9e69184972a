"""Several LoRA adapters, one trained on top of the other, as one adapter on the first one's base.

    W + s1 B1 A1 + s2 B2 A2  =  W + [s1 B1, s2 B2] [A1; A2]

The ranks add up and the scales go into B, so that the sum is exact up to rounding; where an adapter leaves a layer
alone, zeros stand for it. It is made of the adapters' files alone: PEFT's `add_weighted_adapter` (combination_type
"cat") makes the same sum, but of adapters in a loaded model, on one base, and not across the base that a first one was
merged into. What is more than LoRA cannot be summed so; `why_not` says what that is.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig
from peft.utils import load_peft_weights
from peft.utils.other import get_pattern_key
from torch import Tensor

from llm_rlhf.models.whole import is_whole

_A, _B = ".lora_A.weight", ".lora_B.weight"
# Fields of a LoraConfig that may have any value: what they decide is in the weights, or is taken over below.
_FREE = (
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_dropout", "fan_in_fan_out",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "runtime_config", "megatron_core",
    "qalora_group_size", "ensure_weight_tying",
)  # fmt: skip


class Composed(NamedTuple):
    weights: dict[str, Tensor]  # as in adapter_model.safetensors, float32
    config: LoraConfig


def why_not(folder: Path) -> str | None:
    """What in an adapter's folder is more than LoRA on linear layers, in words; None where nothing is."""
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        return f"it is of type {config.peft_type}"
    if is_whole(config):
        return "it is a copy of all weights"
    plain = LoraConfig()
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        if option.name == "init_lora_weights":
            if not (isinstance(value, bool) or value in ("gaussian", "orthogonal", "eva")):
                return f"it has init_lora_weights {value!r}, which changes its base"
        elif option.name not in _FREE and value and value != getattr(plain, option.name, None):
            return f"it has {option.name} {value!r}"
    for key, weight in load_peft_weights(str(folder), device="cpu").items():
        if "lora_" in key and not (key.endswith((_A, _B)) and weight.dim() == 2):
            return f"it adapts what is no linear layer ({key.partition('.lora_')[0].removeprefix('base_model.model.')})"
    return None


def copies_of_the_base(folder: Path) -> list[str]:
    """Names of whole weights that PEFT saved with an adapter that trains none: embeddings grown for new tokens."""
    return [key for key in load_peft_weights(str(folder), device="cpu") if "lora_" not in key]


def compose(folders: Sequence[Path], base: str) -> Composed:
    """The adapters' sum on `base`, in the order in which they were trained; copies of the base's weights are left out.

    Raises:
        ValueError: where one is more than LoRA (`why_not`).
    """
    for folder in folders:
        if reason := why_not(folder):
            raise ValueError(f"The adapter {folder} cannot be added to another: {reason}.")
    configs = [PeftConfig.from_pretrained(str(folder)) for folder in folders]
    parts = [_layers(folder, config) for folder, config in zip(folders, configs, strict=True)]
    names = list(dict.fromkeys(name for part in parts for name in part))
    ranks = {name: [part[name][0].size(0) for part in parts if name in part] for name in names}
    rank = max(map(sum, ranks.values()))
    weights = {}
    for name in names:
        mine = [part[name] for part in parts if name in part]
        down = torch.cat([down for down, _ in mine])
        up = torch.cat([up for _, up in mine], 1)
        missing = rank - down.size(0)
        weights[name + _A] = torch.nn.functional.pad(down, (0, 0, 0, missing)).contiguous()
        weights[name + _B] = torch.nn.functional.pad(up, (0, missing)).contiguous()
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=rank,
        lora_alpha=rank,  # a scale of 1
        target_modules=_targets(configs, names),
        fan_in_fan_out=configs[0].fan_in_fan_out,
        inference_mode=True,
    )
    return Composed(weights, config)


def _layers(folder: Path, config: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """By layer: A of shape (r, in), and B of shape (out, r) times its scale; float32."""
    saved = load_peft_weights(str(folder), device="cpu")
    found = {}
    for key, down in saved.items():
        if key.endswith(_A):
            name, rank = key.removesuffix(_A), down.size(0)
            layer = name.removeprefix("base_model.model.")
            alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), layer), config.lora_alpha)
            scale = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
            found[name] = (down.float(), saved[name + _B].float() * scale)
    return found


def _targets(configs: Sequence[Any], names: Sequence[str]) -> list[str]:
    """What the sum adapts: the kinds of layers where all of a kind are, else every layer by its whole name."""
    narrowed = ("exclude_modules", "layers_to_transform", "layers_pattern")
    if all(not isinstance(c.target_modules, str) and not any(getattr(c, n) for n in narrowed) for c in configs):
        return sorted(set().union(*(config.target_modules for config in configs)))
    return [name.removeprefix("base_model.model.") for name in names]
