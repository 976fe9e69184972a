"""What stops a step or a run rather than let it spoil its weights without a word."""

import torch
from torch import Tensor

from llm_rlhf.errors import NonFiniteError, RunError


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


def check_some_scored(scored: int, rows: int) -> None:
    """RunError where none of a rollout's rows has a score: functions alone score, and returned None for all."""
    if not scored:
        raise RunError(
            f"No response of {rows} has a score: every function of reward_funcs returned None for each of them. One "
            "must return numbers; is it given the columns it looks for?"
        )


def neutral_where_silent(scores_BG: Tensor) -> Tensor:
    """Rows of replies to one prompt each, (B, G), with the mean of a prompt's scores in place of NaN; 0 where all are.

    Such a reply is neither better nor worse than the others to its prompt: its advantage is 0.
    """
    silent_BG = scores_BG.isnan()
    means_B = scores_BG.nanmean(1).nan_to_num(0.0)
    return torch.where(silent_BG, means_B[:, None].expand_as(scores_BG), scores_BG)


def told_of_silent(silent: int, rows: int) -> str:
    """What to say, once, of replies without a score."""
    return (
        f"{silent} of {rows} responses have no score, as every function of reward_funcs returned None for them; they "
        "are taken to be neither better nor worse than the others, and counted as objective/unscored."
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
