"""Columns under our names, what is said of names that are not there, and what nothing reads."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_rlhf.data import files
from llm_rlhf.data.big_bench import load_comparisons
from llm_rlhf.data.sources import load_preferences, load_prompts
from llm_rlhf.data.storage import Rows
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import Source


def source(path: Path, *rows: Any, **keys: Any) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Source(source=str(path), **keys)


@pytest.mark.parametrize(
    "names", [("Prompt", "Chosen", "Rejected"), ("PROMPT", "chosen ", "re-jected"), ("question", "CHOSEN", "rejected")]
)
def test_case_blanks_and_signs_in_a_name_do_not_matter(names: tuple[str, ...], tmp_path: Path) -> None:
    row = dict(zip(names, "qab", strict=True))
    (pair,) = load_preferences([source(tmp_path / "rows.jsonl", row)]).rows
    assert (pair.prompt[0]["content"], pair.chosen, pair.rejected) == ("q", "a", "b")


def test_of_two_that_may_be_meant_neither_is_taken_and_ours_comes_first(tmp_path: Path) -> None:
    row = {"prompt": "q", "Prompt": "not this", "chosen": "a", "rejected": "b"}
    loaded = load_preferences([source(tmp_path / "rows.jsonl", row)])
    assert loaded.rows[0].prompt[0]["content"] == "q"
    assert loaded.counts()["unread"] == {str(tmp_path / "rows.jsonl"): {"Prompt": 1}}
    with pytest.raises(DataError, match="'Prompt', 'PROMPT'"):
        load_preferences(
            [source(tmp_path / "rows.jsonl", {"Prompt": "q", "PROMPT": "r", "chosen": "a", "rejected": "b"})]
        )


@pytest.mark.parametrize("small", [True, False])
def test_what_nothing_reads_is_counted_by_name_and_by_row(
    small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory and from the cache. What is empty says nothing, and a row that is set aside is counted as well."""
    monkeypatch.setattr(files, "SMALL", 1 << 20 if small else -1)
    message = {"role": "user", "content": "q", "name": "x"}
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "id": 1, "source": "x"},
        {"prompt": [message, {"role": "assistant", "content": "h"}, message], "chosen": "a", "rejected": "b", "id": 2},
        {"prompt": "r", "chosen": "a", "rejected": "a", "id": 3, "source": None, "note": "", "tags": []},
    ]
    path = tmp_path / f"rows-{small}.jsonl"
    loaded = load_preferences([source(path, *rows)])
    assert loaded.counts()["unread"] == {str(path): {"id": 3, "source": 1, "prompt.name": 1}}
    assert len(loaded.set_aside) == 1
    assert loaded.counts()["read"] == 3


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"Goal": "q", "target": "t"}, {"Goal": "r", "target": "u"}]
    with pytest.raises(DataError, match=r"prompt is called 'goal' in .*but 'Goal', 'target'\. Did you mean 'Goal'\?"):
        load_prompts([source(path, *rows, columns={"prompt": "goal"})], Rows())
    with pytest.raises(DataError, match=r"chosen is called 'best'"):
        load_preferences([source(path, *rows, columns={"prompt": "Goal", "chosen": "best"}, format="preference")])
    loaded = load_prompts([source(path, *rows, columns={"prompt": "target"})], Rows())
    assert [row.messages[0]["content"] for row in loaded.rows] == ["t", "u"]
    assert loaded.counts()["unread"] == {str(path): {"Goal": 2}}


def test_a_name_may_be_one_of_the_replies_or_of_a_later_row(tmp_path: Path) -> None:
    replies = [{"said": "a", "points": 1, "model": "x"}, {"said": "b", "points": 3, "model": ""}]
    names = {"responses": "all", "text": "said", "score": "points"}
    rows = [{"prompt": "q", "all": replies}, *({"prompt": "q"} for _ in range(200)), {"prompt": "q", "by": "harmless"}]
    loaded = load_preferences([source(tmp_path / "rows.jsonl", *rows, columns={**names, "objective": "by"})])
    assert [(pair.chosen, pair.margin) for pair in loaded.rows] == [("b", 2)]
    assert loaded.counts()["unread"] == {str(tmp_path / "rows.jsonl"): {"all.model": 1}}


def test_where_a_row_lacks_the_column_named_another_of_our_name_is_not_it(tmp_path: Path) -> None:
    rows = [{"ask": "q", "prompt": "no"}, {"prompt": "no"}]
    loaded = load_prompts([source(tmp_path / "rows.jsonl", *rows, columns={"prompt": "ask"})], Rows())
    assert [row.messages[0]["content"] for row in loaded.rows] == ["q"]
    assert [item.reason for item in loaded.set_aside] == ["missing field"]


def test_columns_of_tasks_of_two_choices(tmp_path: Path) -> None:
    row = {"question": "q", "targets": {"choices": ["a", "b"], "labels": [0, 1]}}
    found = load_comparisons([source(tmp_path / "rows.jsonl", row, columns={"input": "question"})])
    assert [(pair.chosen, pair.rejected) for pair in found.pairs] == [("b", "a")]
