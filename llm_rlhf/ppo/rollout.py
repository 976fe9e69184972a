"""From scored responses to what the update needs: rewards, whitened advantages, returns, and the rollout's statistics.

A rollout is a list of micro-batches, dictionaries of tensors. Layout: B rows, R response tokens.
"""

from collections import defaultdict

import torch
from torch import Tensor

from llm_rlhf.ppo import objectives
from llm_rlhf.ppo.config import PPOConfig


def finish_rollout(batches: list[dict[str, Tensor]], args: PPOConfig, total: objectives.Total) -> dict[str, float]:
    """Rewards, whitened advantages and returns of a scored rollout, added to its micro-batches; returns statistics.

    Args:
        batches: micro-batches with `response_mask`, `old_logprobs`, `ref_logprobs`, `old_values` (B, R), `scores` and
            `stopped` (B,); they gain `advantages`, `returns`, `sequence_kl` and `tokens_per_mini_batch`.
        total: adds a tensor over all processes.
    """
    masks = [b["response_mask"] for b in batches]
    rewards = []
    for batch, mask in zip(batches, masks, strict=True):
        kl = objectives.kl_estimate(batch["old_logprobs"], batch["ref_logprobs"], args.kl_estimator) * mask
        scores = batch["scores"] - args.missing_eos_penalty * (~batch["stopped"])
        rewards.append(objectives.token_rewards(scores, kl, mask, args.kl_coef))
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
    return _rollout_metrics(batches, masks, args, total, moments.tokens)


def _rollout_metrics(
    batches: list[dict[str, Tensor]], masks: list[Tensor], args: PPOConfig, total: objectives.Total, tokens: Tensor
) -> dict[str, float]:
    """Statistics of a rollout over all processes: means per response, or over counted tokens where it says so."""
    columns: dict[str, list[Tensor]] = defaultdict(list)
    for batch, mask in zip(batches, masks, strict=True):
        columns["objective/scores"].append(batch["scores"])
        columns["objective/kl"].append(batch["sequence_kl"])
        columns["objective/rlhf_reward"].append(
            batch["scores"] - args.missing_eos_penalty * (~batch["stopped"]) - args.kl_coef * batch["sequence_kl"]
        )
        columns["response_length"].append(mask.sum(1).float())
        columns["eos_rate"].append(batch["stopped"].float())
    rows = torch.cat(columns["objective/scores"])
    sums = torch.stack([torch.cat(parts).sum().float() for parts in columns.values()])
    entropy = torch.stack([(b["entropies"] * m).sum().float() for b, m in zip(batches, masks, strict=True)]).sum()
    packed = total(torch.cat([sums, torch.stack([torch.tensor(float(len(rows)), device=rows.device), entropy])]))
    count = packed[-2]
    metrics = {name: (packed[i] / count).item() for i, name in enumerate(columns)}
    deviation = total(((rows - metrics["objective/scores"]) ** 2).sum()) / (count - 1).clamp(min=1)
    metrics["objective/scores_std"] = deviation.sqrt().item()
    metrics["objective/kl_per_token"] = metrics["objective/kl"] * count.item() / tokens.item()
    metrics["objective/entropy"] = (packed[-1] / tokens).item()
    metrics["objective/kl_coef"] = args.kl_coef
    metrics["val/explained_variance"] = objectives.explained_variance(
        [b["old_values"] for b in batches], [b["returns"] for b in batches], masks, total
    )
    return metrics


def stopped_by_itself(input_ids_BT: Tensor, response_mask_BR: Tensor, stop_token_ids: list[int]) -> Tensor:
    """True for rows whose last counted token is one of the stop tokens, shape (B,)."""
    response_BR = input_ids_BT[:, -response_mask_BR.size(1) :]
    stops = torch.isin(response_BR, torch.tensor(stop_token_ids, device=input_ids_BT.device))
    return (stops & objectives.last_counted(response_mask_BR)).any(1)
