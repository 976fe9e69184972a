"""Best of n: which reply is picked, by what, and which tokens are imitated."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import make
from transformers import AutoTokenizer

from llm_rlhf.data.rows import Origin, Prompt
from llm_rlhf.methods import best_of_n
from llm_rlhf.methods.best_of_n import Sources, chosen_prompts, pick, sft_rows
from llm_rlhf.models.inference import Reply, ReplyCache, load_roles, sample_replies, score_ids
from llm_rlhf.recipe.sections import BestOfNOptions, LoraSection, ModelSection

PROMPTS = [Prompt([{"role": "user", "content": f"tell {i}"}], "helpful", Origin("here", i)) for i in range(4)]
OPTIONS = BestOfNOptions(n=3, response_length=6, missing_eos_penalty=0.5)


def half(completions: list[Any], objective: list[str], **kwargs: Any) -> list[float]:
    assert objective == ["helpful"] * len(completions)
    return [0.5 * i for i in range(len(completions))]


async def later(completions: list[Any], **kwargs: Any) -> list[float | None]:
    return [None] * len(completions)


@pytest.fixture
def model(base_folder, reward_folder) -> Any:
    section = ModelSection(base=str(base_folder), lora=LoraSection(r=4, alpha=8))
    return load_roles(base_folder, section, AutoTokenizer.from_pretrained(base_folder), {"joint": reward_folder})


def test_the_reply_with_the_highest_score_less_the_penalty_is_picked(model, tokenizer, tmp_path) -> None:
    sources = Sources({"joint": None}, [], OPTIONS, seed=0)
    rows = pick(model, tokenizer, PROMPTS, sources, OPTIONS, ReplyCache(tmp_path / "replies.jsonl", {}))
    assert [row["prompt"] for row in rows] == [prompt.messages for prompt in PROMPTS]
    for row in rows:
        ids = row["prompt_ids"] + row["reply_ids"]
        (score,) = score_ids(model, "joint", [ids], tokenizer.pad_token_id)
        stopped = row["reply_ids"][-1] == tokenizer.eos_token_id
        assert len(row["scores"]) == 3
        assert row["score"] == max(row["scores"]) == pytest.approx(score - 0.5 * (not stopped), abs=1e-5)
    again = pick(model, tokenizer, PROMPTS, sources, OPTIONS, ReplyCache(tmp_path / "replies.jsonl", {}))
    assert again == rows  # from the replies that were kept
    assert len({tuple(row["scores"]) for row in rows}) > 1


def test_replies_are_those_of_the_start_at_the_sections_temperature_and_the_runs_seed(
    model, tokenizer, tmp_path
) -> None:
    """All n of them, also those that were not picked: what is picked is one of these."""
    drawn = {}
    for number, (temperature, seed) in enumerate(((1.0, 0), (0.3, 0), (0.3, 7))):
        options = BestOfNOptions(n=3, response_length=6, temperature=temperature)
        sources = Sources({"joint": None}, [], options, seed=seed)
        rows = pick(model, tokenizer, PROMPTS, sources, options, ReplyCache(tmp_path / f"{number}" / "r.jsonl", {}))
        asked = [prompt.messages for prompt in PROMPTS for _ in range(3)]
        replies = sample_replies(model, tokenizer, asked, [], response_length=6, temperature=temperature, seed=seed)
        for i, row in enumerate(rows):
            assert row["reply_ids"] == replies[3 * i + int(np.argmax(row["scores"]))].ids
        drawn[temperature, seed] = [reply.ids for reply in replies]
    assert drawn[1.0, 0] != drawn[0.3, 0] != drawn[0.3, 7]


@pytest.mark.parametrize(
    ("scores", "stopped", "best"),
    [
        ([1.0, 1.0, 0.0], [False, True, True], 1),  # 0.5 of the first: it was cut
        ([0.0, 2.0, 2.4], [True, True, False], 1),
        ([0.0, 2.0, 2.6], [True, True, False], 2),
        ([1.0, 3.0, 3.0], [True, True, True], 1),  # of equal ones the first
        ([-1.0, -1.0, -1.0], [False, False, False], 0),
    ],
)
def test_only_cut_replies_pay_and_of_equal_ones_the_first_is_picked(
    scores, stopped, best, tokenizer, tmp_path, monkeypatch
) -> None:
    """By hand, for the second of two prompts; all replies to the first are alike."""
    replies = [
        Reply([7], [20 + i], f"reply {i}", end)
        for i, end in enumerate([True, True, True, *stopped])
    ]  # fmt: skip
    monkeypatch.setattr(best_of_n, "sample_replies", lambda *args, **kwargs: replies)
    sources = Sources({}, [f"{__name__}:half"], OPTIONS, seed=0)
    monkeypatch.setattr(sources, "functions", [lambda **kwargs: [0.0] * 3 + scores])
    rows = pick(None, tokenizer, PROMPTS[:2], sources, OPTIONS, ReplyCache(tmp_path / "replies.jsonl", {}))
    assert [row["reply"] for row in rows] == ["reply 0", f"reply {3 + best}"]
    assert rows[1]["scores"] == pytest.approx(
        [score - 0.5 * (not end) for score, end in zip(scores, stopped, strict=True)]
    )
    assert (rows[1]["prompt"], rows[1]["reply_ids"]) == (PROMPTS[1].messages, [23 + best])


def test_functions_score_too_and_one_that_answers_none_adds_nothing(model, tokenizer, tmp_path, monkeypatch) -> None:
    """Of three replies to a prompt, the last gets 1 more than the first by `half`, which has a weight of 100."""
    monkeypatch.setattr(best_of_n, "score_ids", lambda model, name, rows, pad, size: np.zeros(len(rows), np.float32))
    options = BestOfNOptions(n=3, response_length=6, reward_weights=[1.0, 100.0, 1.0], missing_eos_penalty=0.0)
    named = [f"{__name__}:half", f"{__name__}:later"]
    sources = Sources({"joint": None}, named, options, seed=0)
    rows = pick(model, tokenizer, PROMPTS, sources, options, ReplyCache(tmp_path / "replies.jsonl", {}))
    assert [row["scores"] for row in rows] == [[50.0 * (3 * i + j) for j in range(3)] for i in range(4)]
    assert [row["score"] for row in rows] == [50.0 * (3 * i + 2) for i in range(4)]


def test_what_is_imitated_are_the_sampled_tokens_of_the_reply_alone() -> None:
    picked = [{"prompt_ids": [1, 2], "reply_ids": [3, 4, 5]}]
    assert sft_rows(picked) == [{"input_ids": [1, 2, 3, 4, 5], "assistant_masks": [0, 0, 1, 1, 1]}]


def test_fewer_prompts_are_some_of_all_in_their_order_and_more_hold_them() -> None:
    one, two = chosen_prompts(PROMPTS, 1), chosen_prompts(PROMPTS, 2)
    assert chosen_prompts(PROMPTS, None) == PROMPTS
    assert one[0] in two
    assert [p for p in PROMPTS if p in two] == two


def test_a_picked_row_is_plain_json(model, tokenizer, tmp_path) -> None:
    sources = Sources({"joint": None}, [], OPTIONS, seed=0)
    rows = pick(model, tokenizer, PROMPTS[:1], sources, OPTIONS, ReplyCache(tmp_path / "replies.jsonl", {}))
    assert json.loads(json.dumps(rows)) == rows


def test_the_trainers_loss_is_of_the_replys_tokens_alone(base_folder, tokenizer, tmp_path) -> None:
    learnt = []
    for batch in make("best_of_n", base_folder, tmp_path).get_train_dataloader():
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            counted = labels != -100
            assert torch.equal(ids[counted], labels[counted])
            learnt.append(tokenizer.decode(labels[counted]).strip())
    assert sorted(learnt) == [f"yes {i}<|eos|>" for i in range(8)]


def every_third(completions: list[Any], **kwargs: Any) -> list[float | None]:
    """A score for one of three, and for none of the second prompt's three."""
    return [1.0 if row % 3 == 1 and row // 3 != 1 else None for row in range(len(completions))]


def test_a_reply_without_a_score_is_not_picked_and_a_prompt_of_such_is_left_out(
    model, tokenizer, tmp_path, capsys
) -> None:
    options = BestOfNOptions(n=3, response_length=4, missing_eos_penalty=0.0)
    prompts = [Prompt([{"role": "user", "content": str(i)}], "overall", Origin("here", i)) for i in range(3)]
    sources = Sources({}, [f"{__name__}:every_third"], options, seed=0)
    rows = pick(model, tokenizer, prompts, sources, options, ReplyCache(tmp_path / "cache", {}))
    assert [row["prompt"] for row in rows] == [prompts[0].messages, prompts[2].messages]
    assert [row["scores"] for row in rows] == [[None, 1.0, None]] * 2
    assert "7 of 9 replies have no score" in capsys.readouterr().out
