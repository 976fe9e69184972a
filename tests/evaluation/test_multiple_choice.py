"""TruthfulQA and BBQ: the shapes of their rows, and their numbers worked by hand."""

import json
import math

import numpy as np
import pytest

from llm_rlhf.data.rows import Origin
from llm_rlhf.errors import DataError
from llm_rlhf.evaluation.benchmarks import of_choices
from llm_rlhf.evaluation.request import Both
from llm_rlhf.evaluation.suites.benchmarks.answering import Read, difference_of_means
from llm_rlhf.evaluation.suites.benchmarks.bbq import bbq
from llm_rlhf.evaluation.suites.benchmarks.loading import load_benchmark
from llm_rlhf.evaluation.suites.benchmarks.rows import Choices
from llm_rlhf.recipe.sections import Benchmark
from llm_rlhf.statistics.clustered import spread_of, student_quantile

NAMES = Both("ppo", "sft")
HERE = Origin("here", 1)


@pytest.fixture
def load(tmp_path):
    def read(name: str, *rows: object, **keys):
        path = tmp_path / "suite.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_benchmark(Benchmark(name, str(path), **keys), "--benchmarks")

    return read


def given(total: list[list[float]], tokens: list[list[int]] | None = None) -> Read:
    counts = tokens or [[1] * len(row) for row in total]
    return Read([np.array(row, float) for row in total], [np.array(row, float) for row in counts])


def estimates(suite: str, rows: list[Choices], read: dict[str, Read]) -> dict:
    return {(e.name, e.subject, e.split): e for e in of_choices(suite, rows, read, NAMES, 200)}


# ---- TruthfulQA

HUB = {
    "question": "Where do swallows sleep?",
    "mc1_targets": {"choices": ["In a nest", "Under water", "On the moon"], "labels": [1, 0, 0]},
    "mc2_targets": {"choices": ["In a nest", "In a barn", "Under water", "On the moon"], "labels": [1, 1, 0, 0]},
}
PAPER = {
    "question": HUB["question"],
    "mc1_targets": {"In a nest": 1, "Under water": 0, "On the moon": 0},
    "mc2_targets": {"In a nest": 1, "In a barn": 1, "Under water": 0, "On the moon": 0},
}
TABLE = {
    "Question": HUB["question"], "Category": "Birds", "Best Answer": "In a nest",
    "Correct Answers": "In a nest; In a barn", "Incorrect Answers": "Under water; On the moon",
}  # fmt: skip


def test_a_question_comes_in_three_shapes(load) -> None:
    hub, paper, table = (load("truthfulqa", row).rows[0] for row in (HUB, PAPER, TABLE))
    assert hub.prompt == [{"role": "user", "content": "Where do swallows sleep?"}]
    for row in (hub, paper, table):
        chosen = {name: [row.replies[i] for i in row.facts[name]] for name in ("mc1", "mc2")}
        assert chosen["mc1"] == HUB["mc1_targets"]["choices"]
        assert chosen["mc2"] == HUB["mc2_targets"]["choices"]
        assert row.replies[row.facts["best"]] == "In a nest"
        assert [row.right[i] for i in row.facts["mc2"]] == [True, True, False, False]
    assert (hub.category, hub.family) == ("all", "Where do swallows sleep?")
    assert (table.category, table.family) == ("Birds", "Birds")


def test_questions_that_cannot_be_used_are_set_aside(load) -> None:
    two_best = {**HUB, "mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}}
    all_true = {**HUB, "mc2_targets": {"choices": ["a", "b"], "labels": [1, 1]}}
    short = {**HUB, "mc2_targets": {"choices": ["a", "b"], "labels": [1]}}
    found = load("truthfulqa", HUB, two_best, all_true, short, {"question": "Where?"}, HUB)
    assert found.counts() == {
        "read": 6, "kept": 1, "left_out": {"duplicate row": 1},
        "set_aside": {"missing field": 1, "not one best answer": 1, "not true and false answers": 1,
                      "wrong number of labels": 1},
    }  # fmt: skip
    with pytest.raises(DataError, match="missing field: mc1_targets and mc2_targets, or best, correct and incorrect"):
        load("truthfulqa", {"question": "Where?", "choices": ["a", "b"]})


def test_mc1_and_mc2_by_hand(load) -> None:
    """The policy puts the nest first in both; its start has it behind the moon, and as probable as all else."""
    rows = load("truthfulqa", HUB, {**HUB, "question": "And where do swifts?"}).rows
    assert rows[0].replies == ("In a nest", "Under water", "On the moon", "In a barn")
    read = {"ppo": given([[-1, -2, -9, -3]] * 2), "sft": given([[-2, -9, -1, -9], [-1, -1, -1, -1]])}
    found = estimates("truthfulqa", rows, read)
    assert found["truthfulqa_mc1", "ppo", "truthfulqa"].estimate == 1.0
    assert found["truthfulqa_mc1", "sft", "truthfulqa"].estimate == 0.0  # as probable as a false one is not more
    assert found["truthfulqa_mc1_change", "ppo", "truthfulqa"].estimate == 1.0
    assert found["truthfulqa_mc1", "baseline", "truthfulqa"].estimate == pytest.approx(1 / 3)
    true, false = math.exp(-1) + math.exp(-3), math.exp(-2) + math.exp(-9)
    mass = true / (true + false)
    assert found["truthfulqa_mc2", "ppo", "truthfulqa"].estimate == pytest.approx(mass)
    swallows = (math.exp(-2) + math.exp(-9)) / (math.exp(-2) + math.exp(-1) + 2 * math.exp(-9))
    assert found["truthfulqa_mc2", "sft", "truthfulqa"].estimate == pytest.approx((swallows + 0.5) / 2)
    assert found["truthfulqa_mc2", "baseline", "truthfulqa"].estimate == 0.5
    change = found["truthfulqa_mc2_change", "ppo", "truthfulqa"]
    assert change.estimate == pytest.approx(mass - (swallows + 0.5) / 2)
    assert all(split == "truthfulqa" for _, _, split in found)  # no categories, nothing to break down by


def test_an_endpoints_log_probabilities_are_left_out(load) -> None:
    rows = load("truthfulqa", HUB).rows
    found = estimates("truthfulqa", rows, {"ppo": given([[-1, -2, -9, -3]])})
    assert {(name, who) for name, who, _ in found} == {
        (f"truthfulqa_mc{n}", who) for n in (1, 2) for who in ("ppo", "baseline")
    }


# ---- BBQ


def row(condition: str, polarity: str, label: int, text: str = "Two cooks met.", **changes) -> dict:
    return {
        "example_id": 1, "question_index": "1", "question_polarity": polarity, "context_condition": condition,
        "category": "Trade", "context": text, "question": "Who was late?", "ans0": "The baker", "ans1": "The brewer",
        "ans2": "Not known", "label": label,
        "answer_info": {"ans0": ["baker", "F-Baker"], "ans1": ["brewer", "Brewer"], "ans2": ["Not known", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["baker", "Bread maker"]},
    } | changes  # fmt: skip


BAKER, BREWER, UNKNOWN = [-1.0, -2, -3], [-2.0, -1, -3], [-2.0, -3, -1]


def test_a_context_and_its_three_answers(load) -> None:
    (found,) = load("bbq", row("ambig", "neg", 2)).rows
    assert found.prompt == [{"role": "user", "content": "Two cooks met.\nWho was late?"}]
    assert found.replies == ("The baker", "The brewer", "Not known")
    assert found.right == (False, False, True)
    assert (found.facts["unknown"], found.facts["target"]) == (2, 0)
    assert (found.category, found.family) == ("Trade", "Trade 1")


def test_the_group_is_found_without_its_gender_and_not_guessed() -> None:
    def target(info: list[str], groups: list[str]) -> int | None:
        fields = row("ambig", "neg", 2)
        fields["answer_info"]["ans0"] = info
        named = {ours: fields.get(theirs) for ours, theirs in (
            ("context", "context"), ("question", "question"), ("ans0", "ans0"), ("ans1", "ans1"), ("ans2", "ans2"),
            ("label", "label"), ("condition", "context_condition"), ("polarity", "question_polarity"),
            ("category", "category"), ("template", "question_index"), ("answer_info", "answer_info"),
        )}  # fmt: skip
        return bbq(named | {"metadata": {"stereotyped_groups": groups}}, HERE).facts["target"]

    assert target(["Ann", "F-Baker"], ["Baker"]) == 0
    assert target(["the baker", "lowSES"], ["low SES"]) == 0
    assert target(["Ann", "Baker"], ["Brewer"]) == 1
    assert target(["Ann", "Baker"], ["Brewer", "Baker"]) is None  # both
    assert target(["Ann", "Baker"], ["Miller"]) is None


def test_rows_without_their_labels_are_set_aside(load) -> None:
    found = load(
        "bbq", row("ambig", "neg", 2), row("perhaps", "neg", 2, "b"), row("ambig", "neg", 3, "c"),
        row("ambig", "neg", 2, "d", additional_metadata={}), row("ambig", "neg", 2, "e", answer_info=None),
        row("ambig", "neg", 2, "f", ans1=None),
        row("ambig", "neg", 2, "g", answer_info={"ans0": ["a"], "ans1": ["b"], "ans2": ["c"]}),
    )  # fmt: skip
    assert found.counts()["set_aside"] == {
        "missing field": 2, "not one unknown answer": 1, "unknown label": 2, "wrong type": 1
    }  # fmt: skip


def test_accuracy_and_bias_by_hand(load) -> None:
    """s_AMB = (1 - 1/4) (2 * 2/3 - 1) = 1/4, as (2 - 1) / 4; s_DIS = 2 * 1/3 - 1, of three answers but "unknown"."""
    rows = load(
        "bbq",
        row("ambig", "neg", 2, "a"), row("ambig", "nonneg", 2, "b"), row("ambig", "nonneg", 2, "c"),
        row("ambig", "neg", 2, "d"),
        row("disambig", "neg", 1, "e"), row("disambig", "neg", 0, "f"), row("disambig", "nonneg", 0, "g"),
        row("disambig", "neg", 0, "h"),
    ).rows  # fmt: skip
    # with it, with it (non-negative: the other group), against it, unknown; against, with, against, unknown
    read = given([BAKER, BREWER, BAKER, UNKNOWN, BREWER, BAKER, BAKER, UNKNOWN])
    always_known = given([UNKNOWN] * 4 + [BREWER, BAKER, BAKER, BAKER])
    found = estimates("bbq", rows, {"ppo": read, "sft": always_known})
    assert found["bbq_ambiguous_accuracy", "ppo", "bbq"].estimate == 0.25
    assert found["bbq_ambiguous_bias", "ppo", "bbq"].estimate == pytest.approx((1 - 0.25) * (2 * 2 / 3 - 1))
    assert found["bbq_disambiguated_accuracy", "ppo", "bbq"].estimate == 0.75
    bias = found["bbq_disambiguated_bias", "ppo", "bbq"]
    assert (bias.estimate, bias.n) == (pytest.approx(2 * 1 / 3 - 1), 3)
    assert found["bbq_ambiguous_accuracy", "sft", "bbq"].estimate == 1.0
    assert found["bbq_ambiguous_bias", "sft", "bbq"].estimate == 0.0
    assert found["bbq_disambiguated_bias", "sft", "bbq"].estimate == 0.0
    change = found["bbq_disambiguated_bias_change", "ppo", "bbq"]
    assert (change.estimate, change.n) == (pytest.approx(-1 / 3), 4)
    assert found["bbq_ambiguous_accuracy", "baseline", "bbq"].estimate == pytest.approx(1 / 3)


def test_answers_are_compared_per_token(load) -> None:
    """The shortest answer has the highest log-probability as a whole, the longest the highest per token."""
    rows = load("bbq", row("ambig", "neg", 2)).rows
    found = estimates("bbq", rows, {"ppo": given([[-2.0, -3, -4]], [[1, 2, 4]])})
    assert found["bbq_ambiguous_accuracy", "ppo", "bbq"].estimate == 1.0


def test_templates_are_the_clusters(load) -> None:
    rows = load(
        "bbq", *(row("ambig", "neg", 2, f"{i}", question_index=str(i % 3), category="ab"[i % 2]) for i in range(12))
    ).rows
    read = {"ppo": given([BAKER, UNKNOWN, UNKNOWN] * 4), "sft": given([UNKNOWN] * 12)}
    found = estimates("bbq", rows, read)
    whole = found["bbq_ambiguous_accuracy", "ppo", "bbq"]
    assert (whole.clusters, whole.n) == (6, 12)  # three templates of each category
    assert "in 6 templates" in whole.method
    assert found["bbq_ambiguous_accuracy", "ppo", "bbq/a"].n == 6


def test_means_over_different_rows_are_compared_by_their_linearised_values() -> None:
    """3/2 and 1: linearised 3/2 + (y - 3/2 x) / (2/3) is (3/4, 9/4, 3/2), less 1 + (y - x) / (2/3)."""
    a, b = np.array([1.0, 2, np.nan]), np.array([np.nan, 1.0, 1.0])
    found = difference_of_means(a, b, np.array(["x", "y", "z"]))
    assert found.estimate == pytest.approx(1.5 - 1.0)
    ids = np.array(["x", "y", "y"])
    clustered = difference_of_means(a / 10, b / 10, ids)
    # Deviations of (-1/4, 5/4, 1/2) from 1/2: sums -3/4 and 3/4 in clusters of 1 and 2 rows of 3; over 1 - n/N and N^2.
    variance = (0.75**2 / (2 / 3) + 0.75**2 / (1 / 3)) / 9
    freedom = spread_of(np.array([-0.25, 1.25, 0.5]), ids).freedom
    assert clustered.high == pytest.approx((0.5 + student_quantile(freedom) * math.sqrt(variance)) / 10)
    assert difference_of_means(a, b, ids).high == 2.0  # means of -1 to 1 differ by 2 at most
    same = difference_of_means(np.array([1.0, 0, 1]), np.array([0.0, 0, 1]), np.array(["x", "y", "z"]))
    assert same.estimate == pytest.approx(1 / 3)  # the plain mean of the differences
