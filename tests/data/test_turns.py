"""Two conversations as a prompt and two replies, by hand."""

import pytest

from llm_rlhf.data.checks import BadRow
from llm_rlhf.data.formats.turns import pair_of, reply_of, turns_of

ASK = {"role": "user", "content": "Where?"}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_a_pair_shares_its_prompt() -> None:
    first = [ASK, says("Here."), {"role": "user", "content": "And now?"}]
    assert pair_of([*first, says("Gone.")], [*first, says("Gone. Sorry.")], set()) == (first, "Gone.", "Gone. Sorry.")


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ([ASK, says("Yes")], [ASK, says(" Yes ")], "chosen equals rejected"),
        ([ASK, says("Yes")], [{**ASK, "content": "Who?"}, says("No")], "no shared prompt"),
        ([ASK, says("Yes"), ASK, says("a")], [ASK, says("No"), ASK, says("b")], "parts before the last turn"),
    ],
)
def test_what_is_no_pair_is_told(chosen, rejected, reason) -> None:
    with pytest.raises(BadRow) as caught:
        pair_of(chosen, rejected, set())
    assert caught.value.args[0] == reason


def test_text_is_one_turn_and_a_reply_may_repeat_its_prompt() -> None:
    assert turns_of("Where?", "prompt") == [ASK]
    assert reply_of("Here.", "chosen", [ASK]) == reply_of([ASK, says("Here.")], "chosen", [ASK]) == says("Here.")
    with pytest.raises(BadRow, match="transcript where one turn is expected"):
        turns_of("\n\nHuman: a\n\nAssistant: b", "prompt")
    with pytest.raises(BadRow, match="not one assistant turn after the prompt"):
        reply_of([ASK], "chosen", [])
