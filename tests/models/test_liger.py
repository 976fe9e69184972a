"""Liger's kernels in a model's layers, by a planted package: where they work, where they do not, what is refused.

What the kernels themselves compute is in tests/parity/test_liger_kernels.py, where Liger is installed.
"""

import copy
import sys
import types

import pytest
import torch
from peft import LoraConfig, get_peft_model
from planted_liger import PlantedNorm, plant
from ppo_helpers import fixed_responses, make_trainer, responses_of, rollout, watch_approx_kl
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig
from transformers.models.llama import modeling_llama

from llm_rlhf.models import liger
from llm_rlhf.models.sampler import can_compile
from llm_rlhf.models.whole import whole_config

ASKED = types.SimpleNamespace(use_liger_kernel=True, liger_kernel_config=None)


@pytest.fixture(autouse=True)
def planted(monkeypatch) -> None:
    plant(monkeypatch)
    monkeypatch.setattr(liger, "runs_here", lambda: True)


def llama(base, kind=AutoModelForCausalLM):
    return kind.from_pretrained(base, dtype=torch.float32)


def last_states(model) -> torch.Tensor:
    ids = torch.arange(12).view(2, 6) + 7
    return model.base_model(input_ids=ids).last_hidden_state.detach()


@pytest.mark.parametrize("kind", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_kernels_are_in_one_models_layers_and_nowhere_else(base_folder, kind) -> None:
    names, with_it, other = dict(vars(modeling_llama)), llama(base_folder, kind), llama(base_folder, kind)
    plain = last_states(other)
    liger.add_liger(with_it, ASKED)
    assert {name: value for name, value in vars(modeling_llama).items() if names.get(name) is not value} == {}
    assert PlantedNorm not in {type(module) for module in llama(base_folder).modules()}
    assert torch.equal(last_states(other), plain)
    found = last_states(with_it)
    assert not torch.allclose(found, 2 * plain)  # it is not rotated
    own = modeling_llama.apply_rotary_pos_emb
    modeling_llama.apply_rotary_pos_emb = lambda q, k, *args: (q, k)
    torch.testing.assert_close(found, 2 * last_states(other), rtol=0, atol=0)
    modeling_llama.apply_rotary_pos_emb = own
    assert liger.has_liger(with_it)
    assert not liger.has_liger(other)
    assert (can_compile(with_it), can_compile(other)) == (False, True)


def test_each_kernel_is_a_key(base_folder) -> None:
    model, plain = llama(base_folder), llama(base_folder)
    options = {"rope": False, "rms_norm": True}
    liger.add_liger(model, types.SimpleNamespace(use_liger_kernel=True, liger_kernel_config=options))
    torch.testing.assert_close(last_states(model), 2 * last_states(plain), rtol=0, atol=0)


def test_a_copy_of_a_model_computes_by_its_own_weights(base_folder) -> None:
    model = llama(base_folder)
    liger.add_liger(model, ASKED)
    before, twin = last_states(model), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.01)
    assert torch.equal(last_states(model), before)
    assert not torch.allclose(last_states(twin), before)


@pytest.mark.parametrize("lora", [None, False, "none"], ids=["LoRA", "whole model", "copies of all weights"])
def test_ppo_starts_at_ratio_1_and_kl_0_from_its_own_reference(
    base_folder, tmp_path, tokenizer, monkeypatch, lora
) -> None:
    """The reference has the kernels too, from before it was copied; transformers puts in none when training starts."""
    monkeypatch.setattr("transformers.trainer.apply_liger_kernel", lambda *args: pytest.fail("put in once more"))
    model = llama(base_folder)
    config = whole_config("CAUSAL_LM", model) if lora == "none" else lora
    asked = {"use_liger_kernel": True, "perturb": False, "logging_steps": 1}
    trainer = make_trainer(base_folder, tmp_path, None, rows=4, model=model, lora=config, reward_funcs=[score], **asked)
    fixed_responses(trainer, responses_of(tokenizer.eos_token_id, rows=4))
    (batch,) = rollout(trainer, rows=4)
    assert torch.equal(batch.old_logprobs, batch.ref_logprobs)
    ratios = watch_approx_kl(trainer)
    trainer.train()
    assert ratios[0] == 0.0
    assert trainer.state.log_history[0]["objective/kl"] == 0.0
    assert trainer.args.use_liger_kernel
    assert liger.has_liger(trainer.base_model())


def score(completions, **kwargs):
    return [float(len(c[0]["content"])) for c in completions]


def test_a_role_of_all_weights_has_them_in_every_copy(base_folder) -> None:
    model = llama(base_folder)
    liger.add_liger(model, ASKED)
    policy = get_peft_model(model, whole_config("CAUSAL_LM", model))
    with_copy = last_states(policy.get_base_model())
    with policy.disable_adapter():
        torch.testing.assert_close(last_states(policy.get_base_model()), with_copy, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fused_linear_cross_entropy": True}, "liger_kernel_config.fused_linear_cross_entropy is True"),
        ({"cross_entropy": True}, "liger_kernel_config.cross_entropy is True"),
        ({"rope": "yes"}, "liger_kernel_config.rope is 'yes'; it must be true or false"),
        ({"geglu": True}, "liger_kernel_config.geglu is set.*'llama' are rope, rms_norm, swiglu; remove it"),
    ],
)
def test_what_liger_has_not_is_refused(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        liger.check_kernels(LlamaConfig(), options)


def test_an_activation_that_the_kernel_does_not_compute_is_refused() -> None:
    """Liger's check of it is in a constructor that a model in memory does not pass: it would compute another model."""
    config = LlamaConfig(hidden_act="gelu")
    with pytest.raises(ValueError, match=r"its swiglu computes silu, but the model's activation is 'gelu'; set liger"):
        liger.check_kernels(config, None)
    liger.check_kernels(config, {"swiglu": False})


def test_a_family_that_liger_does_not_know_is_refused_instead_of_passed_over() -> None:
    with pytest.raises(ValueError, match="no kernels for models of type 'gpt2'; remove it"):
        liger.check_kernels(types.SimpleNamespace(model_type="gpt2"), None)


def test_what_cannot_get_the_kernels_is_refused(base_folder, tmp_path) -> None:
    with pytest.raises(ValueError, match="load it, and give it in place of its name"):
        liger.add_liger(str(base_folder), ASKED)
    scored = get_peft_model(
        llama(base_folder, AutoModelForSequenceClassification),
        LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", modules_to_save=["score"]),
    )
    with pytest.raises(ValueError, match="modules_to_save"):
        liger.add_liger(scored, ASKED)
    own = type("OwnLlama", (modeling_llama.LlamaForCausalLM,), {"__module__": "transformers_modules.own"})
    with pytest.raises(ValueError, match="OwnLlama is code of the model's own"):
        liger.add_liger(own(llama(base_folder).config), ASKED)


def test_a_machine_without_a_gpu_or_without_liger_is_told(base_folder, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", None)
    with pytest.raises(ImportError, match=r"liger-kernel cannot be imported .*: pip install liger-kernel"):
        liger.add_liger(llama(base_folder), ASKED)
    monkeypatch.setattr(liger, "runs_here", lambda: False)
    with pytest.raises(ValueError, match="take a GPU, and there is none; remove it"):
        liger.add_liger(llama(base_folder), ASKED)


def test_nothing_is_asked_of_liger_where_nothing_is_wanted(base_folder) -> None:
    liger.add_liger(str(base_folder), types.SimpleNamespace(use_liger_kernel=False))
