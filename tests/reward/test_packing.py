"""Several replies behind one prompt: which rows come together, where each token stands, and what it may look at."""

import torch

from llm_rlhf.reward.packing import Group, attention_mask, group_rows, pack, token_budget_batches


def test_rows_of_one_prompt_share_what_they_begin_with() -> None:
    ids = [[1, 2, 3], [9], [1, 2, 4, 5], [7, 8], [6, 8]]
    assert group_rows(ids, ["p", "q", "p", "r", "r"]) == [
        Group([0, 2], [1, 2], [[3], [4, 5]]),
        Group([1], [], [[9]]),
        Group([3], [], [[7, 8]]),  # one key, nothing shared
        Group([4], [], [[6, 8]]),
    ]


def test_the_last_token_of_a_row_is_read_for_itself() -> None:
    """A row that another one begins with, and the same row twice: a score is read at the last token of each."""
    assert group_rows([[1, 2], [1, 2, 3]], ["p", "p"]) == [Group([0, 1], [1], [[2], [2, 3]])]
    assert group_rows([[1, 2], [1, 2]], ["p", "p"]) == [Group([0, 1], [1], [[2], [2]])]


def test_a_group_stays_within_the_longest() -> None:
    """2 shared and 1 each: 4 hold two replies, 3 hold one."""
    ids, keys = [[1, 2, 3], [1, 2, 4], [1, 2, 5]], ["p"] * 3
    assert [group.rows for group in group_rows(ids, keys, longest=5)] == [[0, 1, 2]]
    assert [group.rows for group in group_rows(ids, keys, longest=4)] == [[0, 1], [2]]
    found = group_rows(ids, keys, longest=3)
    assert [(group.rows, group.prefix, len(group)) for group in found] == [([i], [1, 2], 3) for i in range(3)]


def test_batches_of_like_length_within_a_budget() -> None:
    groups = [Group([i], [], [[0] * n]) for i, n in enumerate((2, 7, 3, 3, 1))]
    batches = [[group.rows[0] for group in batch] for batch in token_budget_batches(groups, 6)]
    assert batches == [[1], [2, 3], [0, 4]]  # 7 is over the budget and alone; twice 3; 2 beside 1 counts as twice 2
    assert list(token_budget_batches([], 6)) == []


def test_positions_count_on_from_the_prompt_in_every_reply() -> None:
    """The rows of the module's picture, and a row alone beside it."""
    found = pack([Group([0, 1], [10, 11, 12], [[13, 14], [15, 16, 17]]), Group([2], [], [[20, 21]])], 99, "cpu")
    assert found.input_ids.tolist() == [[10, 11, 12, 13, 14, 15, 16, 17], [20, 21] + [99] * 6]
    assert found.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5], [0, 1] + [0] * 6]
    assert found.parts.tolist() == [[0, 0, 0, 1, 1, 2, 2, 2], [0, 0] + [-1] * 6]
    assert (found.batch_rows, found.lasts) == ([0, 0, 1], [4, 7, 1])


def test_a_reply_sees_the_prompt_and_itself() -> None:
    """p | a | b b | padding."""
    mask = attention_mask(torch.tensor([[0, 1, 2, 2, -1]]), torch.float32)
    assert mask.shape == (1, 1, 5, 5)
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    assert set(mask.unique().tolist()) == {0.0, torch.finfo(torch.float32).min}
