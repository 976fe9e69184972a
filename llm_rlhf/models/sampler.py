"""Sampling many replies at once: transformers' `generate` around a decoding loop of our own.

`generate` prepares inputs and cache as the architecture wants them; the loop (its `custom_generate`) draws tokens,
keeps their log-probabilities, and lets rows that have finished leave the batch, so that one long reply does not hold up
all others. On a GPU the prompts of a large batch are read in pieces, whose activations take less memory. Compiled, the
batch keeps its shape, so that one graph serves the whole run.

Private methods of transformers that are called, as its own guide to `custom_generate` does, guarded by
tests/models/test_sampler.py: `_prefill`, `_update_model_kwargs_for_generation`; and `_can_compile_fullgraph` is read.

Layout: B rows of `generate`, N rows that are still in the batch, T tokens of prompts, S sampling steps, V vocabulary.
"""

import contextlib
import copy
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer

from llm_rlhf import interruption
from llm_rlhf.errors import RunError
from llm_rlhf.models.base import announce
from llm_rlhf.models.compiler import missing
from llm_rlhf.models.decoding import plain_decoding
from llm_rlhf.models.liger import has_liger
from llm_rlhf.models.memory import ran_out, reading_budget
from llm_rlhf.models.merged import MergedCopy, can_merge, copied_bytes, is_exact
from llm_rlhf.models.random_draws import draw_tokens

WORTH_IT = 2_000  # decoding steps from which compiling them takes less time than it saves
GRAPHS = 64  # of one function at most, where dynamo's own limit is 8
FEWER = 7 / 8  # of the batch, at most, for which it is worth to copy the cache to the rows that remain
ASKED_EVERY = 16  # steps of a compiled batch between two questions whether all have finished, for which the CPU waits
CANNOT_MERGE = (
    "merge_for_sampling is True, but the policy's adapter is not plain LoRA on linear layers (DoRA, a bias, experts "
    "and trainable_token_indices are not), or what learns from its samples has no importance weights "
    "for rounded ones; leave it out."
)
CANNOT_COMPILE = (
    "decoding is 'compiled', but {} does not compile: it says so, or its quantisation, or its cache holds more than "
    "keys and values, or Liger's kernels are in it, or there is no compiler here; leave it 'auto'."
)


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
            pieces; False where somebody watches the forwards.
        synced: every process goes on until all have finished, as each forward gathers weights of all (FSDP).
    """

    def __init__(
        self,
        temperature: float,
        uniforms_BS: Tensor | None = None,
        rows: int | None = None,
        forward: Any = None,
        leave: bool = True,
        synced: bool = False,
    ) -> None:
        self.temperature, self.uniforms_BS, self.rows = temperature, uniforms_BS, rows
        self.forward, self.leave, self.synced = forward, leave, synced
        self.logprobs_BS: Tensor | None = None  # of the sampled tokens of the rows that count, 0 behind a reply's end

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
        device, B = input_ids.device, len(input_ids)
        steps = generation_config.max_length - input_ids.size(1)
        stops = generation_config.eos_token_id
        stops_K = torch.tensor([] if stops is None else [stops] if isinstance(stops, int) else stops, device=device)
        pad = generation_config.pad_token_id
        tokens_BS = input_ids.new_full((B, steps), pad)
        logprobs_BS = torch.zeros(B, steps, device=device)
        rows_N = torch.arange(B, device=device)
        alive_N = rows_N < (B if self.rows is None else self.rows)
        ids, forward, step = input_ids, self.forward or model, 0
        waits = False  # for other processes only: no number is drawn, so that the next rollout's are those of one alone
        outputs = model._prefill(input_ids, self._in_pieces(input_ids, generation_config, model_kwargs), model_kwargs)
        for step in range(steps):
            numbers_B = self._numbers(step, B, device) if not waits else torch.zeros(B, device=device)
            drawn_N, logprobs_N = draw_tokens(
                outputs.logits[:, -1], self.temperature, None if numbers_B is None else numbers_B[rows_N]
            )
            drawn_N = drawn_N.masked_fill(~alive_N, pad)
            tokens_BS[rows_N, step] = drawn_N
            logprobs_BS[rows_N, step] = logprobs_N.masked_fill(~alive_N, 0.0)
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
        self.logprobs_BS = logprobs_BS[: self.rows, : step + 1]
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
    known = (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer)
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


class CompiledDecoding:
    """A model's decoding step as one compiled graph (on CUDA a recorded one), for batches of few shapes.

    A cache is kept for each shape, since a recorded graph knows its tensors by their addresses. Compiling the first
    shape takes about a minute on a GPU; a step then takes a quarter of the time or less. Where the model has adapters,
    each set of them that is on while it decodes is a graph of its own.

    Args:
        rows: the batch that all smaller ones are filled up to.
        room: how many times the length that it takes the cache of a batch may have, where there is one already.
    """

    def __init__(self, model: Any, rows: int, room: int = 1) -> None:
        self.model, self.most, self.rows, self.room = model, rows, rows, room
        self.forward = torch.compile(model.__call__, mode="reduce-overhead", dynamic=False)
        self._fitting: dict[int, int] = {}  # rows that there is memory for, by the cache's length
        self._caches: dict[tuple[int, int], StaticCache] = {}

    def length(self, prompt: int, replies: int) -> int:
        """Tokens of the cache for prompts and replies of so many: of one that is there, or of a new one."""
        needed = fixed_length(prompt, replies)
        return min((known for known in self._fitting if needed <= known <= self.room * needed), default=needed)

    def fitted(self, prompt: int, replies: int) -> int:
        """Rows that batches are filled up to from here on: those for whose cache, which stays for the run, is memory.

        Args:
            prompt: tokens of their longest prompt.
        """
        length = self.length(prompt, replies)
        if length not in self._fitting:
            each = length * cache_bytes(self.model.config, self.model.dtype)
            self._fitting[length] = fitting_rows(self.most, each, free_bytes(self.model.device))
        self.rows = self._fitting[length]
        return self.rows

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, generation_config: Any, custom_generate: DecodingLoop
    ) -> Tensor:
        """`model.generate` by a loop: prompts and replies, (B, T + S).

        Where memory runs out, batches have fewer rows from then on.
        """
        B, T = input_ids.shape
        length, loop = self.length(T, generation_config.max_new_tokens), custom_generate
        filled_N = torch.arange(max(B, self.rows), device=input_ids.device).clamp(max=B - 1)
        shape = len(filled_N), length
        if shape not in self._caches:
            self._caches[shape] = fixed_cache(self.model, length)
            self._fitting.setdefault(length, self.rows)
        self._caches[shape].reset()
        loop.rows, loop.forward = B, self.forward
        if loop.uniforms_BS is not None:
            loop.uniforms_BS = loop.uniforms_BS[filled_N.to(loop.uniforms_BS.device)]
        try:
            with torch._dynamo.config.patch(recompile_limit=GRAPHS):
                out: Tensor = type(self.model).generate(  # not what `sampling` has put in its place
                    self.model,
                    input_ids=input_ids[filled_N],
                    attention_mask=attention_mask[filled_N],
                    generation_config=generation_config,
                    custom_generate=loop,
                    past_key_values=self._caches[shape],
                )
        except RuntimeError as error:
            if ran_out(error):
                self._fitting[length] = self.rows = -(-B // 2)  # as whoever samples halves the batch (memory.py)
                self._caches.clear()
            raise
        return out[:B]


def prompt_columns(rows: int, length: int, device: str) -> int:
    """How many tokens of each prompt a forward reads, of a batch of so many prompts of this length."""
    budget = reading_budget(device)
    return length if budget is None else min(length, max(budget // rows, 1))


def fixed_length(prompt: int, replies: int) -> int:
    """Tokens that a cache of fixed size has room for: few lengths, so that few graphs serve all prompts."""
    return int(2 ** math.ceil(math.log2(max(prompt, 64)))) + replies


def cache_bytes(config: Any, dtype: torch.dtype) -> int:
    """What a token's keys and values take in all layers."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * size * dtype.itemsize)


def fitting_rows(rows: int, each: int, free: float) -> int:
    """The largest batch, halved from `rows`, whose cache of `each` bytes a row takes at most a third of free memory."""
    while rows > 1 and rows * each > free / 3:
        rows = -(-rows // 2)
    return rows


def fixed_cache(model: Any, length: int) -> StaticCache:
    """A cache of `length` tokens whose layers all hold the whole of it.

    transformers' own for sliding windows counts its tokens in Python, so that each step would be compiled anew. The
    mask keeps the window.
    """
    cache = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=length)
    cache.layers = [
        StaticLayer(max_cache_len=length) if type(layer) is StaticSlidingWindowLayer else layer
        for layer in cache.layers
    ]
    return cache


@functools.cache
def has_compiler(device: str) -> bool:
    """Whether there is one for a device; said once where there is none."""
    reason = missing(device)
    if reason is not None:
        announce(f"decoding is not compiled: {reason}.")
    return reason is None


def can_compile(model: Any) -> bool:
    """Whether a model says that it compiles, as its quantisation does, and its cache is of keys and values alone.

    Not with Liger's kernels in its layers, which has never been tried; a merged copy has none.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    compiles = model._can_compile_fullgraph and (quantizer is None or quantizer.is_compileable)
    compiles = bool(compiles) and not has_liger(model) and has_compiler(model.device.type)
    return compiles and all(type(layer) is StaticLayer for layer in fixed_cache(model, 1).layers)


class PolicySampler:
    """How a policy is sampled, settled once: merged into a plain model or not, compiled or not.

    Args:
        base: the causal language model under its adapters.
        dtype: what it computes in.
        adapter: the policy's; None: the model is trained whole.
        may_round: whether samples may come of weights that are rounded (see merged.py): whoever learns from them then
            corrects by `DecodingLoop.logprobs_BS`.
        merge: None: where it can be, and the copy takes at most a third of the free memory.
        compiled_rows: compile, for batches filled up to so many rows; None: do not.
        room: CompiledDecoding's.
        must_compile: whether that must be, or where it can be.
        synced: as DecodingLoop's.

    Raises:
        ValueError: where it is to be merged or compiled and cannot be.
    """

    def __init__(
        self,
        base: Any,
        dtype: torch.dtype,
        temperature: float,
        adapter: str | None,
        may_round: bool,
        merge: bool | None = None,
        compiled_rows: int | None = None,
        room: int = 1,
        must_compile: bool = False,
        synced: bool = False,
    ) -> None:
        self.base, self.temperature, self.synced = base, temperature, synced
        self.copy: MergedCopy | None = None
        needed = copied_bytes(base, adapter, dtype)
        mergeable = can_merge(base, adapter) and (may_round or is_exact(base, dtype))
        if merge is None:
            merge = mergeable and needed > 0 and needed <= least_of_processes(free_bytes(base.device)) / 3
        elif merge and not mergeable:
            raise ValueError(CANNOT_MERGE)
        if merge:
            self.copy = MergedCopy(base, adapter, dtype)
        decoder = self.copy.model if self.copy else base
        if must_compile and not can_compile(decoder):
            raise ValueError(CANNOT_COMPILE.format(type(base).__name__))
        self.compiled: CompiledDecoding | None = None
        if compiled_rows is not None and can_compile(decoder):
            self.compiled = CompiledDecoding(decoder, compiled_rows, room)

    @property
    def rounded(self) -> bool:
        """Whether what samples is not exactly the policy."""
        return self.copy is not None and not self.copy.exact

    @property
    def told(self) -> dict[str, str]:
        """For a manifest: which weights are sampled from, and how a step is computed."""
        merged = "weights merged and rounded" if self.rounded else "weights merged"
        return {
            "sampled_from": "the adapter beside its base" if self.copy is None else merged,
            "decoding": "plain" if self.compiled is None else "compiled",
        }

    @contextlib.contextmanager
    def __call__(self, seed: int, leave: bool = True) -> Iterator[tuple[DecodingLoop, Any]]:
        """Let `base.generate` sample the policy, until the block ends.

        Yields:
            The loop, and the model that samples.
        """
        loop, model = DecodingLoop(self.temperature, leave=leave, synced=self.synced), self.base
        with contextlib.ExitStack() as stack:
            if self.copy is not None:
                model = stack.enter_context(self.copy.refreshed(seed, keep=self.compiled is not None))
                stack.enter_context(plain_decoding(model))
            generate = self.compiled.generate if self.compiled is not None else model.generate
            stack.enter_context(sampling(self.base, loop, generate))
            yield loop, model


def least_of_processes(amount: float) -> float:
    """The least of all processes' amounts, so that they all decide alike."""
    return min(gather_object([amount]))


def free_bytes(device: Any) -> float:
    """Free memory of a device; without end where a copy lives during sampling only, which is not when memory peaks."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else math.inf
