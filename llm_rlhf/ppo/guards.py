"""What stops a step or a run rather than let it spoil its weights without a word."""

import torch
from torch import Tensor

from llm_rlhf.errors import NonFiniteError


def check_scores(scores_B: Tensor, prompts: list[object], responses: list[object]) -> None:
    """Every response must have a finite score. Raises NonFiniteError naming the first that has none."""
    bad = (~torch.isfinite(scores_B)).nonzero().flatten().tolist()
    if bad:
        first = bad[0]
        raise NonFiniteError(
            f"{len(bad)} of {len(scores_B)} responses got a score that is not finite; the first is "
            f"{scores_B[first].item()} for prompt {prompts[first]!r} and response {responses[first]!r}. A reward "
            "model or reward function returned it; mend it there."
        )


class StepGuard:
    """Decides, from a whole optimizer step's statistics over all processes, whether the step is taken.

    A step whose mean ratio is over `ratio_limit` is skipped alone; once the mean approximate KL is over
    `update_kl_limit`, the step and the rest of the rollout are (detail 2.3 of Stiennon et al.'s code as described by
    Huang et al. 2024, and the early stop of Schulman's own implementation).
    """

    def __init__(self, ratio_limit: float | None, update_kl_limit: float | None) -> None:
        self.ratio_limit, self.update_kl_limit = ratio_limit, update_kl_limit
        self.rest_is_skipped = False

    def new_rollout(self) -> None:
        self.rest_is_skipped = False

    def skips(self, mean_ratio: float, mean_approx_kl: float) -> bool:
        if self.update_kl_limit is not None and mean_approx_kl > self.update_kl_limit:
            self.rest_is_skipped = True
        return self.rest_is_skipped or (self.ratio_limit is not None and mean_ratio > self.ratio_limit)
