"""What stops or skips an update, from numbers given by hand."""

import pytest
import torch

from llm_rlhf.errors import NonFiniteError
from llm_rlhf.finite import check_loss
from llm_rlhf.ppo.guards import check_scores


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_or_loss_that_is_not_finite_stops_and_names_the_first(bad) -> None:
    check_scores(torch.tensor([1.0, -1e30]), ["a", "b"], ["x", "y"])
    with pytest.raises(
        NonFiniteError, match=r"2 of 3 responses.*the first is -?(nan|inf) for prompt 'b' and response 'y'"
    ):
        check_scores(torch.tensor([1.0, bad, bad]), ["a", "b", "c"], ["x", "y", "z"])
    check_loss(torch.tensor(3.0), "ppo", 4)
    with pytest.raises(NonFiniteError, match=r"ppo loss is -?(nan|inf) at optimizer step 4"):
        check_loss(torch.tensor(bad), "ppo", 4)
