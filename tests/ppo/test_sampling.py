"""Drawing tokens from the whole distribution, and telling an engine's wrong answers."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from llm_rlhf.models.decoding_loop import DecodingLoop, sampling
from llm_rlhf.models.random_draws import Draw, draw_tokens, entropy
from llm_rlhf.ppo.sampling import Sampled


def draws(uniform: torch.Tensor, probabilities: list[float], temperature: float = 1.0) -> list[int]:
    """The tokens that are drawn for these uniform numbers, one a row."""
    logits = torch.tensor(probabilities).log().expand(len(uniform), -1)
    drawn, logprobs = draw_tokens(logits, temperature, uniform)
    exact = (logits.double() / temperature).log_softmax(-1).gather(1, drawn[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), exact, rtol=1e-6, atol=1e-6)  # float32
    out = Draw(temperature, uniform[:, None])(torch.zeros(len(uniform), 1), logits)
    assert ((out == 0).sum(1) == 1).all()  # one token is possible, all others are not
    assert (torch.isinf(out).sum(1) == len(probabilities) - 1).all()
    assert torch.equal(out.argmax(1), drawn)
    return drawn.tolist()


def test_tokens_come_as_often_as_they_are_likely() -> None:
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens = draws(grid, [0.5, 0.0, 0.25, 0.125, 0.125])
    assert [tokens.count(i) for i in range(5)] == [500, 0, 250, 125, 125]


def test_temperature_sharpens() -> None:
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens = draws(grid, [0.75, 0.25], temperature=0.5)
    assert tokens.count(0) == 900  # .75^2 / (.75^2 + .25^2)


def test_the_race_of_exponentials_draws_as_often_as_they_are_likely() -> None:
    """What draws on a GPU."""
    torch.manual_seed(0)
    probabilities, n = torch.tensor([0.5, 0.0, 0.25, 0.125, 0.125]), 20_000
    drawn, logprobs = draw_tokens((probabilities.log() * 0.5).expand(n, -1), 0.5)
    error = torch.bincount(drawn, minlength=5) / n - probabilities
    assert error.abs().max() < 5 * 0.5 / n**0.5  # standard errors
    torch.testing.assert_close(logprobs, probabilities.log()[drawn], rtol=1e-6, atol=1e-6)  # float32


def test_the_ends_of_the_unit_interval_and_impossible_tokens() -> None:
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draws(ends, [0.0, 0.5, 0.5, 0.0]) == [1, 2]


def test_the_tail_of_a_large_vocabulary_is_not_lost() -> None:
    """A hundred thousand tokens of 1e-9 each after one of nearly all: in float32 the sum would not move."""
    tail = [1e-9] * 100_000
    first = 1 - 1e-4
    uniform = torch.tensor([first + 0.5e-4, first + 0.25e-4], dtype=torch.float64)
    middle, quarter = draws(uniform, [first, *tail])
    assert abs(middle - 50_000) < 100
    assert abs(quarter - 25_000) < 100


@pytest.mark.slow
def test_generate_draws_and_is_itself_again_afterwards(base_folder) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    config = GenerationConfig(max_new_tokens=1, do_sample=True, pad_token_id=1, eos_token_id=0, temperature=0.7)
    ids = torch.tensor([[20, 30, 40]])
    with torch.no_grad():
        probabilities = (model(input_ids=ids).logits[0, -1] / 0.7).softmax(-1)
    torch.manual_seed(0)
    n = 20_000
    with sampling(model, DecodingLoop(0.7)):
        out = model.generate(input_ids=ids.expand(n, -1), generation_config=config)[:, -1]
    assert "generate" not in vars(model)
    assert config.do_sample
    found = torch.bincount(out, minlength=len(probabilities)) / n
    error = (found - probabilities).abs() / (probabilities * (1 - probabilities) / n).sqrt().clamp(min=1e-3)
    assert error.max() < 5  # standard errors, over some 260 tokens


def test_half_precision_logits_are_normalised_in_float32() -> None:
    """In bfloat16 a log-probability near -3 would be off by up to 8e-3."""
    torch.manual_seed(0)
    logits = torch.randn(3, 32).bfloat16()
    drawn, logprobs = draw_tokens(logits, 0.7)
    exact = (logits.double() / 0.7).log_softmax(-1)
    # float32 sums of 32 terms
    torch.testing.assert_close(logprobs.double(), exact.gather(1, drawn[:, None])[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(entropy(logits, 0.7).double(), -(exact.exp() * exact).sum(-1), rtol=0, atol=1e-6)


def test_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, -1e9, -1e9]])
    of_quarters = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert entropy(logits, 1.0).tolist() == pytest.approx([math.log(4), of_quarters], abs=1e-6)  # float32
    sharper = 0.9 * math.log(10 / 9) + 0.1 * math.log(10)  # at half the temperature, 9 to 1
    assert entropy(logits, 0.5)[1].item() == pytest.approx(sharper, abs=1e-6)


def test_of_each_response_what_the_loop_kept_of_its_tokens() -> None:
    loop = DecodingLoop(1.0)
    loop.logprobs_BS = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0]])
    assert Sampled.by(loop, [3, 1]) == Sampled([[-1.0, -2.0, -3.0], [-4.0]])
    loop.entropies_BS, loop.values_BS = -loop.logprobs_BS, 2 * loop.logprobs_BS
    assert Sampled.by(loop, [2, 1]) == Sampled([[-1.0, -2.0], [-4.0]], [[1.0, 2.0], [4.0]], [[-2.0, -4.0], [-8.0]])
