"""The decoding loop that replies are sampled by, which transformers' `generate` runs (its `custom_generate`).

`generate` prepares inputs and cache as the architecture wants them; the loop draws tokens, keeps their
log-probabilities, and lets rows that have finished leave the batch, so that one long reply does not hold up all others.
On a GPU the prompts of a large batch are read in pieces, whose activations take less memory.

Private methods of transformers that are called, as its own guide to `custom_generate` does, guarded by
tests/models/test_sampler.py: `_prefill`, `_update_model_kwargs_for_generation`.

Layout: B rows of `generate`, N rows that are still in the batch, T tokens of prompts, S sampling steps, V vocabulary.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from llm_rlhf import interruption
from llm_rlhf.errors import RunError
from llm_rlhf.models.decoding import plain_decoding
from llm_rlhf.models.growing_cache import GrowingLayer, grow_in_place
from llm_rlhf.models.memory import reading_budget
from llm_rlhf.models.random_draws import draw_tokens, entropy
from llm_rlhf.models.roles import apply_head

FEWER = 7 / 8  # of the batch, at most, for which it is worth to copy the cache to the rows that remain
ASKED_EVERY = 16  # steps of a compiled batch between two questions whether all have finished, for which the CPU waits


class SamplingError(RunError):
    """Sampling did not do what it was asked for."""


class DecodingLoop:
    """The decoding loop: `model.generate(..., custom_generate=loop)`; greedy but for the draws of its own.

    Args:
        temperature: 0 takes the most likely token.
        uniforms_BS: numbers in [0, 1) to draw by, one a row and step; None: new ones from torch's generator, the same
            for every row whatever others have finished.
        rows: how many of the B count; the others only fill the batch.
        forward: what computes a step in the model's place (a compiled one); rows then stay in the batch.
        leave: whether finished rows leave the batch, where the cache can do without them, and long prompts are read in
            pieces; False to compare with.
        synced: every process goes on until all have finished, as each forward gathers weights of all (FSDP).
        value_head: keep what it makes of the state before each token, and the entropies of what tokens are drawn from;
            where the model itself computes the steps.

    Attributes:
        logprobs_BS: of the sampled tokens of the rows that count, 0 behind a reply's end; None before the first call.
        entropies_BS, values_BS: the same, in nats and in value; None where there is no value head.
    """

    def __init__(
        self,
        temperature: float,
        uniforms_BS: Tensor | None = None,
        rows: int | None = None,
        forward: Any = None,
        leave: bool = True,
        synced: bool = False,
        value_head: Any = None,
    ) -> None:
        self.temperature, self.uniforms_BS, self.rows = temperature, uniforms_BS, rows
        self.forward, self.leave, self.synced, self.value_head = forward, leave, synced, value_head
        self.logprobs_BS: Tensor | None = None
        self.entropies_BS: Tensor | None = None
        self.values_BS: Tensor | None = None
        self._states_NH = torch.empty(0)  # that the newest logits are of

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Tensor:
        """Prompts and replies, (B, T + S) for the S steps that were needed; pad tokens behind a reply's end."""
        if len(logits_processor):
            raise SamplingError(
                f"This loop draws from the model's own distribution; it was given {[*logits_processor]}. Sample with "
                "transformers' own."
            )
        if self.value_head is None:
            return self._sample(model, input_ids, generation_config, model_kwargs)
        hook = model.base_model.register_forward_hook(self._see_states)
        try:
            return self._sample(model, input_ids, generation_config, model_kwargs)
        finally:
            hook.remove()
            self._states_NH = torch.empty(0)

    def _see_states(self, _module: Any, _args: Any, output: Any) -> None:
        self._states_NH = output.last_hidden_state[:, -1]

    def _sample(self, model: Any, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any]) -> Tensor:
        device, B = input_ids.device, len(input_ids)
        steps = generation_config.max_length - input_ids.size(1)
        stops = generation_config.eos_token_id
        stops_K = torch.tensor([] if stops is None else [stops] if isinstance(stops, int) else stops, device=device)
        pad = generation_config.pad_token_id
        tokens_BS = input_ids.new_full((B, steps), pad)
        names = ["logprobs_BS"] if self.value_head is None else ["logprobs_BS", "entropies_BS", "values_BS"]
        kept = {name: torch.zeros(B, steps, device=device) for name in names}
        rows_N = torch.arange(B, device=device)
        alive_N = rows_N < (B if self.rows is None else self.rows)
        ids, forward, step = input_ids, self.forward or model, 0
        waits = False  # for other processes only: no number is drawn, so that the next rollout's are those of one alone
        grow_in_place(model_kwargs.get("past_key_values"), generation_config.max_length)
        outputs = model._prefill(input_ids, self._in_pieces(input_ids, generation_config, model_kwargs), model_kwargs)
        for step in range(steps):
            numbers_B = self._numbers(step, B, device) if not waits else torch.zeros(B, device=device)
            logits_NV = outputs.logits[:, -1]
            drawn_N, logprobs_N = draw_tokens(
                logits_NV, self.temperature, None if numbers_B is None else numbers_B[rows_N]
            )
            found = [logprobs_N]
            if self.value_head is not None:
                found += [entropy(logits_NV, self.temperature), apply_head(self.value_head, self._states_NH)]
            drawn_N = drawn_N.masked_fill(~alive_N, pad)
            tokens_BS[rows_N, step] = drawn_N
            for name, of_rows_N in zip(names, found, strict=True):
                kept[name][rows_N, step] = of_rows_N.masked_fill(~alive_N, 0.0)
            alive_N = alive_N & ~torch.isin(drawn_N, stops_K)
            if step + 1 == steps:
                break
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
            ids = torch.cat([ids, drawn_N.unsqueeze(1)], 1)
            if self.forward is None or step % ASKED_EVERY == ASKED_EVERY - 1:
                left, stops_here = alive_N.sum(), interruption.asked()  # then whoever samples ends it
                waits = bool(left == 0)
                if self.synced:
                    both = torch.stack([left, left.new_tensor(stops_here)])
                    torch.distributed.all_reduce(both)
                    left, stops_here = both[0], bool(both[1])
                if left == 0 or stops_here:
                    break
                if not self.synced and left <= FEWER * len(rows_N) and self._may_leave(model_kwargs, len(rows_N)):
                    stay = alive_N.nonzero().squeeze(1)
                    model_kwargs["past_key_values"].batch_select_indices(stay)
                    model_kwargs = {k: v[stay] if isinstance(v, Tensor) else v for k, v in model_kwargs.items()}
                    ids, rows_N, alive_N = ids[stay], rows_N[stay], alive_N[stay]
            inputs = model.prepare_inputs_for_generation(
                ids, next_sequence_length=1 if model_kwargs["use_cache"] else None, **model_kwargs
            )
            outputs = forward(**inputs, return_dict=True)
        for name in names:
            setattr(self, name, kept[name][: self.rows, : step + 1])
        return torch.cat([input_ids, tokens_BS[:, : step + 1]], 1)

    def _in_pieces(self, ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any]) -> Any:
        """The configuration by which prompts are read: in pieces of so many columns that a forward is not too large.

        As a whole where processes make the same forwards (FSDP), and where the cache holds more than keys and values.
        """
        columns = prompt_columns(len(ids), ids.size(1), ids.device.type)
        cache = model_kwargs.get("past_key_values")
        if columns == ids.size(1) or not self.leave or self.synced or not _of_keys_and_values(cache):
            return generation_config
        generation_config = copy.copy(generation_config)
        generation_config.prefill_chunk_size, generation_config.disable_compile = columns, True
        return generation_config

    def _numbers(self, step: int, B: int, device: Any) -> Tensor | None:
        """The step's numbers to draw by, (B,); None where the device draws better by itself."""
        if self.temperature == 0:
            return None
        if self.uniforms_BS is not None:
            return self.uniforms_BS[:, step].to(device)
        return torch.rand(B, dtype=torch.float64) if device.type == "cpu" else None

    def _may_leave(self, model_kwargs: dict[str, Any], rows: int) -> bool:
        """Whether a batch can be cut to some of its rows: all that it carries is one row beside the other."""
        cache = model_kwargs.get("past_key_values")
        plain = type(cache) is DynamicCache and _of_keys_and_values(cache)
        others = [value for value in model_kwargs.values() if isinstance(value, Tensor)]
        return self.leave and self.forward is None and plain and all(len(value) == rows for value in others)


def _of_keys_and_values(cache: Any) -> bool:
    """Whether it is transformers' own, and of keys and values alone."""
    known = (GrowingLayer, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer)
    return type(cache) in (DynamicCache, StaticCache) and all(type(layer) in known for layer in cache.layers)


@contextlib.contextmanager
def sampling(base: Any, loop: DecodingLoop, generate: Any = None) -> Iterator[None]:
    """Let `base.generate` sample by a loop, until the block ends, and by nothing that its generation config asks for.

    Args:
        generate: called in place of the base's own, with the loop as `custom_generate`.
    """
    generate = generate or base.generate

    def generate_by_loop(*args: Any, generation_config: Any, **kwargs: Any) -> Any:
        greedy = copy.deepcopy(generation_config)
        greedy.do_sample, greedy.temperature, greedy.top_k, greedy.top_p = False, None, None, None
        return generate(*args, generation_config=greedy, custom_generate=loop, **kwargs)

    with plain_decoding(base):
        base.generate = generate_by_loop
        try:
            yield
        finally:
            del base.generate


def prompt_columns(rows: int, length: int, device: str) -> int:
    """How many tokens of each prompt a forward reads, of a batch of so many prompts of this length."""
    budget = reading_budget(device)
    return length if budget is None else min(length, max(budget // rows, 1))
