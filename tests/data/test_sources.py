import gzip
import json
import os
import random
from pathlib import Path

import pytest
from datasets import Dataset

from llm_rlhf.data.checks import prompt_of
from llm_rlhf.data.rows import Origin
from llm_rlhf.data.sources import load_demonstrations, load_preferences, load_prompts
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import Source

ASK = [{"role": "user", "content": "Where is the key?"}]
GOOD = {"role": "assistant", "content": "Under the mat."}
BAD = {"role": "assistant", "content": "Find it yourself."}
ASK_TEXT = "\n\nHuman: Where is the key?"


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def hh(chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": chosen, "rejected": rejected}


# --- a real file


def real_file() -> Path:
    beside = Path(__file__).parents[2] / "../shared/data/hh_rlhf_harmless_base_test/test.jsonl.gz"
    return Path(os.environ.get("LLM_RLHF_HH_FILE", beside))


@pytest.mark.skipif(not real_file().is_file(), reason="needs HH-RLHF's harmless-base/test.jsonl.gz (LLM_RLHF_HH_FILE)")
def test_every_row_of_the_real_file() -> None:
    loaded = load_preferences([Source(source=str(real_file()), objective="harmless")])
    assert loaded.counts() == {
        "read": 2312,
        "kept": 2302,
        "set_aside": {
            "empty chosen reply": 4,  # these four transcripts are beginnings of their rejected ones, too
            "one transcript is the beginning of the other": 1,
            "parts before the last turn": 5,
        },
        "left_out": {},
        "repaired": {"role marker inside a turn kept as text": 45, "turns of one role in a row joined": 4},
    }
    assert [item.origin.row for item in loaded.set_aside] == [87, 517, 926, 1104, 1255, 1610, 1689, 1951, 1953, 2037]
    assert load_demonstrations([Source(from_="preferences")], loaded.rows).counts()["set_aside"] == {
        "chosen reply writes a role marker": 21
    }


# --- messages and text


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASK, "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": ASK, "chosen": [*ASK, GOOD], "rejected": [*ASK, BAD]},
        {"prompt": "Where is the key?", "chosen": [*ASK, GOOD], "rejected": [*ASK, BAD]},
        {"chosen": [*ASK, GOOD], "rejected": [*ASK, BAD]},
        {"prompt": "Where is the key?", "chosen": "Under the mat.", "rejected": "Find it yourself."},
        {
            "chosen": f"{ASK_TEXT}\n\nAssistant: Under the mat.",
            "rejected": f"{ASK_TEXT}\n\nAssistant: Find it yourself.",
        },
    ],
)
def test_one_pair_in_every_shape(row: dict[str, object], tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", {**row, "margin": 2, "objective": "helpful"}, {**row, "margin": None})
    first, second = load_preferences([Source(source=path, objective="harmless")]).rows
    assert (first.prompt, first.chosen, first.rejected) == (ASK, "Under the mat.", "Find it yourself.")
    assert (first.objective, first.origin) == ("helpful", Origin(path, 1))
    assert (second.objective, second.margin) == ("harmless", None)
    if "Human" not in str(row["chosen"]):
        assert first.margin == 2.0


def test_a_reply_of_messages_may_begin_like_the_other(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", {"prompt": "Is it open?", "chosen": "Yes, till six.", "rejected": "Yes"})
    assert len(load_preferences([Source(source=path)]).rows) == 1


def test_demonstrations_of_every_shape(tmp_path: Path) -> None:
    talk = [*ASK, GOOD, {"role": "user", "content": "Thanks"}, {"role": "assistant", "content": "Welcome"}]
    files = [
        write(tmp_path / "talks.jsonl", {"messages": talk}, {"messages": talk[:3]}),
        write(tmp_path / "completions.jsonl", {"prompt": ASK, "completion": [GOOD]}, {"prompt": "q", "completion": ""}),
        write(tmp_path / "texts.jsonl", {"prompt": "Where is the key?", "completion": "Under the mat."}),
        write(tmp_path / "pairs.jsonl", {"prompt": ASK, "chosen": [GOOD], "rejected": [BAD]}),
    ]
    loaded = load_demonstrations([Source(source=file) for file in files], [])
    assert [(row.messages, row.every_reply) for row in loaded.rows] == [(talk, True)] + [([*ASK, GOOD], False)] * 3
    assert loaded.counts()["set_aside"] == {"does not end with an assistant turn": 1, "empty reply": 1}


def test_a_reply_that_speaks_for_the_user_is_no_demonstration(tmp_path: Path) -> None:
    row = hh(f"{ASK_TEXT}\n\nAssistant: A hat.  Human: No.", f"{ASK_TEXT}\n\nAssistant: None")
    path = write(tmp_path / "pairs.jsonl", row, hh(f"{ASK_TEXT}\n\nAssistant: Mat", row["rejected"]))
    pairs = load_preferences([Source(source=path)])
    assert len(pairs.rows) == 2
    loaded = load_demonstrations([Source(from_="preferences")], pairs.rows)
    assert [row.messages[-1]["content"] for row in loaded.rows] == ["Mat"]
    assert loaded.counts()["set_aside"] == {"chosen reply writes a role marker": 1}


def test_a_reply_that_was_cut_is_no_demonstration_and_loses_nothing_else(tmp_path: Path) -> None:
    row = {"prompt": ASK, "chosen": [GOOD], "rejected": [BAD]}
    other = {**row, "prompt": [{"role": "user", "content": "And the door?"}]}
    path = write(tmp_path / "pairs.jsonl", {**row, "chosen_stopped": False}, {**other, "rejected_stopped": False})
    pairs = load_preferences([Source(source=path)])
    assert [pair.sides for pair in pairs.rows] == [
        ((GOOD["content"], False), (BAD["content"], True)),
        ((GOOD["content"], True), (BAD["content"], False)),
    ]
    assert not pairs.unread
    for loaded in (
        load_demonstrations([Source(from_="preferences")], pairs.rows),
        load_demonstrations([Source(source=path)], []),
    ):
        assert [found.messages[:-1] for found in loaded.rows] == [other["prompt"]]
        assert loaded.counts()["set_aside"] == {"chosen reply was cut at its length": 1}
    write(tmp_path / "whole.jsonl", {**row, "chosen_stopped": True}, other)
    write(tmp_path / "plain.jsonl", row, other)
    keys = [
        load_preferences([Source(source=str(tmp_path / f"{n}.jsonl"))]).rows.column("content")
        for n in ("whole", "plain")
    ]
    assert list(keys[0]) == list(keys[1])  # by which rows are told apart, and shuffled


def test_prompts_of_every_shape_and_once_only(tmp_path: Path) -> None:
    facts = {"entity": 3}
    files = [
        write(
            tmp_path / "prompts.jsonl", {"prompt": "One?", "facts": facts, "objective": "helpful"}, {"prompt": " one? "}
        ),
        write(
            tmp_path / "messages.jsonl", {"messages": [*ASK, GOOD]}, {"messages": [{"role": "user", "content": "Two?"}]}
        ),
        write(tmp_path / "completions.jsonl", {"prompt": "Three?", "completion": "3"}),
        write(tmp_path / "pairs.jsonl", {"prompt": ASK, "chosen": [GOOD], "rejected": [BAD]}),
    ]
    loaded = load_prompts([Source(source=file) for file in files], [])
    assert [row.messages[-1]["content"] for row in loaded.rows] == ["One?", "Where is the key?", "Two?", "Three?"]
    assert (loaded.rows[0].facts, loaded.rows[0].objective, loaded.rows[1].facts) == (facts, "helpful", {})
    assert loaded.counts() == {
        "read": 6,
        "kept": 4,
        "set_aside": {},
        "left_out": {"duplicate prompt": 2},
        "repaired": {},
    }


def test_facts_that_cannot_be_kept(tmp_path: Path) -> None:
    good = {"prompt": "One?", "facts": {"deep": [{"שם": 1}]}}
    path = write(
        tmp_path / "prompts.jsonl", good, {"prompt": "Two?", "facts": [1]}, {"prompt": "3?", "facts": {"\ud800": 1}}
    )
    loaded = load_prompts([Source(source=path)], [])
    assert [row.facts for row in loaded.rows] == [{"deep": [{"שם": 1}]}]
    assert [item.reason for item in loaded.set_aside] == ["wrong type", "lone surrogate"]


# --- recognising a format


def test_the_first_whole_row_decides(tmp_path: Path) -> None:
    path = write(
        tmp_path / "pairs.jsonl", {"chosen": None, "rejected": "x"}, {"prompt": "q", "chosen": "a", "rejected": "b"}
    )
    assert load_preferences([Source(source=path)]).counts()["set_aside"] == {"missing field": 1}


def test_columns_that_fit_two_formats_are_not_guessed(tmp_path: Path) -> None:
    row = {"prompt": "Where is the key?", "chosen": [*ASK, GOOD], "rejected": [*ASK, BAD], "messages": [*ASK, GOOD]}
    path = write(tmp_path / "both.jsonl", row)
    with pytest.raises(DataError, match=r"preference or messages.*'format'"):
        load_demonstrations([Source(source=path)], [])
    assert len(load_demonstrations([Source(source=path, format="messages")], []).rows) == 1
    assert len(load_preferences([Source(source=path)]).rows) == 1  # only one of the two has pairs


def test_an_unknown_shape_names_columns_and_formats(tmp_path: Path) -> None:
    path = write(tmp_path / "odd.jsonl", {"riddle": "q", "retort": "a"})
    with pytest.raises(DataError, match=r"'riddle', 'retort'\.\n.* one of hh, .*prompt_completion"):
        load_demonstrations([Source(source=path)], [])


def test_a_format_that_cannot_serve(tmp_path: Path) -> None:
    path = write(tmp_path / "talks.jsonl", {"messages": [*ASK, GOOD]})
    with pytest.raises(DataError, match=r"'messages', which cannot serve as preferences.*hh, preference"):
        load_preferences([Source(source=path)])


# --- limits, places, hubs


def test_a_limit_keeps_the_same_rows_in_any_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i // 2}?", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(60)]
    one = load_preferences([Source(source=write(tmp_path / "one.jsonl", *rows), limit=15)])
    random.Random(0).shuffle(rows)
    other = load_preferences([Source(source=write(tmp_path / "two.jsonl", *rows), limit=15)])
    assert len(one.rows) == 15
    assert {row.chosen for row in one.rows} == {row.chosen for row in other.rows}
    assert [row.origin.row for row in one.rows] == sorted(row.origin.row for row in one.rows)
    assert one.counts()["left_out"] == {"beyond the source's limit": 45}
    more = load_preferences([Source(source=str(tmp_path / "one.jsonl"), limit=20)])
    assert {row.chosen for row in one.rows} < {row.chosen for row in more.rows}


def test_a_prompt_beyond_the_limit_may_come_from_the_next_source(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.jsonl", *({"prompt": f"Question {i}?"} for i in range(10)))
    loaded = load_prompts([Source(source=path, limit=4), Source(source=path)], [])
    assert len(loaded.rows) == 10
    assert loaded.left_out == {"beyond the source's limit": 6, "duplicate prompt": 4}


def test_repairs_of_rows_beyond_the_limit_are_not_counted(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, GOOD]
    path = write(tmp_path / "talks.jsonl", *({"messages": turns} for _ in range(5)))
    loaded = load_demonstrations([Source(source=path, limit=2)], [])
    assert loaded.repaired == {"turns of one role in a row joined": 2}


def test_gzip_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "q"}).encode()
    (tmp_path / "zipped.jsonl").write_bytes(gzip.compress(line))
    (tmp_path / "plain.jsonl.gz").write_bytes(line)
    for name in ("zipped.jsonl", "plain.jsonl.gz"):
        assert len(load_prompts([Source(source=str(tmp_path / name))], []).rows) == 1


def test_a_hub_dataset_is_asked_for_with_all_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def load_dataset(path: str, **keys: object) -> Dataset:
        asked.update(keys, path=path)
        return Dataset.from_list([{"prompt": "q", "completion": "a", "objective": None}])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    source = Source(source="someone/pairs", subset="small", data_dir="part", split="test")
    loaded = load_demonstrations([source], [])
    assert asked == {"path": "someone/pairs", "name": "small", "data_dir": "part", "split": "test"}
    assert loaded.rows[0].origin == Origin("someone/pairs", 1)


def test_a_hub_dataset_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, **keys: object) -> None:
        raise ConnectionError("Couldn't reach the hub\nand much more")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"'someone/pairs' \(split 'train'\).*reach the hub.*network") as error:
        load_preferences([Source(source="someone/pairs")])
    assert "much more" not in str(error.value)
    assert error.value.__suppress_context__


def test_a_folder_is_read_like_a_hub_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pairs" / "part"
    folder.mkdir(parents=True)
    write(folder / "train.jsonl", {"prompt": "Where is the key?", "chosen": "Mat", "rejected": "Hat", "margin": None})
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    loaded = load_preferences([Source(source=str(tmp_path / "pairs"), data_dir="part")])
    assert [prompt_of(row) for row in loaded.rows] == [ASK]


def test_pairs_that_are_not_to_be_imitated_are_no_demonstrations(tmp_path) -> None:
    """They are pairs, and prompts, as the others; the account says how many were left out."""
    mine = write(
        tmp_path / "mine.jsonl", *({"prompt": f"one {i}?", "chosen": f"good {i}", "rejected": "no"} for i in range(3))
    )
    theirs = write(
        tmp_path / "theirs.jsonl", *({"prompt": f"two {i}?", "chosen": "cut o", "rejected": "no"} for i in range(2))
    )
    sources = [Source(source=mine), Source(source=theirs, imitate=False)]
    pairs = load_preferences(sources)
    again = [Source(from_="preferences")]
    found = load_demonstrations(again, pairs.rows)
    assert [row.messages[-1]["content"] for row in found.rows] == ["good 0", "good 1", "good 2"]
    assert found.left_out == {"of a source whose replies are not imitated": 2}
    assert (found.read, found.made, len(load_prompts(again, pairs.rows).rows)) == (5, 5, 5)
    with pytest.raises(DataError, match=r"No pair of data.preferences is one to imitate .*name data.demonstrations"):
        load_demonstrations(again, load_preferences(sources[1:]).rows)
