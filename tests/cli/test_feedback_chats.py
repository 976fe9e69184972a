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
