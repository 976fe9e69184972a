"""From responses to what the update needs: micro-batches, rewards, whitened advantages, returns, and statistics.

A rollout is a list of micro-batches, of which each step adds to what is known: `PaddedRows`, then `ScoredRows`, then
`MicroBatch`. None of them is changed once it is made.

Layout: B rows, P prompt tokens, R response tokens, T both; S tokens of the longest demonstration.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from llm_rlhf.ppo import objectives
from llm_rlhf.ppo.config import PPOConfig


@dataclass(frozen=True, eq=False)
class PaddedRows:
    """Prompts and responses that go through a model together."""

    input_ids: Tensor  # (B, T), left-padded prompts joined to right-padded responses
    attention_mask: Tensor  # (B, T), 1 where a token is no padding
    response_mask: Tensor  # (B, R), True at every sampled token, the one that stopped the response included

    def model_inputs(self) -> dict[str, Tensor]:
        """The arguments of the joint call (models/roles.py), which a model takes by name."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "response_mask": self.response_mask,
        }


Batch = TypeVar("Batch", bound=PaddedRows | Any)


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoredRows(PaddedRows):
    """What the rollout's weights and its scores say of the rows, before anything is learned.

    Log-probabilities and entropies are in nats, under the distribution that is sampled from (its temperature);
    log-probabilities and values are 0 at uncounted tokens.
    """

    rows: list[int]  # B numbers: which of this process' prompts these are
    stopped: Tensor  # (B,), True where the response ended by itself, on a stop token
    old_logprobs: Tensor  # (B, R), of the policy
    old_values: Tensor  # (B, R), of the state before each token, in units of the score
    entropies: Tensor  # (B, R), of the policy's next token
    ref_logprobs: Tensor  # (B, R), of the reference
    raw_scores: Tensor  # (B,), all sources of scores in one, before normalisation
    source_scores: Mapping[str, Tensor]  # (B,) each: of every source where there are several, their spread, "heldout"
    engine_logprobs: Tensor | None = None  # (B, R), of an engine of its own that sampled; None: `generate` did
    importance: Tensor | None = None  # (B, R), truncated policy / engine, 1 at uncounted tokens; None as above

    @property
    def kl(self) -> Tensor:
        """Of each token's KL to the reference the estimate that is paid, nats, shape (B, R)."""
        return objectives.kl_estimate(self.old_logprobs, self.ref_logprobs) * self.response_mask

    @property
    def sequence_kl(self) -> Tensor:
        """The same of each response, nats, shape (B,)."""
        return self.kl.sum(1)


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Replies to imitate beside a micro-batch, as many as it has rows."""

    input_ids: Tensor  # (B, S), right-padded
    attention_mask: Tensor  # (B, S), 1 where a token is no padding
    mask: Tensor  # (B, S), 1 where a token is learned
    tokens_per_mini_batch: Tensor  # one number: the rollout's learned tokens, of all processes, over its mini-batches


@dataclass(frozen=True, eq=False, kw_only=True)
class MicroBatch(ScoredRows):
    """Rows that go through the update together, with everything that it needs."""

    scores: Tensor  # (B,), normalised and clipped, where the configuration asks for that
    final_scores: Tensor  # (B,), the same less the penalty for not stopping: what the last token is paid
    advantages: Tensor  # (B, R), whitened over the rollout of all processes, 0 at uncounted tokens
    returns: Tensor  # (B, R), what the value function is fitted to, in units of the score
    tokens_per_mini_batch: Tensor  # one number: the rollout's counted tokens, of all processes, over its mini-batches
    demonstrations: Demonstrations | None = None  # None in evaluation, and without `ptx_coef`

    def model_inputs(self) -> dict[str, Tensor]:
        """The demonstrations too: one call, because DDP wants one."""
        inputs = super().model_inputs()
        if self.demonstrations is not None:
            inputs |= {
                "ptx_input_ids": self.demonstrations.input_ids,
                "ptx_attention_mask": self.demonstrations.attention_mask,
                "ptx_mask": self.demonstrations.mask,
            }
        return inputs


def micro_batch_rows(
    prompt_lengths: list[int],
    response_lengths: list[int],
    mini_batches: int,
    micro_batches: int,
    tokens: int | None,
    beside: int = 0,
) -> list[list[list[int]]]:
    """Which rows of a rollout go through the model together: micro-batches of rows, for each step of the first epoch.

    Rows of one mini-batch stand together as they came, in random order; inside it, rows of like length share a
    micro-batch, so that little is padded.

    Args:
        mini_batches, micro_batches: steps are mini_batches x micro_batches, of one micro-batch of equal size each;
        tokens: or, where given, mini_batches, of as many micro-batches as hold at most so many tokens, padding counted
            (a longer row goes alone);
        beside: tokens that each row brings with it: those of the longest demonstration, where some are learned.
    """
    lengths = [p + r for p, r in zip(prompt_lengths, response_lengths, strict=True)]
    if len(lengths) % (mini_batches * micro_batches):
        raise ValueError(
            f"A rollout of {len(lengths)} responses does not split into {mini_batches * micro_batches} micro-batches."
        )
    rows_each, size = len(lengths) // mini_batches, len(lengths) // (mini_batches * micro_batches)
    steps: list[list[list[int]]] = []
    for start in range(0, len(lengths), rows_each):
        by_length = sorted(range(start, start + rows_each), key=lambda row: lengths[row], reverse=True)
        if tokens is None:
            steps += [[by_length[i : i + size]] for i in range(0, rows_each, size)]
            continue
        parts: list[list[int]] = []
        for row in by_length:
            joined = [*parts[-1], row] if parts else [row]
            width = max(prompt_lengths[i] for i in joined) + max(response_lengths[i] for i in joined) + beside
            if parts and len(joined) * width <= tokens:
                parts[-1] = joined
            else:
                parts.append([row])
        steps.append(parts)
    return steps


def shuffled_steps(micro_batches: int, steps: int, seed: int) -> list[list[int]]:
    """The micro-batches' numbers in another order, dealt to the steps of an epoch as evenly as they go."""
    order = torch.randperm(micro_batches, generator=torch.Generator().manual_seed(seed))
    return [part.tolist() for part in order.tensor_split(steps)]


def pad_rows(
    prompt_ids: list[list[int]], response_ids: list[list[int]], pad_token_id: int, device: torch.device
) -> PaddedRows:
    """Left-padded prompts joined to right-padded responses, no wider than the longest of each."""
    P = max(len(ids) for ids in prompt_ids)
    rows = list(zip(prompt_ids, response_ids, strict=True))
    R = max(len(ids) for ids in response_ids)
    ids = [[pad_token_id] * (P - len(p)) + list(p) + list(r) + [pad_token_id] * (R - len(r)) for p, r in rows]
    mask = [[0] * (P - len(p)) + [1] * (len(p) + len(r)) + [0] * (R - len(r)) for p, r in rows]
    attention_mask = torch.tensor(mask, device=device)
    return PaddedRows(torch.tensor(ids, device=device), attention_mask, attention_mask[:, P:].bool())


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Views of some rows of a batch, as wide as it is: what a model says of them does not change."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows] if value.dim() else value
        if isinstance(value, Mapping):
            return {name: cut(part) for name, part in value.items()}
        if isinstance(value, list):
            return value[rows]
        return rows_of(value, rows) if is_dataclass(value) else value

    return replace(batch, **{field.name: cut(getattr(batch, field.name)) for field in fields(batch)})


def rows_together(parts: Sequence[ScoredRows]) -> ScoredRows:
    """Rows of one width as one batch, in the order of the parts."""
    if len(parts) == 1:
        return parts[0]

    def join(values: list[Any]) -> Any:
        if isinstance(values[0], Tensor):
            return torch.cat(values)
        if isinstance(values[0], Mapping):
            return {name: torch.cat([value[name] for value in values]) for name in values[0]}
        return None if values[0] is None else [row for value in values for row in value]

    return ScoredRows(**{f.name: join([getattr(part, f.name) for part in parts]) for f in fields(parts[0])})


def pad_tokens(rows: list[list[float]], like_BR: Tensor) -> Tensor:
    """One number a response token, zero after the response's end; shape (B, R) and device of `like_BR`."""
    R = like_BR.size(1)
    return torch.tensor([list(row) + [0.0] * (R - len(row)) for row in rows], device=like_BR.device)


def draw_demonstrations(
    batches: Sequence[PaddedRows],
    dataset: Any,
    pad_token_id: int,
    seed: int,
    mini_batches: int,
    total: objectives.Total,
) -> list[Demonstrations]:
    """For each micro-batch of a rollout as many demonstrations as it has rows, drawn by the seed.

    Args:
        dataset: rows of `input_ids` and, perhaps, `assistant_masks` (1: trained on); without it every token is.
        total: adds a tensor over all processes.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for batch in batches:
        chosen = torch.randint(len(dataset), (len(batch.input_ids),), generator=generator)
        drawn.append(_right_padded([dataset[i] for i in chosen.tolist()], pad_token_id, batch.input_ids.device))
    tokens = total(torch.stack([mask[:, 1:].sum() for _, _, mask in drawn]).sum().float())
    return [Demonstrations(*tensors, tokens_per_mini_batch=tokens / mini_batches) for tensors in drawn]


def _right_padded(rows: list[dict[str, Any]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and mask of learned tokens of the rows, (B, S) each."""
    S = max(len(row["input_ids"]) for row in rows)
    padded, attention, learned = [], [], []
    for row in rows:
        ids, missing = list(row["input_ids"]), S - len(row["input_ids"])
        padded.append(ids + [pad_token_id] * missing)
        attention.append([1] * len(ids) + [0] * missing)
        learned.append(list(row.get("assistant_masks") or [1] * len(ids)) + [0] * missing)
    return (
        torch.tensor(padded, device=device),
        torch.tensor(attention, device=device),
        torch.tensor(learned, device=device),
    )


def finish_rollout(
    scored: Sequence[ScoredRows],
    scores: Sequence[Tensor],
    args: PPOConfig,
    kl_coef: float,
    total: objectives.Total,
    demonstrations: Sequence[Demonstrations] | None = None,
) -> list[MicroBatch]:
    """The micro-batches of a scored rollout, with whitened advantages and with returns.

    Args:
        scores: for each micro-batch the scores that are paid, normalised and clipped, (B,).
        kl_coef: weight of the KL penalty now.
        total: adds a tensor over all processes.
        demonstrations: for each micro-batch those to imitate beside it, if any.
    """
    masks = [batch.response_mask for batch in scored]
    final_scores = [
        paid - args.missing_eos_penalty * (~batch.stopped).to(paid.dtype)
        for batch, paid in zip(scored, scores, strict=True)
    ]
    rewards = [
        objectives.token_rewards(final, batch.kl, batch.response_mask, kl_coef)
        for batch, final in zip(scored, final_scores, strict=True)
    ]
    if args.whiten_rewards:
        moments = objectives.masked_moments(rewards, masks, total)
        rewards = [objectives.whiten(r, moments, m, shift_mean=False) for r, m in zip(rewards, masks, strict=True)]
    estimates = [
        objectives.generalised_advantages(reward, batch.old_values, batch.response_mask, args.gamma, args.lam)
        for batch, reward in zip(scored, rewards, strict=True)
    ]
    moments = objectives.masked_moments([e.advantages for e in estimates], masks, total)
    return [
        MicroBatch(
            **vars(batch),
            scores=scores[i],
            final_scores=final_scores[i],
            advantages=objectives.whiten(estimates[i].advantages, moments, masks[i]),
            returns=estimates[i].returns,
            tokens_per_mini_batch=moments.tokens / args.num_mini_batches,
            demonstrations=None if demonstrations is None else demonstrations[i],
        )
        for i, batch in enumerate(scored)
    ]


def rollout_statistics(batches: Sequence[MicroBatch], kl_coef: float, total: objectives.Total) -> dict[str, float]:
    """Means of a rollout over all processes: per response, or over counted tokens where the name says so."""
    masks = [batch.response_mask for batch in batches]
    columns: dict[str, list[Tensor]] = defaultdict(list)
    token_sums: dict[str, list[Tensor]] = defaultdict(list)
    for batch, mask in zip(batches, masks, strict=True):
        columns["objective/scores"].append(batch.raw_scores)
        columns["objective/kl"].append(batch.sequence_kl)
        k3 = objectives.kl_estimate(batch.old_logprobs, batch.ref_logprobs, "k3") * mask
        columns["objective/kl_k3"].append(k3.sum(1))
        earned = batch.final_scores - kl_coef * batch.sequence_kl
        columns["objective/rlhf_reward"].append(earned)
        columns["objective/rlhf_reward_rms"].append(earned**2)
        columns["response_length"].append(mask.sum(1).float())
        columns["eos_rate"].append(batch.stopped.float())
        for name, values in batch.source_scores.items():
            columns[f"scores/{name}"].append(values)
        token_sums["objective/entropy"].append((batch.entropies * mask).sum().float())
        token_sums["val/rms"].append((batch.old_values**2 * mask).sum().float())
        if batch.engine_logprobs is not None and batch.importance is not None:
            difference = (batch.old_logprobs - batch.engine_logprobs).abs() * mask
            token_sums["sampling/logprob_difference"].append(difference.sum())
            token_sums["sampling/importance"].append((batch.importance * mask).sum())
    rows = torch.cat(columns["objective/scores"])
    per_row = torch.stack([torch.cat(parts).sum().float() for parts in columns.values()])
    per_token = torch.stack([torch.stack(parts).sum() for parts in token_sums.values()])
    counts = torch.tensor([float(len(rows)), float(sum(mask.sum() for mask in masks))], device=rows.device)
    sums = total(torch.cat([per_row, per_token, counts])).tolist()
    count, tokens = sums[-2:]
    metrics = {name: value / count for name, value in zip(columns, sums, strict=False)}
    metrics |= {name: value / tokens for name, value in zip(token_sums, sums[len(columns) :], strict=False)}
    for name in ("objective/rlhf_reward_rms", "val/rms"):
        metrics[name] **= 0.5
    deviation = total(((rows - metrics["objective/scores"]) ** 2).sum()) / max(count - 1, 1)
    metrics["objective/scores_std"] = deviation.sqrt().item()
    metrics["objective/kl_per_token"] = metrics["objective/kl"] * count / tokens
    metrics["objective/sqrt_kl"] = max(metrics["objective/kl"], 0.0) ** 0.5
    metrics["objective/kl_coef"] = kl_coef
    metrics["val/explained_variance"] = objectives.explained_variance(
        [b.old_values for b in batches], [b.returns for b in batches], masks, total
    )
    return metrics | {"episodes": count}


def stopped_by_itself(input_ids_BT: Tensor, response_mask_BR: Tensor, stop_token_ids: list[int]) -> Tensor:
    """True for rows whose last counted token is one of the stop tokens, shape (B,)."""
    response_BR = input_ids_BT[:, -response_mask_BR.size(1) :]
    stops = torch.isin(response_BR, torch.tensor(stop_token_ids, device=input_ids_BT.device))
    return (stops & objectives.last_counted(response_mask_BR)).any(1)
