"""Which snapshot is kept, from rows written by hand."""

from typing import Any

import pytest

from llm_rlhf.ppo.snapshots import best, last_sound


def row(step: int, scores: float, heldout: float | None = None, kl: float = 0.0, **watched: Any) -> dict[str, Any]:
    return {"step": step, "scores": scores, "heldout": heldout, "kl": kl, **watched}


ROWS = [
    row(0, 0.0),
    row(2, 1.0, worse=[], doubtful=[]),
    row(4, 2.0, worse=[], doubtful=["harmless"]),  # looks worse, and is not shown to be
    row(6, 3.0, worse=["harmless"], doubtful=[]),
]


def test_a_snapshot_in_which_a_side_so_much_as_looks_worse_is_not_kept() -> None:
    assert best(ROWS, None)["step"] == 2
    assert last_sound(ROWS)["step"] == 2
    assert last_sound(ROWS[:1])["step"] == 0


def test_the_best_is_so_by_the_judge_where_there_is_one_and_within_the_limit_of_the_kl() -> None:
    rows = [row(0, 0.0, 0.5), row(2, 3.0, 0.1, kl=1.0), row(4, 1.0, 0.9, kl=5.0)]
    assert best(rows, None)["step"] == 4
    assert best(rows, 2.0)["step"] == 0
    with pytest.raises(ValueError, match=r"keep_kl_limit \(-1.0 nats per response\); the least of 3 such ones is 0.0"):
        best(rows, -1.0)
