"""Rows as the model will see them: what is marked, which rows are asked for, and what no terminal may be sent."""

import pytest
from transformers import PreTrainedTokenizerFast

from llm_rlhf.audit.show import numbers, pieces, safe
from llm_rlhf.errors import RecipeError
from llm_rlhf.models.encoding import encode_demonstration


def test_what_is_shown_is_what_is_trained_on(tokenizer: PreTrainedTokenizerFast) -> None:
    """The pieces put together are the text of the ids, and what is marked is what the loss mask marks."""
    talk = [{"role": "user", "content": "Grüße \U0001f600?"}, {"role": "assistant", "content": "Ja\n é"}]
    ((ids, mask),) = encode_demonstration(tokenizer, talk, [1])
    shown = pieces(tokenizer, ids, ["trained" if trained else "context" for trained in mask])
    assert "".join(piece.text for piece in shown) == "<|user|>Grüße \U0001f600?<|assistant|>Ja\n é<|eos|>"
    assert "".join(piece.text for piece in shown if piece.part == "trained") == "Ja\n é<|eos|>"
    assert [piece.text for piece in shown if piece.special] == ["<|user|>", "<|assistant|>", "<|eos|>"]


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert safe("ok\n\ud800\u2028é") == "ok\n\\ud800\\u2028é"


@pytest.mark.parametrize("text", ["", "0", "a", "3-1", "1,,2", "1-99999"])
def test_row_numbers_refused(text: str) -> None:
    assert numbers("2,4, 9-11") == {2, 4, 9, 10, 11}
    with pytest.raises(RecipeError, match="--rows"):
        numbers(text)
