"""Simulated annotators: they choose as their habits say."""

import pytest

from llm_rlhf.errors import RunError
from llm_rlhf.feedback.labels import checked
from llm_rlhf.feedback.simulated import Habits, Simulated


def test_the_chance_of_preferring_the_right_one_is_bradley_terrys() -> None:
    # sigmoid(0.6 / 0.3) = sigmoid(2) = 0.8808
    assert Habits(noise=0.3).prefers_right(0.6, 0) == pytest.approx(0.8808, abs=5e-5)
    assert Habits(noise=0.3).prefers_right(-0.6, 0) == pytest.approx(0.1192, abs=5e-5)


def test_a_liking_for_the_left_and_for_the_longer_moves_it() -> None:
    # sigmoid(-1) = 0.2689: with `left` 1 logit, of two equal answers the right is chosen so often
    assert Habits(left=1.0).prefers_right(0, 0) == pytest.approx(0.2689, abs=5e-5)
    # twenty words more at 0.5 logits a ten: sigmoid(1) = 0.7311
    assert Habits(longer=0.5).prefers_right(0, 20) == pytest.approx(0.7311, abs=5e-5)


def test_who_does_not_look_chooses_blindly() -> None:
    assert Habits(inattention=1.0).prefers_right(5, 0) == 0.5


def test_they_say_what_the_page_understands() -> None:
    person = Simulated(lambda prompt, reply: float(len(reply)), Habits(noise=1e-6))
    prompt = [{"role": "user", "content": "Why?"}]
    tasks = {"compare": ["a", "aaa"], "rate": ["aaa"], "rank": ["aa", "a", "aaa"], "chat": ["aa", "a"]}
    said = {
        kind: person.say({"kind": kind, "prompt": prompt, "answers": [{"text": text} for text in texts]})
        for kind, texts in tasks.items()
    }
    assert {kind: checked(kind, value, len(tasks[kind])) for kind, value in said.items()} == said
    assert said["compare"]["better"] == 1
    assert said["chat"]["better"] == 0
    assert said["rank"]["ranks"] == [2, 3, 1]


def test_equal_answers_are_a_tie_to_whom_looks() -> None:
    task = {"kind": "compare", "prompt": [], "answers": [{"text": "a"}, {"text": "b"}]}
    said = {ties: Simulated(lambda prompt, reply: 0.02 * (reply == "b"), Habits(ties=ties)).say(task)["choice"]
            for ties in (None, 0.01, 0.02)}  # fmt: skip
    assert said == {None: "better", 0.01: "better", 0.02: "tie"}
    blind = Simulated(lambda prompt, reply: 0.0, Habits(ties=0.02, inattention=1.0))
    assert blind.say(task)["choice"] == "better"


def test_they_write_nothing() -> None:
    with pytest.raises(RunError, match="demonstrate"):
        Simulated(lambda prompt, reply: 0.0).say({"kind": "demonstrate", "prompt": [], "answers": []})
