"""The mathematics of reward modelling: numbers worked by hand, signs, and what must not matter."""

import math

import numpy as np
import pytest
import torch

from llm_rlhf.reward.length import fit_length_weight, length_features, length_slope
from llm_rlhf.reward.objectives import pair_losses, smoothed


def losses(gap: float, confidence: float = 1.0, margin: float = 0.0, offset: float = 0.0) -> float:
    """One pair's loss, in float64."""
    values = (torch.tensor([value], dtype=torch.float64) for value in (gap, confidence, margin, offset))
    return pair_losses(*values).item()


def test_numbers_worked_by_hand() -> None:
    # s(log 3) = 3/4, s(-log 3) = 1/4
    assert losses(math.log(3)) == pytest.approx(math.log(4 / 3))
    assert losses(math.log(3), confidence=0.9) == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))
    # a margin of log 3 leaves nothing of the gap where the label is right, and asks for log 9 more where it is wrong
    assert losses(math.log(3), margin=math.log(3)) == pytest.approx(math.log(2))
    assert losses(math.log(3), 0.9, math.log(3)) == pytest.approx(0.9 * math.log(2) + 0.1 * math.log(10))
    # lengths that already say log 3 leave the score nothing to explain
    assert losses(0.0, offset=math.log(3)) == pytest.approx(math.log(4 / 3))


@pytest.mark.parametrize(("gap", "confidence", "sign"), [(1.0, 1.0, -1), (1.0, 0.9, -1), (3.0, 0.9, 1), (0.1, 0.5, 1)])
def test_the_gradient_pushes_the_gap_towards_what_the_label_is_worth(gap: float, confidence: float, sign: int) -> None:
    """The loss is least at log(c / (1 - c)): 2.197 for c = 0.9, 0 for a tie, nowhere for a sure label."""
    gaps = torch.tensor([gap], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    pair_losses(gaps, zero + confidence, zero, zero).sum().backward()
    assert gaps.grad is not None
    assert torch.sign(gaps.grad).item() == sign


def test_a_pair_turned_round_with_the_opposite_label_is_the_same_pair() -> None:
    gap, offset = 0.7, -0.4
    assert losses(gap, 0.8, 0.3, offset) == pytest.approx(losses(-gap, 0.2, 0.3, -offset))


def test_smoothing_shrinks_confidence_towards_a_coin() -> None:
    assert smoothed(1.0, 0.1) == pytest.approx(0.9)
    assert smoothed(0.8, 0.1) == pytest.approx(0.8 * 0.9 + 0.2 * 0.1)
    assert smoothed(0.5, 0.3) == pytest.approx(0.5)


def test_lengths_become_a_bounded_number_that_keeps_their_sign() -> None:
    x = length_features([3, -4, 0, 1000])
    deviation = math.sqrt((9 + 16 + 0 + 1e6) / 4)
    assert x[:3] == pytest.approx([math.tanh(3 / deviation), math.tanh(-4 / deviation), 0.0])
    assert 0.9 < x[3] < 1
    assert length_features([0, 0]) == [0.0, 0.0]


def test_the_length_weight_is_the_maximum_likelihood() -> None:
    """Against a search over a grid, with the ridge's half-square as its only prior."""
    rng = np.random.default_rng(0)
    x = np.tanh(rng.normal(size=400))
    x = np.where(rng.random(400) < 1 / (1 + np.exp(-1.5 * x)), x, -x)  # turned so that the label is always "first"
    confidence = rng.choice([1.0, 0.8], size=400)
    grid = np.linspace(0, 3, 3001)
    odds = grid[:, None] * x
    likelihood = -(confidence * np.logaddexp(0, -odds) + (1 - confidence) * np.logaddexp(0, odds)).sum(1)
    best = grid[np.argmax(likelihood - grid**2 / 2)]
    assert fit_length_weight(x.tolist(), confidence.tolist()) == pytest.approx(best, abs=1e-3)  # the grid's step


def test_lengths_that_settle_every_label_have_a_finite_weight() -> None:
    assert 1 < fit_length_weight([1.0] * 50, [1.0] * 50) < 10


def test_the_slope_is_the_derivative_of_the_likelihood() -> None:
    gap, x = torch.tensor([0.3, -1.0]).double(), torch.tensor([0.5, -0.2]).double()
    confidence = torch.tensor([1.0, 0.7]).double()
    weight = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def likelihood(w: torch.Tensor) -> torch.Tensor:
        return -pair_losses(gap, confidence, torch.zeros(2).double(), w * x).sum()

    (first,) = torch.autograd.grad(likelihood(weight), weight)
    second = torch.autograd.functional.hessian(likelihood, weight)
    slope, curvature = length_slope(0.4, gap, x, confidence)
    assert slope.item() == pytest.approx(first.item())
    assert curvature.item() == pytest.approx(-second.item())
