"""One process or two: GRPO and RLOO take the same steps on the same replies; best of n asks of each reply once."""

import json

import ddp_online
import ddp_picking
import pytest
import torch
from launching import Launch

pytestmark = pytest.mark.slow


def test_two_processes_take_the_steps_of_one_on_the_same_replies(base_folder, reward_folder, tmp_path) -> None:
    """The scores of the other process's rows are in every advantage, and its functions' are its own rows'."""
    Launch(ddp_online.main, (base_folder, reward_folder, tmp_path), 2, tmp_path / "said").finish()
    for kind in ("grpo", "rloo"):
        one = ddp_online.measure(kind, base_folder, reward_folder, tmp_path)
        two = torch.load(tmp_path / f"{kind}.pt", weights_only=True)
        assert (one["world"], two["world"]) == (1, 2)
        assert len(one["logged"]) == len(two["logged"]) == 2
        for mine, theirs in zip(one["logged"], two["logged"], strict=True):
            assert theirs == pytest.approx(mine, rel=1e-3, abs=1e-5), kind  # logged to four digits
            assert mine["reward_std"] > 0.1
        for name, weight in one["weights"].items():
            # steps of 1e-2, whose direction Adam takes from fp32 gradients that were added in another order
            torch.testing.assert_close(two["weights"][name], weight, atol=2e-4, rtol=0, msg=f"{kind} {name}")


def test_best_of_n_asks_its_functions_of_every_reply_once_by_the_process_that_has_it(tokenizer, tmp_path) -> None:
    Launch(ddp_picking.main, (tokenizer, tmp_path), 2, tmp_path / "said").finish()
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [asked for asked, _ in found] == [[[20, 21, 22, 23]], [[24, 25, 26]]]
    assert [scores for _, scores in found] == [[20.0 + i for i in range(7)]] * 2
