"""The count of what is alive: by hand, and the same on tensors with data and on those without."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from llm_rlhf.models import memory as memory_module
from llm_rlhf.plan.live_memory import ACTIVATIONS, GRADIENTS, LOGITS, SMALL, LiveMemory, watch_gradients
from llm_rlhf.plan.models import Blueprint, causal_lm, packed_bytes, reward_model, without_data
from llm_rlhf.plan.steps import ADAPTERS, BASE, CACHE, OPTIMIZER, Simulation, imitate, prefer_pairs, sample
from llm_rlhf.recipe.sections import LoraSection, ModelSection

VOCABULARY = 48
TINY: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "pad_token_id": 0,
}  # fmt: skip


class Config:
    """What training's simulation reads of a trainer's configuration."""

    gradient_checkpointing = False
    gradient_checkpointing_kwargs = None
    gradient_accumulation_steps = 1

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def blueprint(
    kind: str = "llama", dtype: Any = "float32", quantization: Any = "none", lora: Any = None, **more: Any
) -> Blueprint:
    section = ModelSection(dtype=dtype, quantization=quantization, lora=lora or LoraSection(r=2))
    return Blueprint(AutoConfig.for_model(kind, **(TINY | more)), section, VOCABULARY)


def test_a_product_by_hand() -> None:
    """float32: x (4, 8) is 128 bytes, the product (4, 16) 256, its square as many; the product is then let go."""
    memory = LiveMemory()
    with memory:
        x = torch.zeros(4, 8)
        product = x @ torch.zeros(8, 16)  # whose 512 bytes are gone after it
        squared = product * product
        assert memory.total == 128 + 256 + 256
        del product
    assert memory.total == 128 + 256
    assert memory.peak == 128 + 512 + 256
    assert squared.shape == (4, 16)


def test_views_count_once() -> None:
    memory = LiveMemory()
    with memory:
        x = torch.zeros(100)
        views = [x.view(10, 10), x[:50], x.detach()]
        del x
        assert memory.total == 400
        del views
    assert memory.total == 0


def test_small_tensors_are_counted_apart() -> None:
    """Those under 32 MiB that are made: 400 bytes, then 400 and 800; not what is held, and not 32 MiB."""
    memory = LiveMemory()
    memory.hold([torch.zeros(7)], BASE)
    with memory:
        x = torch.zeros(100)
        wide = torch.zeros(SMALL // 4)
        assert memory.small == 400
        del x, wide
        both = [torch.zeros(100), torch.zeros(200)]
        del both
    assert (memory.small, memory.small_peak) == (0, 1200)
    memory.start_again()
    assert memory.small_peak == 0


def test_kinds() -> None:
    memory = LiveMemory(vocabulary=7)
    layer = nn.Linear(3, 7, bias=False)
    memory.hold(layer.parameters(), BASE)
    watch_gradients(layer, memory)
    with memory:
        logits = layer(torch.ones(2, 3))
        assert memory.now[LOGITS] == 4 * 14
        logits.sum().backward()
        del logits
    assert memory.now[BASE] == 4 * 21
    assert memory.now[GRADIENTS] == 4 * 21
    assert memory.now[LOGITS] == 0
    with memory, memory.called(CACHE):
        kept = torch.zeros(5)
    assert memory.now[CACHE] == 4 * len(kept)
    assert memory.now[ACTIVATIONS] == 0


def real(model: Any) -> Any:
    """A model of tensors with data, from one without."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers, vars(module)):
            for name, tensor in held.items():
                if isinstance(tensor, torch.Tensor):
                    if id(tensor) not in made:
                        empty = torch.zeros(tensor.shape, dtype=tensor.dtype)
                        parameter = isinstance(tensor, nn.Parameter)
                        made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if parameter else empty
                    held[name] = made[id(tensor)]
    return model


def peaks(model: Any, run: Any, config: Any, **how: Any) -> dict[str, dict[str, int]]:
    simulation = Simulation(model, LiveMemory(VOCABULARY), **how)
    if config is not None:
        simulation.prepare_training(config, 8)
    run(simulation)
    return simulation.steps


CASES = {
    "sft": (causal_lm, lambda s: imitate(s, 3, 20), Config(), {}, {}),
    "sft, checkpointed": (causal_lm, lambda s: imitate(s, 3, 20), Config(gradient_checkpointing=True), {}, {}),
    "sft, bfloat16": (causal_lm, lambda s: imitate(s, 3, 20), Config(), {"dtype": "bfloat16"}, {"autocast": True}),
    "reward, accumulating": (
        reward_model, lambda s: prefer_pairs(s, 2, 20), Config(gradient_accumulation_steps=2), {}, {}
    ),
    "sampling, tied": (
        causal_lm, lambda s: sample(s, 3, 10, 6, draws=True, merged=1000), None, {"tie_word_embeddings": True}, {}
    ),
    "sft, all weights in bfloat16": (
        causal_lm, lambda s: imitate(s, 3, 20), Config(gradient_checkpointing=True),
        {"lora": "none", "dtype": "bfloat16"}, {"autocast": True}
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_tensors_without_data_count_as_those_with(case: str) -> None:
    """Every step's peak, by kind, to the byte."""
    build, run, config, shape, how = CASES[case]
    with without_data():
        told = peaks(build(blueprint(**shape)), run, config, **how)
    with without_data():
        model = build(blueprint(**shape))
    found = peaks(real(model), run, config, **how)
    assert told == found
    assert all(sum(step.values()) > 0 for step in told.values())


@pytest.mark.slow
def test_weights_adapters_and_optimizer_by_hand() -> None:
    """Tied Llama of two layers: every linear map with a LoRA of rank 2, which has two float32 states a number."""
    embeddings, norms = VOCABULARY * 16, 5 * 16
    maps = [(16, 16), (8, 16), (8, 16), (16, 16), (24, 16), (24, 16), (16, 24)] * 2  # q k v o gate up down
    lora = sum(2 * (rows + columns) for rows, columns in maps)
    rotary = 2 * 2  # inverse frequencies, and their copy where the model keeps one
    with without_data():
        steps = peaks(causal_lm(blueprint(tie_word_embeddings=True)), lambda s: imitate(s, 1, 4), Config())
    weights = 4 * (embeddings + norms + sum(rows * columns for rows, columns in maps))
    assert 0 <= steps["update"][BASE] - weights <= 4 * rotary
    assert steps["update"][ADAPTERS] == 4 * lora
    assert steps["update"][OPTIMIZER] == 8 * lora


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bytes_each"), [("float32", 4), ("bfloat16", 2)])
def test_all_weights_by_hand(dtype: str, bytes_each: int) -> None:
    """Full fine-tuning of the same: a frozen base in its type, a float32 copy of it, two float32 states a number."""
    maps = [(16, 16), (8, 16), (8, 16), (16, 16), (24, 16), (24, 16), (16, 24)] * 2
    numbers = VOCABULARY * 16 + 5 * 16 + sum(rows * columns for rows, columns in maps)
    with without_data():
        model = causal_lm(blueprint(lora="none", dtype=dtype, tie_word_embeddings=True), rewards=["reward"])
        steps = peaks(model, lambda s: imitate(s, 1, 4), Config(), autocast=dtype == "bfloat16")
    head = 4 * (16 + 1)  # a score head and its bias
    assert 0 <= steps["update"][BASE] - bytes_each * numbers <= 4 * 2 * 2  # inverse frequencies, as above
    assert steps["update"][ADAPTERS] == 4 * numbers + bytes_each * numbers + head  # a policy, and a frozen reward model
    assert steps["update"][OPTIMIZER] == 8 * numbers


@pytest.mark.slow
def test_the_cache_by_hand() -> None:
    """At the last of 6 tokens after 10: keys and values of 16 tokens, 2 heads of 4 numbers, 2 layers, 3 rows.

    They grow by a token then, so that one of the four may be there twice.
    """
    with without_data():
        steps = peaks(causal_lm(blueprint()), lambda s: sample(s, 3, 10, 6, draws=True), None)
    of_token = 4 * 2 * 4 * 3
    assert 4 * of_token * 15 <= steps["sampling, last token"][CACHE] <= 4 * of_token * 16 + of_token * 15
    assert steps["sampling, first token"][CACHE] == 4 * of_token * 10


@pytest.mark.slow
def test_prompts_that_a_gpu_reads_in_pieces_need_less_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 tokens of 3 prompts in a forward: pieces of 8 of 32 columns, behind which the cache is as long as ever."""
    monkeypatch.setattr(memory_module, "ENOUGH", 24)

    def first_token(device: str) -> dict[str, int]:
        with without_data():
            model = causal_lm(blueprint())
            return peaks(model, lambda s: sample(s, 3, 32, 6, draws=True), None, device=device)["sampling, first token"]

    whole, pieces = first_token("cpu"), first_token("cuda")
    assert pieces[ACTIVATIONS] < 0.5 * whole[ACTIVATIONS]
    assert whole[CACHE] == 4 * (4 * 2 * 4 * 3) * 32
    assert whole[CACHE] <= pieces[CACHE] <= 1.3 * whole[CACHE], "a layer's is there twice while it grows"


@pytest.mark.parametrize(("quantization", "size"), [("nf4", 64 * 32 // 2 + 32 + 4), ("int8", 64 * 32 + 4 * 64)])
def test_packed_weights_by_hand(quantization: str, size: int) -> None:
    """NF4: half a byte a weight, a byte for 64 of them, four for 256 of those."""
    assert packed_bytes(64, 32, quantization) == size


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_quantized_base_is_smaller_and_its_adapters_are_not(kind: str) -> None:
    found = {}
    for quantization in ("none", "int8", "nf4"):
        with without_data():
            model = causal_lm(blueprint(kind, quantization=quantization))
            found[quantization] = peaks(model, lambda s: imitate(s, 1, 4), Config())["update"]
    assert found["nf4"][BASE] < found["int8"][BASE] < found["none"][BASE]
    assert found["nf4"][ADAPTERS] == found["none"][ADAPTERS]


@pytest.mark.slow
def test_more_rows_and_tokens_take_more_and_checkpointing_takes_less() -> None:
    def peak(rows: int, tokens: int, **config: Any) -> int:
        with without_data():
            steps = peaks(causal_lm(blueprint()), lambda s: imitate(s, rows, tokens), Config(**config))
        return sum(steps["update"].values())

    assert peak(2, 40) < peak(4, 40) < peak(4, 80)
    assert peak(4, 80, gradient_checkpointing=True) < peak(4, 80)


def test_a_copy_of_a_tensor_without_data_is_of_the_same_mode() -> None:
    """torch copies a tensor's mode with it, and gives what both refer to back twice, which ended plans in crashes."""
    with without_data():
        tensor = torch.empty(3, device="meta")
        copied = copy.deepcopy(torch.nn.ModuleList([torch.nn.Linear(2, 3, device="meta")]))
        assert copy.deepcopy(tensor).fake_mode is tensor.fake_mode
        assert copied[0].weight.fake_mode is tensor.fake_mode
