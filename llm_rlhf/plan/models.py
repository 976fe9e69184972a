"""The models of a run without their weights: the real architecture, adapters and heads, on tensors without data.

A model is made on torch's meta device, gets what its stage puts on it by the functions that the stage calls, and then
tensors of torch's FakeTensorMode, which say that they are on a CPU and hold nothing. Its forward and backward run as
they would, and make tensors of the sizes that they would.
"""

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import get_peft_model
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D
from trl.trainer.utils import add_fused_lm_head

from llm_rlhf.models.adapters import POLICY
from llm_rlhf.models.architecture import hidden_width, score_head_name
from llm_rlhf.models.base import adapter_config, adapters_in_float32
from llm_rlhf.models.products import is_linear
from llm_rlhf.models.roles import VALUE, scalar_head
from llm_rlhf.models.whole import without_language_head
from llm_rlhf.recipe.sections import ModelSection

OUTPUTS = ("log_probs", "entropy")  # of TRL's fused head
HEADS = (*SEQ_CLS_HEAD_NAMES, "value_head")  # what stays as it is
NF4_BLOCK, SCALE_BLOCK = 64, 256  # weights with one scale, and scales with one, in bitsandbytes' double quantisation


@dataclass(frozen=True)
class Blueprint:
    """What a model is built from: its configuration, the recipe's section, and how many tokens it has rows for."""

    config: Any
    section: ModelSection
    tokens: int

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.section.dtype)
        return found

    @property
    def vocabulary(self) -> int:
        return int(max(self.config.get_text_config().vocab_size, self.tokens))


class _WithoutData(FakeTensorMode):
    """FakeTensorMode, which is one for all its tensors, also for those that are copied.

    torch copies it with a tensor, and so the weak references that it keeps: each is given back by both, the second time
    into memory that is others' by then.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "_WithoutData":
        return self


@contextlib.contextmanager
def without_data() -> Iterator[None]:
    """While it lasts, tensors are made without data."""
    with _WithoutData(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def causal_lm(
    blueprint: Blueprint,
    outputs: tuple[str, ...] = OUTPUTS,
    rewards: Sequence[str] = (),
    value: str | None = None,
    trains: bool = True,
) -> Any:
    """The base as a policy with one adapter, as trainers and `load_roles` make it; within `without_data`.

    Args:
        outputs: what TRL's fused head computes.
        rewards: names of frozen reward adapters beside it, each with its head; the held-out one's is among them.
        value: "shared" or "adapter"; None: there is no value function.
        trains: False: it is only read, so that a policy of whole weights is of the base's type.
    """
    trained = [VALUE] if value == "adapter" else []
    with torch.device("meta"):
        base = _base(AutoModelForCausalLM, blueprint)
        add_fused_lm_head(base, outputs=outputs)
        model = get_peft_model(base, adapter_config(blueprint.section, "CAUSAL_LM", base))
        silent = without_language_head(model.peft_config[POLICY], base)
        for name in [*rewards, *trained]:
            model.add_adapter(name, silent)
        base.score_heads = nn.ModuleDict(
            {name: scalar_head(hidden_width(base)).requires_grad_(False) for name in rewards}
        )
        if value is not None:
            base.value_head = scalar_head(hidden_width(base))
    for name in rewards:
        model.set_requires_grad(name, requires_grad=False)
    model.set_requires_grad([POLICY, *trained], requires_grad=True)
    if not trains:
        model.requires_grad_(False)
    return _finished(model, blueprint)


def reward_model(blueprint: Blueprint) -> Any:
    """The base as a reward model in training, with one adapter and its head; within `without_data`."""
    with torch.device("meta"):
        model = _base(AutoModelForSequenceClassification, blueprint)
        head = score_head_name(model.config, blueprint.section.trusts_base)
        model = get_peft_model(model, adapter_config(blueprint.section, "SEQ_CLS", model, modules_to_save=[head]))
    return _finished(model, blueprint)


def weight_bytes(config: Any, dtype: torch.dtype, trust_remote_code: bool, classifier: bool = False) -> int:
    """Bytes of all of a model's own parameters, each once."""
    kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    with torch.device("meta"), no_init_weights():
        model = kind.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
        model.tie_weights()
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _base(kind: Any, blueprint: Blueprint) -> Any:
    config = copy.deepcopy(blueprint.config)
    if kind is AutoModelForSequenceClassification:
        config.num_labels = 1
        config.pad_token_id = config.get_text_config().pad_token_id = 0  # by which it finds a row's end
    with no_init_weights():
        model = kind.from_config(config, dtype=blueprint.dtype, trust_remote_code=blueprint.section.trusts_base)
    model.tie_weights()
    if blueprint.tokens > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(blueprint.tokens, mean_resizing=False)
    return model


def _finished(model: Any, blueprint: Blueprint) -> Any:
    adapters_in_float32(model)
    if blueprint.section.quantization != "none":
        _pack(model, blueprint)
    _without_data(model)
    return model


def _without_data(module: nn.Module) -> None:
    """Put tensors without data in the place of those on the meta device, shared ones shared."""
    made: dict[int, Any] = {}
    for each in module.modules():
        for held in (each._parameters, each._buffers, vars(each)):
            for name, tensor in held.items():
                if isinstance(tensor, Tensor) and tensor.is_meta:
                    if id(tensor) not in made:
                        empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                        trained = isinstance(tensor, nn.Parameter)
                        made[id(tensor)] = tensor, nn.Parameter(empty, tensor.requires_grad) if trained else empty
                    held[name] = made[id(tensor)][1]


# ---- quantised bases -----------------------------------------------------------------------------------------------


class PackedLinear(nn.Module):
    """A linear layer of bitsandbytes as far as memory goes: packed weights, and a whole one while it is multiplied."""

    def __init__(self, rows: int, columns: int, bias: nn.Parameter | None, quantization: str, dtype: torch.dtype):
        super().__init__()
        self.in_features, self.out_features, self.dtype = columns, rows, dtype
        self.register_buffer("packed", torch.empty(packed_bytes(rows, columns, quantization), dtype=torch.uint8))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        shape = (self.out_features, self.in_features)
        product: Tensor = _Unpacked.apply(x.to(self.dtype), self.packed, shape)
        return (product if self.bias is None else product + self.bias).to(x.dtype)


class _Unpacked(torch.autograd.Function):
    """The product with weights that are unpacked for it, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = shape
        return nn.functional.linear(x, packed.new_empty(shape, dtype=x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (packed,) = ctx.saved_tensors
        return gradient @ packed.new_empty(ctx.shape, dtype=gradient.dtype), None, None


def packed_bytes(rows: int, columns: int, quantization: str) -> int:
    """Bytes of a layer's weights: int8 with a float32 a row; NF4 with 8 bits a block, and 32 a block of those."""
    count = rows * columns
    if quantization == "int8":
        return count + 4 * rows
    blocks = math.ceil(count / NF4_BLOCK)
    return math.ceil(count / 2) + blocks + 4 * math.ceil(blocks / SCALE_BLOCK)


def _pack(model: Any, blueprint: Blueprint) -> None:
    """Pack every linear layer but the heads and the adapters, as transformers has bitsandbytes do."""
    head = model.get_base_model().get_output_embeddings()  # a classifier has none
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleDict | AuxiliaryTrainingWrapper):  # adapters' own layers, heads, copies
            continue
        for name, child in list(module.named_children()):
            if (is_linear(child) or type(child) is Conv1D) and child is not head and name not in HEADS:
                setattr(module, name, _packed(child, blueprint))


def _packed(layer: Any, blueprint: Blueprint) -> PackedLinear:
    rows, columns = layer.weight.shape if isinstance(layer, nn.Linear) else reversed(layer.weight.shape)
    with torch.device("meta"):
        return PackedLinear(rows, columns, layer.bias, blueprint.section.quantization, blueprint.dtype)
