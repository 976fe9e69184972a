"""Log-probabilities of given tokens from hidden states, never holding the logits of more than a tile of rows.

TRL's fused head does this with Triton on GPUs; on CPUs its fallback makes several passes over wide tiles. This one is
for CPUs: tiles high enough for the product with the vocabulary, worked on in place in strips that stay in the cache,
and, where the head is frozen, the gradient taken at once, so that the backward needs no second product with it.

Layout: N tokens, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

TILE = 2**21  # logits of a tile: 8 MB in float32
WIDE_TILE = 2**24  # at most, where a tile of that size would have less than 256 rows
STRIP = 2**18  # of which so many are worked on at a time: 1 MB


def token_logprobs(
    hidden_NH: Tensor, head: torch.nn.Linear, labels_N: Tensor, temperature: float, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-softmax of `head(hidden) / temperature` at the labels, and perhaps its entropy in nats; (N,) each, float32.

    Differentiable with respect to the hidden states and the head's weight, where they are trained; entropy is a value.
    """
    # A head that is no part of another FSDP unit is read without its forward, where it would be gathered.
    weight, bias = (w.full_tensor() if isinstance(w, DTensor) else w for w in (head.weight, head.bias))
    weight = weight.to(hidden_NH.dtype)  # under autocast the states are bfloat16, and the product with them
    logprobs, entropies = _TokenLogprobs.apply(hidden_NH, weight, bias, labels_N, temperature, with_entropy)
    return logprobs, entropies if with_entropy else None


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden_NH.dtype, torch.float32)
        logprobs_N = hidden_NH.new_empty(len(hidden_NH), dtype=wide)
        entropies_N = torch.zeros_like(logprobs_N)
        at_once = ctx.needs_input_grad[0] and not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
        slope_NH = torch.empty_like(hidden_NH) if at_once else None  # of each log-probability by its own hidden state
        totals_N = torch.empty_like(logprobs_N)
        for rows in _tiles(len(hidden_NH), len(weight_VH)):
            tile = _logits(hidden_NH[rows], weight_VH, bias_V, temperature)
            for some in _strips(rows, len(weight_VH)):  # which stay in the cache through the passes over them
                logits = tile[some.start - rows.start : some.stop - rows.start]
                chosen = logits.gather(1, labels_N[some, None]).squeeze(1)
                largest = logits.amax(1, keepdim=True)
                logits.sub_(largest)
                exponents = logits.exp() if with_entropy else logits.exp_()
                totals = totals_N[some] = exponents.sum(1)
                logprobs_N[some] = chosen - largest.squeeze(1) - totals.log()
                if with_entropy:
                    entropies_N[some] = totals.log() - torch.linalg.vecdot(exponents, logits) / totals
                    if slope_NH is not None:
                        logits.copy_(exponents)
            if slope_NH is not None:
                expected = tile.to(weight_VH.dtype) @ weight_VH / totals_N[rows].unsqueeze(1)
                slope_NH[rows] = ((weight_VH[labels_N[rows]] - expected) / temperature).to(slope_NH.dtype)
        ctx.temperature, ctx.at_once = temperature, at_once
        ctx.save_for_backward(*((slope_NH,) if at_once else (hidden_NH, weight_VH, bias_V, labels_N, logprobs_N)))
        ctx.mark_non_differentiable(entropies_N)
        return logprobs_N, entropies_N

    @staticmethod
    def backward(ctx: Any, gradient_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.at_once:
            (slope_NH,) = ctx.saved_tensors
            return gradient_N.unsqueeze(1).to(slope_NH.dtype) * slope_NH, None, None, None, None, None
        hidden_NH, weight_VH, bias_V, labels_N, logprobs_N = ctx.saved_tensors
        of_hidden, of_weight = torch.empty_like(hidden_NH), torch.zeros_like(weight_VH)
        of_bias = None if bias_V is None else torch.zeros_like(bias_V)
        for rows in _tiles(len(hidden_NH), len(weight_VH)):
            logits = _logits(hidden_NH[rows], weight_VH, bias_V, ctx.temperature)
            chosen = logits.gather(1, labels_N[rows, None])
            logits.sub_(chosen - logprobs_N[rows, None]).exp_().neg_()  # minus the probabilities
            logits.scatter_add_(1, labels_N[rows, None], torch.ones_like(chosen))
            logits.mul_(gradient_N[rows, None] / ctx.temperature)
            slope = logits.to(weight_VH.dtype)
            of_hidden[rows] = slope @ weight_VH
            of_weight.addmm_(slope.t(), hidden_NH[rows])
            if of_bias is not None:
                of_bias.add_(logits.sum(0))
        return of_hidden, of_weight, of_bias, None, None, None


def _logits(hidden: Tensor, weight_VH: Tensor, bias_V: Tensor | None, temperature: float) -> Tensor:
    logits = hidden @ weight_VH.t()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias_V is not None:
        logits.add_(bias_V)
    return logits if temperature == 1 else logits.div_(temperature)


def _tiles(rows: int, vocabulary: int) -> list[slice]:
    """Rows whose product with the vocabulary is taken at once: over fewer than 256 it waits for the head's weights."""
    return _cut(0, rows, max(16, TILE // vocabulary, min(256, WIDE_TILE // vocabulary)))


def _strips(rows: slice, vocabulary: int) -> list[slice]:
    return _cut(rows.start, rows.stop, max(1, STRIP // vocabulary))


def _cut(start: int, stop: int, step: int) -> list[slice]:
    return [slice(at, min(at + step, stop)) for at in range(start, stop, step)]
