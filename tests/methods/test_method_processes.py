"""One process or two: GRPO and RLOO take the same steps on the same replies."""

import ddp_online
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
