"""Which adapters a recipe asks for, and the pairs each of them learns from."""

import pytest

from llm_rlhf.data.rows import Origin, Preference
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import RewardOptions
from llm_rlhf.reward.adapters import fold_of, plan_adapters


def pairs(objectives: list[str], prompts: int | None = None) -> list[Preference]:
    return [
        Preference(
            [{"role": "user", "content": f"question {i % (prompts or 10**9)}"}], "yes", "no", what, Origin("here", i)
        )
        for i, what in enumerate(objectives)
    ]


MIXED = pairs(["helpful", "harmless", "overall", "helpful"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (RewardOptions(), {"joint": [0, 1, 2, 3]}),
        (RewardOptions("separate"), {"helpful": [0, 2, 3], "harmless": [1, 2]}),
        (RewardOptions("helpful"), {"helpful": [0, 3]}),
        (RewardOptions("overall"), {"overall": [2]}),
    ],
)
def test_each_objective_takes_its_pairs(options: RewardOptions, expected: dict[str, list[int]]) -> None:
    plans = plan_adapters(options, MIXED, seed=7)
    assert {plan.name: [pair.origin.row for pair in plan.pairs] for plan in plans} == expected
    assert plans[0].seed == 7
    assert len({8, *(plan.seed for plan in plans)}) == len(plans) + 1  # the judge's seed is 8


def test_members_of_an_ensemble_leave_out_folds_that_make_up_the_whole() -> None:
    rows = pairs(["overall"] * 600, prompts=300)
    plans = plan_adapters(RewardOptions(ensemble=3), rows, seed=0)
    assert [plan.name for plan in plans] == ["joint-0", "joint-1", "joint-2"]
    left_out = [{p.origin.row for p in rows} - {p.origin.row for p in plan.pairs} for plan in plans]
    assert set().union(*left_out) == {p.origin.row for p in rows}
    assert sum(len(rows) for rows in left_out) == len(rows)
    assert all(160 < len(rows) < 240 for rows in left_out)  # 200 of 600, four deviations of pairs of prompts
    assert all(fold_of(rows[i], 3) == fold_of(rows[i + 300], 3) for i in range(300))  # the same prompt


@pytest.mark.parametrize(
    ("options", "objectives", "message"),
    [
        (RewardOptions("separate"), ["helpful"], r"'separate', but no training pair .* is harmless; .* occur: helpful"),
        (RewardOptions("harmless"), ["overall"], r"no training pair of the recipe is harmless"),
        (RewardOptions(ensemble=50), ["overall"], r"'joint-\d+' has no pairs left"),
    ],
)
def test_an_adapter_without_pairs_is_refused(options: RewardOptions, objectives: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan_adapters(options, pairs(objectives), seed=0)
