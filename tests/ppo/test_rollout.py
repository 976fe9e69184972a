"""Rows into micro-batches: by number or by tokens."""

import pytest

from llm_rlhf.ppo.rollout import micro_batch_rows, shuffled_steps

PROMPTS = [5, 1, 3, 2, 9, 9, 1, 1]
RESPONSES = [1, 1, 1, 1, 1, 2, 1, 4]  # lengths 6 2 4 3 | 10 11 2 5


def test_rows_of_like_length_share_a_micro_batch_inside_their_mini_batch() -> None:
    assert micro_batch_rows(PROMPTS, RESPONSES, 2, 2, None) == [[[0, 2]], [[3, 1]], [[5, 4]], [[7, 6]]]


def test_a_token_budget_counts_the_padding() -> None:
    # First mini-batch: rows 0, 2 make 2 x (5 + 1) = 12; row 3 beside them would make 18. Second: 5 alone is 11, with 4
    # it is 22; 7 and 6 make 2 x (1 + 4) = 10.
    assert micro_batch_rows(PROMPTS, RESPONSES, 2, 1, 12) == [[[0, 2], [3, 1]], [[5], [4], [7, 6]]]


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="8 responses does not split into 3"):
        micro_batch_rows(PROMPTS, RESPONSES, 3, 1, None)


def test_an_epoch_deals_every_micro_batch_once() -> None:
    steps = shuffled_steps(7, 3, seed=4)
    assert sorted(i for step in steps for i in step) == list(range(7))
    assert [len(step) for step in steps] == [3, 2, 2]
    assert steps == shuffled_steps(7, 3, seed=4) != shuffled_steps(7, 3, seed=5)
