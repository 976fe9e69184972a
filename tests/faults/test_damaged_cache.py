"""Tables that the datasets library keeps, cut off or changed on the disk: made again, or the folder to delete told."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from llm_rlhf.data import files, table_cache
from llm_rlhf.data.sources import load_preferences
from llm_rlhf.data.table_cache import made_once
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import Source

ROWS = 1200


def flipped(whole: bytes) -> bytes:
    """One bit of a letter: still text, still a table."""
    place = whole.index(b"question 77 ")
    return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda whole: whole[: len(whole) // 2],
    "end": lambda whole: whole[:-100],
    "empty": lambda whole: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "block": lambda whole: whole[: len(whole) // 2] + b"\xff" * 4000 + whole[len(whole) // 2 + 4000 :],
    "bit": flipped,
}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


@pytest.fixture
def source(tmp_path) -> Source:
    folder = tmp_path / "MyPairs"
    folder.mkdir()
    rows = ({"prompt": f"question {i} " * 5, "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(ROWS))
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(source=str(folder))


def tables(cache: Path, ours: bool) -> list[Path]:
    return [path for path in cache.rglob("*.arrow") if ("llm_rlhf" in path.parts) == ours]


def damaged(path: Path, how: str) -> None:
    """Another file in its place: what is memory-mapped from the old one stays."""
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(DAMAGES[how](whole))


def prompts(source: Source) -> list[str]:
    return [row.prompt[0]["content"] for row in load_preferences([source]).rows]


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "the library's"])
def test_a_damaged_table_of_local_files_is_made_again(cache, source, capsys, ours: bool, how: str) -> None:
    before = prompts(source)
    assert "made again" not in capsys.readouterr().err
    (table,) = tables(cache, ours)
    if not ours:  # else nobody looks at the library's
        for own in tables(cache, True):
            (own.parent / "llm_rlhf-sha256.json").unlink()
    damaged(table, how)
    assert prompts(source) == before
    assert "it is made again" in capsys.readouterr().err
    assert prompts(source) == before
    assert "made again" not in capsys.readouterr().err


class Lines:
    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> Any:
        self.asked += 1
        return iter([{"n": n} for n in range(3)])


@pytest.mark.parametrize("name", ["dataset_info.json", "llm_rlhf-sha256.json", "llm_rlhf-train.arrow"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}"])
def test_any_file_of_a_table_may_be_damaged(cache, capsys, name: str, content: bytes | None) -> None:
    lines = Lines()
    table = made_once("key", lines, {"n": np.int64})
    path = Path(table.cache_files[0]["filename"]).parent / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    for asked in (2, 2):
        assert made_once("key", lines, {"n": np.int64})["n"][:] == [0, 1, 2]
        assert lines.asked == asked
    assert capsys.readouterr().err.count("it is made again") == 1


def test_a_table_that_is_whole_is_looked_at_once(cache, monkeypatch) -> None:
    lines = Lines()
    made_once("key", lines, {"n": np.int64})
    monkeypatch.setattr(table_cache, "file_digest", lambda path: pytest.fail("read again"))
    assert made_once("key", lines, {"n": np.int64}).num_rows == 3


def test_a_disk_that_does_not_keep_what_is_written_is_told(cache, monkeypatch) -> None:
    digests = iter(range(1000))
    monkeypatch.setattr(table_cache, "file_digest", lambda path: str(next(digests)))
    with pytest.raises(DataError, match=r"the disk is damaged.* Set HF_DATASETS_CACHE"):
        made_once("key", Lines(), {"n": np.int64})


@pytest.mark.parametrize("how", DAMAGES)
def test_of_a_hub_dataset_the_folder_to_delete_is_named(cache, source, monkeypatch, how: str) -> None:
    """Its files may be out of reach: nothing is deleted."""
    assert source.source is not None
    folder, load = source.source, datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda path, /, **options: load(folder, **options))
    hub = Source(source="Owner/MyPairs")
    files._whole_dataset(hub, "Owner/MyPairs")
    (table,) = tables(cache, False)
    os.rename(cache / "my_pairs", cache / "Owner___my_pairs")  # as the library calls those of the hub
    os.symlink(cache / "Owner___my_pairs", cache / "my_pairs")
    damaged(table, how)
    with pytest.raises(DataError) as error:
        load_preferences([hub])
    found_by_us = how in ("block", "bit")  # what the library opens without complaint
    assert (str(table.parent) if found_by_us else "Owner___my_pairs") in str(error.value)
    assert "elete the folder" in str(error.value) or "delete that folder" in str(error.value)
    assert table.is_file()


def test_a_cache_that_may_only_be_read_is_used(cache, source, monkeypatch) -> None:
    def refuse(path: Path, value: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(table_cache, "write_json", refuse)
    assert files._whole_dataset(source, str(source.source)).num_rows == ROWS


def test_other_tables_in_the_folder_are_no_damage(cache, source) -> None:
    """`Dataset.map` puts its results beside the table it began from."""
    rows = files._whole_dataset(source, str(source.source))
    rows.map(lambda row: {"n": 1})
    assert files._whole_dataset(source, str(source.source)).num_rows == ROWS
    (record,) = (json.loads(path.read_text()) for path in cache.rglob("llm_rlhf-sha256.json"))
    assert len(record) == 1
