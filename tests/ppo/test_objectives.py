"""The mathematics of PPO, with numbers worked by hand beside each assertion."""

import math

import pytest
import torch

from llm_rlhf.ppo import objectives

T = torch.tensor


def test_k1_is_the_log_ratio_and_k3_is_never_negative() -> None:
    logprobs, ref = T([[-1.0, -2.0]]), T([[-1.5, -1.0]])
    assert objectives.kl_estimate(logprobs, ref, "k1").tolist() == [[0.5, -1.0]]
    # k3 = exp(-l) - 1 + l: l = 0.5 gives 0.60653 - 0.5 = 0.10653; l = -1 gives 2.71828 - 2 = 0.71828
    torch.testing.assert_close(
        objectives.kl_estimate(logprobs, ref, "k3"), T([[0.10653066, 0.71828183]]), rtol=1e-6, atol=0
    )


def test_what_each_estimator_regularises_when_it_is_paid() -> None:
    """The policy gradient sum of p k grad log p, k held fixed, beside the gradient of a KL, both summed exactly."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, generator=generator, dtype=torch.float64).requires_grad_()
    ref = torch.randn(16, generator=generator, dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    to_ref, from_ref = (policy.exp() * (policy - ref)).sum(), (ref.exp() * (ref - policy)).sum()

    def paid(estimator: str) -> torch.Tensor:
        kl = objectives.kl_estimate(policy.detach(), ref, estimator)
        return torch.autograd.grad((policy.detach().exp() * kl * policy).sum(), logits, retain_graph=True)[0]

    close = {"rtol": 0, "atol": 1e-12}  # float64
    (backward,) = torch.autograd.grad(to_ref, logits, retain_graph=True)
    (forward,) = torch.autograd.grad(from_ref, logits, retain_graph=True)
    torch.testing.assert_close(paid("k1"), backward, **close)
    torch.testing.assert_close(paid("k3"), backward - forward, **close)
    assert (forward.abs() > 0.01).any()  # so that the two differ


def test_fault_30_log_ratio_is_clamped_so_that_nothing_overflows() -> None:
    far = objectives.kl_estimate(T([[-1.0]]), T([[-101.0]]), "k3")
    assert torch.isfinite(far).all()
    assert far.item() == pytest.approx(19.0, abs=1e-6)  # exp(-20) - 1 + 20
    _, ratio = objectives.policy_loss(T([[0.0]]), T([[-100.0]]), T([[1.0]]), 0.2)
    assert ratio.item() == pytest.approx(math.exp(20), rel=1e-6)


def test_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'k2'.*'k1' or 'k3'"):
        objectives.kl_estimate(T([[0.0]]), T([[0.0]]), "k2")


def test_score_lands_on_the_last_counted_token_and_kl_is_paid_at_each() -> None:
    mask = T([[True, True, False], [True, True, True]])
    kl = T([[0.5, 1.0, 7.0], [0.0, 2.0, 1.0]])
    rewards = objectives.token_rewards(T([10.0, -3.0]), kl, mask, kl_coef=0.1)
    # row 0 ends at token 1: -.05, -.1 + 10, nothing after; row 1 ends at token 2: 0, -.2, -.1 - 3
    torch.testing.assert_close(rewards, T([[-0.05, 9.9, 0.0], [0.0, -0.2, -3.1]]))


def test_last_counted_of_a_row_without_tokens_is_nowhere() -> None:
    assert objectives.last_counted(T([[False, False], [True, False]])).tolist() == [[False, False], [True, False]]


def test_advantages_worked_by_hand_with_an_early_end() -> None:
    mask = T([[True, True, False]])
    rewards, values = T([[1.0, 2.0, 99.0]]), T([[0.5, 1.0, 50.0]])
    # gamma .9, lambda .5. t=1 is the end, its next value is 0: delta 2 - 1 = 1, A = 1.
    # t=0: delta 1 + .9*1 - .5 = 1.4, A = 1.4 + .45*1 = 1.85. Returns are A + V.
    found = objectives.generalised_advantages(rewards, values, mask, gamma=0.9, lam=0.5)
    torch.testing.assert_close(found.advantages, T([[1.85, 1.0, 0.0]]))
    torch.testing.assert_close(found.returns, T([[2.35, 2.0, 0.0]]))


def test_lambda_one_without_discount_is_return_minus_value() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    mask = torch.arange(6) < T([[6], [3], [1], [5]])
    found = objectives.generalised_advantages(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(found.returns, to_go, rtol=0, atol=1e-12)  # float64 sums of six numbers


def test_whitening_uses_counted_tokens_of_all_micro_batches() -> None:
    values = [T([[2.0, 4.0, 100.0]]), T([[6.0]])]
    masks = [T([[True, True, False]]), T([[True]])]
    moments = objectives.masked_moments(values, masks)
    assert (moments.mean.item(), moments.variance.item(), moments.tokens.item()) == (4.0, 4.0, 3.0)  # of 2, 4, 6
    white = objectives.whiten(values[0], moments, masks[0])
    torch.testing.assert_close(white, T([[-1.0, 0.0, 0.0]]), rtol=0, atol=1e-7)  # eps 1e-8 in the root
    kept = objectives.whiten(values[0], moments, masks[0], shift_mean=False)
    torch.testing.assert_close(kept, T([[3.0, 4.0, 0.0]]), rtol=0, atol=1e-7)  # the same eps; the mean stays 4


def test_policy_loss_takes_the_worse_of_clipped_and_unclipped() -> None:
    old = torch.zeros(1, 4)
    logprobs = T([[1.5, 0.5, 1.5, 0.5]]).log()
    loss, ratio = objectives.policy_loss(logprobs, old, T([[2.0, 2.0, -2.0, -2.0]]), cliprange=0.2)
    torch.testing.assert_close(ratio, T([[1.5, 0.5, 1.5, 0.5]]))
    # A = 2: ratio 1.5 is clipped to 1.2 (-2.4), .5 is not (-1). A = -2: 1.5 is not (3), .5 is clipped to .8 (1.6).
    torch.testing.assert_close(loss.loss, T([[-2.4, -1.0, 3.0, 1.6]]))
    assert loss.clipped.tolist() == [[True, False, False, True]]


def test_value_loss_is_half_the_larger_squared_error() -> None:
    values, old, returns = T([[1.0, 0.0, 0.3]]), T([[0.0, 0.0, 0.2]]), T([[1.0, 2.0, 0.0]])
    # V 1 is held at .2 and misses 1 by .8: .32; V 0 stays and misses 2: 2; V .3 stays and misses 0 by .3: .045
    loss = objectives.value_loss(values, old, returns, cliprange_value=0.2)
    torch.testing.assert_close(loss.loss, T([[0.32, 2.0, 0.045]]))
    assert loss.clipped.tolist() == [[True, False, False]]


def test_clipped_tokens_pass_no_gradient() -> None:
    logprobs = T([[math.log(1.5), math.log(0.5)]], requires_grad=True)
    loss, _ = objectives.policy_loss(logprobs, torch.zeros(1, 2), T([[1.0, 1.0]]), cliprange=0.2)
    loss.loss.sum().backward()
    # beyond the clip the gradient is 0; inside it is -A * ratio
    torch.testing.assert_close(logprobs.grad, T([[0.0, -0.5]]))


def test_explained_variance_of_perfect_constant_and_contrary_values() -> None:
    returns, mask = [T([[1.0, 2.0, 3.0]])], [T([[True, True, True]])]
    assert objectives.explained_variance([T([[1.0, 2.0, 3.0]])], returns, mask) == 1.0
    assert objectives.explained_variance([T([[5.0, 5.0, 5.0]])], returns, mask) == 0.0
    assert objectives.explained_variance([T([[3.0, 2.0, 1.0]])], returns, mask) == -3.0  # errors -2, 0, 2
