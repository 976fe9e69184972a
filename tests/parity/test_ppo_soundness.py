"""What PPOTrainer refuses to build on: trained outside the adapters, noisy, or decoded otherwise than read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from ppo_helpers import make_trainer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from llm_rlhf.models.roles import POLICY

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"trainable_token_indices": [1, 2]}, r"trainable_token_indices is \[1, 2\]"),
    ],
)
def test_what_would_move_the_reference_is_refused_before_loading(base_folder, tmp_path, options, named) -> None:
    with pytest.raises(ValueError, match=rf"peft_config.{named}.*would move the reference.*Leave it at"):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], lora=lora(**options))


def test_a_given_peft_model_that_trains_more_than_adapters_is_refused(base_folder, tmp_path) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), lora(modules_to_save=["norm"]))
    with pytest.raises(ValueError, match=r"5 parameters train outside the adapters, .*norm.modules_to_save"):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], lora=False, model=model)


@pytest.mark.parametrize(
    ("target", "message"),
    [("embed_tokens", "on the input embeddings"), ("lm_head", "adapter to `lm_head` is not supported")],  # TRL's own
)
def test_adapters_on_embeddings_are_refused(base_folder, tmp_path, target, message) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=[target, "q_proj"])
    with pytest.raises(ValueError, match=message):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], lora=config)


def noisy(name: str, tokenizer: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(name, vocab_size=len(tokenizer), initializer_range=0.2, pad_token_id=None,
                             bos_token_id=None, eos_token_id=tokenizer.eos_token_id, **options)
    )  # fmt: skip


EXPERTS = {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
NOISY = {
    "mixtral": {**EXPERTS, "router_jitter_noise": 0.3},
    "phimoe": {**EXPERTS, "router_jitter_noise": 0.3, "input_jitter_noise": 0.3},
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "layerdrop": 0.5, "attention_dropout": 0.2},
    "biogpt": {**SIZES, "layerdrop": 0.5},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "layerdrop": 0.5},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_dropout": 0.3,
               "attention_dropout": 0.3},
    "persimmon": {**SIZES, "hidden_dropout": 0.3, "attention_dropout": 0.3},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},  # resid_pdrop .1
}  # fmt: skip


@pytest.mark.parametrize("name", NOISY)
def test_every_rate_of_noise_is_off(name, base_folder, tokenizer, tmp_path) -> None:
    model = noisy(name, tokenizer, **NOISY[name])
    ids = torch.arange(24).view(2, 12) + 10

    def readings(which: Any) -> list[torch.Tensor]:
        found = []
        for seed in range(4):
            torch.manual_seed(seed)
            found.append(which.train()(input_ids=ids).logits)
        return found

    with torch.no_grad():
        first, *others = readings(model)
        assert any(not torch.equal(first, other) for other in others)  # there is noise to turn off
        adapters = lora(exclude_modules=".*router")  # PhiMoE's is a Linear that answers with two tensors
        trainer = make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], model=model, lora=adapters)
        first, *others = readings(trainer.model)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-6)  # experts may add rows up in another order


class Restless(nn.Module):
    """Noise by a name that nobody knows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        return y + 0.01 * torch.randn_like(y) if self.training else y


def test_noise_by_another_name_is_refused(base_folder, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    model.model.layers[1].mlp = Restless(model.model.layers[1].mlp)
    with pytest.raises(ValueError, match="LlamaForCausalLM reads a row otherwise each time in training mode"):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], model=model)


def test_decoding_that_is_not_the_forward_is_refused(base_folder, tmp_path, monkeypatch) -> None:
    """A cache that forgets: while decoding, a layer sees the newest token alone."""
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    attention = model.model.layers[0].self_attn
    whole = attention.forward

    def forgetful(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        attended, weights = whole(hidden_states=hidden_states, **kwargs)
        return (attended * 0, weights) if hidden_states.size(1) == 1 else (attended, weights)

    monkeypatch.setattr(attention, "forward", forgetful)
    with pytest.raises(ValueError, match=r"decodes otherwise than it reads under left padding.*use_vllm"):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], model=model)


@pytest.mark.parametrize("name", [POLICY, "value", "heldout", "ref"])
def test_a_reward_adapter_may_not_take_another_roles_name(base_folder, reward_folder, tmp_path, name) -> None:
    with pytest.raises(ValueError, match=f"called '{name}', which is the name of another role"):
        make_trainer(base_folder, tmp_path, {name: Path(reward_folder)}, value="adapter")
