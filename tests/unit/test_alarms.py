"""Alarms on made-up comparisons: each is raised where it should be and silent where it should not."""

import pytest

from llm_rlhf.evaluation.alarms import alarm_lines
from llm_rlhf.evaluation.statistics import Estimate


def entry(name: str, estimate: float, low: float, high: float, subject: str = "ppo", split: str = "all", n: int = 300):
    return Estimate(name, subject, "sft", split, estimate, low, high, n, "made up")


HEALTHY = [
    entry("reward_gain", 1.0, 0.8, 1.2),
    entry("heldout_reward_gain", 0.6, 0.4, 0.8),
    entry("gold_gain", 0.3, 0.1, 0.5),
    entry("over_refusal_change", -0.1, -0.2, 0.0, split="scary"),
    entry("reward_accuracy", 0.75, 0.70, 0.80, subject="reward"),
    entry("accuracy_over_longer", 0.30, 0.25, 0.35, subject="reward"),
    entry("accuracy_over_shorter", 0.20, 0.15, 0.25, subject="reward"),
    entry("margin_length_correlation", 0.2, 0.1, 0.35, subject="reward"),
    entry("response_length", 20, 19, 21, subject="sft"),
    entry("response_length", 25, 24, 26),
    entry("eos_rate", 0.9, 0.85, 0.95),
    entry("kl", 3.0, 2.5, 3.5),
]


def test_a_healthy_run_raises_none() -> None:
    assert alarm_lines(HEALTHY) == []
    assert alarm_lines([]) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (entry("gold_gain", -0.3, -0.5, -0.1), "Reward hacking: the training reward rose by 1.00 while the true score"),
        (entry("heldout_reward_gain", -0.3, -0.5, -0.1), "while the held-out reward fell by 0.30"),
        (entry("gold_gain", 0.1, -0.1, 0.3), "the true score shows no gain (+0.10"),
        (entry("over_refusal_change", 0.2, 0.1, 0.3, split="scary"), "PPO refuses 20 points more"),
        (
            entry("accuracy_over_shorter", 0.02, -0.03, 0.07, subject="reward"),
            "not shown to beat a rule without a model: it is right on 75.0%, the shorter reply on 73.0%",
        ),
        (entry("margin_length_correlation", 0.5, 0.4, 0.6, subject="reward"), "follows length: its preferences"),
        (entry("response_length", 31, 30, 32), "grew from 20 to 31 tokens"),
        (entry("eos_rate", 0.4, 0.3, 0.5), "Only 40% of the replies of PPO stop"),
        (entry("kl", 60.0, 55, 65), "60 nats"),
        (entry("heldout_reward_gain", 0.6, 0.4, 0.8, n=40), "Only 40 prompts"),
    ],
)
def test_each_fault_raises_its_own_alarm_and_no_other(changed: Estimate, words: str) -> None:
    same = (changed.name, changed.subject, changed.split)
    lines = alarm_lines([changed, *(e for e in HEALTHY if (e.name, e.subject, e.split) != same)])
    assert len(lines) == 1
    assert words in lines[0]


def test_the_rule_that_is_least_beaten_is_named() -> None:
    weak = [
        entry("reward_accuracy", 0.62, 0.59, 0.65, "reward", "helpful"),
        entry("accuracy_over_longer", 0.07, 0.04, 0.10, "reward", "helpful"),
        entry("accuracy_over_not_refusing", 0.02, -0.01, 0.05, "reward", "helpful"),
    ]
    (line,) = alarm_lines(weak)
    assert "helpful pairs the reward model is not shown to beat" in line
    assert "the reply that does not refuse on 60.0%" in line
