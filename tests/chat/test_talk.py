"""What a chat keeps: each side's own conversation, what was better, and both as rows that the data reader knows."""

import json

import pytest
from typer.testing import CliRunner

from llm_rlhf.chat.talk import Talk
from llm_rlhf.cli.main import app
from llm_rlhf.errors import DataError


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def asked(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.fixture
def talk() -> Talk:
    """One question, which two sides answered."""
    talk = Talk(["start", "policy"], system="Be brief.")
    talk.heard("one?", {"start": said("s1"), "policy": said("p1")})
    return talk


SYSTEM = {"role": "system", "content": "Be brief."}


def test_each_side_goes_on_with_what_it_said_itself(talk) -> None:
    assert talk.prompts("two?") == {
        "start": [SYSTEM, asked("one?"), said("s1"), asked("two?")],
        "policy": [SYSTEM, asked("one?"), said("p1"), asked("two?")],
    }


def test_after_take_both_go_on_from_the_better_one(talk) -> None:
    assert talk.take("policy")
    expected = [SYSTEM, asked("one?"), said("p1"), asked("two?")]
    assert talk.prompts("two?") == {"start": expected, "policy": expected}
    talk.undo()
    assert talk.history("start") == [SYSTEM]
    with pytest.raises(DataError, match="nothing to take back"):
        talk.undo()


def test_a_comparison_is_of_replies_to_one_and_the_same_conversation(talk) -> None:
    talk.heard("two?", {"start": said("s2"), "policy": said("p2")})
    assert not talk.take("start"), "their first replies differed"
    assert talk.comparisons() == []
    talk.heard("three?", {"start": said("s3"), "policy": said("p3")})
    assert talk.take("policy")
    shared = [SYSTEM, asked("one?"), said("s1"), asked("two?"), said("s2"), asked("three?")]
    assert talk.comparisons() == [{"prompt": shared, "chosen": "p3", "rejected": "s3"}]
    assert talk.conversations() == [[*shared, said("p3")]], "both sides hold the same now"


def test_what_says_nothing_is_no_row(talk) -> None:
    talk.heard("two?", {"start": said(""), "policy": said("p2")})
    start, policy = talk.conversations()
    assert [turn["content"] for turn in start] == ["Be brief.", "one?", "s1"]
    assert policy[-1] == said("p2")
    empty = Talk(["a"])
    empty.heard("x", {"a": said(" ")})
    assert empty.conversations() == []


@pytest.mark.slow
def test_saved_files_are_read_by_data_check(talk, tmp_path) -> None:
    talk.take("policy")
    talk.heard("and two? \u2028 \x1b[31m", {"start": said("s2"), "policy": said("p2")})
    written = talk.save(tmp_path / "talk.jsonl")
    assert [(path.name, rows) for path, rows in written] == [("talk.jsonl", 2), ("talk-pairs.jsonl", 1)]
    for name, kind, rows in (("talk.jsonl", "demonstrations", 2), ("talk-pairs.jsonl", "preferences", 1)):
        done = CliRunner().invoke(app, ["data", "check", str(tmp_path / name), "--json"])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert list(found["lists"]) == [kind]
        assert found["lists"][kind]["rows"] == rows


def test_a_reply_that_was_cut_is_saved_as_context_and_compared_with_none(talk, tmp_path) -> None:
    talk.take("policy")
    talk.heard("two?", {"start": said("s2"), "policy": said("p2 br")}, cut=["policy"])
    talk.take("start")
    talk.heard("three?", {"start": said("s3"), "policy": said("p3")})
    talk.save(tmp_path / "talk.jsonl")
    start, policy = (json.loads(line)["messages"] for line in (tmp_path / "talk.jsonl").read_text().splitlines())
    assert not any("weight" in turn for turn in start)
    assert [turn["content"] for turn in policy][-1] == "p3"
    rows = [json.loads(line)["chosen"] for line in (tmp_path / "talk-pairs.jsonl").read_text().splitlines()]
    assert rows == ["p1"]  # of the second exchange one side broke off
    alone = Talk(["policy"])
    alone.heard("one?", {"policy": said("p1")})
    alone.heard("two?", {"policy": said("p2 br")}, cut=["policy"])
    alone.save(tmp_path / "alone.jsonl")
    (row,) = (json.loads(line)["messages"] for line in (tmp_path / "alone.jsonl").read_text().splitlines())
    assert [turn.get("weight") for turn in row] == [None, None, None, 0]
    both = Talk(["start", "policy"])
    both.heard("one?", {"start": said("the same"), "policy": said("the same")}, cut=["start"])
    both.save(tmp_path / "both.jsonl")
    (row,) = (json.loads(line)["messages"] for line in (tmp_path / "both.jsonl").read_text().splitlines())
    assert "weight" not in row[-1]  # one of the two came to its end
    broken = Talk(["policy"])
    broken.heard("one?", {"policy": said("p1 br")}, cut=["policy"])
    with pytest.raises(DataError, match="Nothing has been said to its end"):
        broken.save(tmp_path / "broken.jsonl")


def test_nothing_is_written_over_or_under_another_name(talk, tmp_path) -> None:
    with pytest.raises(DataError, match=r"JSON lines; call it .*talk\.jsonl"):
        talk.save(tmp_path / "talk.txt")
    talk.save(tmp_path / "talk.jsonl")
    with pytest.raises(DataError, match="is there already"):
        talk.save(tmp_path / "talk.jsonl")
    with pytest.raises(DataError, match="cannot be written"):
        talk.save(tmp_path / "nowhere" / "talk.jsonl")
    with pytest.raises(DataError, match="Nothing has been said"):
        Talk(["a"]).save(tmp_path / "other.jsonl")
