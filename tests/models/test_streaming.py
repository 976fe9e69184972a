"""What is told of a reply while its tokens come."""

import itertools

import pytest
import torch
from template_helpers import stand_in

from llm_rlhf.errors import RecipeError
from llm_rlhf.models.streaming import Sampling, _Told
from llm_rlhf.models.thoughts import before_mark


def told(text: str, family: str = "qwen3") -> list[tuple[str, str]]:
    """What is told after each token of a response, as `generate` puts them: the prompt comes first."""
    tokenizer = stand_in(family)
    found: list[tuple[str, str]] = []
    streamer = _Told(tokenizer, [1, 2], lambda *said: found.append(said))
    streamer.put(torch.tensor([[1, 2]]))
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    return found


def test_thought_and_reply_grow_and_no_mark_is_ever_told() -> None:
    found = told(
        "<think>\nHmm, é.\n</think>\n\nYes, 日本."
    )  # bytes are tokens here: marks and characters come in parts
    assert found[-1] == ("Hmm, é.", "Yes, 日本.")
    for (thought, reply), (later, longer) in itertools.pairwise(found):
        assert later.startswith(thought)
        assert longer.startswith(reply)
        assert not set("<>\ufffd") & set(thought + reply)


def test_the_prompt_is_not_told() -> None:
    assert told("Yes.")[0] == ("", "Y")


@pytest.mark.parametrize(
    ("text", "mark", "left"),
    [("so </thi", "</think>", "so "), ("a < b", "</think>", "a < b"), ("</think>", "</think>", "</think>"),
     ("", "x", ""), ("a<", "<", "a<"), ("aab", "abc", "a"), ("anything", "", "anything")],
)  # fmt: skip
def test_a_mark_that_begins_is_held_back(text, mark, left) -> None:
    assert before_mark(text, mark) == left


def test_settings_are_checked_by_name_type_and_range() -> None:
    assert Sampling().changed("top-p", "0.5").top_p == 0.5
    assert Sampling().changed("TOP_K", 3).top_k == 3
    assert Sampling().changed("seed", -1).seed == -1
    for name, value in [("top_k", "1.5"), ("top_p", 0), ("top_p", 1.1), ("temperature", "nan"), ("temperature", "inf"),
                        ("response_length", 0), ("beams", 2), ("seed", "x")]:  # fmt: skip
        with pytest.raises(RecipeError):
            Sampling().changed(name, value)
