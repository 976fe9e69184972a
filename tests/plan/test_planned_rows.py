"""Rows and steps by hand; long lists are estimated by the longest and an even sample."""

from types import SimpleNamespace
from typing import Any

import pytest

from llm_rlhf.models.fitting import Fitted
from llm_rlhf.plan import rows
from llm_rlhf.plan.rows import Measured, measured, optimizer_steps


def kept_under(limit: int) -> Any:
    def fit(some: list[str], account: Fitted) -> list[str]:
        assert account.limit == limit
        return [row for row in some if len(row) <= limit]

    return fit


def test_short_lists_are_measured_whole() -> None:
    texts = ["a" * n for n in (3, 9, 5, 20)]
    assert measured(texts, kept_under(10), len, 10) == Measured(3, 9, 17)


def test_of_long_lists_the_longest_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 rows of 2 letters, one of 50 among them: 20 are measured, the half of them at even distances."""
    monkeypatch.setattr(rows, "MEASURED", 20)
    texts = ["aa"] * 500 + ["a" * 50] + ["aa"] * 499
    found = measured(texts, kept_under(60), len, 60)
    assert (found.rows, found.longest, found.exact) == (1000, 50, False)
    assert found.tokens == pytest.approx(2000, rel=3)  # the long one may be in the even sample, or not


@pytest.mark.parametrize(
    ("stage", "values", "count", "steps"),
    [
        ("sft", {"num_train_epochs": 2}, 33, 6),  # 5 batches of 8, two to a step: 3 steps, twice
        ("sft", {"max_steps": 7}, 33, 7),
        ("ppo", {"num_iterations": 2}, 100, 12),  # 3 rollouts of 32, each 4 micro-batches, twice, two to a step
    ],
)
def test_steps_by_hand(stage: str, values: dict[str, Any], count: int, steps: int) -> None:
    known = {
        "max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
        "generation_batch_size": 32, "num_generations": 1, "steps_per_generation": 4, "num_iterations": 1,
    }  # fmt: skip
    config = SimpleNamespace(**(known | values))
    assert optimizer_steps(SimpleNamespace(), stage, config, count, 1) == steps  # type: ignore[arg-type]
