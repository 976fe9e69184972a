"""How far an export is from the policy: on which tokens it is measured, and which way round."""

import math
from types import SimpleNamespace

import pytest
import torch
from template_helpers import stand_in

from llm_rlhf.export.fidelity import Read, difference, rows_of
from llm_rlhf.models.encoding import encode_prompt, encode_turn

ASKED = [{"role": "user", "content": "Why?"}]
SAID = "<think>\nwell, let me see\n</think>\n\nBecause."


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5", "llama3", "deepseekv3"])
def test_what_the_policy_said_is_read_with_its_thought_and_without_a_stop_that_it_did_not_say(family: str) -> None:
    tokenizer = stand_in(family)
    thinks = "llama" not in family
    row = {"prompt": ASKED, "reply": "Because.", "thought": "well, let me see" * thinks}
    (ended, start), (cut, same) = rows_of(
        SimpleNamespace(tokenizer=tokenizer, replies=[row | {"stopped": True}, row | {"stopped": False}])
    )
    assert start == same == len(encode_prompt(tokenizer, ASKED))
    said = SAID if thinks else "Because."
    assert ended == encode_turn(tokenizer, ASKED, {"role": "assistant", "content": said}).ids
    assert ended[-1] == tokenizer.eos_token_id
    assert cut == ended[:-1]


def test_the_kl_is_of_the_export_from_the_policy_under_the_policys_tokens() -> None:
    """The policy says a with .8 and b with .2, the export .5 each: of ten such tokens, .8 log .8/.5 + .2 log .2/.5."""
    trained = Read(torch.tensor([0.8] * 8 + [0.2] * 2).log(), torch.zeros(10))
    exported = Read(torch.tensor([0.5] * 10).log(), torch.tensor([0] * 9 + [1]))
    found = difference(trained, exported, replies=2)
    assert found.kl == pytest.approx(0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5), abs=1e-6)
    assert difference(exported, trained, replies=2).kl != pytest.approx(found.kl, abs=0.01)
    assert (found.tokens, found.agreement) == (10, pytest.approx(0.9))
    assert found.largest == pytest.approx(math.log(0.5 / 0.2), abs=1e-6)
