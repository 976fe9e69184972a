"""A chat as somebody types it, with sides that answer by a script."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from llm_rlhf.chat.screen import Lines
from llm_rlhf.chat.session import COMMANDS, Session
from llm_rlhf.chat.voices import Heard
from llm_rlhf.errors import DataError
from llm_rlhf.models.streaming import Sampling


class Scripted:
    """A side that answers with its name and how many turns it was shown."""

    what = "a script"

    def __init__(self, name: str) -> None:
        self.name = name
        self.shown: list[Any] = []

    def answer(self, messages: Any, sampling: Sampling, tell: Any) -> Heard:
        self.shown.append(messages)
        asked = messages[-1]["content"]
        if asked == "fail":
            raise DataError("that is too long")
        text = "" if asked == "stop" else f"{self.name}{len(messages)}"
        tell("", text)
        return Heard(messages, text, "", asked != "stop", 1, 0.0, interrupted=asked == "stop")


class NoScores:
    names: dict[str, str] = dataclasses.field(default_factory=dict)

    def of(self, heard: Heard) -> dict[str, float]:
        return {}


def chat(lines: list[Any], sides: str = "ab", **options: Any) -> tuple[Session, list[str], list[Scripted]]:
    """The session after these lines, its complaints, and its sides; an exception among the lines is raised."""
    voices = [Scripted(name) for name in sides]
    complaints: list[str] = []
    typed: Iterator[Any] = iter(lines)

    def ask(prompt: str) -> str:
        line = next(typed, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    session = Session(voices, NoScores(), Sampling(), Lines(), ask, complaints.append, **options)
    session.run()
    return session, complaints, voices


def contents(messages: Any) -> list[str]:
    return [turn["content"] for turn in messages]


def test_both_sides_are_asked_and_go_on(capsys) -> None:
    _, complaints, (a, b) = chat(["hello", "", "/take right", "and?"], system="Be kind.")
    assert complaints == []
    assert contents(a.shown[1]) == contents(b.shown[1]) == ["Be kind.", "hello", "b2", "and?"]
    assert capsys.readouterr().out.splitlines() == ["a: a2", "b: b2", "Both go on from what b said.", "a: a4", "b: b4"]


def test_a_question_that_fails_or_is_stopped_leaves_no_trace() -> None:
    session, complaints, _ = chat(["hello", "fail", "stop", "more"])
    assert complaints == ["that is too long"]
    assert session.failed == 1
    assert contents(session.talk.history("a")) == ["hello", "a1", "more", "a3"]


def test_an_answer_that_no_reward_model_can_read_stands(monkeypatch) -> None:
    def refuse(self, heard: Heard) -> dict[str, float]:
        raise DataError("too long for the reward model")

    monkeypatch.setattr(NoScores, "of", refuse)
    session, complaints, _ = chat(["hello"], sides="a")
    assert complaints == ["too long for the reward model"]
    assert contents(session.talk.history("a")) == ["hello", "a1"]
    assert session.failed == 0


def test_a_second_ctrl_c_takes_the_question_back(capsys, monkeypatch) -> None:
    own = Scripted.answer

    def answer(self, messages: Any, sampling: Sampling, tell: Any) -> Heard:
        if messages[-1]["content"] == "interrupt":
            raise KeyboardInterrupt
        return own(self, messages, sampling, tell)

    monkeypatch.setattr(Scripted, "answer", answer)
    session, complaints, _ = chat(["interrupt", "more"], sides="a")
    assert complaints == []
    assert contents(session.talk.history("a")) == ["more", "a1"]
    assert "taken back" in capsys.readouterr().out


def test_again_asks_once_more_and_undo_takes_back() -> None:
    session, _, (a, _) = chat(["hello", "more", "/again", "/undo"])
    assert len(a.shown) == 3
    assert a.shown[1] == a.shown[2]
    assert contents(session.talk.history("a")) == ["hello", "a1"]
    session, complaints, _ = chat(["/again", "/undo"])
    assert complaints == ["There is nothing to take back."] * 2
    session, complaints, voices = chat(["fine"])
    voices[0].answer = Scripted("x").answer  # type: ignore[method-assign]
    session.talk.exchanges[0].asked = "fail"
    with pytest.raises(DataError):
        session.hear("/again")
    assert len(session.talk.exchanges) == 1, "what cannot be answered again stays"


def test_settings_change_what_is_sampled_next() -> None:
    session, complaints, _ = chat(
        ["/set temperature 0.7", "/set top-p=0.9", "/set response_length 5", "/set seed 3", "/set",
         "/set temperature hot", "/set temprature 1", "/set top_p 0", "/set seed", "/set response_length 1.5"],
    )  # fmt: skip
    assert session.sampling == Sampling(temperature=0.7, top_p=0.9, response_length=5, seed=3)
    assert len(complaints) == 5
    assert "temperature" in complaints[1]
    assert "over 0 and at most 1" in complaints[2]
    assert "Recipe key" not in "".join(complaints)


def test_a_system_message_begins_anew() -> None:
    _, _, (a, _) = chat(["hello", "/system Be brief.", "again", "/reset", "/system -", "last"])
    assert [contents(shown) for shown in a.shown] == [["hello"], ["Be brief.", "again"], ["last"]]


def test_messages_of_several_lines_and_with_strokes() -> None:
    _, complaints, (a,) = chat(['"""one', "two", 'three"""', '"""', "/four", '"""', "//five", "/six"], sides="a")
    assert [contents(shown)[-1] for shown in a.shown] == ["one\ntwo\nthree", "/four", "/five"]
    assert "There is no command /six." in complaints[0]


def test_ctrl_c_at_the_prompt_does_not_leave_and_exit_does(capsys) -> None:
    _, _, (a,) = chat(["one", KeyboardInterrupt(), "two", "/exit", "three"], sides="a")
    assert len(a.shown) == 2
    assert "(Ctrl-D or /exit leaves)" in capsys.readouterr().out


def test_what_cannot_be_taken_or_saved_is_said(tmp_path) -> None:
    _, complaints, _ = chat(["/take a"], sides="a")
    assert "one side only" in complaints[0]
    _, complaints, _ = chat(["/take left", "x", "/take middle", "/save", f"/save {tmp_path / 'x.jsonl'}"])
    assert [text.split(";")[0] for text in complaints] == [
        "Nothing has been said yet", "/take is 'middle'", "/save lacks the name of a file: /save talk.jsonl.",
    ]  # fmt: skip
    assert (tmp_path / "x.jsonl").read_text().count("\n") == 2


def test_help_names_every_command(capsys) -> None:
    chat(["/help"])
    told = capsys.readouterr().out
    for line in COMMANDS:
        assert f"\n{line}" in f"\n{told}"
    for name in {line.split()[0] for line in COMMANDS if line.startswith("/")} - {"/exit", "//..."}:
        _, complaints, _ = chat([name])
        assert "There is no command" not in "".join(complaints)
