"""Cells of tables: labels, numbers and lists as text, and files that hold columns in place of rows."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from llm_rlhf.data.cells import as_list, as_number, thumb
from llm_rlhf.data.checks import BadRow
from llm_rlhf.data.sources import Loaded, load_demonstrations, load_preferences, load_prompts
from llm_rlhf.data.storage import Rows
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import Source

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "it's"}]


def table(path: Path, *rows: dict[str, Any], **keys: Any) -> Source:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    (path / "rows.csv").write_text(text.getvalue(), encoding="utf-8")
    return Source(source=str(path / "rows.csv"), **keys)


def told(source: Source) -> list[list[dict[str, str]]]:
    return [row.messages for row in load_demonstrations([source], Rows()).rows]


def reasons(loaded: Loaded[Any]) -> list[tuple[int, str]]:
    return [(item.origin.row, item.reason) for item in loaded.set_aside]


def test_thumbs_as_they_are_written() -> None:
    up = [True, 1, 1.0, "1", "1.0", "True", " yes ", "Y", "desirable", "good", "thumbs_up", "👍", [1, "yes", 0]]
    down = [False, 0, 0.0, -1, "0", "0.0", "-1.0", "FALSE", "no", "undesirable", "bad", "👎", [0]]
    neither = [None, "", "perhaps", 2, 0.5, "nan", float("nan"), [], [1, 0], {}, "desirable?"]
    assert [[thumb(label) for label in labels] for labels in (up, down, neither)] == [
        [True] * len(up), [False] * len(down), [None] * len(neither)
    ]  # fmt: skip


def test_numbers_as_text() -> None:
    assert [as_number(value) for value in ("1", " 2.5 ", "1e3", "nan", "inf", "x", None, [1])] == [
        1.0, 2.5, 1000.0, None, None, None, None, None
    ]  # fmt: skip


def test_lists_as_text_of_json_or_of_python() -> None:
    assert as_list('[{"role": "user", "content": null}]', "m") == [{"role": "user", "content": None}]
    assert as_list("[{'role': 'user', 'content': None}, (1, 2)]", "m") == [{"role": "user", "content": None}, (1, 2)]
    assert as_list("say [it]", "m") == "say [it]"
    assert as_list(3, "m") == 3
    for text in ("[{'role': 'user'}\n {'role': 'assistant'}]", "[__import__('os').getcwd()]", "[" * 100_000, "[1, ..."):
        with pytest.raises(BadRow, match="list that cannot be read"):
            as_list(text, "m")


@pytest.mark.parametrize("written", [json.dumps, repr])
def test_a_table_of_conversations_is_not_read_as_text(written: Any, tmp_path: Path) -> None:
    assert told(table(tmp_path, {"messages": written(TALK)})) == [TALK]
    sharegpt = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "it's"}]
    assert told(table(tmp_path, {"conversations": written(sharegpt), "id": 1})) == [TALK]
    assert told(table(tmp_path, {"prompt": written(TALK[:1]), "completion": "it's"})) == [TALK]
    assert told(table(tmp_path, {"instruction": "r", "output": "s", "history": written([["q", "it's"]])})) == [
        [*TALK, {"role": "user", "content": "r"}, {"role": "assistant", "content": "s"}]
    ]
    sides = {"chosen": written(TALK), "rejected": written([TALK[0], {**TALK[1], "content": "no"}])}
    (pair,) = load_preferences([table(tmp_path, sides)]).rows
    assert (pair.prompt, pair.chosen, pair.rejected) == (TALK[:1], "it's", "no")
    ranked = {"prompt": "q", "responses": written(["a", "b"]), "scores": written([1, 2])}
    assert [(p.chosen, p.margin) for p in load_preferences([table(tmp_path, ranked)]).rows] == [("b", 1)]
    named = {"prompt": "q", "responses": written([{"said": "a", "points": 1}, {"said": "b", "points": 2}])}
    (pair,) = load_preferences([table(tmp_path, named, columns={"text": "said", "score": "points"})]).rows
    assert (pair.chosen, pair.margin) == ("b", 1)
    labels = {"prompt": "q", "response_a": "x", "response_b": "y", "label": written(["a", "b", "b"])}
    assert [p.chosen for p in load_preferences([table(tmp_path, labels)]).rows] == ["y"]


def test_a_list_that_numpy_printed_is_refused_with_its_row(tmp_path: Path) -> None:
    broken = "[{'role': 'user', 'content': 'q'}\n {'role': 'assistant', 'content': 'a'}]"
    rows = [{"prompt": "[1, 2] sorted?", "completion": "[1, 2]"}, {"prompt": broken, "completion": "a"}]
    source = table(tmp_path, *rows)
    assert reasons(load_demonstrations([source], Rows())) == [(2, "list that cannot be read")]
    assert [turn["content"] for turn in told(source)[0]] == ["[1, 2] sorted?", "[1, 2]"]
    told_apart = {"messages": json.dumps(TALK), "history": "[a note"}  # which a conversation does not read
    assert told(table(tmp_path, told_apart)) == [TALK]
    with pytest.raises(DataError, match="list that cannot be read: messages is neither JSON nor Python"):
        load_demonstrations([table(tmp_path, {"messages": broken})], Rows())


def test_a_reply_that_is_a_list_of_messages_is_text_where_lists_can_be_written(tmp_path: Path) -> None:
    row = {"prompt": "Write a talk as JSON.", "completion": json.dumps(TALK)}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    ((_, reply),) = told(Source(source=str(tmp_path / "rows.jsonl")))
    assert reply["content"] == row["completion"]


def test_thumbs_numbers_and_gaps_in_a_table(tmp_path: Path) -> None:
    votes = [("a", "1.0"), ("b", "0.0"), ("c", "nan"), ("nan", "1.0")]
    loaded = load_preferences([table(tmp_path, *({"prompt": "q", "completion": t, "label": v} for t, v in votes))])
    assert [(pair.chosen, pair.rejected) for pair in loaded.rows] == [("a", "b")]
    assert reasons(loaded) == [(3, "missing field"), (4, "no opposite feedback on the prompt")]
    margins = [{"prompt": f"q{m}", "chosen": "a", "rejected": "b", "margin": m} for m in ("2.5", "NaN", "", "much")]
    loaded = load_preferences([table(tmp_path, *margins)])
    assert [pair.margin for pair in loaded.rows] == [2.5, None, None]
    assert reasons(loaded) == [(4, "wrong type")]


def test_a_tree_in_a_table(tmp_path: Path) -> None:
    fields = ("message_id", "parent_id", "role", "text", "rank", "deleted", "review_result")
    said = [
        ("q", "", "prompter", "ask", "", "False", "True"),
        ("a", "q", "assistant", "good", "0.0", "False", "True"),
        ("b", "q", "assistant", "bad", "1.0", "False", "nan"),
        ("c", "q", "assistant", "gone", "2.0", "True", "True"),
        ("d", "q", "assistant", "failed", "3.0", "False", "False"),
    ]
    loaded = load_preferences([table(tmp_path, *(dict(zip(fields, row, strict=True)) for row in said))])
    assert [(pair.chosen, pair.rejected, pair.margin) for pair in loaded.rows] == [("good", "bad", 1)]
    assert reasons(loaded) == [(4, "deleted message"), (5, "message failed its review")]


def test_nan_is_absent_in_any_file(tmp_path: Path) -> None:
    rows = [{"prompt": "nan", "chosen": "a", "rejected": "b", "margin": float("nan")}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]), encoding="utf-8")
    (pair,) = load_preferences([Source(source=str(tmp_path / "rows.jsonl"))]).rows
    assert (pair.prompt[0]["content"], pair.margin) == ("nan", None)  # a word where a file can say null


# --- columns in place of rows


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "columns",
    [
        {"instruction": ["q", "r"], "output": ["a", "b"]},
        {"instruction": {"0": "q", "1": "r"}, "output": {"0": "a", "1": "b"}},
        {"prompt": ["q", "r"], "completion": [[{"role": "assistant", "content": "a"}], "b"]},
    ],
)
def test_a_json_file_of_columns_is_read_as_rows(columns: dict[str, Any], indent: int | None, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(columns, indent=indent), encoding="utf-8")
    loaded = load_demonstrations([Source(source=str(tmp_path / "rows.json"))], Rows())
    assert [[turn["content"] for turn in row.messages] for row in loaded.rows] == [["q", "a"], ["r", "b"]]
    assert [row.origin.row for row in loaded.rows] == [1, 2]


def test_lists_of_one_length_may_also_be_one_row(tmp_path: Path) -> None:
    row = {"chosen": TALK, "rejected": [TALK[0], {**TALK[1], "content": "no"}]}
    (tmp_path / "rows.json").write_text(json.dumps(row), encoding="utf-8")
    assert len(load_preferences([Source(source=str(tmp_path / "rows.json"))]).rows) == 1
    (tmp_path / "rows.json").write_text('{\n"prompt": ["q", "r"], "completion": ["a"]}', encoding="utf-8")
    with pytest.raises(DataError, match="no columns of one length"):
        load_demonstrations([Source(source=str(tmp_path / "rows.json"))], Rows())
    (tmp_path / "rows.json").write_text('{\n"prompt": ["q", ', encoding="utf-8")
    with pytest.raises(DataError, match="damaged JSON"):
        load_prompts([Source(source=str(tmp_path / "rows.json"))], Rows())
