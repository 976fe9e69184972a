"""Rows into micro-batches, by number or by tokens, and what is made of them."""

import copy
from dataclasses import FrozenInstanceError

import pytest
import torch

from llm_rlhf.ppo.config import PPOConfig
from llm_rlhf.ppo.rollout import (
    PaddedRows,
    ScoredRows,
    draw_demonstrations,
    finish_rollout,
    micro_batch_rows,
    pad_rows,
    rollout_statistics,
    shuffled_steps,
)

PROMPTS = [5, 1, 3, 2, 9, 9, 1, 1]
RESPONSES = [1, 1, 1, 1, 1, 2, 1, 4]  # lengths 6 2 4 3 | 10 11 2 5


def test_rows_of_like_length_share_a_micro_batch_inside_their_mini_batch() -> None:
    assert micro_batch_rows(PROMPTS, RESPONSES, 2, 2, None) == [[[0, 2]], [[3, 1]], [[5, 4]], [[7, 6]]]


def test_a_token_budget_counts_the_padding() -> None:
    # First mini-batch: rows 0, 2 make 2 x (5 + 1) = 12; row 3 beside them would make 18. Second: 5 alone is 11, with 4
    # it is 22; 7 and 6 make 2 x (1 + 4) = 10.
    assert micro_batch_rows(PROMPTS, RESPONSES, 2, 1, 12) == [[[0, 2], [3, 1]], [[5], [4], [7, 6]]]


def test_a_token_budget_counts_what_each_row_brings_with_it() -> None:
    """Four tokens beside each: rows 0, 2 make 2 x (6 + 4) = 20, and 3, 1 make 2 x (4 + 4) = 16; 5, 4 make 2 x 15."""
    assert micro_batch_rows(PROMPTS, RESPONSES, 2, 1, 20, beside=4) == [[[0, 2], [3, 1]], [[5], [4], [7, 6]]]
    assert micro_batch_rows(PROMPTS, RESPONSES, 2, 1, 19, beside=4) == [[[0], [2, 3], [1]], [[5], [4], [7, 6]]]


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="8 responses does not split into 3"):
        micro_batch_rows(PROMPTS, RESPONSES, 3, 1, None)


def test_an_epoch_deals_every_micro_batch_once() -> None:
    steps = shuffled_steps(7, 3, seed=4)
    assert sorted(i for step in steps for i in step) == list(range(7))
    assert [len(step) for step in steps] == [3, 2, 2]
    assert steps == shuffled_steps(7, 3, seed=4) != shuffled_steps(7, 3, seed=5)


def test_prompts_are_padded_on_the_left_and_responses_on_the_right() -> None:
    found = pad_rows([[5], [6, 7]], [[8, 1], [1]], 0, torch.device("cpu"))
    assert found.input_ids.tolist() == [[0, 5, 8, 1], [6, 7, 1, 0]]
    assert found.attention_mask.tolist() == [[0, 1, 1, 1], [1, 1, 1, 0]]
    assert found.response_mask.tolist() == [[True, True], [True, False]]


def test_demonstrations_are_as_many_as_rows_and_count_what_is_learned() -> None:
    """One demonstration to draw from, of three tokens, of which the last two are learned: 3 x 2 over 2 mini-batches."""
    ids = torch.zeros(3, 4, dtype=torch.long)
    batches = [PaddedRows(ids[:n], ids[:n], ids[:n, :2]) for n in (2, 1)]
    rows = [{"input_ids": [7, 8, 9], "assistant_masks": [0, 1, 1]}]
    found = draw_demonstrations(batches, rows, 0, seed=0, mini_batches=2, total=lambda x: x)
    assert [one.input_ids.tolist() for one in found] == [[[7, 8, 9]] * 2, [[7, 8, 9]]]
    assert [one.mask.tolist() for one in found] == [[[0, 1, 1]] * 2, [[0, 1, 1]]]
    assert [one.tokens_per_mini_batch.item() for one in found] == [3, 3]


def test_what_a_step_knows_is_not_changed_by_the_next(tmp_path) -> None:
    padded = pad_rows([[5], [6, 7]], [[8, 1], [9]], 0, torch.device("cpu"))
    mask = padded.response_mask
    numbers = torch.arange(1.0, 5.0).view(2, 2) * mask
    scored = ScoredRows(
        **vars(padded), rows=[0, 1], stopped=torch.tensor([True, False]), old_logprobs=-numbers, old_values=numbers / 8,
        entropies=numbers, ref_logprobs=-numbers / 2, raw_scores=torch.tensor([3.0, 4.0]), source_scores={},
    )  # fmt: skip
    before = copy.deepcopy(scored)
    args = PPOConfig(str(tmp_path), bf16=False, use_cpu=True, missing_eos_penalty=1.0, num_mini_batches=1)
    (batch,) = finish_rollout([scored], [scored.raw_scores / 2], args, 0.1, lambda x: x)
    finished = copy.deepcopy(batch)
    rollout_statistics([batch], 0.1, lambda x: x)
    for one, kept in ((scored, before), (batch, finished)):
        assert all(x.equal(getattr(kept, name)) for name, x in vars(one).items() if isinstance(x, torch.Tensor))
    with pytest.raises(FrozenInstanceError):
        batch.scores = batch.raw_scores
    assert batch.final_scores.tolist() == [1.5, 2 - 1]  # the second response did not stop
    assert batch.sequence_kl.tolist() == [-0.5 - 1, -1.5]  # log-ratios -1 / 2, -2 / 2 | -3 / 2
    assert batch.tokens_per_mini_batch.item() == 3
