"""Evaluation's replies on the device: decoded by a compiled step, each policy's own, compiled once."""

from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import random_policy_adapter
from torch._dynamo.utils import counters
from transformers import AutoTokenizer

from llm_rlhf.models.adapters import load_beside
from llm_rlhf.models.inference import Reply, load_roles, reply_logprobs, sample_replies
from llm_rlhf.models.reply_decoding import ReplyDecoding
from llm_rlhf.recipe.sections import ModelSection

pytestmark = pytest.mark.slow
WORDS = ("a", "why not", "tell me more of it", "why not", "go", "and then there was nothing left to say", "so", "no")
PROMPTS = [[{"role": "user", "content": text}] for text in WORDS * 2]
ROLES = ["default"], [], ["default1"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_replies_are_the_policys_own(device, wide_base, tmp_path, dtype) -> None:
    """In float32 the plain loop's tokens. In bfloat16 rounding decides between the two at a token now and then, so that
    it is asked whose the replies are: each policy finds its own more probable than the others do."""
    tokenizer = AutoTokenizer.from_pretrained(wide_base)
    policy, start = (random_policy_adapter(wide_base, tmp_path / f"{seed}", seed=seed, r=4) for seed in (3, 4))
    model: Any = load_roles(wide_base, ModelSection(base=str(wide_base), dtype=dtype), tokenizer, {}, policy)
    assert not load_beside(model, start, "default1")
    model.requires_grad_(False).eval().to(device)

    def replies(role: list[str], decoding: ReplyDecoding | None = None, batch_size: int = 4) -> list[Reply]:
        return sample_replies(
            model, tokenizer, PROMPTS, role, response_length=24, temperature=1.0, seed=0, batch_size=batch_size,
            decoding=decoding,
        )  # fmt: skip

    torch._dynamo.reset()
    counters.clear()
    decoding = ReplyDecoding(model, "compiled")
    compiled = [replies(role, decoding) for role in ROLES]
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == (2 if dtype == "float32" else 3)  # two merged copies share one
    again = [replies(role, decoding) for role in ROLES]
    assert counters["stats"]["unique_graphs"] == graphs
    assert again == compiled
    if dtype == "float32":
        assert compiled == [replies(role) for role in ROLES]
        assert replies(ROLES[2], decoding, batch_size=3) == compiled[2]
        assert decoding.used["sampled_from"] == {"weights merged", "the base alone"}
        return
    assert decoding.used["sampled_from"] == {"the adapter beside its base", "the base alone"}
    pad = tokenizer.pad_token_id
    by_reader = [[np.mean(reply_logprobs(model, role, said, pad)) for said in compiled] for role in ROLES]
    assert np.argmax(by_reader, axis=0).tolist() == [0, 1, 2]
