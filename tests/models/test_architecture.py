"""What is asked of an architecture before anything is trained."""

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from llm_rlhf.errors import RecipeError
from llm_rlhf.models.architecture import hidden_width, score_head_name


@pytest.mark.parametrize(("name", "head"), [("ctrl", "classifier"), ("modernbert-decoder", None), ("xlnet", None)])
def test_score_heads_of_other_names_and_shapes(name, head) -> None:
    config = AutoConfig.for_model(name)
    if head is not None:
        assert score_head_name(config) == head
    else:  # a head of two layers, and one with a bias
        with pytest.raises(RecipeError, match="needs one linear head without a bias"):
            score_head_name(config)


@pytest.mark.parametrize(
    ("name", "sizes", "width"),
    [
        ("llama", {"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2}, 32),
        # Its states are narrowed before the heads.
        ("opt", {"hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 16, "max_position_embeddings": 32}, 16),
    ],
)
def test_heads_are_as_wide_as_what_they_read(name, sizes, width) -> None:
    config = AutoConfig.for_model(name, vocab_size=40, num_hidden_layers=1, num_attention_heads=4, **sizes)
    assert hidden_width(AutoModelForCausalLM.from_config(config)) == width
