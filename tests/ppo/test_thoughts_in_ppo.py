"""In PPO a thought is sampled and learned, and neither reward models nor functions nor the watch read it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from ppo_helpers import PROMPTS, fixed_responses, make_trainer, rollout
from template_helpers import THINKING
from transformers import AutoTokenizer

from llm_rlhf.models.encoding import encode_replies
from llm_rlhf.models.inference import right_padded
from llm_rlhf.models.roles import role_scores

REPLIES = ["yes", "no", "it is", "maybe", "so", "no no", "well", ""]


@pytest.fixture
def thinking_base(base_folder: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(base_folder, tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = THINKING
    tokenizer.save_pretrained(folder)
    return folder


def responses(tokenizer, thoughts: list[str], finished: bool = True) -> list[list[int]]:
    end = [tokenizer.eos_token_id] if finished else []
    texts = [f"<think>{thought}</think>{reply}" for thought, reply in zip(thoughts, REPLIES, strict=True)]
    return [[*tokenizer.encode(text, add_special_tokens=False), *end] for text in texts]


def test_scores_are_those_of_the_reply_behind_the_thought(thinking_base, reward_folder, tmp_path) -> None:
    heard = []

    def function(completions, thought, **columns):
        heard.append((completions, thought))
        return [0.0] * len(completions)

    trainer = make_trainer(
        thinking_base, tmp_path / "out", reward_folder, reward_funcs=[function], response_length=32, perturb=False
    )
    tokenizer = trainer.processing_class
    asked = [[{"role": "user", "content": text}] for text in PROMPTS]
    alone = encode_replies(tokenizer, asked, REPLIES)
    scores = []
    for finished in (True, False):
        for thoughts in (["abc"] * 8, [f"{i} is so, " * (1 + i % 2) for i in range(8)]):
            fixed_responses(trainer, responses(tokenizer, thoughts, finished))
            (batch,) = rollout(trainer)
            rows = [row.ids if finished else row.ids[:-1] for row in alone]
            expected = role_scores(trainer.model, "reward", *right_padded(rows, tokenizer.pad_token_id, "cpu"))
            torch.testing.assert_close(batch.source_scores["reward"], expected)  # one float32 forward each
            assert batch.response_mask.sum(1).tolist() == [len(r) for r in responses(tokenizer, thoughts, finished)]
            assert heard[-1] == ([[{"role": "assistant", "content": text}] for text in REPLIES], thoughts_of(thoughts))
            scores.append(batch.source_scores["reward"])
    torch.testing.assert_close(scores[0], scores[1])  # whatever was thought
    assert (scores[0] - scores[2]).abs().max() > 1e-3  # the stop token counts


def thoughts_of(texts: list[str]) -> list[str]:
    return [text.strip() for text in texts]


def test_a_function_finds_its_argument_where_nobody_thinks(thinking_base, reward_folder, tmp_path) -> None:
    heard = []

    def function(completions, thought, **columns):
        heard.append(thought)
        return [0.0] * len(completions)

    trainer = make_trainer(thinking_base, tmp_path / "out", reward_folder, reward_funcs=[function], response_length=32)
    tokenizer = trainer.processing_class
    fixed_responses(trainer, [[*tokenizer.encode(t or "a", add_special_tokens=False)] for t in REPLIES])
    rollout(trainer)
    fixed_responses(trainer, [tokenizer.encode("<think>for ever", add_special_tokens=False)] * 8)
    rollout(trainer)  # all of it is thought, nothing is said
    assert heard == [[""] * 8, ["for ever"] * 8]


def test_the_watch_and_the_samples_tell_them_apart(thinking_base, reward_folder, tmp_path) -> None:
    prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS])
    trainer = make_trainer(
        thinking_base, tmp_path / "out", reward_folder, response_length=32, eval_dataset=prompts,
        eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=8,
    )  # fmt: skip
    read = []
    trainer.refuses = lambda asked, replies: read.append(replies) or [False] * len(replies)
    trainer.samples_file = tmp_path / "samples.jsonl"
    fixed_responses(trainer, responses(trainer.processing_class, ["I can't help with that"] * 8))
    trainer.evaluate()
    assert read == [REPLIES]
    lengths = [row.length for _, row in trainer._eval_rows]
    assert lengths == [len(text) + 1 for text in REPLIES]  # a token a byte, and the stop
    first = json.loads(trainer.samples_file.read_text().splitlines()[0])
    assert first["response"] == [{"role": "assistant", "content": "yes", "reasoning_content": "I can't help with that"}]


def test_a_template_argument_of_the_trainer_reaches_every_prompt(thinking_base, reward_folder, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(thinking_base)
    tokenizer.chat_template = THINKING + "{{ closing if add_generation_prompt }}"
    tokenizer.save_pretrained(thinking_base)
    trainer = make_trainer(
        thinking_base, tmp_path / "out", reward_folder, chat_template_kwargs={"closing": "<think></think>"}
    )
    ids, _, _ = trainer._tokenize_prompts([[{"role": "user", "content": "a"}]])
    assert trainer.processing_class.decode(ids[0]) == "<|user|>a<|assistant|><think></think>"
