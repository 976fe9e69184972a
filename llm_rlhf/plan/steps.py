"""The largest steps of the stages, on models without data: what each holds at once, by kind.

Each function runs what its stage runs, with the shapes of its largest step: its micro-batch, forwards and backwards;
its batch of replies, at the first token and at the last; its batch of rows to score.

Layout: B rows, P prompt tokens, R response tokens, T both.
"""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import DynamicCache

from llm_rlhf.models.adapters import POLICY, active_adapters
from llm_rlhf.models.decoding_loop import prompt_columns
from llm_rlhf.models.logprobs import token_logprobs
from llm_rlhf.models.random_draws import draw_tokens
from llm_rlhf.models.roles import VALUE, apply_head, hidden_states, position_ids, role_scores
from llm_rlhf.plan.live_memory import GRADIENTS, LiveMemory, tensors_of, watch_gradients
from llm_rlhf.ppo import objectives

BASE, ADAPTERS, OPTIMIZER, CACHE, MERGED = "base", "adapters", "optimizer", "KV cache", "merged weights"
KEPT = "kept by the allocator"
ADDED = ("lora_", "modules_to_save", "score_heads", "value_head")  # in names of what a stage puts on the base


@dataclass
class Simulation:
    """A model without data, and the count of what lives beside it.

    Args:
        autocast: trainers compute in bfloat16.
        tiled: log-probabilities come from this package's head for CPUs, not from TRL's.
        heap: freed tensors leave gaps in glibc's heap. It is taken for twice as large as the small tensors in it:
            0.7 to 5 times their size was measured to be kept (docs/planning.md).
        device: "cpu" or "cuda": where the run would compute.
    """

    model: Any
    memory: LiveMemory
    autocast: bool = False
    tiled: bool = False
    heap: bool = False
    device: str = "cpu"
    steps: dict[str, dict[str, int]] = field(default_factory=dict)  # bytes by kind at the peak of each step
    _held: list[Tensor] = field(default_factory=list)  # what stands for memory beside the model's

    def __post_init__(self) -> None:
        adapters = {id(p) for n, p in self.model.named_parameters() if p.requires_grad or any(of in n for of in ADDED)}
        own = tensors_of(self.model)
        self.memory.hold([t for t in own if id(t) not in adapters], BASE)
        self.memory.hold([t for t in own if id(t) in adapters], ADAPTERS)

    @property
    def base(self) -> Any:
        return self.model.get_base_model()

    @contextlib.contextmanager
    def step(self, name: str, autocast: bool = False) -> Iterator[None]:
        """Count what is alive in it at most."""
        self.memory.start_again()
        with self.memory, torch.autocast("cpu", torch.bfloat16, enabled=self.autocast and autocast):
            yield
        self.steps[name] = {kind: size for kind, size in self.memory.at_peak.items() if size}
        if self.heap:
            self.steps[name][KEPT] = self.memory.small_peak

    def hold_beside(self, size: int, kind: str = BASE) -> None:
        """Count what is there from here on and is no part of this model, in bytes: by default weights of others."""
        self._held.append(torch.empty(size, dtype=torch.uint8))
        self.memory.hold(self._held[-1:], kind)

    def prepare_training(self, config: Any, optimizer_bytes: float) -> None:
        """What training puts there and leaves: checkpointing, the optimizer's state, gradients of a step before.

        Args:
            optimizer_bytes: of the optimizer's state, for each trained number.
        """
        self.model.train()
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(config.gradient_checkpointing_kwargs)
            self.model.enable_input_require_grads()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        numbers = sum(p.numel() for p in trained)
        self._held.append(torch.empty(int(numbers * optimizer_bytes), dtype=torch.uint8))
        self.memory.hold(self._held[-1:], OPTIMIZER)
        if config.gradient_accumulation_steps > 1:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
            self.memory.hold([p.grad for p in trained], GRADIENTS)
        watch_gradients(self.model, self.memory)


def rows_of(B: int, T: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, (B, T) each; one row is padded, as without padding attention makes itself no mask."""
    mask = torch.ones(B, T, dtype=torch.long)
    mask[0, : min(1, T - 1)] = 0
    return torch.zeros(B, T, dtype=torch.long), mask


# ---- training ------------------------------------------------------------------------------------------------------


def imitate(simulation: Simulation, B: int, T: int) -> None:
    """A micro-batch of SFT."""
    ids, mask = rows_of(B, T)
    with simulation.step("update", autocast=True):
        _logprobs(simulation.model, ids, mask).sum().backward()


def prefer_pairs(simulation: Simulation, B: int, T: int) -> None:
    """A micro-batch of reward modelling: both replies of every pair go through the model together."""
    ids, mask = rows_of(2 * B, T)
    with simulation.step("update", autocast=True):
        scores = simulation.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.squeeze(-1).float()
        chosen, rejected = scores.chunk(2)
        (-logsigmoid(chosen - rejected).mean()).backward()


def compare_with_reference(simulation: Simulation, B: int, T: int) -> None:
    """A micro-batch of B replies of DPO or KTO: the reference reads them while the policy's activations are kept."""
    ids, mask = rows_of(B, T)
    model, base = simulation.model, simulation.base
    with simulation.step("update", autocast=True):
        policy = _logprobs(model, ids, mask).sum(1)
        with torch.no_grad(), active_adapters(base, []):
            reference = _logprobs(model, ids, mask).sum(1)
        (-logsigmoid(policy - reference).mean()).backward()


def compare_within_group(simulation: Simulation, B: int, T: int) -> None:
    """A micro-batch of GRPO or RLOO."""
    ids, mask = rows_of(B, T)
    with simulation.step("update", autocast=True):
        logprobs = _logprobs(simulation.model, ids, mask)
        (-(logprobs - logprobs.detach()).exp().mean()).backward()


def update_policy(simulation: Simulation, B: int, P: int, R: int, cliprange: float, imitated: int = 0) -> None:
    """A micro-batch of PPO, policy and value function together.

    Args:
        imitated: tokens of the longest demonstration beside each response; 0: none.
    """
    ids, mask = rows_of(B, P + R)
    known = torch.zeros(B, R)
    with simulation.step("update", autocast=True):
        logprobs, _, values = _joint(simulation, ids, mask, R)
        policy, _ = objectives.policy_loss(logprobs, known, known, cliprange, None)
        value = objectives.value_loss(values, known, known, cliprange)
        loss = policy.loss.sum() + value.loss.sum()
        if imitated:
            ids, mask = rows_of(B, imitated)
            loss = loss - _joint(simulation, ids, mask, imitated - 1, with_value=False)[0].sum()
        loss.backward()


# ---- reading and sampling ------------------------------------------------------------------------------------------


def score_rollout(
    simulation: Simulation, B: int, P: int, R: int, rewards: Sequence[str], name: str = "scoring"
) -> None:
    """A micro-batch of PPO's rollout: policy and value, reference, reward models, one after the other."""
    ids, mask = rows_of(B, P + R)
    with simulation.step(name, autocast=True), torch.no_grad():
        kept = [_joint(simulation, ids, mask, R, with_entropy=True)]
        with active_adapters(simulation.base, []):
            kept.append(_joint(simulation, ids, mask, R, with_value=False))
        for role in rewards:
            role_scores(simulation.model, role, ids, mask)


def read_rows(
    simulation: Simulation, B: int, T: int, rewards: Sequence[str], name: str = "scoring", with_policy: bool = True
) -> None:
    """Reward models read rows, and the policy says how probable it finds them, where it is asked."""
    ids, mask = rows_of(B, T)
    with simulation.step(name), torch.no_grad():
        for role in rewards:
            role_scores(simulation.model, role, ids, mask)
        if with_policy:
            _joint(simulation, ids, mask, T - 1, with_value=False)


def sample(
    simulation: Simulation,
    B: int,
    P: int,
    R: int,
    draws: bool,
    merged: int = 0,
    name: str = "sampling",
    adapters: Sequence[str] = (POLICY,),
    length: int = 0,
) -> None:
    """B replies at once: the prompts' forward, then the step at which the cache is longest.

    Args:
        draws: by uniform numbers, as on a CPU and wherever replies are to be the same again; else by exponentials.
        merged: bytes of a copy of the policy's weights with its LoRA in them, which samples; 0: there is none.
        length: tokens that a cache of fixed size has room for; 0: it grows.
    """
    model = simulation.base
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(active_adapters(model, [] if merged else list(adapters)))
        copied = torch.empty(merged, dtype=torch.uint8)
        simulation.memory.hold([copied], MERGED)
        cache = _CountedCache(simulation)
        ids, mask = rows_of(B, P)
        with simulation.step(f"{name}, first token"):
            for read in ids.split(prompt_columns(B, P, simulation.device), 1):  # as models/decoding_loop.py reads them
                end = cache.get_seq_length() + read.size(1)
                logits = _forward(model, read, mask[:, :end], cache)
            _next_tokens(logits, draws)
        cache = _CountedCache(simulation)  # the first one is gone
        longest = max(P + R, length)
        _forward(model, *rows_of(B, longest - 1), cache)  # uncounted: it makes the cache as it is at the last token
        simulation.memory.hold(_tensors_in(cache), CACHE)
        ids, mask = rows_of(B, longest)
        with simulation.step(f"{name}, last token"):
            _next_tokens(_forward(model, ids[:, :1], mask, cache), draws)


class _CountedCache(DynamicCache):
    """A cache whose keys and values count as one's."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(config=simulation.base.config)
        self.memory = simulation.memory

    def update(self, *args: Any, **kwargs: Any) -> Any:
        with self.memory.called(CACHE):
            return super().update(*args, **kwargs)


def _forward(model: Any, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
    """Logits of the last token, (B, V), as `generate` asks for them."""
    taken = inspect.signature(type(model).forward).parameters
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
    if "position_ids" in taken:
        inputs["position_ids"] = position_ids(mask)[:, -ids.size(1) :]
    if "logits_to_keep" in taken:
        inputs["logits_to_keep"] = 1
    logits: Tensor = model(**inputs).logits
    return logits[:, -1]


def _next_tokens(logits_BV: Tensor, draws: bool) -> Tensor:
    return draw_tokens(logits_BV, 1.0, torch.rand(len(logits_BV)) if draws else None)[0]


def _tensors_in(cache: Any) -> list[Tensor]:
    layers = getattr(cache, "layers", [cache])
    return [value for layer in layers for value in vars(layer).values() if isinstance(value, Tensor)]


def _logprobs(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Of every token, by TRL's fused head."""
    found: Tensor = model(
        input_ids=ids, attention_mask=mask, labels=ids, use_cache=False, fused_lm_head=True
    ).log_probs  # fmt: skip
    return found


def _joint(
    simulation: Simulation, ids: Tensor, mask: Tensor, R: int, with_value: bool = True, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The joint call (models/roles.py) with every response token counted, which no real row exceeds."""
    base, before = simulation.base, slice(-R - 1, -1)
    if simulation.tiled:
        hidden = hidden_states(base, ids, mask)[:, before]
        counted = hidden.flatten(0, 1)[torch.arange(len(ids) * R)]
        logprobs, entropies = token_logprobs(
            counted, base.get_output_embeddings(), ids[:, -R:].flatten(), 1.0, with_entropy
        )
        logprobs = logprobs.view(-1, R)
    else:
        kept: list[Tensor] = []

        def keep(_module: Any, _args: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[:, before]
            kept.append(output.last_hidden_state)
            return output

        hook = base.base_model.register_forward_hook(keep)
        try:
            inputs = {"input_ids": ids, "attention_mask": mask, "shift_labels": ids[:, -R:]}
            fused = base(**inputs, fused_lm_head=True)
        finally:
            hook.remove()
        logprobs, entropies, hidden = fused.log_probs, fused.entropy, kept[0]
    if not with_value:
        return logprobs, entropies, logprobs
    if VALUE in getattr(base, "peft_config", {}):
        with active_adapters(base, [VALUE]):
            hidden = hidden_states(base, ids, mask)[:, before]
    return logprobs, entropies, apply_head(base.value_head, hidden)
