"""Does the policy still know the language? The perplexity of replies it never saw, under it and under its reference.

A policy that is trained for a reward gives up some of what it knew; this says how much, on text that people preferred
and that no stage trained on. Perplexity is exp of the mean negative log-probability of a token of the replies, the
token that ends each included, at temperature 1. It compares policies that split text into the same tokens, no others.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_rlhf.data.checks import prompt_share
from llm_rlhf.data.rows import Conversation, Preference
from llm_rlhf.models.encoding import encode_reply
from llm_rlhf.models.inference import given_logprobs
from llm_rlhf.statistics.intervals import RESAMPLES, Array, Estimate, Interval, Labels, bootstrap, numbered


class Losses(NamedTuple):
    """How probable a policy finds given replies."""

    logprobs: list[float]  # of each whole reply, in nats
    tokens: list[list[int]]  # of each reply


def demonstrations_of(pairs: Sequence[Preference], count: int) -> list[Preference]:
    """Up to `count` held-out pairs, chosen by a hash of the prompt; their chosen replies are what is read."""
    order = sorted(range(len(pairs)), key=lambda i: (prompt_share(pairs[i].prompt, "perplexity"), i))[:count]
    return [pairs[i] for i in sorted(order)]


def read_replies(
    model: Any,
    tokenizer: Any,
    adapters: list[str],
    prompts: Sequence[Conversation],
    replies: Sequence[str],
    size: int,
    stopped: Sequence[bool] | None = None,
) -> Losses:
    """Given replies under the base with these adapters (none: the base itself), `size` of them at once.

    Args:
        stopped: whether each reply ended by itself; None: all. Of others no end is read.
    """
    ends = [True] * len(replies) if stopped is None else stopped
    said = zip(prompts, replies, ends, strict=True)
    rows = [encode_reply(tokenizer, prompt, reply).as_said(end) for prompt, reply, end in said]
    logprobs = given_logprobs(model, adapters, rows, tokenizer.pad_token_id, size)
    return Losses(logprobs, [row.reply_ids for row in rows])


def same_tokens(losses: Mapping[str, Losses]) -> bool:
    """Whether all policies split the replies into the same tokens."""
    first, *others = (given.tokens for given in losses.values())
    return all(tokens == first for tokens in others)


def perplexity_estimates(
    rows: Sequence[Preference],
    losses: Mapping[str, Losses],
    names: tuple[str, str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Estimate]:
    """`perplexity` of both policies and `token_logprob_change`, the paired change of a token's mean log-probability.

    Every token counts alike, so that a long reply weighs more; prompts are resampled whole.

    Args:
        names: of the policy and of its reference; both must have the same tokens.
    """
    subject, reference = names
    clusters = numbered(repr(row.prompt) for row in rows)
    counts = np.array([len(ids) for ids in losses[subject].tokens], dtype=np.float64)
    assert losses[subject].tokens == losses[reference].tokens, "perplexities over other tokens do not compare"
    estimates = []
    for who in (reference, subject):
        level = _per_token(np.asarray(losses[who].logprobs), counts, clusters, resamples, seed)
        level = Interval(math.exp(-level.estimate), _exp(level.high), _exp(level.low), level.n, level.method)
        estimates.append(level.named("perplexity", who))
    moved = np.subtract(losses[subject].logprobs, losses[reference].logprobs)
    change = _per_token(moved, counts, clusters, resamples, seed)
    return [*estimates, change.named("token_logprob_change", subject, reference)]


def _per_token(nats: Array, counts: Array, clusters: Labels, resamples: int, seed: int) -> Interval:
    """Sum of nats over sum of tokens."""
    method = f"mean over {int(counts.sum()):,} tokens"

    def ratio(weights: Array) -> Array:
        found: Array = (weights @ nats) / (weights @ counts)
        return found

    return bootstrap(ratio, len(nats), clusters, resamples, seed, method)


def _exp(negative: float | None) -> float | None:
    return None if negative is None else math.exp(-negative)
