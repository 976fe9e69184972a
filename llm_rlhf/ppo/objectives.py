"""The mathematics of PPO with a per-token KL penalty: plain functions of tensors, no models, no files.

Layout: B rows (responses), R response tokens. `mask_BR` is True where a token counts: every sampled token up to and
including the token that stopped the response. Sums over a batch that is spread over processes or micro-batches go
through `total`, which adds a local scalar or vector over all of them; the default is the identity.

Sources: Ziegler et al. 2019 (arXiv:1909.08593); Schulman et al. 2016 (GAE, 1506.02438) and 2017 (PPO, 1707.06347);
Huang et al. 2024 (2403.17031) for the details that papers leave out.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0  # exp(20) is about 5e8: beyond any useful ratio, well inside fp32

Total = Callable[[Tensor], Tensor]


def _local(x: Tensor) -> Tensor:
    return x


def kl_estimate(logprobs_BR: Tensor, ref_logprobs_BR: Tensor, estimator: str = "k1") -> Tensor:
    """Per-token estimate, in nats, of KL(policy || reference) at tokens drawn from the policy. Shape (B, R).

    With l = log policy - log reference, clamped to +-20: `k1` is l (unbiased, either sign); `k3` is exp(-l) - 1 + l
    (unbiased, never negative, smaller variance where the two are close). Used as a value, never differentiated.
    Only k1 may be paid as a penalty. Paid as a reward, -k1 has the policy gradient of -KL(policy || reference), but -k3
    that of KL(reference || policy) - KL(policy || reference), which grows without end as some token becomes rare.
    Source: Schulman, "Approximating KL divergence", 2020.
    """
    log_ratio = (logprobs_BR - ref_logprobs_BR).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if estimator == "k1":
        return log_ratio
    if estimator == "k3":
        return torch.exp(-log_ratio) - 1 + log_ratio
    raise ValueError(f"kl_estimator is {estimator!r}; it must be 'k1' or 'k3'.")


def token_rewards(scores_B: Tensor, kl_BR: Tensor, mask_BR: Tensor, kl_coef: float) -> Tensor:
    """Reward of every token, shape (B, R): -kl_coef * KL, plus the score at the last counted token, zero elsewhere.

    Ziegler et al. 2019, eq. 2, with the penalty paid token by token. A row without a counted token gets no score.
    """
    rewards = -kl_coef * kl_BR * mask_BR
    return rewards + scores_B.unsqueeze(1) * last_counted(mask_BR)


def last_counted(mask_BR: Tensor) -> Tensor:
    """True at the last counted token of each row and nowhere else, shape (B, R)."""
    counted_after = mask_BR.flip(1).cumsum(1).flip(1) - mask_BR.long()
    return mask_BR.bool() & (counted_after == 0)


class Advantages(NamedTuple):
    advantages: Tensor  # (B, R), zero where the mask is False; not yet whitened
    returns: Tensor  # (B, R), advantage + value: what the value function is fitted to


def generalised_advantages(
    rewards_BR: Tensor, values_BR: Tensor, mask_BR: Tensor, gamma: float, lam: float
) -> Advantages:
    """Generalised advantage estimation over the counted tokens of each row.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1} (Schulman et al. 2016, eq. 11 and 16);
    the value after the last counted token is zero, because the response is over there.
    """
    mask = mask_BR.to(rewards_BR.dtype)
    values = values_BR * mask
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = (rewards_BR + gamma * next_values - values) * mask
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.size(1))):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    advantages = advantages * mask
    return Advantages(advantages, advantages + values)


class Moments(NamedTuple):
    mean: Tensor
    variance: Tensor  # unbiased: divided by tokens - 1
    tokens: Tensor  # how many were counted


def masked_moments(values: Sequence[Tensor], masks: Sequence[Tensor], total: Total = _local) -> Moments:
    """Mean and variance over the counted tokens of all micro-batches (and, through `total`, of all processes)."""
    count = total(_sum([m.sum() for m in masks]).to(values[0].dtype))
    mean = total(_sum([(v * m).sum() for v, m in zip(values, masks, strict=True)])) / count.clamp(min=1)
    squares = total(_sum([((v - mean) ** 2 * m).sum() for v, m in zip(values, masks, strict=True)]))
    return Moments(mean, squares / (count - 1).clamp(min=1), count)


def whiten(values: Tensor, moments: Moments, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """`values` scaled to variance 1, and to mean 0 where `shift_mean`; zero where the mask is False."""
    white = (values - moments.mean) * torch.rsqrt(moments.variance + 1e-8)
    return (white if shift_mean else white + moments.mean) * mask


class TokenLoss(NamedTuple):
    loss: Tensor  # (B, R), not yet masked or averaged
    clipped: Tensor  # (B, R), True where the clipped branch was the larger


def policy_loss(
    logprobs_BR: Tensor,
    old_logprobs_BR: Tensor,
    advantages_BR: Tensor,
    cliprange: float,
    importance_BR: Tensor | None = None,
) -> tuple[TokenLoss, Tensor]:
    """Clipped surrogate per token, max(-A rho, -A clip(rho, 1 - eps, 1 + eps)), and the ratio rho (both (B, R)).

    Schulman et al. 2017, eq. 7, negated because it is minimised. The log-ratio is clamped to +-20. `importance_BR`
    multiplies the loss where the tokens were sampled by another engine than the old log-probabilities are of.
    """
    ratio = torch.exp((logprobs_BR - old_logprobs_BR).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    unclipped = -advantages_BR * ratio
    clipped = -advantages_BR * ratio.clamp(1 - cliprange, 1 + cliprange)
    loss = torch.max(unclipped, clipped)
    return TokenLoss(loss if importance_BR is None else loss * importance_BR, clipped > unclipped), ratio


def importance_weights(old_logprobs_BR: Tensor, engine_logprobs_BR: Tensor, mask_BR: Tensor, cap: float) -> Tensor:
    """min(pi_old / pi_engine, cap) per counted token, 1 elsewhere; shape (B, R), a value, never differentiated.

    The engine samples with weights of its own precision and kernels, so its tokens are slightly off-policy. Truncated
    importance sampling: Ionides 2008; Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL".
    """
    log_ratio = (old_logprobs_BR - engine_logprobs_BR).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.where(mask_BR.bool(), log_ratio.exp().clamp(max=cap), torch.ones_like(log_ratio))


def value_loss(values_BR: Tensor, old_values_BR: Tensor, returns_BR: Tensor, cliprange_value: float) -> TokenLoss:
    """Clipped squared error per token, max((V - R)^2, (clip(V, V_old +- eps) - R)^2) / 2."""
    near_old = old_values_BR + (values_BR - old_values_BR).clamp(-cliprange_value, cliprange_value)
    unclipped = (values_BR - returns_BR) ** 2
    clipped = (near_old - returns_BR) ** 2
    return TokenLoss(0.5 * torch.max(unclipped, clipped), clipped > unclipped)


def approx_kl(logprobs_BR: Tensor, old_logprobs_BR: Tensor) -> Tensor:
    """Half the squared log-ratio per token: how far the policy has moved since the rollout. Shape (B, R)."""
    return 0.5 * (logprobs_BR - old_logprobs_BR) ** 2


def explained_variance(
    values: Sequence[Tensor], returns: Sequence[Tensor], masks: Sequence[Tensor], total: Total = _local
) -> float:
    """1 - Var(return - value) / Var(return) over counted tokens: 1 is perfect, 0 is as good as a constant."""
    errors = [r - v for r, v in zip(returns, values, strict=True)]
    variance = masked_moments(returns, masks, total).variance
    if variance == 0:
        return 0.0
    return float(1 - masked_moments(errors, masks, total).variance / variance)


def _sum(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum()
