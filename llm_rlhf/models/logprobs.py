"""Log-probabilities of given tokens from hidden states, never holding more than a block of logits.

TRL's fused head does this with Triton on GPUs; on CPUs its fallback makes several passes over wide tiles. This one is
for CPUs: blocks of some rows by some of the vocabulary, worked on in place while they are in the cache, whose maxima
and sums are taken together as they come (Milakov & Gimelshein 2018, arXiv:1805.02867, algorithm 3). Where the head is
frozen, the gradient is taken with them, so that the backward needs no second product with it.

Layout: N tokens, H hidden size, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from llm_rlhf.models.products import product

ROWS, WORDS = 256, 1024  # of a block: 1 MB in float32


def token_logprobs(
    hidden_NH: Tensor, head: torch.nn.Linear, labels_N: Tensor, temperature: float, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-softmax of `head(hidden) / temperature` at the labels, and perhaps its entropy in nats; (N,) each, float32 at
    least. Of a label that is no word it is NaN.

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
        N, wide = len(hidden_NH), torch.promote_types(hidden_NH.dtype, torch.float32)
        at_once = ctx.needs_input_grad[0] and not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
        totals_N, weighted_N = hidden_NH.new_zeros(2, N, dtype=wide)
        chosen_N = torch.full_like(totals_N, torch.nan)
        largest_N = torch.full_like(totals_N, torch.finfo(wide).min)
        expected_NH = torch.zeros_like(hidden_NH, dtype=wide) if at_once else None  # rows of the head, by totals
        for words, rows in _blocks(len(weight_VH), N):
            logits = _logits(hidden_NH[rows], weight_VH, bias_V, words, temperature)
            at, here = _labels_in(words, labels_N[rows])
            chosen_N[rows] = torch.where(here, logits.gather(1, at), chosen_N[rows, None]).squeeze(1)
            largest = torch.maximum(largest_N[rows], logits.amax(1))
            grown = (largest_N[rows] - largest).clamp_(min=-1e4)  # whose exponent is 0, and whose products are finite
            scale = grown.exp()  # of the sums so far
            logits.sub_(largest[:, None])
            exponents = logits.exp() if with_entropy else logits.exp_()
            if with_entropy:  # sums of exponents by how far below the largest they are
                weighted = scale * (weighted_N[rows] + grown * totals_N[rows])
                weighted_N[rows] = weighted + torch.linalg.vecdot(exponents, logits)
            totals_N[rows] = scale * totals_N[rows] + exponents.sum(1)
            largest_N[rows] = largest
            if expected_NH is not None:
                of_rows = expected_NH[rows].mul_(scale[:, None])
                of_rows += product(exponents.to(weight_VH.dtype), weight_VH[words].t())
        logprobs_N = chosen_N - largest_N - totals_N.log()  # in this order, which rounds less
        entropies_N = totals_N.log() - weighted_N / totals_N if with_entropy else torch.zeros_like(logprobs_N)
        slope_NH = None  # of each log-probability by its own hidden state
        if expected_NH is not None:
            slope_NH = weight_VH[labels_N] - expected_NH.div_(totals_N[:, None])
            slope_NH = slope_NH.div_(temperature).to(hidden_NH.dtype)
        ctx.temperature, ctx.at_once = temperature, at_once
        ctx.save_for_backward(
            *((slope_NH,) if at_once else (hidden_NH, weight_VH, bias_V, labels_N, largest_N, totals_N))
        )
        ctx.mark_non_differentiable(entropies_N)
        return logprobs_N, entropies_N

    @staticmethod
    def backward(ctx: Any, gradient_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.at_once:
            (slope_NH,) = ctx.saved_tensors
            return gradient_N.unsqueeze(1).to(slope_NH.dtype) * slope_NH, None, None, None, None, None
        hidden_NH, weight_VH, bias_V, labels_N, largest_N, totals_N = ctx.saved_tensors
        wide = totals_N.dtype
        of_hidden, of_weight = torch.zeros_like(hidden_NH, dtype=wide), torch.zeros_like(weight_VH, dtype=wide)
        of_bias = None if bias_V is None else torch.zeros_like(bias_V, dtype=wide)
        for words, rows in _blocks(len(weight_VH), len(hidden_NH)):
            logits = _logits(hidden_NH[rows], weight_VH, bias_V, words, ctx.temperature)
            at, here = _labels_in(words, labels_N[rows])
            logits.sub_(largest_N[rows, None]).exp_().div_(-totals_N[rows, None])  # minus the probabilities
            logits.scatter_add_(1, at, here.to(logits.dtype))
            logits.mul_(gradient_N[rows, None] / ctx.temperature)
            slope = logits.to(weight_VH.dtype)
            of_hidden[rows] += product(slope, weight_VH[words].t())
            of_weight[words] += product(slope.t(), hidden_NH[rows].t())
            if of_bias is not None:
                of_bias[words] += logits.sum(0)
        if of_bias is not None:
            of_bias = of_bias.to(bias_V.dtype)
        return of_hidden.to(hidden_NH.dtype), of_weight.to(weight_VH.dtype), of_bias, None, None, None


def _logits(hidden: Tensor, weight_VH: Tensor, bias_V: Tensor | None, words: slice, temperature: float) -> Tensor:
    logits = product(hidden, weight_VH[words])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias_V is not None:
        logits.add_(bias_V[words])
    return logits if temperature == 1 else logits.div_(temperature)


def _labels_in(words: slice, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where each label stands among these words, and whether it does; (rows, 1) each."""
    at = labels[:, None] - words.start
    size = words.stop - words.start
    return at.clamp(0, size - 1), (at >= 0) & (at < size)


def _blocks(vocabulary: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Words and rows of each block; all rows for some words, whose weights stay in the cache, before the next words."""
    for word in range(0, vocabulary, WORDS):
        for row in range(0, rows, ROWS):
            yield slice(word, min(word + WORDS, vocabulary)), slice(row, min(row + ROWS, rows))
