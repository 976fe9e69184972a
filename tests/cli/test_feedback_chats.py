"""Who answers in the chats of `feedback serve`: a run's policy where there is one, else nobody, and it is said."""

from pathlib import Path

import pytest

from llm_rlhf.cli.feedback import _speaker
from llm_rlhf.errors import RecipeError


def test_a_store_alone_has_no_chats(tmp_path: Path) -> None:
    assert _speaker(str(tmp_path / "feedback.db"), False) is None
    assert _speaker("postgresql://somebody@host/name", False) is None
    with pytest.raises(RecipeError, match="--against-start needs a run"):
        _speaker(str(tmp_path / "feedback.db"), True)


def test_a_run_without_a_policy_has_its_page_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert _speaker(str(tmp_path), False) is None
    assert "There are no live chats" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="it is no policy"):
        _speaker(str(tmp_path), True)


@pytest.mark.slow
def test_a_runs_policy_answers_twice_or_against_its_start(finished: Path) -> None:
    twice, against = _speaker(str(finished), False), _speaker(str(finished), True)
    assert twice.sources == ("ppo", "ppo")
    assert against.sources == ("sft", "ppo")
    asked = [{"role": "user", "content": "which colour is the scarf?"}]
    first, second = ([*stream][-1] for stream in twice.answers(asked, 3))
    assert first.ended
    assert second.ended
    assert first.text != second.text


def test_of_rounds_the_newest_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("llm_rlhf.chat.speaking.speaker_of_run", lambda run, against: (run, against))
    assert _speaker(str(tmp_path), False) is None
    (tmp_path / "rounds.json").write_text('{"promoted": 1, "rounds": []}')
    assert _speaker(str(tmp_path), False) is None, "none is made yet"
    (tmp_path / "rounds.json").write_text('{"promoted": 1, "rounds": [{"round": 1}, {"round": 2}]}')
    assert _speaker(str(tmp_path), False) == (tmp_path / "round-2", False)
    assert _speaker(str(tmp_path), True) == (tmp_path / "round-2", True)
