"""Which prompts PPO trains on, and which it keeps back to evaluate on."""

from llm_rlhf.data.rows import Origin, Prompt
from llm_rlhf.methods.prompts import keep_back


def prompts(**counts: int) -> list[Prompt]:
    return [
        Prompt([{"role": "user", "content": f"{objective} {i}"}], objective, Origin("mine.jsonl", i))
        for objective, count in counts.items()
        for i in range(count)
    ]


def kept(count: int, **counts: int) -> dict[str, int]:
    """How many of each objective are kept back; every prompt is on one side and none on both."""
    given = prompts(**counts)
    training, back = keep_back(given, count)
    assert sorted(map(str, [*training, *back])) == sorted(map(str, given))
    assert [p for p in given if p in training] == training  # in their order
    found = [prompt.objective for prompt in back]
    return {objective: found.count(objective) for objective in counts}


def test_prompts_kept_back_are_not_trained_on_and_are_as_many_of_each_objective() -> None:
    assert kept(20, helpful=200, harmless=200) == {"helpful": 10, "harmless": 10}
    assert kept(20, helpful=380, harmless=50) == {"helpful": 15, "harmless": 5}  # a tenth of its own at most
    assert kept(0, helpful=200, harmless=200) == {"helpful": 0, "harmless": 0}


def test_a_tenth_at_most_is_kept_back() -> None:
    assert kept(64, helpful=200, harmless=100) == {"helpful": 20, "harmless": 10}
    assert sum(kept(64, helpful=39, harmless=8).values()) == 4  # a tenth of all, whatever rounding leaves


def test_the_same_prompts_are_kept_back_wherever_they_stand() -> None:
    given = prompts(helpful=100, harmless=100)
    _, back = keep_back(given, 10)
    _, turned = keep_back(given[::-1], 10)
    assert sorted(map(str, back)) == sorted(map(str, turned))
