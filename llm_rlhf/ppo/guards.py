"""What stops a run rather than let it spoil its weights without a word."""

import torch
from torch import Tensor


class NonFiniteError(RuntimeError):
    """A number that must be finite is not; the weights have not been changed by it."""


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


def check_loss(loss: Tensor, stage: str, step: int) -> None:
    """The loss must be finite before anything is learned from it. Raises NonFiniteError."""
    if not torch.isfinite(loss).all():
        raise NonFiniteError(
            f"The {stage} loss is {loss.item()} at optimizer step {step}; training stopped before the weights changed. "
            f"Lower {stage}.learning_rate, or look at the last rows of metrics.jsonl for what grew."
        )
