"""GRPO, RLOO and best of n: a thought is sampled and learnt, and neither reward models nor functions hear it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from method_helpers import ASKED, make
from template_helpers import THINKING
from transformers import AutoTokenizer

from llm_rlhf.data.rows import Origin, Prompt
from llm_rlhf.methods.best_of_n import Sources
from llm_rlhf.models.encoding import encode_prompts, encode_replies
from llm_rlhf.models.inference import load_roles, reply_of, right_padded
from llm_rlhf.models.roles import role_scores
from llm_rlhf.recipe.sections import BestOfNOptions, LoraSection, ModelSection

REPLIES = ["yes", "no", "it is", "maybe", "so", "no no", "well", "aha"]
heard: list[Any] = []


def listens(completions: list[Any], **kwargs: Any) -> list[float]:
    heard.append(([text[0]["content"] for text in completions], kwargs["thought"]))
    return [0.0] * len(completions)


@pytest.mark.parametrize("finished", [True, False])
def test_scores_are_those_of_the_reply_behind_the_thought(base_folder, reward_folder, tmp_path, finished) -> None:
    base = Path(shutil.copytree(base_folder, tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = THINKING
    tokenizer.save_pretrained(base)
    thoughts = [f"{i} is so" for i in range(8)]
    end = [tokenizer.eos_token_id] * finished
    texts = [f"<think>{thought}</think>{reply}" for thought, reply in zip(thoughts, REPLIES, strict=True)]
    ids = [[*tokenizer.encode(text, add_special_tokens=False), *end] for text in texts]
    trainer = make("rloo", base, tmp_path, {"joint": reward_folder}, (listens,))
    alone = [row.ids if finished else row.ids[:-1] for row in encode_replies(tokenizer, ASKED, REPLIES)]
    expected = role_scores(trainer.model, "joint", *right_padded(alone, tokenizer.pad_token_id, "cpu"))
    given = [[{"role": "assistant", "content": text}] for text in texts]
    online = trainer.score([{"prompt": p, "objective": "helpful"} for p in ASKED], ASKED, given, ids)
    prompts = [Prompt(messages, "helpful", Origin("here", i)) for i, messages in enumerate(ASKED)]
    asked = encode_prompts(tokenizer, ASKED)
    replies = [reply_of(tokenizer, *row, [tokenizer.eos_token_id]) for row in zip(asked, ids, strict=True)]
    section = ModelSection(base=str(base), lora=LoraSection(r=4, alpha=8))
    model = load_roles(base, section, tokenizer, {"joint": reward_folder})
    sources = Sources({"joint": None}, [f"{__name__}:listens"], BestOfNOptions(), seed=0)
    for found in (online, sources.score(model, tokenizer, prompts, replies, 3)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # rows are padded to other widths
    assert heard[-2:] == [(REPLIES, thoughts)] * 2
    assert expected.std() > 0
