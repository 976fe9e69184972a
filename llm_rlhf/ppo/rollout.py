"""From responses to what the update needs: micro-batches, rewards, whitened advantages, returns, and statistics.

A rollout is a list of micro-batches, dictionaries of tensors. Layout: B rows, P prompt tokens, R response tokens,
T both.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from llm_rlhf.ppo import objectives
from llm_rlhf.ppo.config import PPOConfig


def micro_batch_rows(
    prompt_lengths: list[int], response_lengths: list[int], mini_batches: int, micro_batches: int, tokens: int | None
) -> list[list[list[int]]]:
    """Which rows of a rollout go through the model together: micro-batches of rows, for each step of the first epoch.

    Rows of one mini-batch stand together as they came, in random order; inside it, rows of like length share a
    micro-batch, so that little is padded.

    Args:
        mini_batches, micro_batches: steps are mini_batches x micro_batches, of one micro-batch of equal size each;
        tokens: or, where given, mini_batches, of as many micro-batches as hold at most so many tokens, padding counted
            (a longer row goes alone).
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
            width = max(prompt_lengths[i] for i in joined) + max(response_lengths[i] for i in joined)
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
) -> dict[str, Tensor]:
    """Left-padded prompts joined to right-padded responses, no wider than the longest of each."""
    P = max(len(ids) for ids in prompt_ids)
    rows = list(zip(prompt_ids, response_ids, strict=True))
    R = max(len(ids) for ids in response_ids)
    ids = [[pad_token_id] * (P - len(p)) + list(p) + list(r) + [pad_token_id] * (R - len(r)) for p, r in rows]
    mask = [[0] * (P - len(p)) + [1] * (len(p) + len(r)) + [0] * (R - len(r)) for p, r in rows]
    attention_mask = torch.tensor(mask, device=device)
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": attention_mask,
        "response_mask": attention_mask[:, P:].bool(),
    }


def pad_tokens(rows: list[list[float]], like_BR: Tensor) -> Tensor:
    """One number a response token, zero after the response's end; shape (B, R) and device of `like_BR`."""
    R = like_BR.size(1)
    return torch.tensor([list(row) + [0.0] * (R - len(row)) for row in rows], device=like_BR.device)


def add_demonstrations(batches: list[dict[str, Tensor]], dataset: Any, pad_token_id: int, seed: int) -> None:
    """Give each micro-batch as many demonstrations as it has rows, drawn by the seed: `ptx_input_ids` and both masks.

    Args:
        dataset: rows of `input_ids` and, perhaps, `assistant_masks` (1: trained on); without it every token is.
    """
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        drawn = torch.randint(len(dataset), (len(batch["input_ids"]),), generator=generator)
        rows = [dataset[i] for i in drawn.tolist()]
        T = max(len(row["input_ids"]) for row in rows)
        columns: dict[str, list[list[int]]] = {"ptx_input_ids": [], "ptx_attention_mask": [], "ptx_mask": []}
        for row in rows:
            ids, missing = list(row["input_ids"]), T - len(row["input_ids"])
            columns["ptx_input_ids"].append(ids + [pad_token_id] * missing)
            columns["ptx_attention_mask"].append([1] * len(ids) + [0] * missing)
            columns["ptx_mask"].append(list(row.get("assistant_masks") or [1] * len(ids)) + [0] * missing)
        batch |= {name: torch.tensor(values, device=batch["input_ids"].device) for name, values in columns.items()}


def finish_rollout(
    batches: list[dict[str, Tensor]], args: PPOConfig, total: objectives.Total, kl_coef: float | None = None
) -> dict[str, float]:
    """Rewards, whitened advantages and returns of a scored rollout, added to its micro-batches; returns statistics.

    Args:
        batches: micro-batches with `response_mask`, `old_logprobs`, `ref_logprobs`, `old_values`, `entropies` (B, R),
            `scores` and `stopped` (B,); they gain `advantages`, `returns`, `sequence_kl` and `tokens_per_mini_batch`.
            `raw_scores` (B,), where given, are what is reported: the scores before normalisation.
        total: adds a tensor over all processes.
        kl_coef: weight of the KL penalty now; None: the configured one.
    """
    kl_coef = args.kl_coef if kl_coef is None else kl_coef
    masks = [b["response_mask"] for b in batches]
    rewards = []
    for batch, mask in zip(batches, masks, strict=True):
        kl = objectives.kl_estimate(batch["old_logprobs"], batch["ref_logprobs"]) * mask
        batch["final_scores"] = batch["scores"] - args.missing_eos_penalty * (~batch["stopped"]).to(
            batch["scores"].dtype
        )
        rewards.append(objectives.token_rewards(batch["final_scores"], kl, mask, kl_coef))
        batch["sequence_kl"] = kl.sum(1)
    if args.whiten_rewards:
        moments = objectives.masked_moments(rewards, masks, total)
        rewards = [objectives.whiten(r, moments, m, shift_mean=False) for r, m in zip(rewards, masks, strict=True)]
    for batch, reward, mask in zip(batches, rewards, masks, strict=True):
        estimate = objectives.generalised_advantages(reward, batch["old_values"], mask, args.gamma, args.lam)
        batch["advantages"], batch["returns"] = estimate.advantages, estimate.returns
    moments = objectives.masked_moments([b["advantages"] for b in batches], masks, total)
    for batch, mask in zip(batches, masks, strict=True):
        batch["advantages"] = objectives.whiten(batch["advantages"], moments, mask)
        batch["tokens_per_mini_batch"] = moments.tokens / args.num_mini_batches
    return _statistics(batches, masks, kl_coef, total)


def _statistics(
    batches: list[dict[str, Tensor]], masks: list[Tensor], kl_coef: float, total: objectives.Total
) -> dict[str, float]:
    """Means of a rollout over all processes: per response, or over counted tokens where the name says so."""
    columns: dict[str, list[Tensor]] = defaultdict(list)
    token_sums: dict[str, list[Tensor]] = defaultdict(list)
    for batch, mask in zip(batches, masks, strict=True):
        columns["objective/scores"].append(batch.get("raw_scores", batch["scores"]))
        columns["objective/kl"].append(batch["sequence_kl"])
        k3 = objectives.kl_estimate(batch["old_logprobs"], batch["ref_logprobs"], "k3") * mask
        columns["objective/kl_k3"].append(k3.sum(1))
        columns["objective/rlhf_reward"].append(batch["final_scores"] - kl_coef * batch["sequence_kl"])
        columns["response_length"].append(mask.sum(1).float())
        columns["eos_rate"].append(batch["stopped"].float())
        for name, values in batch.items():
            if name.startswith("scores/"):
                columns[name].append(values)
        token_sums["objective/entropy"].append((batch["entropies"] * mask).sum().float())
        if "engine_logprobs" in batch:
            difference = (batch["old_logprobs"] - batch["engine_logprobs"]).abs() * mask
            token_sums["sampling/logprob_difference"].append(difference.sum())
            token_sums["sampling/importance"].append((batch["importance"] * mask).sum())
    rows = torch.cat(columns["objective/scores"])
    per_row = torch.stack([torch.cat(parts).sum().float() for parts in columns.values()])
    per_token = torch.stack([torch.stack(parts).sum() for parts in token_sums.values()])
    counts = torch.tensor([float(len(rows)), float(sum(mask.sum() for mask in masks))], device=rows.device)
    sums = total(torch.cat([per_row, per_token, counts])).tolist()
    count, tokens = sums[-2:]
    metrics = {name: value / count for name, value in zip(columns, sums, strict=False)}
    metrics |= {name: value / tokens for name, value in zip(token_sums, sums[len(columns) :], strict=False)}
    deviation = total(((rows - metrics["objective/scores"]) ** 2).sum()) / max(count - 1, 1)
    metrics["objective/scores_std"] = deviation.sqrt().item()
    metrics["objective/kl_per_token"] = metrics["objective/kl"] * count / tokens
    metrics["objective/sqrt_kl"] = max(metrics["objective/kl"], 0.0) ** 0.5
    metrics["objective/kl_coef"] = kl_coef
    metrics["val/explained_variance"] = objectives.explained_variance(
        [b["old_values"] for b in batches], [b["returns"] for b in batches], masks, total
    )
    return metrics | {"episodes": count}


def stopped_by_itself(input_ids_BT: Tensor, response_mask_BR: Tensor, stop_token_ids: list[int]) -> Tensor:
    """True for rows whose last counted token is one of the stop tokens, shape (B,)."""
    response_BR = input_ids_BT[:, -response_mask_BR.size(1) :]
    stops = torch.isin(response_BR, torch.tensor(stop_token_ids, device=input_ids_BT.device))
    return (stops & objectives.last_counted(response_mask_BR)).any(1)
