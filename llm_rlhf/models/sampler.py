"""How a policy is sampled, settled once: merged into a plain model or not, its decoding step compiled or not.

Compiled, the batch keeps its shape, so that one graph serves the whole run. The loop itself is decoding_loop.py's.

Of transformers' own, `_can_compile_fullgraph` is read, which tests/models/test_sampler.py guards.
"""

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import StaticCache
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from llm_rlhf.models.base import announce
from llm_rlhf.models.compiler import missing
from llm_rlhf.models.decoding import plain_decoding
from llm_rlhf.models.decoding_loop import DecodingLoop, sampling
from llm_rlhf.models.liger import has_liger
from llm_rlhf.models.memory import ran_out
from llm_rlhf.models.merged import MergedCopy, can_merge, copied_bytes, is_exact

WORTH_IT = 2_000  # decoding steps from which compiling them takes less time than it saves
GRAPHS = 64  # of one function at most, where dynamo's own limit is 8
CANNOT_MERGE = (
    "merge_for_sampling is True, but the policy's adapter is not plain LoRA on linear layers (DoRA, a bias, experts "
    "and trainable_token_indices are not), or what learns from its samples has no importance weights "
    "for rounded ones; leave it out."
)
CANNOT_COMPILE = (
    "decoding is 'compiled', but {} does not compile: it says so, or its quantisation, or its cache holds more than "
    "keys and values, or Liger's kernels are in it, or there is no compiler here; leave it 'auto'."
)


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
    def __call__(self, seed: int, value_head: Any = None) -> Iterator[DecodingLoop]:
        """Let `base.generate` sample the policy by the loop that this gives, until the block ends.

        Args:
            value_head: DecodingLoop's.
        """
        loop, model = DecodingLoop(self.temperature, synced=self.synced, value_head=value_head), self.base
        with contextlib.ExitStack() as stack:
            if self.copy is not None:
                model = stack.enter_context(self.copy.refreshed(seed, keep=self.compiled is not None))
                stack.enter_context(plain_decoding(model))
            generate = self.compiled.generate if self.compiled is not None else model.generate
            stack.enter_context(sampling(self.base, loop, generate))
            yield loop


def least_of_processes(amount: float) -> float:
    """The least of all processes' amounts, so that they all decide alike."""
    return min(gather_object([amount]))


def free_bytes(device: Any) -> float:
    """Free memory of a device; without end where a copy lives during sampling only, which is not when memory peaks."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else math.inf
