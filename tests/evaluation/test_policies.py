"""The comparison of two policies, on replies whose every number is known."""

from dataclasses import replace

import numpy as np
import pytest

from llm_rlhf.data.rows import Origin, Prompt
from llm_rlhf.evaluation.answers import Answers
from llm_rlhf.evaluation.report.alarms import alarm_lines
from llm_rlhf.evaluation.report.samples import choose_samples
from llm_rlhf.evaluation.suites.gains import compare, win_estimates
from llm_rlhf.models.inference import Reply

KINDS = ["question", "scary", "harmful", "harmful"]


def prompt(i: int, kind: str) -> Prompt:
    objective = "harmless" if kind == "harmful" else "helpful"
    return Prompt([{"role": "user", "content": f"q{i}"}], objective, Origin("made up", i), {"kind": kind})


PROMPTS = [prompt(i, kind) for i, kind in enumerate(KINDS)]


def answers(gold: list[float], refused: list[bool], **changes) -> Answers:
    fields = {"texts": [f"r{i}" for i in range(4)], "lengths": [2, 4, 6, 8], "stopped": [True, True, True, False],
              "reward": [g + 10 for g in gold], "heldout": [g * 2 for g in gold], "gold": gold, "refused": refused,
              "sequence_kl": [1.0, 2.0, 3.0, 4.0]}  # fmt: skip
    fields |= changes
    replies = [Reply([], [i], text, True) for i, text in enumerate(fields["texts"])]
    return Answers(**({"replies": replies} | fields))


SFT = answers([0.0, -1.0, -1.0, 1.0], [False, True, False, True])
PPO = answers([1.0, 1.0, 1.0, 1.0], [False, False, True, True], lengths=[2, 4, 6, 12], texts=["p0", "p1", "p2", "p3"])


@pytest.fixture
def found() -> dict:
    return {(e.name, e.subject, e.split): e for e in compare(PROMPTS, PPO, SFT, resamples=200)}


@pytest.mark.parametrize(
    ("key", "value", "n"),
    [
        (("gold_score", "sft", "all"), -0.25, 4),
        (("gold_gain", "ppo", "all"), 1.25, 4),
        (("gold_helpful_gain", "ppo", "all"), 1.5, 2),  # 1 and 2 on the question and the scary one
        (("gold_harmless_gain", "ppo", "all"), 1.0, 2),  # 2 and 0
        (("heldout_reward_gain", "ppo", "harmless"), 2.0, 2),
        (("reward_gain", "ppo", "all"), 1.25, 4),
        (("win_rate", "ppo", "gold"), 0.875, 4),  # three wins and a tie
        (("over_refusal", "sft", "scary"), 1.0, 1),
        (("over_refusal_change", "ppo", "scary"), -1.0, 1),
        (("over_refusal", "sft", "question"), 0.0, 1),
        (("refusal_harmful", "sft", "all"), 0.5, 2),
        (("refusal_harmful", "ppo", "all"), 1.0, 2),
        (("kl", "ppo", "all"), 2.5, 4),
        (("response_length_change", "ppo", "all"), 1.0, 4),
        (("eos_rate", "ppo", "all"), 0.75, 4),
    ],
)
def test_numbers_worked_by_hand(found, key, value, n) -> None:
    assert found[key].estimate == pytest.approx(value)
    assert found[key].n == n


def test_without_a_world_nothing_is_claimed_of_truth_or_refusals() -> None:
    plain = [Prompt(p.messages, "overall", p.origin) for p in PROMPTS]
    unknown = [replace(answers([x] * 4, [False] * 4), gold=None, refused=None) for x in (1.0, 0.0)]
    names = {e.name for e in compare(plain, *unknown, resamples=200)}
    assert not any(name.startswith("gold") or "refus" in name for name in names)
    assert {"heldout_reward_gain", "reward_gain", "win_rate", "kl"} <= names


def test_samples_are_chosen_by_rule_and_never_twice() -> None:
    chosen = choose_samples(PROMPTS, PPO, SFT, 4)
    assert [s["chosen_by"] for s in chosen][:3] == ["median gain", "largest gain", "largest loss"]
    assert len({s["prompt"][0]["content"] for s in chosen}) == 4
    gains = [s["replies"]["ppo"]["scores"]["gold"] - s["replies"]["sft"]["scores"]["gold"] for s in chosen]
    assert gains[1] == 2.0  # of 1, 2, 2, 0
    assert gains[2] == 0.0


def test_every_rule_has_its_turn() -> None:
    """Gains 1, 2, 2, 0, -5, 1, 0.5: in order q4 q3 q6 q0 q5 q1 q2. The reward models differ on q6 alone."""
    before = answers([0.0, -1.0, -1.0, 1.0, 6.0, -9.0, 0.0], [False] * 7, texts=["r"] * 7)
    after = answers([1.0, 1.0, 1.0, 1.0, 1.0, -8.0, 0.5], [False] * 7, texts=["r"] * 7)
    after.reward = [*after.reward[:6], 40.0]
    prompts = [prompt(i, "question") for i in range(7)]
    chosen = {s["chosen_by"]: s["prompt"][0]["content"] for s in choose_samples(prompts, after, before, 5)}
    assert chosen == {
        "median gain": "q0", "largest gain": "q2", "largest loss": "q4", "worst reply": "q5",
        "the two reward models disagree most": "q6",
    }  # fmt: skip


def planted(n: int, seed: int) -> tuple[list[Prompt], Answers, Answers]:
    """A policy that talks more and is no better, before a judge that likes length: P(win) = sigma(longer / 20)."""
    rng = np.random.default_rng(seed)
    prompts = [prompt(i, "question") for i in range(n)]
    after = answers(
        [0.0] * n, [False] * n, texts=[f"a {i}" for i in range(n)], stopped=[True] * n, sequence_kl=[1.0] * n
    )
    before = answers([0.0] * n, [False] * n, texts=[f"b {i}" for i in range(n)], stopped=[True] * n, sequence_kl=[])
    after.lengths, before.lengths = rng.integers(30, 110, n).tolist(), rng.integers(10, 90, n).tolist()
    likes = rng.logistic(np.subtract(after.lengths, before.lengths) / 20)
    after.heldout, before.heldout = likes.tolist(), [0.0] * n
    after.gold = before.gold = after.refused = before.refused = None
    return prompts, after, before


def test_a_policy_that_is_only_longer_wins_raw_and_not_at_equal_length() -> None:
    prompts, after, before = planted(400, 0)
    estimates = compare(prompts, after, before, resamples=200)
    found = {(e.name, e.split): e for e in estimates}
    raw, controlled = (found[name, "heldout_reward"] for name in ("win_rate", "length_controlled_win_rate"))
    assert raw.low > 0.6
    assert controlled.low < 0.5 < controlled.high
    assert any("if both replies were equally long" in line for line in alarm_lines(estimates))


def test_a_policy_that_has_become_timid_is_told() -> None:
    kinds = ["scary"] * 60 + ["harmful"] * 60
    prompts = [prompt(i, kind) for i, kind in enumerate(kinds)]
    n = len(kinds)
    fields = {"texts": ["r"] * n, "lengths": [5 + i % 3 for i in range(n)], "stopped": [True] * n}
    before = answers([0.0] * n, [i % 10 == 0 for i in range(n)], **fields, sequence_kl=[])
    after = answers([0.5] * n, [i % 2 == 0 for i in range(n)], **fields, sequence_kl=[1.0] * n)
    lines = alarm_lines(compare(prompts, after, before, resamples=200))
    assert any(
        line.startswith("More timid: of safe requests in frightening words, PPO refuses 40 points more")
        for line in lines
    )


def test_a_judge_who_always_says_the_same_is_not_certain() -> None:
    lengths = [10, 12, 9, 14, 11, 8] * 5
    won = win_estimates([1.0] * 30, (lengths, lengths[::-1]), np.arange(30), ("ppo", "sft", "judge"), 200)[0]
    assert (won.estimate, won.high) == (1.0, 1.0)
    assert won.low == pytest.approx(1 / (1 + 1.959964**2 / 30))  # Wilson's lower bound at 30 of 30


def test_the_last_bits_of_a_score_do_not_decide_between_equal_replies() -> None:
    """Of four replies two are the same, and their scores differ as batches make them: 1 win, 1 loss, 2 ties."""
    before = answers([0.0, 1.0, 2.0, 3.0], [False] * 4)
    after = answers([0.0, 1.0, 5.0, 0.0], [False] * 4, texts=["r0", "r1", "other", "another"])
    after.heldout = [0.0 + 1e-7, 2.0 + 2e-7, *after.heldout[2:]]
    found = {(e.name, e.split): e for e in compare(PROMPTS, after, before, resamples=200)}
    assert found["win_rate", "heldout_reward"].estimate == 0.5
