"""RewardBench 2 and RM-Bench: the shapes of their rows, and their numbers worked by hand."""

import json
import math

import numpy as np
import pytest

from llm_rlhf.errors import DataError
from llm_rlhf.evaluation.benchmarks import of_scores
from llm_rlhf.evaluation.suites.benchmarks.loading import load_benchmark
from llm_rlhf.evaluation.suites.benchmarks.rows import Choices
from llm_rlhf.evaluation.suites.benchmarks.scoring import as_pairs, mean_of_parts, of_pairs
from llm_rlhf.recipe.sections import Benchmark


@pytest.fixture
def load(tmp_path):
    def read(name: str, *rows: object):
        path = tmp_path / "suite.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_benchmark(Benchmark(name, str(path)), "--benchmarks")

    return read


def best_of(prompt: str, subset: str = "Focus", wrong: tuple[str, ...] = ("b", "c", "d")) -> dict:
    return {"id": prompt, "prompt": prompt, "chosen": ["a"], "rejected": list(wrong), "subset": subset}


def tied(id_: str, right: int, wrong: int = 2, subset: str = "Ties") -> dict:
    return {"id": id_, "prompt": f"Name one of {right}, {id_}", "chosen": [f"r{i}" for i in range(right)],
            "rejected": [f"w{i}" for i in range(wrong)], "subset": subset}  # fmt: skip


def styled(prompt: str, domain: str) -> dict:
    return {"id": prompt, "prompt": prompt, "chosen": ["r1", "r2", "r3"], "rejected": ["w1", "w2", "w3"],
            "domain": domain}  # fmt: skip


def scored(rows: list[Choices], scores: list[list[float]]) -> np.ndarray:
    """Scores as pairs hold them, the last one of an odd number twice."""
    flat = [score for of_row in scores for score in (of_row if len(of_row) % 2 == 0 else [*of_row, of_row[-1]])]
    assert len(as_pairs(rows)) * 2 == len(flat)
    return np.array(flat, float).reshape(-1, 2)


def estimates(suite: str, rows: list[Choices], scores: list[list[float]]) -> dict:
    found, _ = of_scores(suite, rows, {"reward": scored(rows, scores)}, 200)
    return {(e.name, e.subject, e.split): e for e in found}


def test_replies_go_by_pairs_and_come_back(load) -> None:
    rows = load("reward_bench_2", best_of("p"), tied("ref:1", 1)).rows
    pairs = as_pairs(rows)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("a", "b"), ("c", "d"), ("r0", "w0"), ("w1", "w1")]
    back = of_pairs(rows, np.array([[1, 2], [3, 4], [5, 6], [7, 7]]))
    assert [part.tolist() for part in back] == [[1, 2, 3, 4], [5, 6, 7]]


def test_rows_of_another_shape_are_set_aside(load) -> None:
    found = load(
        "reward_bench_2", best_of("p"), best_of("q") | {"chosen": ["a", "b"]}, best_of("r") | {"rejected": "b"},
        best_of("s") | {"rejected": []}, tied("7", 2), best_of("t") | {"subset": None}, best_of("p"),
    )  # fmt: skip
    assert found.counts() == {
        "read": 7, "kept": 1, "left_out": {"duplicate row": 1},
        "set_aside": {"empty reply": 1, "missing field": 1, "not one right reply": 1, "unknown id": 1, "wrong type": 1},
    }  # fmt: skip
    found = load("rm_bench", styled("p", "chat"), styled("q", "chat") | {"chosen": ["r1", "r2"]})
    assert found.counts()["set_aside"] == {"not three replies of each": 1}
    with pytest.raises(DataError, match=r"rm_bench: .* has no column 'domain'; it has id, prompt, chosen, rejected"):
        load("rm_bench", {key: value for key, value in styled("p", "").items() if key != "domain"})


def test_best_of_four_by_hand(load) -> None:
    """Right, right in a tie of two, wrong; one in four by chance."""
    rows = load("reward_bench_2", best_of("p"), best_of("q"), best_of("r", "Math")).rows
    found = estimates("reward_bench_2", rows, [[4, 1, 2, 3], [4, 4, 0, 0], [1, 2, 0, 0]])
    assert found["reward_bench_2_accuracy", "reward", "reward_bench_2"].estimate == 0.5
    assert found["reward_bench_2_accuracy", "reward", "reward_bench_2/Focus"].estimate == 0.75
    assert found["reward_bench_2_accuracy", "reward", "reward_bench_2/Math"].estimate == 0.0
    assert found["reward_bench_2_accuracy", "baseline", "reward_bench_2"].estimate == 0.25
    score = found["reward_bench_2_score", "reward", "reward_bench_2"]
    assert score.estimate == pytest.approx((0.75 + 0) / 2)  # subsets weigh alike
    assert ("reward_bench_2_ties", "reward", "reward_bench_2") not in found


def test_the_score_of_ties_by_hand(load) -> None:
    """Prompt 1: leads 2 and 1.5, spread 1; prompt 2: tied right by less than its spread, ref wrong.

    1: .3 + .3 + .2 + .2 + .01 tanh(1.5 / 1 - 1); 2: .3 + 0 + 0 + 0 + .01 tanh(-1 / 2 - 1).
    """
    rows = load(
        "reward_bench_2", tied("ref:1", 1), tied("tied:1", 2), tied("ref:2", 1), tied("tied:2", 2), tied("tied:3", 2)
    ).rows
    scores = [[3, 1, 0], [3.5, 2.5, 1, 0], [0, 1, 0], [4, 2, 1, 0], [9, 8, 0, 0]]
    found = estimates("reward_bench_2", rows, scores)
    entry = found["reward_bench_2_ties", "reward", "reward_bench_2"]
    first, second = 1 + 0.01 * math.tanh(0.5), 0.3 + 0.01 * math.tanh(-1.5)
    assert (entry.estimate, entry.n) == (pytest.approx((first + second) / 2), 2)
    assert "1 rows without their other half left out" in entry.method
    # Right replies of one score: the margin is as large as can be, or counts nothing where there is no lead.
    equal = estimates("reward_bench_2", rows[:2], [[3, 1, 0], [2, 2, 1, 0]])
    assert equal["reward_bench_2_ties", "reward", "reward_bench_2"].estimate == pytest.approx(1.01)
    none = estimates("reward_bench_2", rows[:2], [[1, 1, 1], [1, 1, 1, 1]])
    assert none["reward_bench_2_ties", "reward", "reward_bench_2"].estimate == 0.0


def test_the_ties_are_those_of_the_reference_formula(load) -> None:
    """The formula of the repository, written again over whole lists: means of accuracy, then of margins."""
    rng = np.random.default_rng(0)
    rows = load(
        "reward_bench_2", *(tied(f"{k}:{i}", 1 + 2 * (k == "tied")) for i in range(30) for k in ("ref", "tied"))
    )
    scores = [(rng.normal(size=len(row.replies)) + np.array(row.right)).tolist() for row in rows.rows]
    split = [
        (np.array(s)[np.array(r.right)], np.array(s)[~np.array(r.right)])
        for r, s in zip(rows.rows, scores, strict=True)
    ]
    lead = np.array([right.min() - wrong.max() for right, wrong in split])
    ref, tie = lead[::2], lead[1::2]
    spread = np.array([right.max() - right.min() for right, _ in split[1::2]])
    least = np.minimum(ref, tie)
    wanted = (0.3 * np.mean(tie > 0) + 0.3 * np.mean(ref > 0) + 0.2 * np.mean(tie > spread)
              + 0.2 * np.mean(least > spread) + 0.01 * np.mean(np.tanh(least / spread - 1)))  # fmt: skip
    found = estimates("reward_bench_2", rows.rows, scores)
    assert found["reward_bench_2_ties", "reward", "reward_bench_2"].estimate == pytest.approx(wanted)


def test_the_style_matrix_by_hand(load) -> None:
    """Scores that go by style alone: 1, 2, 3 for right and wrong replies alike, ties wrong.

    Easy, the right one fancier: 3 of 3; normal: 0 of 3, all ties; hard: 0 of 3. The second prompt is right throughout.
    """
    rows = load("rm_bench", styled("p", "chat"), styled("q", "math")).rows
    found = estimates("rm_bench", rows, [[1, 2, 3, 1, 2, 3], [9, 9, 9, 1, 2, 3]])
    for part, (chat, math_) in {"easy": (1, 1), "normal": (0, 1), "hard": (0, 1), "average": (1 / 3, 1)}.items():
        assert found[f"rm_bench_{part}", "reward", "rm_bench/chat"].estimate == pytest.approx(chat)
        assert found[f"rm_bench_{part}", "reward", "rm_bench/math"].estimate == math_
        assert found[f"rm_bench_{part}", "reward", "rm_bench"].estimate == pytest.approx((chat + math_) / 2)
        assert found[f"rm_bench_{part}", "baseline", "rm_bench"].estimate == 0.5


def test_domains_weigh_alike_and_the_parts_of_safety_within_it(load) -> None:
    right, wrong = [9, 9, 9, 1, 1, 1], [1, 1, 1, 9, 9, 9]
    domains = ["chat", "chat", "chat", "safety-refuse", "safety-response", "safety-response"]
    rows = load("rm_bench", *(styled(f"p{i}", domain) for i, domain in enumerate(domains))).rows
    found = estimates("rm_bench", rows, [right, right, wrong, right, wrong, wrong])
    whole = found["rm_bench_average", "reward", "rm_bench"]
    assert whole.estimate == pytest.approx((2 / 3 + (1 + 0) / 2) / 2)
    assert whole.n == 6


def test_a_mean_over_parts_that_are_all_alike_keeps_a_width() -> None:
    found = mean_of_parts(np.ones(40), [["a"]] * 20 + [["b"]] * 20, None, 200, 0)
    assert (found.estimate, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.9124, abs=1e-4)  # Wilson, forty of forty: 40 / (40 + 1.96 ** 2)
    thirds = mean_of_parts(np.full(40, 1 / 3), [["a"]] * 13 + [["b"]] * 13 + [["c"]] * 14, None, 200, 0)
    assert thirds.high - thirds.low > 0.2
    few = mean_of_parts(np.ones(4), [["a"], ["a"], ["b"], ["b"]], None, 200, 0)
    assert (few.low, few.method) == (None, "mean over parts; too few rows for an interval")  # often a part is not drawn


def test_rows_that_a_model_cannot_read_are_left_out_and_counted(load) -> None:
    rows = load("reward_bench_2", best_of("p"), best_of("q")).rows
    scores = {"reward": scored(rows, [[4, 1, 2, 3], [1, 2, 3, 4]]), "heldout": scored(rows, [[1, 2, 3, 4]] * 2)}
    scores["heldout"][3] = np.nan
    found, fitted = of_scores("reward_bench_2", rows, scores, 200)
    assert fitted == {"kept": 1, "too_long": 1}
    assert {(e.subject, e.estimate) for e in found if e.split == "reward_bench_2"} == {
        ("reward", 1.0), ("heldout", 0.0), ("baseline", 0.25)
    }  # fmt: skip
    halves = load("reward_bench_2", tied("ref:1", 1), tied("tied:2", 2)).rows
    with pytest.raises(DataError, match="reward_bench_2: of 2 rows none is of a subset that has a measure"):
        estimates("reward_bench_2", halves, [[3, 1, 0], [3, 2, 1, 0]])
    scores["heldout"][:] = np.nan
    with pytest.raises(DataError, match="None of 2 rows of reward_bench_2 fits"):
        of_scores("reward_bench_2", rows, scores, 200)
