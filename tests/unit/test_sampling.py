"""Drawing tokens from the whole distribution, and telling an engine's wrong answers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from llm_rlhf.ppo.sampling import Draw, GenerateWatch, SamplingError, drawing


def draws(monkeypatch, uniform: torch.Tensor, probabilities: list[float], temperature: float = 1.0) -> list[int]:
    """The tokens Draw takes for these uniform numbers, one a row."""
    monkeypatch.setattr(torch, "rand", lambda *size, **kwargs: uniform.reshape(-1, 1))
    scores = torch.tensor(probabilities).log().expand(len(uniform), -1)
    out = Draw(temperature)(torch.zeros(len(uniform), 1), scores)
    assert ((out == 0).sum(1) == 1).all()  # one token is possible, all others are not
    assert (torch.isinf(out).sum(1) == len(probabilities) - 1).all()
    return out.argmax(1).tolist()


def test_tokens_come_as_often_as_they_are_likely(monkeypatch) -> None:
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens = draws(monkeypatch, grid, [0.5, 0.0, 0.25, 0.125, 0.125])
    assert [tokens.count(i) for i in range(5)] == [500, 0, 250, 125, 125]


def test_temperature_sharpens(monkeypatch) -> None:
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens = draws(monkeypatch, grid, [0.75, 0.25], temperature=0.5)
    assert tokens.count(0) == 900  # .75^2 / (.75^2 + .25^2)


def test_the_ends_of_the_unit_interval_and_impossible_tokens(monkeypatch) -> None:
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draws(monkeypatch, ends, [0.0, 0.5, 0.5, 0.0]) == [1, 2]


def test_the_tail_of_a_large_vocabulary_is_not_lost(monkeypatch) -> None:
    """A hundred thousand tokens of 1e-9 each after one of nearly all: in float32 the sum would not move."""
    tail = [1e-9] * 100_000
    first = 1 - 1e-4
    uniform = torch.tensor([first + 0.5e-4, first + 0.25e-4], dtype=torch.float64)
    middle, quarter = draws(monkeypatch, uniform, [first, *tail])
    assert abs(middle - 50_000) < 100
    assert abs(quarter - 25_000) < 100


def test_generate_draws_and_is_itself_again_afterwards(base_folder) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    config = GenerationConfig(max_new_tokens=1, do_sample=True, pad_token_id=1, eos_token_id=0, temperature=0.7)
    ids = torch.tensor([[20, 30, 40]])
    with torch.no_grad():
        probabilities = (model(input_ids=ids).logits[0, -1] / 0.7).softmax(-1)
    torch.manual_seed(0)
    n = 20_000
    with drawing(model, 0.7):
        out = model.generate(input_ids=ids.expand(n, -1), generation_config=config)[:, -1]
    assert "generate" not in vars(model)
    assert config.do_sample
    found = torch.bincount(out, minlength=len(probabilities)) / n
    error = (found - probabilities).abs() / (probabilities * (1 - probabilities) / n).sqrt().clamp(min=1e-3)
    assert error.max() < 5  # standard errors, over some 260 tokens


def test_steps_that_do_not_match_tokens_are_refused() -> None:
    watch = GenerateWatch(torch.nn.Linear(2, 1), 1.0)
    with pytest.raises(SamplingError, match="old_logprobs: rescored"):
        watch.rows([[5, 6]])
