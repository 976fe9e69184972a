"""Drawing tokens from the whole distribution, and telling an engine's wrong answers."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, LlamaConfig

from llm_rlhf.models.adapters import active_adapters
from llm_rlhf.models.random_draws import Draw, drawing
from llm_rlhf.ppo.sampling import GenerateWatch, SamplingError, merged_policy


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


@pytest.mark.slow
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


def test_half_precision_logits_are_normalised_in_float32() -> None:
    """In bfloat16 a log-probability near -3 would be off by up to 8e-3."""
    torch.manual_seed(0)
    watch = GenerateWatch(torch.nn.Linear(2, 1), 0.7)
    steps = [torch.randn(3, 1, 32).bfloat16() for _ in range(2)]
    sampled = torch.tensor([[5, 6], [7, 8], [9, 10]])
    for step, logits in enumerate(steps):
        watch.see_hidden(None, None, SimpleNamespace(last_hidden_state=torch.zeros(3, 1, 2)))
        watch.see_logits(None, None, {"input_ids": sampled[:, :step]}, SimpleNamespace(logits=logits))
    found = watch.rows(sampled.tolist())
    exact = torch.cat([(logits.double() / 0.7).log_softmax(-1) for logits in steps], 1)
    logprobs, entropies = exact.gather(2, sampled.unsqueeze(2)).squeeze(2), -(exact.exp() * exact).sum(-1)
    # float32 sums of 32 terms
    torch.testing.assert_close(torch.tensor(found.logprobs).double(), logprobs, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(found.entropies).double(), entropies, rtol=0, atol=1e-6)


LLAMA = LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, eos_token_id=0, pad_token_id=1,
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32)  # its matrices lie the other way


def adapted(config, dtype=torch.float32, **lora):
    """A random model with a policy and, on other layers too, a second adapter, both far from zero."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    first = ["c_attn"] if config is GPT2 else ["q_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=4, target_modules=first, init_lora_weights=False, **lora))
    model.add_adapter("reward", LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return model


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_merged_for_sampling_the_policy_is_the_same_and_the_base_untouched(config) -> None:
    model = adapted(config)
    base = model.get_base_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    with torch.no_grad():
        with active_adapters(base, []):
            reference = base(ids).logits
        with active_adapters(base, ["default"]):
            policy = base(ids).logits
            with merged_policy(base):
                merged = base(ids).logits
            with pytest.raises(KeyboardInterrupt), merged_policy(base):
                raise KeyboardInterrupt
            again = base(ids).logits
    assert (policy - reference).abs().max() > 0.01  # a thousand times the tolerance below
    torch.testing.assert_close(merged, policy, rtol=0, atol=1e-5)  # one float32 product for three
    assert torch.equal(again, policy)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("kind", ["bfloat16", "dora"])
def test_what_cannot_be_merged_without_rounding_is_sampled_as_it_is(kind) -> None:
    model = adapted(LLAMA, torch.bfloat16) if kind == "bfloat16" else adapted(LLAMA, use_dora=True)
    base = model.get_base_model()
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad(), active_adapters(base, ["default"]):
        policy = base(ids).logits
        with merged_policy(base):
            assert torch.equal(base(ids).logits, policy)
