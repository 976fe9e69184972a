"""The decoding loop: draws, finished rows, compiled steps; and the plain copy that it samples from."""

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GemmaConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    Qwen3MoeConfig,
)

from llm_rlhf.models import decoding_loop
from llm_rlhf.models import sampler as sampler_module
from llm_rlhf.models.adapters import active_adapters
from llm_rlhf.models.base import load_causal_lm
from llm_rlhf.models.decoding_loop import DecodingLoop, SamplingError, prompt_columns, sampling
from llm_rlhf.models.growing_cache import GrowingLayer, grow_in_place
from llm_rlhf.models.memory import ENOUGH
from llm_rlhf.models.merged import MergedCopy, can_merge, copied_bytes, rounded_at_random
from llm_rlhf.models.sampler import CompiledDecoding, PolicySampler, cache_bytes, can_compile, fitting_rows
from llm_rlhf.recipe.sections import ModelSection

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 2, "num_key_value_heads": 1, "eos_token_id": 0, "pad_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
LLAMA = LlamaConfig(**SIZES)
GEMMA = GemmaConfig(**SIZES)
WINDOWS = Gemma3TextConfig(**SIZES, sliding_window=4, layer_types=["sliding_attention", "full_attention"])
GPT2 = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64)  # its matrices lie the other way
MOE = Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
MAMBA = MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4)
STEPS = 12
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15], [16, 17, 18], [19, 20]]


def random_model(config, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def adapted(config, dtype=torch.float32, size=1.0, **lora):
    """A random model with a policy and, on other layers too, a second adapter, both far from zero."""
    model = random_model(config, dtype)
    first = ["c_attn"] if config is GPT2 else ["q_proj", "o_proj"] if config is MOE else ["q_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": first, "init_lora_weights": False, **lora}))
    second = ["v_proj"] if config is MOE else "all-linear"  # whose experts PEFT lets only one adapter have
    model.add_adapter("reward", LoraConfig(r=4, target_modules=second, init_lora_weights=False))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.mul_(size)
    return model


def padded(prompts=PROMPTS):
    width = max(map(len, prompts))
    ids = torch.tensor([[1] * (width - len(p)) + p for p in prompts])
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


def stops_of(count=16):
    """So many tokens stop that replies end at all lengths."""
    return GenerationConfig(max_new_tokens=STEPS, eos_token_id=[0, *range(24, 24 + count - 1)], pad_token_id=1)


def uniforms():
    return torch.from_numpy(np.random.default_rng(3).random((len(PROMPTS), STEPS)))


def sample(model, loop, prompts=PROMPTS, config=None):
    with torch.no_grad(), sampling(model, loop):
        out = model.generate(**padded(prompts), generation_config=config or stops_of())
    assert "generate" not in vars(model)
    return out[:, max(map(len, prompts)) :]


def reply(row, stops):
    """A row of tokens up to the one that stops it."""
    end = next((i for i, token in enumerate(row) if token in stops), len(row))
    return row[: end + 1]


@pytest.mark.parametrize(
    "config", [LLAMA, GEMMA, WINDOWS, GPT2, MOE, MAMBA], ids=["llama", "gemma", "windows", "gpt2", "moe", "mamba"]
)
def test_replies_are_the_same_whether_finished_rows_leave_or_stay_or_never_were_there(config) -> None:
    model, numbers = random_model(config), uniforms()
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, __, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
    left = DecodingLoop(1.0, numbers)
    tokens = sample(model, left)
    of_leaving, sizes[:] = list(sizes), []
    stayed = DecodingLoop(1.0, numbers, leave=False)
    assert torch.equal(sample(model, stayed), tokens)
    torch.testing.assert_close(left.logprobs_BS, stayed.logprobs_BS, rtol=0, atol=1e-5)  # float32, other batch sizes
    assert set(sizes) == {len(PROMPTS)}
    if config is MAMBA:
        assert set(of_leaving) == {len(PROMPTS)}  # its state cannot be cut to some of its rows
        return
    assert min(of_leaving) < len(PROMPTS) / 2
    assert of_leaving == sorted(of_leaving, reverse=True)
    for i, prompt in enumerate(PROMPTS):
        alone = sample(model, DecodingLoop(1.0, numbers[i : i + 1]), [prompt])
        stops = stops_of().eos_token_id
        assert reply(alone[0].tolist(), stops) == reply(tokens[i].tolist(), stops)


def test_prompts_are_read_in_pieces_of_a_bounded_size_on_a_gpu() -> None:
    most = ENOUGH
    assert prompt_columns(128, 256, "cpu") == 256, "on a CPU nothing changes"
    assert prompt_columns(most // 256, 256, "cuda") == 256
    assert prompt_columns(most // 128, 256, "cuda") == 128
    assert prompt_columns(3 * most, 5, "cuda") == 1


@pytest.mark.parametrize("columns", [1, 2, 4])
@pytest.mark.parametrize("config", [LLAMA, GEMMA, WINDOWS, GPT2, MOE], ids=["llama", "gemma", "windows", "gpt2", "moe"])
def test_replies_are_the_same_whether_prompts_are_read_whole_or_in_pieces(config, columns, monkeypatch) -> None:
    """Prompts of 1 to 5 tokens: some pieces hold nothing but padding of a row."""
    model, numbers = random_model(config), uniforms()
    whole = DecodingLoop(1.0, numbers)
    tokens = sample(model, whole)
    sizes: list[int] = []
    monkeypatch.setattr(decoding_loop, "prompt_columns", lambda rows, length, device: columns)
    model.register_forward_pre_hook(lambda _, __, kwargs: sizes.append(kwargs["input_ids"].size(1)), with_kwargs=True)
    pieces = DecodingLoop(1.0, numbers)
    assert torch.equal(sample(model, pieces), tokens)
    torch.testing.assert_close(pieces.logprobs_BS, whole.logprobs_BS, rtol=0, atol=1e-5)  # float32, other widths
    assert sum(sizes[: -(-5 // columns)]) == 5
    assert max(sizes) == columns
    sizes.clear()
    sample(model, DecodingLoop(1.0, numbers, leave=False))
    assert sizes[0] == 5


def test_what_keeps_more_than_keys_and_values_reads_prompts_whole(monkeypatch) -> None:
    model, numbers = random_model(MAMBA), uniforms()
    tokens = sample(model, DecodingLoop(1.0, numbers))
    monkeypatch.setattr(decoding_loop, "prompt_columns", lambda rows, length, device: 2)
    assert torch.equal(sample(model, DecodingLoop(1.0, numbers)), tokens)


@pytest.mark.parametrize("config", [LLAMA, WINDOWS, GPT2], ids=["llama", "windows", "gpt2"])
def test_replies_are_the_same_by_transformers_own_cache(config, monkeypatch) -> None:
    model, found = random_model(config), []
    seen: set[type] = set()

    def watched(cache, most):
        grow_in_place(cache, most)
        seen.update(type(layer) for layer in cache.layers)

    for prepare in (watched, lambda *_: None):
        monkeypatch.setattr(decoding_loop, "grow_in_place", prepare)
        loop = DecodingLoop(1.0, uniforms())
        found.append((sample(model, loop), loop.logprobs_BS))
    (tokens, logprobs), (expected, others) = found
    assert GrowingLayer in seen
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(logprobs, others, rtol=0, atol=1e-5)  # float32, attention over other strides


def test_drawn_tokens_do_not_hang_on_who_has_finished() -> None:
    """Without numbers of its own a loop draws one a row and step, for those that have finished as well."""
    model = random_model(LLAMA)
    found = []
    for leave in (True, False):
        torch.manual_seed(5)
        found.append(sample(model, DecodingLoop(1.0, leave=leave)))
    assert torch.equal(*found)


def test_logprobs_are_those_of_a_forward_over_the_whole_reply() -> None:
    model = random_model(LLAMA)
    loop = DecodingLoop(0.7, uniforms())
    tokens = sample(model, loop)
    stops = stops_of().eos_token_id
    for i, prompt in enumerate(PROMPTS):
        ids = reply(tokens[i].tolist(), stops)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        exact = (logits / 0.7).log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(loop.logprobs_BS[i, : len(ids)], exact, rtol=0, atol=1e-5)  # float32
        assert (loop.logprobs_BS[i, len(ids) :] == 0).all()
        assert (tokens[i, len(ids) :] == 1).all()  # pad


@pytest.mark.parametrize("columns", [5, 2], ids=["whole", "in pieces"])
def test_values_and_entropies_are_those_of_a_forward_over_the_whole_reply(columns, monkeypatch) -> None:
    """Of the state before each token, whoever has left the batch by then."""
    model, head = random_model(LLAMA), torch.nn.Linear(16, 1)
    monkeypatch.setattr(decoding_loop, "prompt_columns", lambda rows, length, device: columns)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, __, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
    loop = DecodingLoop(0.7, uniforms(), value_head=head)
    tokens, stops = sample(model, loop), stops_of().eos_token_id
    assert min(sizes) < len(PROMPTS) / 2
    for i, prompt in enumerate(PROMPTS):
        ids = reply(tokens[i].tolist(), stops)
        with torch.no_grad():
            states = model.base_model(torch.tensor([prompt + ids])).last_hidden_state[0, len(prompt) - 1 : -1]
            values, logprobs = head(states)[:, 0], (model.lm_head(states) / 0.7).log_softmax(-1)
        entropies = -(logprobs.exp() * logprobs).sum(-1)
        for found, exact in ((loop.values_BS, values), (loop.entropies_BS, entropies)):
            torch.testing.assert_close(found[i, : len(ids)], exact, rtol=0, atol=1e-5)  # float32
            assert (found[i, len(ids) :] == 0).all()
    assert not model.base_model._forward_hooks
    plain = DecodingLoop(0.7, uniforms())
    assert torch.equal(sample(model, plain), tokens)
    assert plain.values_BS is plain.entropies_BS is None


def test_temperature_0_is_transformers_greedy_decoding() -> None:
    model = random_model(LLAMA)
    greedy = model.generate(**padded(), generation_config=stops_of(), do_sample=False)
    assert torch.equal(sample(model, DecodingLoop(0.0)), greedy[:, 5:])


def test_generation_config_of_the_model_is_not_asked() -> None:
    """Repeated tokens forbidden, as many models' configs do, would be another distribution than PPO learns from."""
    model = random_model(LLAMA)
    plain = sample(model, DecodingLoop(0.0))
    model.generation_config.no_repeat_ngram_size = 1
    assert torch.equal(sample(model, DecodingLoop(0.0)), plain)
    with pytest.raises(SamplingError, match="NoRepeatNGram"):
        model.generate(**padded(), generation_config=stops_of(), do_sample=False, custom_generate=DecodingLoop(0.0))


# ---- the plain copy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [LLAMA, WINDOWS, GPT2, MOE], ids=["llama", "windows", "gpt2", "moe"])
def test_the_copy_is_the_policy_and_the_base_is_untouched(config) -> None:
    model = adapted(config)
    base = model.get_base_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    with torch.no_grad():
        with active_adapters(base, []):
            reference = base(ids).logits
        with active_adapters(base, ["default"]):
            policy = base(ids).logits
        made = MergedCopy(base, "default", torch.float32)
        with made.refreshed(0) as plain, active_adapters(base, ["reward"]):  # which it does not know
            merged = plain(ids).logits
        with made.refreshed(1) as plain:
            assert torch.equal(plain(ids).logits, merged)
    assert made.exact
    assert (policy - reference).abs().max() > 0.01  # a thousand times the tolerance below
    torch.testing.assert_close(merged, policy, rtol=0, atol=1e-5)  # one float32 product for three
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any("lora" in name for name, _ in plain.named_parameters())
    merged_layers = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A.default" in name}
    numbers = sum(model.get_submodule(name).get_base_layer().weight.numel() for name in merged_layers)
    assert copied_bytes(base, "default", torch.float32) == 4 * numbers > 0
    assert all(not mine.numel() for mine, _ in made._own)  # its memory is given back


def test_the_copy_follows_the_policy_and_keeps_its_addresses() -> None:
    model = adapted(LLAMA)
    base = model.get_base_model()
    made = MergedCopy(base, "default", torch.float32)
    ids = torch.tensor([[3, 4, 5, 6]])
    with made.refreshed(0, keep=True) as plain, torch.no_grad():
        where, first = [mine.data_ptr() for mine, _ in made._own], plain(ids).logits
    for name, p in model.named_parameters():
        if "lora_B.default" in name:
            p.data.mul_(2)
    with made.refreshed(1, keep=True) as plain, torch.no_grad(), active_adapters(base, ["default"]):
        torch.testing.assert_close(plain(ids).logits, base(ids).logits, rtol=0, atol=1e-5)  # as above
        assert (plain(ids).logits - first).abs().max() > 0.01
    assert [mine.data_ptr() for mine, _ in made._own] == where


def test_a_model_that_is_trained_whole_is_copied_in_the_type_it_computes_in() -> None:
    model = random_model(GEMMA)  # its head is tied to its embeddings
    made = MergedCopy(model, None, torch.bfloat16)
    assert copied_bytes(model, None, torch.bfloat16) == 2 * sum(p.numel() for p in model.parameters())
    ids = torch.tensor([[3, 4, 5, 6]])
    for factor in (1.0, 3.0):  # the second time its weights have moved
        model.model.norm.weight.data.fill_(factor)
        with made.refreshed(0, keep=True) as plain, torch.no_grad():
            assert plain.lm_head.weight is plain.model.embed_tokens.weight
            assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
            # bfloat16 holds 8 bits
            torch.testing.assert_close(plain(ids).logits.float(), model(ids).logits, rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_a_batch_that_is_filled_up_gives_log_probabilities_of_its_own_rows_alone(traced) -> None:
    base = adapted(LLAMA, torch.bfloat16).get_base_model()
    sampler = PolicySampler(base, torch.bfloat16, 1.0, "default", may_round=True, compiled_rows=len(PROMPTS) + 3)
    assert sampler.rounded
    assert sampler.told == {"sampled_from": "weights merged and rounded", "decoding": "compiled"}
    with sampler(seed=0) as loop:
        out = base.generate(**padded(), generation_config=stops_of())
    assert len(loop.logprobs_BS) == len(out) == len(PROMPTS)
    assert (loop.logprobs_BS[:, 0] < 0).all()


def test_what_cannot_be_merged_is_told() -> None:
    assert can_merge(adapted(LLAMA).get_base_model(), "default")
    assert can_merge(random_model(LLAMA), None)
    assert can_merge(adapted(LLAMA, modules_to_save=["lm_head"]).get_base_model(), "default")
    for lora in ({"use_dora": True}, {"trainable_token_indices": [3]}, {"lora_bias": True}):
        base = adapted(LLAMA, **lora).get_base_model()
        assert not can_merge(base, "default"), lora
        assert PolicySampler(base, torch.float32, 1.0, "default", may_round=True).copy is None
        with pytest.raises(ValueError, match="merge_for_sampling is True"):
            PolicySampler(base, torch.float32, 1.0, "default", may_round=True, merge=True)
    half = adapted(LLAMA, torch.bfloat16).get_base_model()
    beside = PolicySampler(half, torch.bfloat16, 1.0, "default", may_round=False)
    assert beside.copy is None
    assert beside.told == {"sampled_from": "the adapter beside its base", "decoding": "plain"}
    assert PolicySampler(half, torch.bfloat16, 1.0, "default", may_round=True).rounded


def test_what_cannot_be_compiled_is_told_where_it_must_be() -> None:
    assert can_compile(random_model(LLAMA))
    assert not can_compile(random_model(MAMBA))
    assert (
        PolicySampler(random_model(MAMBA), torch.float32, 1.0, None, may_round=False, compiled_rows=8).compiled is None
    )
    with pytest.raises(ValueError, match="MambaForCausalLM does not compile"):
        PolicySampler(
            random_model(MAMBA), torch.float32, 1.0, None, may_round=False, compiled_rows=8, must_compile=True
        )


def test_the_cache_that_stays_for_a_run_takes_a_third_of_the_memory_at_most(monkeypatch) -> None:
    """A token of LLAMA: 2 layers of keys and values of one head of 8 numbers, 4 bytes each."""
    model = random_model(LLAMA)
    assert cache_bytes(LLAMA, torch.float32) == 2 * 2 * 8 * 4
    assert fitting_rows(100, 10, 3 * 250) == 25
    assert fitting_rows(100, 10, 3 * 249) == 13
    assert fitting_rows(8, 10, 0) == 1
    compiled = CompiledDecoding(model, 40)
    with monkeypatch.context() as patch:
        patch.setattr(sampler_module, "free_bytes", lambda _: 3 * 128 * (64 + 8) * 20)
        assert compiled.fitted(5, 8) == 20
    assert compiled.fitted(5, 8) == 20  # and stays so


def test_rounding_at_random_keeps_the_mean_and_neighbours() -> None:
    values = torch.tensor([1.0 + 2**-9, -1.0 - 3 * 2**-10, 0.5, 300.1, -1e-20])  # bfloat16 near 1: steps of 2^-7
    n = 4000
    generator = torch.Generator().manual_seed(0)
    rounded = rounded_at_random(values.expand(n, -1), torch.bfloat16, generator)
    assert rounded.dtype == torch.bfloat16
    assert rounded[:, 0].unique().tolist() == [1.0, 1.0 + 2**-7]
    assert rounded[:, 1].unique().tolist() == [-1.0 - 2**-7, -1.0]
    assert rounded[:, 2].unique().tolist() == [0.5]
    # a quarter and three eighths of the step, of 4,000 draws: the deviation of a share is under .008
    assert abs((rounded[:, 0] > 1).double().mean() - 0.25) < 0.04
    assert abs((rounded[:, 1] < -1).double().mean() - 0.375) < 0.04
    means = rounded.double().mean(0)  # each deviates by at most half a step over the root of 4,000: 2^-8 / 63 = 6e-5
    torch.testing.assert_close(means, values.double(), rtol=2e-4, atol=0)


def test_a_small_adapter_is_not_rounded_away() -> None:
    """Rounded to the nearest, an adapter of a thousandth of the weights vanishes; at random its output survives."""
    torch.manual_seed(0)
    size = 512
    base = torch.randn(size, size).bfloat16().float()
    delta = torch.randn(size, 1) @ torch.randn(1, size) * 5e-4
    inputs = delta[0] / delta[0].norm() * math.sqrt(size)  # what the adapter is there for
    exact = delta @ inputs
    nearest = (base + delta).bfloat16().float() - base
    at_random = rounded_at_random(base + delta, torch.bfloat16, torch.Generator().manual_seed(0)).float() - base
    kept = [float((found @ inputs) @ exact / (exact @ exact)) for found in (nearest, at_random)]
    # noise of 512 x 512 roundings, each of a deviation under half a step of 2^-8 to 2^-6, along one of 512 directions
    assert kept[1] == pytest.approx(1, abs=0.1)
    assert kept[0] < 0.7


# ---- compiled ------------------------------------------------------------------------------------------------------


def test_without_a_compiler_nothing_is_compiled_and_that_is_said_once(monkeypatch, capfd) -> None:
    base = adapted(LLAMA).get_base_model()
    assert sampler_module.can_compile(base)
    monkeypatch.setattr(sampler_module, "missing", lambda device: "there is none: install gcc")
    sampler_module.has_compiler.cache_clear()
    try:
        assert not sampler_module.can_compile(base)
        sampler = PolicySampler(base, torch.float32, 1.0, "default", may_round=False, compiled_rows=4)
        assert sampler.told["decoding"] == "plain"
        with pytest.raises(ValueError, match="there is no compiler here"):
            PolicySampler(base, torch.float32, 1.0, None, False, compiled_rows=4, must_compile=True)
    finally:
        sampler_module.has_compiler.cache_clear()
    said = "".join(capfd.readouterr())
    assert said.count("decoding is not compiled: there is none: install gcc.") == 1


@pytest.mark.slow
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "beside"])
@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("config", [LLAMA, WINDOWS], ids=["llama", "windows"])
def test_one_graph_serves_a_run_and_gives_the_plain_loops_tokens(config, in_pieces, merge, traced, monkeypatch) -> None:
    if in_pieces:
        monkeypatch.setattr(decoding_loop, "prompt_columns", lambda rows, length, device: 2)
    model = adapted(config)
    base, numbers = model.get_base_model(), uniforms()
    own = {"may_round": False, "merge": merge, "compiled_rows": len(PROMPTS)}
    sampler = PolicySampler(base, torch.float32, 1.0, "default", **own)
    assert isinstance(sampler.compiled, CompiledDecoding)
    assert (sampler.copy is not None) == merge
    plain = PolicySampler(base, torch.float32, 1.0, "default", may_round=False)
    for round_, prompts in enumerate([PROMPTS, PROMPTS[:4], PROMPTS[2:], [*PROMPTS[:3], [5] * 9]]):
        found = []
        for own in (plain, sampler):
            with own(seed=round_) as loop:
                loop.uniforms_BS = numbers
                out = base.generate(**padded(prompts), generation_config=stops_of())
                found.append((out, loop.logprobs_BS))
        width = min(out.size(1) for out, _ in found)  # compiled, it is asked every 16 steps whether all have finished
        assert torch.equal(*(out[:, :width] for out, _ in found))
        logprobs = [part[: len(prompts), : width - max(map(len, prompts))] for _, part in found]
        torch.testing.assert_close(*logprobs, rtol=0, atol=1e-5)  # float32, other widths
        for name, p in model.named_parameters():
            if "lora_B.default" in name:
                p.data.mul_(0.9)  # an update between two rollouts
        assert traced["stats"]["unique_graphs"] == 1, round_


def test_a_cache_that_is_there_serves_shorter_prompts_too() -> None:
    """With 100 tokens of a reply: of 2,148 for prompts of 1,025 to 2,048; at most 4 times as long as it takes."""
    compiled, exact = CompiledDecoding(random_model(LLAMA), 4, room=4), CompiledDecoding(random_model(LLAMA), 4)
    lengths = {"roomy": [], "exact": []}
    for prompt in (1500, 600, 500, 300, 257, 256, 3, 1500, 3000):
        for name, one in (("roomy", compiled), ("exact", exact)):
            lengths[name].append(one.length(prompt, 100))
            one.fitted(prompt, 100)
    assert lengths["roomy"] == [2148, 2148, 2148, 2148, 2148, 356, 356, 2148, 4196]
    assert lengths["exact"] == [2148, 1124, 612, 612, 612, 356, 164, 2148, 4196]


@pytest.mark.slow
def test_where_memory_runs_out_batches_of_that_length_are_halved_and_no_others(traced, monkeypatch) -> None:
    base = random_model(LLAMA)
    sampler = PolicySampler(base, torch.float32, 0.0, None, may_round=False, compiled_rows=6)
    short, long = PROMPTS, [[5] * 70, *PROMPTS[1:]]
    stops = stops_of(3).eos_token_id
    known = [sample(base, DecodingLoop(0.0), prompts, stops_of(3)).tolist() for prompts in (short, long)]
    compiled = sampler.compiled
    assert (compiled.fitted(5, STEPS), compiled.fitted(70, STEPS)) == (6, 6)
    sizes, prefill = [], type(base)._prefill

    def full(self, ids, *args):
        sizes.append(len(ids))
        if len(ids) > 3 and ids.size(1) == 70:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return prefill(self, ids, *args)

    monkeypatch.setattr(type(base), "_prefill", full)

    def run(prompts):
        with sampler(seed=0), torch.no_grad():
            out = base.generate(**padded(prompts), generation_config=stops_of(3))
        return [reply(row, stops) for row in out[:, max(map(len, prompts)) :].tolist()]

    with pytest.raises(torch.OutOfMemoryError):
        run(long)
    assert (compiled.fitted(5, STEPS), compiled.fitted(70, STEPS)) == (6, 3)
    assert run(long[:2]) == [reply(row, stops) for row in known[1][:2]]
    compiled.fitted(5, STEPS)
    assert run(short[1:]) == [reply(row, stops) for row in known[0][1:]]
    assert sizes == [6, 3, 6]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("before", [True, False], ids=["first forward made", "not yet"])
def test_the_copy_of_a_quantized_base_is_its_policy(base_folder, kind, before) -> None:
    section = ModelSection(dtype="float32", quantization=kind)
    base = load_causal_lm(base_folder, section, AutoTokenizer.from_pretrained(base_folder))
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    base = get_peft_model(base, lora).eval().get_base_model()
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    with torch.no_grad():
        if before:
            base(ids)
        assert can_merge(base, "default")
        made = MergedCopy(base, "default", torch.float32)
        with made.refreshed(0) as plain:
            merged = plain(ids).logits
            if kind == "int8":  # by hand: a scale a row
                layer = base.model.layers[0].mlp.down_proj
                own = layer.get_base_layer()
                scale = own.state.SCB if own.state.SCB is not None else own.weight.SCB
                by_hand = own.weight.data.float() * scale[:, None] / 127 + layer.get_delta_weight("default")
                torch.testing.assert_close(plain.model.layers[0].mlp.down_proj.weight, by_hand, rtol=1e-5, atol=1e-6)
        policy = base(ids).logits
    assert made.exact == (kind == "nf4")
    # NF4: float32, one product for three; int8: bitsandbytes' own product rounds states to 8 bits
    torch.testing.assert_close(merged, policy, rtol=0, atol=1e-4 if kind == "nf4" else 0.2 * float(policy.std()))
    assert not any(type(p).__name__ in ("Params4bit", "Int8Params") for p in plain.parameters())
