"""What stops or skips an update, from numbers given by hand."""

import pytest
import torch

from llm_rlhf.errors import NonFiniteError
from llm_rlhf.ppo.guards import check_scores


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_stops_and_names_the_first(bad) -> None:
    check_scores(torch.tensor([1.0, -1e30]), ["a", "b"], ["x", "y"])
    with pytest.raises(
        NonFiniteError, match=r"2 of 3 responses.*the first is -?(nan|inf) for prompt 'b' and response 'y'"
    ):
        check_scores(torch.tensor([1.0, bad, bad]), ["a", "b", "c"], ["x", "y", "z"])
