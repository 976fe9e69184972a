"""Files of every kind give the same rows, damaged ones say so, and the cache never serves what is no longer there."""

import csv
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from llm_rlhf.data import files, storage
from llm_rlhf.data.sources import load_demonstrations, load_preferences, load_prompts
from llm_rlhf.data.storage import Rows
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import DataSection, Source

ROWS = [
    {"prompt": 'Say "a, b"\nand c; שלום', "chosen": "a\tb", "rejected": "No, I'd rather not."},
    {"prompt": "Where is the key?", "chosen": "Under the mat.", "rejected": "👋"},
]


def as_bytes(kind: str, rows: list[dict[str, str]] = ROWS) -> bytes:
    if kind == ".jsonl":
        return "\n".join(json.dumps(row) for row in rows).encode()
    if kind == ".json":
        return json.dumps(rows, ensure_ascii=False, indent=2).encode()
    if kind == ".parquet":
        sink = io.BytesIO()
        pa.parquet.write_table(pa.Table.from_pylist(rows), sink)
        return sink.getvalue()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if kind == ".tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_files_of_every_kind_hold_the_same_rows(kind: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / f"pairs{kind}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(as_bytes(kind)) if packed else as_bytes(kind))
    loaded = load_preferences([Source(source=str(path))])
    found = [
        {"prompt": pair.prompt[0]["content"], "chosen": pair.chosen, "rejected": pair.rejected} for pair in loaded.rows
    ]
    assert found == ROWS
    assert [str(pair.origin) for pair in loaded.rows] == [f"{path}, row 1", f"{path}, row 2"]


def load(path: Path, data: bytes) -> list[tuple[int, str]]:
    path.write_bytes(data)
    loaded = load_prompts([Source(source=str(path))], Rows())
    assert loaded.counts()["read"] == len(loaded.rows) + len(loaded.set_aside)
    kept = [(row.origin.row, row.messages[0]["content"]) for row in loaded.rows]
    return sorted(kept + [(item.origin.row, item.reason) for item in loaded.set_aside])


def test_json_may_hold_a_list_or_an_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    assert load(path, b'\xef\xbb\xbf [ {"prompt": "One?"} ,\n"Two?", 3, {"prompt": ""}]\n') == [
        (1, "One?"),
        (2, "Two?"),
        (3, "wrong type"),
        (4, "empty prompt"),
    ]
    assert load(path, b'\n{"prompt": "One?"}\n{"prompt": "Two?"}\n{"prompt"\n') == [
        (2, "One?"),
        (3, "Two?"),
        (4, "malformed JSON"),
    ]
    with pytest.raises(DataError, match=r"prompts\.json has no rows"):
        load(path, b" [ ] ")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"prompt": "One?"}, {"prompt": "Tw', r"damaged JSON after item 1 .*line 1 column"),
        (b'[{"prompt": "One?"}', "damaged JSON after item 1"),
        (b'[{"prompt": "One?"},]', "damaged JSON after item 1"),
        (b'[{"prompt": "One?"}] more', "Extra data"),
        (b'{\n"data": [{"prompt": "One?"}]}', "holds no list"),
        (b'[\n{"prompt": "\xe4"}]', r"line 2: byte 0xe4 is not UTF-8"),
    ],
)
def test_fault_41_damaged_json_is_one_clear_error(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path / "prompts.json", data)


def test_csv_rows_that_cannot_be_read_are_set_aside(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbfprompt,note\r\n"One, ""two""\nthree?",x\r\n\r\nFour?\r\nF\xefve?,\r\n,y\r\nSix?,\r\n'
    assert load(tmp_path / "prompts.csv", data) == [
        (1, 'One, "two"\nthree?'),
        (2, "wrong number of columns"),
        (3, "invalid UTF-8"),
        (4, "missing field"),
        (5, "Six?"),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'prompt,note\nOne?,x\n"Two?,y\nThree?,z\n', r"damaged in row 2, which ends on line 4"),
        (b"prompt,prompt\nOne?,Two?\n", "two columns of one name"),
        (b"prompt;chosen;rejected\nq;a;b\n", "separated by ';', not by ','.*save it with ','"),
        (b"prompt\tchosen\nq\ta\n", r"separated by '\\t', not by ','.*or call it \.tsv"),
        ("prompt,chosen\nq,a\n".encode("utf-16"), "UTF-16, not in UTF-8"),
    ],
)
def test_fault_41_a_damaged_table_is_one_clear_error(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path / "prompts.csv", data)


def test_a_damaged_parquet_file_is_one_clear_error(tmp_path: Path) -> None:
    whole = as_bytes(".parquet")
    for data in (whole[:-20], whole[: len(whole) // 2], b"PAR1"):
        with pytest.raises(DataError, match="damaged Parquet file"):
            load(tmp_path / "prompts.parquet", data)


def test_a_glob_names_each_file_it_finds(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "c.txt"):
        (tmp_path / name).write_bytes(as_bytes(Path(name).suffix if name != "c.txt" else ".csv"))
    asked = Source(source=str(tmp_path / "[ab].*"))
    loaded = load_preferences([asked])
    assert [Path(row.origin.source).name for row in loaded.rows] == ["a.csv", "a.csv", "b.jsonl", "b.jsonl"]
    assert DataSection(preferences=[asked]).local_files() == [str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl")]
    assert len(DataSection(preferences=[Source(source=str(tmp_path))]).local_files()) == 3


def test_columns_of_other_names(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"question": "q", "best": "a", "worst": "b", "prompt": "not this"}]
    path.write_bytes(as_bytes(".jsonl", rows))
    names = {"prompt": "question", "chosen": "best", "rejected": "worst"}
    (pair,) = load_preferences([Source(source=str(path), columns=names)]).rows
    assert (pair.prompt[0]["content"], pair.chosen, pair.rejected) == ("q", "a", "b")
    told = Source(source=str(path), columns={"prompt": "question", "completion": "best"})
    (row,) = load_demonstrations([told], Rows()).rows
    assert [turn["content"] for turn in row.messages] == ["q", "a"]


def test_a_row_of_no_format_is_told_in_two_lines_with_what_its_columns_hold(tmp_path: Path) -> None:
    row = {"question": "q", "query": "p", "rejected": ["b", "c"]}
    with pytest.raises(DataError) as told:
        load(tmp_path / "pairs.jsonl", as_bytes(".jsonl", [row]))
    first, second = str(told.value).splitlines()
    assert first.endswith("its first row has the columns 'question', 'query', 'rejected' (list).")
    assert "--columns prompt=NAME" in second
    assert "docs/data.md" in second


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "query": "p"}, "is not recognised"),
        ({"question": "q", "query": "p", "answer": "a"}, "is not recognised"),
        ({"reply": "q", "answer_1": "a"}, "is not recognised"),
    ],
)
def test_columns_that_may_mean_two_things_are_not_guessed(row: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path / "prompts.jsonl", as_bytes(".jsonl", [row]))


# --- the cache


@pytest.fixture
def none_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files go through the cache, too."""
    monkeypatch.setattr(files, "SMALL", -1)


def test_a_small_file_is_read_as_a_cached_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"prompt": f"{tmp_path.name} {i}?", "chosen": "Yes \u00e9\u0301", "rejected": "No" * (i % 3)}
        for i in range(1200)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(as_bytes(".jsonl", rows) + b"\n{}\nnot json\n")
    small = load_preferences([Source(source=str(path), limit=700)])
    assert isinstance(small.rows.parts[0].table.data, dict)
    monkeypatch.setattr(files, "SMALL", -1)
    cached = load_preferences([Source(source=str(path), limit=700)])
    assert not isinstance(cached.rows.parts[0].table.data, dict)
    monkeypatch.setattr(files, "SMALL", path.stat().st_size)
    (tmp_path / "pairs2.jsonl").write_bytes(path.read_bytes())
    shards = load_preferences([Source(source=str(tmp_path / "pairs*.jsonl"))])  # together they are not small
    assert not any(isinstance(part.table.data, dict) for part in shards.rows.parts)
    assert list(small.rows) == list(cached.rows)
    assert small.rows[123] == cached.rows[123]
    assert small.counts() == cached.counts()
    assert small.set_aside == cached.set_aside
    assert len(small.set_aside) == 2 + 400
    for name in storage.KEYS:
        one, other = small.rows.column(name), cached.rows.column(name)
        assert one.dtype == other.dtype
        assert (one == other).all()


@pytest.mark.slow
def test_checking_a_small_file_imports_no_large_library(tmp_path: Path) -> None:
    """They take seconds to import: datasets alone twice as long as all that is left."""
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(as_bytes(".jsonl", [{"prompt": "a?", "chosen": "b", "rejected": "c"}]))
    code = (
        "import sys; from typer.testing import CliRunner; from llm_rlhf.cli.main import app\n"
        f"found = CliRunner().invoke(app, ['data', 'check', {str(path)!r}])\n"
        "assert found.exit_code == 0, found.output\n"
        "print(sorted({'datasets', 'pandas', 'pyarrow', 'torch', 'transformers', 'trl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("none_small")
def test_rows_are_parsed_once_and_anew_when_the_file_or_the_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    parse = storage.parse

    def counted(*arguments: object) -> object:
        parsed.append(str(arguments[0].name))  # type: ignore[attr-defined]
        return parse(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "parse", counted)
    path, copy = tmp_path / "pairs.jsonl", tmp_path / "copy.jsonl"
    rows = [{"prompt": f"Parsed {tmp_path.name} once?", "chosen": "Yes", "rejected": "No"}]
    for target in (path, path, copy):
        target.write_bytes(as_bytes(".jsonl", rows))
        (pair,) = load_preferences([Source(source=str(target), weight=2.0, limit=5)]).rows
        assert pair.origin.source == str(target)
    assert len(parsed) == 1
    size = path.stat()
    path.write_bytes(as_bytes(".jsonl", [{**rows[0], "chosen": "Yep"[:3]}]))
    assert path.stat().st_size == size.st_size
    assert load_preferences([Source(source=str(path))]).rows[0].chosen == "Yep"
    load_preferences([Source(source=str(path), objective="harmless")])
    assert len(parsed) == 3
    monkeypatch.setattr(storage, "_code", lambda: "edited")
    load_preferences([Source(source=str(path))])
    assert len(parsed) == 4


def test_every_module_that_reads_rows_counts_as_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an edited parser of any format would read otherwise must not come from the cache."""
    known, read = storage._code.__wrapped__(), Path.read_bytes
    for name in ("checks.py", "parsing.py", "conversations.py"):
        monkeypatch.setattr(Path, "read_bytes", lambda path, name=name: read(path) + b"#" * (path.name == name))
        assert storage._code.__wrapped__() != known, name


@pytest.mark.slow
@pytest.mark.usefixtures("none_small")
def test_a_file_damaged_near_its_end_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i} of {tmp_path.name}?", "chosen": "a", "rejected": "b"} for i in range(3000)]
    data = as_bytes(".json", rows)
    path = tmp_path / "pairs.json"
    for _ in range(2):
        path.write_bytes(data[:-10])
        with pytest.raises(DataError, match="after item 2999"):
            load_preferences([Source(source=str(path))])
    path.write_bytes(data)
    assert len(load_preferences([Source(source=str(path))]).rows) == 3000
