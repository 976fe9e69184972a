"""The tiled log-probabilities against torch's own log_softmax, values and gradients."""

import math

import pytest
import torch

from llm_rlhf.models import logprobs
from llm_rlhf.models.logprobs import token_logprobs
from llm_rlhf.models.roles import apply_head


@pytest.mark.parametrize("trained", ["hidden states", "hidden states and head"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 16, 37])  # blocks of 16 rows: less than one, one, and two and a part
@pytest.mark.parametrize("words", [4, 11, 20])  # of 11: two and a part, all, and more than there are
def test_values_and_gradients_equal_log_softmax(monkeypatch, trained, bias, rows, words) -> None:
    monkeypatch.setattr(logprobs, "ROWS", 16)
    monkeypatch.setattr(logprobs, "WORDS", words)
    torch.manual_seed(0)
    head = torch.nn.Linear(7, 11, bias=bias, dtype=torch.float64).requires_grad_(trained != "hidden states")
    hidden = torch.randn(rows, 7, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.randint(11, (rows,)), torch.randn(rows, dtype=torch.float64)
    parameters = [hidden, *(p for p in head.parameters() if p.requires_grad)]

    whole = (head(hidden) / 0.7).log_softmax(-1)
    expected = whole.gather(1, labels[:, None]).squeeze(1)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), parameters)
    found, entropies = token_logprobs(hidden, head, labels, 0.7, with_entropy=True)
    gradients = torch.autograd.grad((found * weights).sum(), parameters)

    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # float64, another order of sums
    torch.testing.assert_close(entropies, -(whole.exp() * whole).sum(1), rtol=1e-12, atol=1e-12)  # likewise
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-11, atol=1e-12)  # and of more terms


@pytest.mark.parametrize("words", [1, 2, 3])
def test_large_logits_do_not_overflow(monkeypatch, words) -> None:
    monkeypatch.setattr(logprobs, "WORDS", words)
    head = torch.nn.Linear(2, 3, bias=False)
    head.weight.data = torch.tensor([[1e4, 0.0], [0.0, 1.0], [-1e4, 0.0]])
    found, entropies = token_logprobs(torch.ones(2, 2), head, torch.tensor([0, 2]), 1.0, with_entropy=True)
    assert found.tolist() == [0.0, -2e4]
    assert entropies.tolist() == [0.0, 0.0]
    head.weight.data = head.weight.data.flip(0)  # the largest comes last
    found, entropies = token_logprobs(torch.ones(2, 2), head, torch.tensor([2, 0]), 1.0, with_entropy=True)
    assert found.tolist() == [0.0, -2e4]
    assert entropies.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("trained", [False, True])
def test_a_label_that_is_no_word_has_no_probability(trained) -> None:
    head = torch.nn.Linear(2, 3).requires_grad_(trained)
    found, _ = token_logprobs(torch.ones(2, 2), head, torch.tensor([-100, 1]), 1.0)
    assert found.isnan().tolist() == [True, False]


def test_words_that_are_as_good_as_impossible_leave_the_entropy_of_the_others(monkeypatch) -> None:
    monkeypatch.setattr(logprobs, "WORDS", 2)
    head = torch.nn.Linear(2, 4)
    head.weight.data.zero_()
    head.bias.data = torch.tensor([-1e38, -1e38, 0.0, 0.0])
    found, entropies = token_logprobs(torch.ones(1, 2), head, torch.tensor([3]), 1.0, with_entropy=True)
    assert found.tolist() == entropies.neg().tolist() == [pytest.approx(-math.log(2))]


def test_of_peaked_rows_a_trained_heads_gradients_are_as_near_as_the_probabilities() -> None:
    """Logits in the hundreds: the logarithm of their sum is rounded to 3e-5, their sum is not."""
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(8, 50, bias=False), torch.randn(20, 8)
    head.weight.data = 1000 * head.weight.data[:25].repeat(2, 1)  # two words are as likely
    labels = torch.randint(50, (20,))
    found = []
    for dtype in (torch.float32, torch.float64):
        states = hidden.detach().to(dtype).requires_grad_()
        token_logprobs(states, head.to(dtype), labels, 1.0)[0].sum().backward()
        found.append(states.grad.double())
    mine, exact = found
    assert (
        (mine - exact).norm() / exact.norm()
    ).item() < 1e-5  # float32: their halves are exact, what they weigh is not


def test_bfloat16_states_give_float32_log_probabilities() -> None:
    head = torch.nn.Linear(4, 9, bias=False)
    hidden = torch.randn(5, 4).bfloat16()
    found, _ = token_logprobs(hidden, head, torch.arange(5), 1.0)
    assert found.dtype == torch.float32
    expected = (hidden @ head.weight.bfloat16().t()).float().log_softmax(-1)[torch.arange(5), torch.arange(5)]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # float32 numbers near 2 are rounded to 1e-7


def test_a_scalar_head_is_float32_under_autocast() -> None:
    """bfloat16 would tell 1.001 from 1 nowhere."""
    head = torch.nn.Linear(2, 1)
    head.weight.data, head.bias.data = torch.tensor([[1.0, 0.001]]), torch.zeros(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert apply_head(head, torch.ones(1, 2)).tolist() == [pytest.approx(1.001, abs=1e-6)]  # float32
