"""Policy, value, reward and reference on one base: every role is an adapter, and the reference is the base itself.

    role        adapter             head
    policy      "default"           the language model's own
    reference   none                the language model's own
    value       none or "value"     `value_head`; without an adapter it reads the policy's hidden states
    reward      "reward", ...       `score_heads[name]`, read from the adapter's file

A causal language model prepared with `add_role_forward` answers one joint call,
`model(input_ids=..., attention_mask=..., response_mask=...)`, with the response's log-probabilities and values. One
call, because gradients through two forwards of one module are wrong under DDP, and a plain dictionary, because DDP
does not look for tensors elsewhere.

Layout: B rows, T tokens of prompt and response, R response tokens. Prompts are padded on the left, responses on the
right, so a row's response always starts at T - R.
"""

import copy
import functools
import inspect
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft.utils import load_peft_weights
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from trl.trainer.utils import add_fused_lm_head

from llm_rlhf.models.adapters import POLICY, active_adapters, is_head, load_beside, mend_token_wrappers
from llm_rlhf.models.architecture import check_logits, hidden_width
from llm_rlhf.models.logprobs import token_logprobs
from llm_rlhf.models.whole import without_language_head

VALUE = "value"
HELDOUT = "heldout"  # the second reward model, never trained against: its role, and its folder in a run
NORMALISATION = "normalisation.json"
NOT_COUNTED = -100  # the label of a position whose log-probability is not wanted

_OPTIONS = (
    "with_value",
    "with_entropy",
    "detach_value",
    "ptx_input_ids",
    "ptx_attention_mask",
    "ptx_mask",
)  # of the joint call


def scalar_head(hidden_size: int, weight: Tensor | None = None) -> nn.Linear:
    """A linear map from hidden states to one number, in float32; zero unless a weight of shape (1, hidden) is given."""
    head = nn.Linear(hidden_size, 1, dtype=torch.float32)
    with torch.no_grad():
        head.weight.copy_(torch.zeros_like(head.weight) if weight is None else weight.float())
        head.bias.zero_()
    return head


def load_scalar_head(adapter: str | Path, hidden_size: int, normalised: bool = True) -> nn.Linear:
    """The score head that RewardTrainer saved with an adapter, normalised where `normalisation.json` lies beside it.

    Args:
        normalised: False reads the head as it was trained.

    Raises:
        ValueError: where the adapter's file holds no head that fits.
    """
    heads = {key: w for key, w in load_peft_weights(str(adapter), device="cpu").items() if is_head(key)}
    if len(heads) != 1 or not next(iter(heads)).endswith(".weight"):
        raise ValueError(
            f"The reward adapter at {adapter} holds {sorted(heads) or 'no score head'}; a reward role needs one "
            f"linear head without a bias, called {' or '.join(SEQ_CLS_HEAD_NAMES)}."
        )
    (weight,) = heads.values()
    if weight.shape != (1, hidden_size):
        raise ValueError(f"The score head at {adapter} has shape {tuple(weight.shape)}, not (1, {hidden_size}).")
    head = scalar_head(hidden_size, weight)
    if normalised:
        mean, deviation = read_normalisation(adapter)
        with torch.no_grad():
            head.weight.div_(deviation)
            head.bias.copy_(-torch.tensor(mean) / deviation)
    return head


def read_normalisation(adapter: str | Path) -> tuple[float, float]:
    """What is taken off an adapter's scores and what they are then divided by; 0 and 1 where it has no such file.

    `normalisation.json` holds the `mean` and the `deviation` of the scores of reference samples: a score of 0 is then
    what the reference's replies get on average (Stiennon et al. 2020; Huang et al. 2024, detail 4).
    """
    path = Path(adapter) / NORMALISATION
    if not path.is_file():
        return 0.0, 1.0
    known = json.loads(path.read_text(encoding="utf-8"))
    return float(known["mean"]), float(known["deviation"])


def add_reward_role(model: Any, adapter: str | Path, name: str) -> None:
    """Load a trained reward adapter into a PEFT model, frozen, with its head as `score_heads[name]`.

    Raises:
        ValueError: where the name is part of a layer's name; where its head does not fit, or some of its weights
            have no place in this base (or the other way round): PEFT would leave them out, and the scores would be
            another model's; where the adapter cannot be switched.
    """
    base = model.get_base_model()
    if any(f".{name}" in f".{layer}" for layer, _ in base.named_modules()):
        raise ValueError(
            f"{name!r} is part of a layer's name, which PEFT mistakes for the adapter's; call it otherwise."
        )
    head = load_scalar_head(adapter, hidden_width(base)).requires_grad_(False)
    was_training = model.training
    astray = [key for key in load_beside(model, adapter, name, "reward adapter") if not is_head(key)]
    if astray:
        raise ValueError(
            f"The reward adapter at {adapter} was trained on another base than {type(base).__name__}: {len(astray)} "
            f"weights do not fit, {astray[0]} the first. Train it on the base that PPO starts from."
        )
    model.train(was_training)
    model.set_requires_grad(name, requires_grad=False)
    if not hasattr(base, "score_heads"):
        base.score_heads = nn.ModuleDict()
    base.score_heads[name] = head.to(base.device)


def add_value_role(model: Any, value: str, reward_adapter: str | Path | None, name: str | None) -> None:
    """Give the base its value function: a zero head on the policy's trunk, or an adapter and head of its own.

    Args:
        value: "shared" or "adapter".
        reward_adapter: where an adapter of its own starts from; None: from a fresh LoRA and a zero head.
        name: the loaded reward role whose head the value head copies, or None.
    """
    base = model.get_base_model()
    if value == "adapter":
        if reward_adapter is None:
            model.add_adapter(VALUE, without_language_head(model.peft_config[POLICY], base))
        else:
            load_beside(model, reward_adapter, VALUE, "reward adapter", is_trainable=True)
        model.set_requires_grad(VALUE, requires_grad=True)
    start = base.score_heads[name] if value == "adapter" and name is not None else None
    head = scalar_head(hidden_width(base)) if start is None else copy.deepcopy(start).requires_grad_(True)
    base.value_head = head.to(base.device)


def position_ids(attention_mask_BT: Tensor) -> Tensor:
    """Position of every token among the counted ones, 0 on the padding; shape (B, T).

    Models with learned positions need it under left padding; without it they read the wrong rows of the table.
    """
    return attention_mask_BT.cumsum(1) - attention_mask_BT


def role_scores(model: Any, name: str, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
    """Score of every row by one reward role, read at its last counted token. Shape (B,), float32, no gradient.

    Under FSDP by the model's own forward, where the weights are gathered, and nowhere else.
    """
    base = model.get_base_model()
    with torch.no_grad(), active_adapters(base, [name]):
        if isinstance(model, FSDPModule):
            whole: Any = model  # mypy takes it for FSDP's own class, which has no call
            scores_B: Tensor = whole(input_ids=input_ids_BT, attention_mask=attention_mask_BT, scored_by=name)
            return scores_B
        return _score(base, name, input_ids_BT, attention_mask_BT)


def answer_scores(model: Any) -> None:
    """Teach a causal language model to score by its own forward, `model(..., scored_by="reward")` (`role_scores`)."""
    plain = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, scored_by: str | None = None, **kwargs: Any) -> Any:
        if scored_by is None:
            return plain(*args, **kwargs)
        return _score(self, scored_by, kwargs["input_ids"], kwargs["attention_mask"])

    model.forward = types.MethodType(forward, model)


def _score(base: Any, name: str, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
    hidden_BTH = hidden_states(base, input_ids_BT, attention_mask_BT)
    last_B = (attention_mask_BT * torch.arange(attention_mask_BT.size(1), device=hidden_BTH.device)).argmax(1)
    rows_B = torch.arange(hidden_BTH.size(0), device=hidden_BTH.device)
    return apply_head(base.score_heads[name], hidden_BTH[rows_B, last_B])


# Ids and mask (B, T), labels (B, S), the positions of the states that predict them, and whether entropies are wanted;
# log-probabilities and entropies of the labels (B, S), 0 where none counts, and the states (B, S, H).
LanguageHead = Callable[[Tensor, Tensor, Tensor, slice, bool], tuple[Tensor, Tensor | None, Tensor]]


def add_role_forward(model: Any, temperature: float = 1.0) -> None:
    """Teach a causal language model the joint call described at the top of this module.

    The model must already carry TRL's fused LM head (`trl.trainer.utils.add_fused_lm_head`) with the same temperature.
    It, or our own on CPUs, projects counted positions in tiles and never holds logits of the whole vocabulary. Calls
    without `response_mask` are unchanged.

    Raises:
        ValueError: where the joint call would not give this architecture's own log-probabilities.
    """
    mend_token_wrappers(model)
    fused_forward = model.forward
    tiled = check_logits(model, functools.partial(trunk_inputs, model))
    head = _tiled_head(model, temperature) if tiled else _fused_head(model, fused_forward)
    plain_head = head  # without a temperature, for demonstrations, which nobody sampled
    if temperature != 1.0:
        plain_head = _tiled_head(model, 1.0) if tiled else _fused_head(model, _fused_without_temperature(model))

    @functools.wraps(type(model).forward)  # `generate` checks its arguments against the signature
    def forward(self: Any, *args: Any, response_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if response_mask is None:
            return fused_forward(*args, **kwargs)
        return _policy_and_value(
            self,
            head,
            plain_head,
            kwargs["input_ids"],
            kwargs["attention_mask"],
            response_mask,
            **{name: kwargs[name] for name in _OPTIONS if name in kwargs},
        )

    model.forward = types.MethodType(forward, model)
    answer_scores(model)


def _policy_and_value(
    model: Any,
    head: LanguageHead,
    plain_head: LanguageHead,
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor,
    response_mask_BR: Tensor,
    with_value: bool = True,
    with_entropy: bool = True,
    detach_value: bool = False,
    ptx_input_ids: Tensor | None = None,
    ptx_attention_mask: Tensor | None = None,
    ptx_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """`logprobs` and `entropies` of the response tokens and `value_estimates` of the states before them, (B, R) each.

    The log-probabilities are an fp32 log-softmax of the logits divided by the sampling temperature that the fused head
    was given. Uncounted positions hold 0. `detach_value` keeps the value's gradient in its head (and its adapter).
    Demonstrations (`ptx_input_ids` and both masks, right-padded) add `ptx_logprobs` of their tokens that `ptx_mask`
    counts, in the same call for DDP's sake; these are of the model itself, at temperature 1.
    """
    R = response_mask_BR.size(1)
    before_response = slice(input_ids_BT.size(1) - R - 1, input_ids_BT.size(1) - 1)
    labels_BR = input_ids_BT[:, -R:].masked_fill(~response_mask_BR.bool(), NOT_COUNTED)
    logprobs, entropies, hidden_BRH = head(input_ids_BT, attention_mask_BT, labels_BR, before_response, with_entropy)
    answer = {"logprobs": logprobs}
    if entropies is not None:
        answer["entropies"] = entropies
    if with_value:
        if VALUE in getattr(model, "peft_config", {}):  # PEFT's, of all adapters in the model
            with active_adapters(model, [VALUE]):
                hidden_BRH = hidden_states(model, input_ids_BT, attention_mask_BT)[:, before_response]
        elif detach_value:
            hidden_BRH = hidden_BRH.detach()
        answer["value_estimates"] = apply_head(model.value_head, hidden_BRH) * response_mask_BR
    if ptx_input_ids is not None and ptx_attention_mask is not None and ptx_mask is not None:
        labels = ptx_input_ids.masked_fill(~ptx_mask.bool(), NOT_COUNTED)[:, 1:]
        answer["ptx_logprobs"] = plain_head(ptx_input_ids, ptx_attention_mask, labels, slice(0, -1), False)[0]
    return answer


def _tiled_head(model: Any, temperature: float) -> LanguageHead:
    """Our own, for CPUs (llm_rlhf/models/logprobs.py)."""

    def head(ids: Tensor, mask: Tensor, labels: Tensor, positions: slice, with_entropy: bool) -> Any:
        hidden_BSH = hidden_states(model, ids, mask)[:, positions]
        counted = labels != NOT_COUNTED
        logprobs_N, entropies_N = token_logprobs(
            hidden_BSH[counted], model.get_output_embeddings(), labels[counted], temperature, with_entropy
        )
        zeros = logprobs_N.new_zeros(labels.shape)
        entropies = None if entropies_N is None else zeros.masked_scatter(counted, entropies_N)
        return zeros.masked_scatter(counted, logprobs_N), entropies, hidden_BSH

    return head


def _fused_without_temperature(model: Any) -> Any:
    """TRL's fused forward at temperature 1, made on top of the one that the model carries, which stays."""
    carried = model.forward
    add_fused_lm_head(model)
    plain, model.forward = model.forward, carried
    return plain


def _fused_head(model: Any, fused_forward: Any) -> LanguageHead:
    """TRL's, which knows Triton and what some architectures do to their logits; it runs the trunk by itself."""

    def head(ids: Tensor, mask: Tensor, labels: Tensor, positions: slice, with_entropy: bool) -> Any:
        kept: list[Tensor] = []

        def keep_predicting_positions(_module: nn.Module, _args: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[:, positions]
            kept.append(output.last_hidden_state)
            return output

        hook = model.base_model.register_forward_hook(keep_predicting_positions)
        try:
            fused = fused_forward(**trunk_inputs(model, ids, mask), shift_labels=labels, fused_lm_head=True)
        finally:
            hook.remove()
        return fused.log_probs, fused.entropy if with_entropy else None, kept[0]

    return head


def hidden_states(model: Any, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
    """The last hidden states of a model's trunk, (B, T, H), each token at its place among the counted ones."""
    inputs = trunk_inputs(model, input_ids_BT, attention_mask_BT)
    return model.base_model(**inputs, use_cache=False).last_hidden_state


def trunk_inputs(model: Any, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> dict[str, Any]:
    """What a model's trunk is given for left-padded ids and their mask, (B, T) each."""
    inputs: dict[str, Any] = {"input_ids": input_ids_BT, "attention_mask": attention_mask_BT}
    if "position_ids" in inspect.signature(model.base_model.forward).parameters:  # ALiBi models have none
        inputs["position_ids"] = position_ids(attention_mask_BT)
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        inputs["output_router_logits"] = False  # the router's load-balancing loss is no part of PPO
    return inputs


def apply_head(head: nn.Linear, hidden: Tensor) -> Tensor:
    """One float32 number per hidden state; autocast would round it to bfloat16."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float()).squeeze(-1)
