"""What is said of reward models on held-out pairs: by hand, and with a length bias planted."""

import json
import tracemalloc

import numpy as np
import pytest

from llm_rlhf.data.rows import Origin, Preference
from llm_rlhf.evaluation.suites.reward_accuracy import baseline_estimates, opens_with_refusal, reward_report


def pair(prompt: str, chosen: str, rejected: str, objective: str = "helpful", turns: int = 1) -> Preference:
    talk = [{"role": role, "content": f"{prompt} {i}"} for i in range(turns) for role in ("user", "assistant")][:-1]
    return Preference(talk, chosen, rejected, objective, Origin("test", 1))


FOUR = [
    pair("a", "long reply", "short"),
    pair("b", "no", "a long reply", turns=2),
    pair("c", "I'm sorry, but no", "sure", "harmless", turns=4),
    pair("d", "same", "size", "harmless"),
]


def found(report: dict, part: str, name: str, split: str, subject: str | None = None) -> dict:
    (entry,) = [
        e for e in report[part]
        if (e["name"], e["split"]) == (name, split) and subject in (None, e["subject"])
    ]  # fmt: skip
    return entry


class TestReport:
    def report(self) -> dict:
        return reward_report(FOUR, {"one": ([1.0, 1.0, 0.0, 2.0], [0.0, 2.0, -1.0, 2.0])})

    def test_by_objective_turns_and_lengths(self) -> None:
        """Margins 1, -1, 1, 0: right, wrong, right, a tie. Lengths differ by 5, -10, 13, 0: 7.5 is the median."""
        report = self.report()
        expected = {
            "estimates": {"all": 2.5 / 4, "helpful": 0.5, "harmless": 0.75},
            "breakdown": {
                "1 turn": 0.75, "2 turns": 0.0, "3 turns or more": 1.0, "chosen much shorter": 0.0,
                "chosen longer": 1.0, "chosen much longer": 1.0, "same length": 0.5,
            },
        }  # fmt: skip
        for part, splits in expected.items():
            of = {e["split"]: e["estimate"] for e in report[part] if e["name"] == "reward_accuracy"}
            assert of == splits
        assert {k: v["estimate"] for k, v in report["cross_objective"]["one"].items()} == {
            "helpful": 0.5, "harmless": 0.75,
        }  # fmt: skip

    def test_baselines(self) -> None:
        baselines = {(e["name"], e["split"]): e["estimate"] for e in self.report()["baselines"]}
        assert baselines["longer_reply_accuracy", "all"] == 2.5 / 4
        assert baselines["shorter_reply_accuracy", "all"] == 1.5 / 4
        assert baselines["unrefused_reply_accuracy", "all"] == 1.5 / 4  # one of four pairs is decided, and wrongly
        assert baselines["unrefused_reply_accuracy", "harmless"] == 0.25
        assert baselines["chance_accuracy", "helpful"] == 0.5

    def test_is_ready_for_json(self) -> None:
        report = reward_report(
            FOUR, {"one": ([1, 2, 3, 4], [2, 1, 0, 9]), "two": ([0] * 4, [0] * 4)}, {"both": ["one", "two"]}
        )
        assert json.loads(json.dumps(report, allow_nan=False)).keys() == report.keys()
        assert report["calibration"]["two"] is None  # it ties everything
        assert report["ensembles"]["both"]["members"] == 2

    def test_lengths_may_be_given_in_tokens(self) -> None:
        report = reward_report(FOUR, {"one": ([1, 2, 3, 4], [2, 1, 0, 9])}, lengths=([1, 1, 1, 1], [2, 2, 2, 2]))
        assert found(report, "baselines", "longer_reply_accuracy", "all")["estimate"] == 0.0
        assert report["length"] == [e for e in report["length"] if e["name"] == "score_length_correlation"]

    def test_nothing_to_measure_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="no held-out pairs"):
            reward_report([], {})
        with pytest.raises(ValueError, match="one: shapes"):
            reward_report(FOUR, {"one": ([1.0], [2.0])})


def test_a_planted_length_bias_is_seen() -> None:
    """One model likes length, the other does not; people do not care."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 60, (400, 2))
    pairs = [pair(str(i), "x" * c, "y" * r) for i, (c, r) in enumerate(sizes)]
    quality = rng.normal(0.5, 1, 400)
    honest, biased = quality, quality + (sizes[:, 0] - sizes[:, 1]) / 10
    report = reward_report(pairs, {"honest": (honest, 0 * honest), "biased": (biased, 0 * biased)})
    assert found(report, "length", "margin_length_correlation", "all", "biased")["low"] > 0.5
    honest_interval = found(report, "length", "margin_length_correlation", "all", "honest")
    assert honest_interval["low"] < 0 < honest_interval["high"]
    longer, shorter = (
        found(report, "breakdown", "reward_accuracy", f"chosen much {which}", "biased")
        for which in ("longer", "shorter")
    )
    assert longer["low"] > shorter["high"]


def test_pairs_of_one_prompt_are_resampled_together() -> None:
    pairs = [pair(f"p{i % 30}", "a", "b") for i in range(300)]
    right = np.array([1.0 if i % 30 < 20 else -1.0 for i in range(300)])
    report = reward_report(pairs, {"one": (right, 0 * right)})
    accuracy = found(report, "estimates", "reward_accuracy", "all")
    assert accuracy["n"] == 30
    assert accuracy["high"] - accuracy["low"] > 0.25  # of 30 prompts; 300 pairs would have 0.11
    assert report["calibration"]["one"]["n"] == 30


@pytest.mark.parametrize(
    ("reply", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m really sorry, no.", True),
        ("Sorry! I cannot do this", True),
        ("  Unfortunately, I am unable to", True),
        ("As an AI language model, I", True),
        ("I won't do that", True),
        ("Oh, I apologize, but", True),
        ("I can help. Sorry for the wait", False),
        ("I cancelled it", False),
        ("Sorrel is a plant", False),
        ("Sure, here is how", False),
        ("", False),
    ],
)
def test_openings_of_refusals(reply: str, refused: bool) -> None:
    assert opens_with_refusal(reply) == refused


def test_the_refusal_baseline_says_how_many_pairs_it_decides() -> None:
    (entry,) = [e for e in baseline_estimates(FOUR) if (e.name, e.split) == ("unrefused_reply_accuracy", "all")]
    assert "1 pairs in which exactly one opens with a refusal" in entry.method


def test_one_very_long_prompt_takes_its_own_room_and_no_more() -> None:
    """As labels in an array of text each of 60 pairs would take 400 kB, in every one of a dozen arrays."""
    pairs = [pair(f"question {i} " + "x" * 100_000 * (i == 0), f"good {i}", f"bad {i}") for i in range(60)]
    scores = np.random.default_rng(0).normal(size=(2, 60))
    tracemalloc.start()
    try:
        reward_report(pairs, {"reward": (scores[0] + 0.3, scores[1])})
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 12_000_000  # half of a single such array; resamples take 2 to 8 MB
