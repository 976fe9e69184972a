"""Layers compiled by themselves: the same model, and what PPO stands on holds in its kernels too."""

import contextlib

import pytest
import torch
from method_helpers import KINDS, make
from peft import LoraConfig, get_peft_model
from ppo_helpers import make_trainer, watch_approx_kl
from torch import nn
from torch._dynamo.utils import counters
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from llm_rlhf.models.adapters import POLICY, active_adapters, recompute_with_same_adapters
from llm_rlhf.models.base import adapter_config, adapters_in_float32, leave_casts_to_autocast
from llm_rlhf.models.compiled_layers import compile_layers
from llm_rlhf.models.roles import add_role_forward, scalar_head
from llm_rlhf.models.whole import whole_config
from llm_rlhf.recipe.sections import ModelSection

pytestmark = pytest.mark.usefixtures("fresh_graphs")
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16,
}  # fmt: skip
# Before, inductor's kernels for CPUs left roundings to bfloat16 out, whatever they were told.
ROUNDS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
KINDS_OF_MODEL = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=2, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0)
    ),
}


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def joint(kind: str, dtype: torch.dtype, checkpointing: bool, whole: bool = False):
    """A model with the joint call, its policy as it begins."""
    torch.manual_seed(0)
    plain = KINDS_OF_MODEL[kind]().to(dtype)
    config = whole_config("CAUSAL_LM", plain) if whole else LoraConfig(r=4, target_modules="all-linear")
    model = get_peft_model(plain, config)
    adapters_in_float32(model)
    leave_casts_to_autocast(model)
    base = model.get_base_model()
    base.value_head = scalar_head(32, torch.linspace(-0.5, 0.5, 32).view(1, 32))
    add_fused_lm_head(base)
    add_role_forward(base)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": recompute_with_same_adapters})
    return model.train()


def move(model) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.02)


def ask(model, adapters: list[str], rows: int = 4, padding: int = 3, length: int = 12):
    ids = torch.arange(rows * length).reshape(rows, length) * 7 % 59 + 2
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    base = model.get_base_model()
    autocast = torch.autocast("cpu", torch.bfloat16) if base.dtype == torch.bfloat16 else contextlib.nullcontext()
    with active_adapters(base, adapters), autocast:
        return base(input_ids=ids, attention_mask=mask, response_mask=torch.ones(rows, 5), with_entropy=False)


def gradients(model, **options) -> tuple[dict, dict]:
    model.zero_grad()
    now = ask(model, [POLICY], **options)
    (now["logprobs"].sum() + (now["value_estimates"] ** 2).sum()).backward()
    return now, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype", "checkpointing"),
    [("llama", torch.float32, False), ("qwen3", torch.bfloat16, True)],
    ids=["float32", "bfloat16, checkpointed"],
)
def test_kernels_score_as_they_update_and_an_untrained_policy_is_its_reference(kind, dtype, checkpointing) -> None:
    plain, model = (joint(kind, dtype, checkpointing) for _ in range(2))
    compile_layers(model)
    for trained in (False, True):
        if trained:
            move(plain)
            move(model)
        with torch.no_grad():
            scored, reference = ask(model, [POLICY]), ask(model, [])
            own = ask(plain, [])
        now, found = gradients(model)
        assert torch.equal(scored["logprobs"], now["logprobs"].detach())  # the first ratio is exactly 1
        assert torch.equal(scored["value_estimates"], now["value_estimates"].detach())
        if dtype == torch.float32 or ROUNDS:
            assert torch.equal(scored["logprobs"], reference["logprobs"]) != trained  # and the first KL 0
        # float32: other orders of sums; bfloat16: a rounding here and there falls the other way
        near = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02}
        torch.testing.assert_close(reference["logprobs"], own["logprobs"], **near)
        _, expected = gradients(plain)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            off = (found[name] - gradient).norm() / gradient.norm().clamp_min(1e-6)
            assert off < (1e-4 if dtype == torch.float32 else 0.05), name
    assert graphs() > 0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "whole"), [(kind, False) for kind in KINDS_OF_MODEL] + [("llama", True)])
def test_one_graph_serves_all_layers_and_all_shapes(kind, whole) -> None:
    model = compile_layers(joint(kind, torch.float32, False, whole), backend="eager")
    gradients(model)
    with torch.no_grad():
        ask(model, [POLICY])
        ask(model, [])
    # the policy in the first layer, which hands no gradient on to embeddings; in the others; the reference
    assert graphs() == 3
    for rows, padding, length in [(2, 1, 9), (3, 4, 17), (7, 2, 30)]:
        gradients(model, rows=rows, padding=padding, length=length)
        with torch.no_grad():
            ask(model, [POLICY], rows, padding, length)
            ask(model, [], rows, padding, length)
    assert graphs() == 3


@pytest.mark.slow
def test_what_is_scored_goes_through_the_graphs_of_the_update() -> None:
    calls, made = [], []

    def noting(graph, _inputs):
        made.append(graph)
        number = len(made)

        def run(*args):
            calls.append(number)
            return graph(*args)

        return run

    model = compile_layers(joint("llama", torch.float32, False), backend=noting)
    gradients(model)
    of_the_update = list(calls)
    calls.clear()
    with torch.no_grad():
        ask(model, [POLICY])
    assert calls == of_the_update
    assert len(set(calls)) == 2


@pytest.mark.parametrize("kind", KINDS_OF_MODEL)
@pytest.mark.parametrize("learns", [False, True])
def test_checkpointing_stays_around_what_is_compiled_once(kind, learns) -> None:
    """transformers' private wrapper around a layer's forward: a second one would compute every layer three times."""
    model = compile_layers(joint(kind, torch.float32, checkpointing=True), backend="eager")
    calls = []
    for layer in model.modules():
        if hasattr(layer, "_gradient_checkpointing_func"):
            own = layer._gradient_checkpointing_func

            def count(function, *args, own=own):
                calls.append(function)
                return own(function, *args)

            layer._gradient_checkpointing_func = count
    if learns:
        gradients(model)
    else:
        with torch.no_grad():
            ask(model, [POLICY])
    assert len(calls) in ([3] if learns else [0, 3])  # of three layers; 3 where it is around a layer's `__call__`
    assert graphs() > 0


def test_a_forward_with_a_cache_is_not_compiled() -> None:
    model = compile_layers(joint("llama", torch.float32, False), backend="eager")
    base = model.get_base_model()
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        sampled = base.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert sampled.shape == (1, 7)
    assert graphs() == 0


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Sequential has no layers of .*remove model\.compile"):
        compile_layers(nn.Sequential(nn.Linear(2, 2)))


def test_lora_on_stacked_experts_is_refused() -> None:
    """PEFT makes a class of its own for them in every forward, which torch compiles anew each time."""
    section = ModelSection()
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, moe_intermediate_size=16, num_experts=2))
    adapted = get_peft_model(model, adapter_config(section, "CAUSAL_LM", model))
    with pytest.raises(ValueError, match=r"reaches into stacked experts.*model.lora.target_modules"):
        compile_layers(adapted)
    section.lora.target_modules = ["q_proj", "v_proj"]
    plain = Qwen3MoeForCausalLM(model.config)
    compile_layers(get_peft_model(plain, adapter_config(section, "CAUSAL_LM", plain)), backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_trains_the_same_by_compiled_layers(kind, base_folder, reward_folder, tmp_path) -> None:
    """Each trainer calls the model in a way of its own; a cache, for one, would leave layers as they are, unseen."""
    adapters = {"reward": reward_folder} if kind in ("grpo", "rloo") else None
    weights = []
    for compiled in (False, True):
        torch.manual_seed(0)
        trainer = make(kind, base_folder, tmp_path / str(compiled), adapters, max_steps=4)
        if compiled:
            compile_layers(trainer.model, backend="eager")
        trainer.train()
        weights.append({n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad})
    assert graphs() > 0
    plain, mine = weights
    for name in plain:
        torch.testing.assert_close(mine[name], plain[name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["shared", "adapter"])
def test_ppo_by_compiled_layers(value, base_folder, reward_folder, tmp_path) -> None:
    """Checkpointed; the first ratios are exactly 1, and what a second rollout needs was compiled by the first."""
    weights, compiled_by_then = [], []
    for compiled in (False, True):
        trainer = make_trainer(
            base_folder, tmp_path / str(compiled), reward_folder, value=value, gradient_checkpointing=True,
            total_episodes=24, merge_for_sampling=False,
        )  # fmt: skip
        if compiled:
            compile_layers(trainer.model, backend="eager")
            collect = trainer._make_rollout

            def counting(inputs, collect=collect):
                compiled_by_then.append(graphs())
                return collect(inputs)

            trainer._make_rollout = counting
        seen = watch_approx_kl(trainer)
        trainer.train()
        assert seen[0] == 0.0
        weights.append({n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad})
    assert len(compiled_by_then) == 3
    assert 0 < compiled_by_then[1] == compiled_by_then[2] == graphs()
    plain, mine = weights
    for name in plain:
        torch.testing.assert_close(mine[name], plain[name], atol=1e-6, rtol=1e-5)
