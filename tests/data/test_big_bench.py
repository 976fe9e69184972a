"""BIG-bench tasks of two choices, and preferences, as pairs to tell the better of."""

import json
from pathlib import Path

import pytest

from llm_rlhf.data.big_bench import load_comparisons
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import Source

ASKED = "\n\nHuman: Is water wet?\n\nAssistant: Yes.\n\nHuman: Why?\n\nAssistant:"
TURNS = [
    {"role": "user", "content": "Is water wet?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
]
GOOD = {"input": ASKED, "target_scores": {"No idea.": 0, "It clings. ": 1}}


def task(folder: Path, examples: list, name: str = "task.json", **more) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"canary": "x", **more, "examples": examples}, indent=1))
    return folder / name


def test_a_task_of_two_choices(tmp_path) -> None:
    path = task(tmp_path / "harmless", [GOOD, {"input": "Plain?", "target_scores": {"A": 1.0, "B": 0.0}}])
    first, second = load_comparisons([Source(source=str(path))]).pairs
    assert (first.prompt, first.chosen, first.rejected, first.objective) == (
        TURNS, "It clings.", "No idea.", "harmless",
    )  # fmt: skip
    assert str(first.origin) == f"{path}, row 1"
    assert second.prompt == [{"role": "user", "content": "Plain?"}]
    assert (second.chosen, second.rejected) == ("A", "B")


def test_every_row_is_accounted_for(tmp_path) -> None:
    rows = [
        GOOD,
        {"input": "a", "target_scores": {"A": 1, "B": 0, "C": 0}},
        {"input": "a", "target_scores": {"A": 1, "B": 1}},
        {"input": "a", "target_scores": {"A": 1, " A": 0}},
        {"input": "a", "target_scores": {"A": 1, " ": 0}},
        {"input": "a", "target_scores": {"A": "1", "B": 0}},
        {"input": "a"},
        {"input": "a", "targets": {"choices": ["A", "B"], "labels": [1]}},
        {"input": " ", "target_scores": {"A": 1, "B": 0}},
        {"input": 3, "target_scores": {"A": 1, "B": 0}},
        {**GOOD, "objective": "funny"},
        "text",
    ]
    found = load_comparisons([Source(source=str(task(tmp_path, rows)))])
    counts = found.counts()
    assert counts["read"] == len(rows) == counts["pairs"] + sum(counts["set_aside"].values())
    assert counts["pairs"] == 1
    assert {"not two choices", "tie", "chosen equals rejected", "empty reply", "empty prompt"} <= set(
        counts["set_aside"]
    )
    with pytest.raises(DataError, match=r"Nothing is left.*not two choices"):
        load_comparisons([Source(source=str(task(tmp_path / "bad", rows[1:])))])


def test_folders_globs_rows_and_preferences(tmp_path) -> None:
    for name in ("helpful", "honest"):
        task(tmp_path / "hhh" / name, [GOOD])
    (tmp_path / "hhh" / "README.md").write_text("words")
    for source in (tmp_path / "hhh", tmp_path / "hhh" / "*" / "task.json"):
        found = load_comparisons([Source(source=str(source))])
        assert [pair.objective for pair in found.pairs] == ["helpful", "honest"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        json.dumps({"input": "Plain?", "targets": {"choices": ["A", "B"], "labels": [0, 1]}, "objective": "other"})
        + "\n"
    )
    preferences = tmp_path / "pairs.jsonl"
    preferences.write_text(json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"}) + "\n")
    both = load_comparisons([Source(source=str(rows)), Source(source=str(preferences), objective="helpful")])
    assert [(p.chosen, p.objective) for p in both.pairs] == [("B", "other"), ("c", "helpful")]
    assert both.counts()["read"] == 2


def test_a_limit_leaves_out_by_hash_and_counts(tmp_path) -> None:
    rows = [{"input": f"q{i}", "target_scores": {"A": 1, "B": 0}} for i in range(20)]
    found = load_comparisons([Source(source=str(task(tmp_path, rows)), limit=5)])
    assert (len(found.pairs), found.left_out, found.read) == (5, 15, 20)
    assert [p.origin.row for p in found.pairs] != [1, 2, 3, 4, 5]
