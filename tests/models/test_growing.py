"""Embeddings that grow for a pad token which a vocabulary lacks."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PhiConfig, Qwen2Config

from llm_rlhf.models.base import make_room_for

CONFIGS = {
    "tied": GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=2),
    "untied": Qwen2Config(vocab_size=30, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                          num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False),
    "a head with a bias": PhiConfig(vocab_size=30, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                    num_attention_heads=2),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_rows_are_the_mean_in_every_stage_alike(kind, dtype) -> None:
    """Each stage grows the base anew; an adapter that was saved with one growth is loaded beside another."""
    torch.manual_seed(0)
    grown = []
    weights = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind]), dtype=dtype).state_dict()
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind]), dtype=dtype)
        model.load_state_dict(weights)
        make_room_for(range(32), model)  # of a tokenizer only its length is asked
        grown.append(model)
    for name, weight in grown[0].state_dict().items():
        assert torch.equal(weight, grown[1].state_dict()[name]), name
        if name in weights and weight.shape != weights[name].shape:
            assert torch.equal(weight[:30], weights[name])
            mean = weights[name].double().mean(0).to(dtype)
            assert torch.equal(weight[30], mean)
            assert torch.equal(weight[31], mean)
    if dtype == torch.float32:
        with torch.no_grad():
            logits = grown[0](torch.tensor([[3, 4, 5]])).logits[0, -1]
        assert logits[30] == pytest.approx(float(logits[:30].mean()), abs=1e-5)  # linear in the rows; float32
