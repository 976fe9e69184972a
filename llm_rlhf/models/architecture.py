"""What an architecture must offer to carry the roles: found out by asking the model, not from a list of names.

Before reward modelling reads its data: is there a sequence-classification class with one linear head? When a model
gets the joint call (roles.py): does the fused head of TRL give the model's own log-probabilities, does nothing depend
on what stands under the left padding, and is a row read as it is without any? Where the answer is no, or the model's
own code fails, an error names the architecture.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForSequenceClassification, PreTrainedConfig
from trl.trainer.utils import add_fused_lm_head

from llm_rlhf.errors import RecipeError
from llm_rlhf.models.logprobs import token_logprobs

# In the name of a layer's kind, where its attention chooses what it reads: what it does shows only on rows that are
# wider than its budget, which is 2,048 tokens in all that there are.
SELECTIVE = ("sparse", "indexed", "compressed")
WIDE = 2_304
REFUSED = "This architecture cannot be trained here."


def positions_of(config: Any) -> int | None:
    """How many tokens a model has positions for; None where it has no end (XLNet's configuration says -1)."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(positions) if positions and positions > 0 else None


def hidden_width(model: Any) -> int:
    """Size of the hidden states that every head reads: some models (OPT-350m) narrow them at the end."""
    head = unwrapped(model.get_output_embeddings())
    return int(head.in_features if hasattr(head, "in_features") else model.config.get_text_config().hidden_size)


def unwrapped(module: Any) -> Any:
    """The base's own module, where an adapter has wrapped a copy or some rows of it (PEFT's auxiliary wrappers)."""
    return module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module


def embedding_rows(model: Any) -> int:
    """How many tokens the input embeddings have rows for."""
    return int(unwrapped(model.get_input_embeddings()).num_embeddings)


def score_head_name(config: PreTrainedConfig, trust_remote_code: bool = False) -> str:
    """What the architecture's ForSequenceClassification calls its head: `score`, mostly.

    Raises:
        RecipeError: where transformers has no such class, or its head is more than one linear map without a bias, which
            is what a reward role reads from an adapter's file.
    """
    family = f"{type(config).__name__.removesuffix('Config')} (model type {config.model_type!r})"
    try:
        with init_empty_weights():
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise RecipeError(
            f"Recipe key 'reward': transformers has no sequence-classification class for {family}, so that it cannot "
            "be a reward model. Take a base of another family, or use the PPO trainer by itself with reward_funcs."
        ) from None
    heads = [name for name, part in model.named_children() if part is not model.base_model and list(part.parameters())]
    head = getattr(model, heads[0]) if len(heads) == 1 and heads[0] in SEQ_CLS_HEAD_NAMES else None
    if type(head) is not nn.Linear or head.bias is not None:
        raise RecipeError(
            f"Recipe key 'reward': the sequence-classification class of {family} scores with {', '.join(heads)}; a "
            f"reward role needs one linear head without a bias, called {' or '.join(SEQ_CLS_HEAD_NAMES)}. Take a base "
            "of another family."
        )
    return heads[0]


@torch.no_grad()
def check_logits(model: Any, trunk_inputs: Callable[[Tensor, Tensor], dict[str, Any]]) -> bool:
    """Read two short rows under left padding; compare TRL's fused head with the model's own logits, and with the row.

    The fused head projects hidden states itself, so it must repeat what the model does to its logits. It knows scales
    and caps by the names of the configurations that have them (Gemma, Cohere, Granite, Falcon-H1), but not all of them
    (RecurrentGemma's is called otherwise), and a model with code of its own may do anything.

    The rows are equal but for tokens that the mask leaves out; recurrent models may let them through. And they must
    read as the same tokens do without padding, positions or mask: decoders that count positions for themselves do not.

    Args:
        trunk_inputs: what the joint call gives the trunk for ids and a mask.

    Returns:
        Whether the model is on a CPU and its logits are its head's plain product with the hidden states, so that our
        own tiled head may stand in for TRL's.

    Raises:
        ValueError: naming the architecture and how far its log-probabilities are off, in nats.
    """
    name = type(model).__name__
    if model.base_model is model:
        raise ValueError(f"{name} names no trunk (base_model_prefix), so that its hidden states cannot be read.")
    if not can_be_read(model):
        return False
    read = _read_two_rows(model, trunk_inputs)
    exactly = model.device.type == "cpu" and next(model.parameters()).dtype == torch.float32
    # The same product in another kernel: 5e-7 was measured in float32 and up to 0.01 in bfloat16, on small logits. A
    # missed scale or cap is off by more than a nat on real ones.
    off, most = (read.fused - read.own).abs().max().item(), 1e-4 if exactly else 0.25
    if not off <= most:
        raise ValueError(
            f"TRL's fused head does not give {name}'s log-probabilities (off by {off:.2g} nats): the model changes its "
            f"logits in a way that the head does not know. {REFUSED}"
        )
    # Equal shapes and masks: 0 in every architecture that masks, bfloat16 too. The rest is for kernels that sort rows
    # by their content (experts).
    leak, most = (read.own[0] - read.own[1]).abs().max().item(), 1e-4 if exactly else 0.05
    if not leak <= most:
        raise ValueError(
            f"{name} reads what stands under the left padding (its log-probabilities move by {leak:.2g} nats), so that "
            f"a row would depend on the others of its batch. {REFUSED}"
        )
    wide, most = _leak_in_wide_rows(model, trunk_inputs), 1e-3 if exactly else 0.05
    if not wide <= most:
        raise ValueError(
            f"{name} reads what stands under the left padding of long rows (its states move by {wide:.2g} of their "
            f"size): its sparse attention counts slots, padding and all. {REFUSED}"
        )
    # Another padded width is another order of sums: 5e-6 in float32 on small logits, up to 0.1 in bfloat16, and more at
    # a token whose experts change. Wrong positions move every token, by a nat or so.
    moved, most = (read.own[0] - read.alone).abs().mean().item(), 1e-3 if exactly else 0.25
    if not moved <= most:
        raise ValueError(
            f"{name} reads a row otherwise under left padding than alone (its log-probabilities move by {moved:.2g} "
            f"nats on average): its positions cannot be told, or it makes nothing of the mask. {REFUSED}"
        )
    if model.device.type != "cpu":
        return False
    tiled_N, _ = token_logprobs(read.hidden.flatten(0, 1), model.get_output_embeddings(), read.labels.flatten(), 1.0)
    return (tiled_N - read.own.flatten()).abs().max().item() <= (1e-4 if exactly else 0.05)


class _Read(NamedTuple):
    """What two rows gave that differ under their padding alone, (B, S); S: the tokens after it but the first."""

    labels: Tensor
    own: Tensor  # log-probabilities of the model's own logits
    fused: Tensor  # of TRL's fused head
    alone: Tensor  # own ones of the first row without padding, positions or mask, (S,)
    hidden: Tensor  # of the trunk, before each token, (B, S, H)


def _read_two_rows(model: Any, trunk_inputs: Callable[[Tensor, Tensor], dict[str, Any]]) -> _Read:
    before, tokens = 5, list(range(1, 13))  # an odd shift: some attention summarises every fourth token
    ids_BT = torch.tensor([[first] * before + tokens for first in (13, 14)], device=model.device)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[:, :before] = 0
    inputs = trunk_inputs(ids_BT, mask_BT)
    labels_BT = ids_BT.masked_fill(mask_BT == 0, -100)
    labels_BT[:, before] = -100  # the first counted token has nothing before it
    forward, was_training = model.forward, model.training
    model.eval()
    try:
        with understood(model, "read two rows under left padding"):
            logprobs_BTV = model(**inputs, use_cache=False).logits.float().log_softmax(-1)
            alone_SV = model(input_ids=ids_BT[:1, before:], use_cache=False).logits[0].float().log_softmax(-1)
            hidden_BTH = model.base_model(**inputs, use_cache=False).last_hidden_state
        with understood(model, "take log-probabilities from its hidden states and its output embeddings"):
            add_fused_lm_head(model)  # on top, without a temperature
            fused_BT = model(**inputs, labels=labels_BT, fused_lm_head=True).log_probs
    finally:
        model.forward = forward
        model.train(was_training)
    labels_BS = ids_BT[:, before + 1 :]
    return _Read(
        labels_BS,
        own=logprobs_BTV[:, before:-1].gather(2, labels_BS[..., None]).squeeze(2),
        fused=fused_BT[:, before:],
        alone=alone_SV[:-1].gather(1, labels_BS[0, :, None]).squeeze(1),
        hidden=hidden_BTH[:, before:-1],
    )


def _leak_in_wide_rows(model: Any, trunk_inputs: Callable[[Tensor, Tensor], dict[str, Any]]) -> float:
    """How far the states of two long rows are apart that differ under the padding alone, over the largest state.

    0 where no layer has selective attention: others do with long rows what they do with short ones.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or []
    if not any(word in kind for kind in kinds for word in SELECTIVE):
        return 0.0
    width = min(WIDE, positions_of(config) or WIDE)
    before = width // 3
    ids_T = 15 + torch.arange(width, device=model.device) * 7 % (embedding_rows(model) - 15)
    ids_BT = torch.stack([ids_T, ids_T])
    ids_BT[0, :before], ids_BT[1, :before] = 13, 14
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[:, :before] = 0
    was_training = model.training
    model.eval()
    try:
        with understood(model, f"read two rows of {width} tokens under left padding"):
            inputs = trunk_inputs(ids_BT, mask_BT)
            states = model.base_model(**inputs, use_cache=False).last_hidden_state[:, before:].float()
    finally:
        model.train(was_training)
    return float((states[0] - states[1]).abs().max() / states.abs().max().clamp(min=1e-8))


@contextlib.contextmanager
def understood(model: Any, trial: str) -> Iterator[None]:
    """Let a failure of the model's own code, or PEFT's, come out as a ValueError that says what was tried on what."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model's code may raise anything
        reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
        adapted = unlike_linear(model, adapted=True)
        remedy = (
            f"The adapter is on layers that are linear maps by name alone ({adapted[0]} the first); keep it off them "
            f"(exclude_modules={sorted({layer.rsplit('.', 1)[-1] for layer in adapted})} in the LoraConfig)."
            if adapted
            else f"{REFUSED[:-1]}; take a base of another family."
        )
        raise ValueError(f"{type(model).__name__} could not {trial} ({reason}). {remedy}") from error


def unlike_linear(model: Any, adapted: bool = False) -> list[str]:
    """Names of layers that are nn.Linear by class and answer with something else than one vector for each vector.

    PEFT's LoRA takes them for linear maps, and fails in the first forward: PhiMoE's and Llama 4's routers answer with
    two tensors, DeepSeek-V4's grouped projection reads each group with weights of its own.

    Args:
        adapted: only those that carry an adapter.
    """
    found = []
    for name, module in model.named_modules():
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        own = isinstance(layer, nn.Linear) and "modeling_" in type(layer).__module__  # of a model's own code
        if own and not name.endswith(".base_layer") and (isinstance(module, BaseTunerLayer) or not adapted):
            weights = {key: torch.empty_like(p, device="meta") for key, p in layer.named_parameters()}
            vectors = torch.empty(2, layer.in_features, dtype=layer.weight.dtype, device="meta")
            try:
                answer = torch.func.functional_call(layer, weights, (vectors,))
            except Exception:  # a layer's code may raise anything
                answer = None
            if not isinstance(answer, Tensor) or answer.shape != (2, layer.out_features):
                found.append(name)
    return found


def can_be_read(model: Any) -> bool:
    """Whether one process can run the model as it stands: its weights are here, whole.

    Quantised weights on a CPU are left alone: bitsandbytes repacks them for good in the first forward without gradient.
    """
    if model.device.type == "cpu" and getattr(model, "hf_quantizer", None) is not None:
        return False
    return not any(p.is_meta or isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())
