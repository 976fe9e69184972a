"""What a reader of several reports is told before comparing them, and who may rate their policies."""

from typing import Any

from llm_rlhf.evaluation.report.cautions import cautions, judge_identity, policy_weights
from llm_rlhf.evaluation.report.comparison import _common_judge


def a_run(policy: str, heldout: str = "h", prompts: str = "p", **decoding: Any) -> dict[str, Any]:
    """A recipe's own report."""
    hashes = {
        "prompts": prompts,
        "ppo/policy/adapter_model.safetensors": policy,
        "ppo/snapshots/step-4/adapter_model.safetensors": "another",
        "reward/joint/adapter_model.safetensors": "r",
        "reward/heldout/adapter_model.safetensors": heldout,
    }
    decoded = {"response_length": 32, "temperature": 1.0} | decoding
    return {"provenance": {"recipe": {}, "decoding": decoded, "hashes": hashes, "instruments": {}}}


def by_hand(policy: str, heldout: str = "h", prompts: str = "p") -> dict[str, Any]:
    """The report of `llm-rlhf evaluate`."""
    known = {"model": "m", "revision": None, "weights": {"adapter_model.safetensors": heldout}}
    return {
        "provenance": {
            "recipe": {"policy": {"weights": {"model.safetensors": "base"}, "adapter": {"a.safetensors": policy}}},
            "decoding": {"response_length": 32, "temperature": 1.0},
            "hashes": {"prompts": prompts},
            "instruments": {"heldout": known, "refusal_detector": "rules-1"},
        }
    }


def test_one_policy_in_two_reports_is_told_whoever_wrote_them() -> None:
    assert policy_weights(a_run("x")) == policy_weights(by_hand("x")) == frozenset({"x"})
    assert judge_identity(a_run("x"), "heldout") == judge_identity(by_hand("x"), "heldout") is not None
    (line,) = cautions([a_run("x"), a_run("y"), by_hand("x")], ["one", "two", "three"])
    assert line.startswith("one and three are one and the same policy.")


def test_other_prompts_judges_and_decodings_are_told() -> None:
    assert cautions([a_run("x"), a_run("y")], ["one", "two"]) == []
    found = cautions([a_run("x"), a_run("y", heldout="other", prompts="q", response_length=12)], ["one", "two"])
    assert found == [
        "Replies were sampled differently (one 32, two 12: tokens at most); lengths and gains do not compare.",
        "Not every run answered the same prompts or was scored by the same held-out model: gains over each one's start "
        "compare, levels do not.",
    ]


def test_only_one_and_the_same_judge_rates() -> None:
    replies = [[{"p": {"reward": 1.0, "heldout": 2.0}}], [{"p": {"reward": 1.0, "heldout": 2.0}}]]
    assert _common_judge([by_hand("x"), by_hand("y")], replies, ["p", "p"]) == "heldout"
    assert _common_judge([by_hand("x"), by_hand("y", heldout="other")], replies, ["p", "p"]) is None
    assert _common_judge([a_run("x"), a_run("y", heldout="other")], replies, ["p", "p"]) == "reward"
    del replies[1][0]["p"]["reward"]
    assert _common_judge([a_run("x"), a_run("y", heldout="other")], replies, ["p", "p"]) is None
    for rows in replies:
        rows[0]["p"]["gold"] = 0.5
    assert _common_judge([a_run("x"), a_run("y", heldout="other")], replies, ["p", "p"]) == "gold"
