"""Rows cut to a number of tokens. Every byte is a token, and so is each of <|user|>, <|assistant|> and <|eos|>."""

import json

import pytest

from llm_rlhf.data.rows import Demonstration, Origin, Preference, Prompt
from llm_rlhf.models.fitting import Fitted, fit_demonstrations, fit_preferences, fit_prompts

NEW = [{"role": "user", "content": "new"}]  # 1 + 3, and 1 for <|assistant|>: 5 as a prompt
TALK = [{"role": "user", "content": "old"}, {"role": "assistant", "content": "x"}, *NEW]  # 4 + 3 + 5 = 12
HERE = Origin("here", 7)


@pytest.mark.parametrize(("limit", "left", "cut"), [(12, TALK, 0), (11, NEW, 1), (5, NEW, 1), (4, None, 0)])
def test_a_prompt_loses_its_oldest_turns_or_is_set_aside(tokenizer, limit, left, cut) -> None:
    account = Fitted(limit, "prompts")
    found = fit_prompts(tokenizer, [Prompt(TALK, "helpful", HERE, {"kept": 1})], account)
    assert [(row.messages, row.facts) for row in found] == ([(left, {"kept": 1})] if left else [])
    kept = int(left is not None)
    assert account.counts() == {"token_limit": limit, "kept": kept, "cut_at_turns": cut, "too_long": 1 - kept}
    assert account.set_aside == ([] if left else ["here, row 7"])


@pytest.mark.parametrize(("limit", "kept"), [(10, 1), (9, 0)])
def test_the_longer_reply_of_a_pair_decides(tokenizer, limit, kept) -> None:
    """5 of prompt, 4 of the longer reply, <|eos|>: whichever of the two it is."""
    for chosen, rejected in (("yyyy", "n"), ("n", "yyyy")):
        pair = Preference(NEW, chosen, rejected, "helpful", HERE)
        assert len(fit_preferences(tokenizer, [pair], Fitted(limit, "pairs"))) == kept


def test_a_demonstration_is_encoded_as_it_was_cut(tokenizer) -> None:
    row = Demonstration([*TALK, {"role": "assistant", "content": "yes"}], HERE)
    account = Fitted(10, "demonstrations")
    (found,) = fit_demonstrations(tokenizer, [row], account)
    assert tokenizer.decode(found["input_ids"]) == "<|user|>new<|assistant|>yes<|eos|>"
    assert [int(mask) for mask in found["assistant_masks"]] == [0] * 5 + [1] * 4
    assert account.cut == 1
    assert fit_demonstrations(tokenizer, [row], Fitted(8, "demonstrations")) == []


def test_a_turn_that_is_context_stays_so_where_the_oldest_turns_are_cut(tokenizer) -> None:
    """10 tokens of the first exchange go; of the two replies left, the first is context."""
    first = [{"role": "user", "content": "cut"}, {"role": "assistant", "content": "away"}]
    rest = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "no"}]
    last = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "yes"}]
    row = Demonstration([*first, *rest, *last], HERE, every_reply=True, context=[-3])
    for limit, trained in ((99, "away<|eos|>yes<|eos|>"), (14, "yes<|eos|>")):
        (found,) = fit_demonstrations(tokenizer, [row], Fitted(limit, "demonstrations"))
        ids = [i for i, mask in zip(found["input_ids"], found["assistant_masks"], strict=True) if mask]
        assert tokenizer.decode(ids) == trained


def test_accounts_of_one_folder_stand_side_by_side(tokenizer, tmp_path) -> None:
    for what, limit in (("one", 12), ("other", 4)):
        account = Fitted(limit, what)
        fit_prompts(tokenizer, [Prompt(TALK, "helpful", HERE)], account)
        assert account.write(tmp_path) == account.counts()
    lengths = json.loads((tmp_path / "lengths.json").read_text())
    assert {what: known["kept"] for what, known in lengths.items()} == {"one": 1, "other": 0}
    assert [json.loads(line) for line in (tmp_path / "too_long.jsonl").read_text().splitlines()] == [
        {"what": "other", "origin": "here, row 7", "limit": 4}
    ]
