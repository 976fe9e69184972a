"""How often a reward model agrees with people, beside what needs no model at all."""

from collections.abc import Sequence

import numpy as np

from llm_rlhf.data.rows import Preference
from llm_rlhf.evaluation.statistics import Estimate, Values, accuracy

OBJECTIVES = ("helpful", "harmless")


def accuracy_estimates(subject: str, pairs: Sequence[Preference], chosen: Values, rejected: Values) -> list[Estimate]:
    """Accuracy of a reward model on held-out pairs, and of "the longer reply is better" and of chance, by objective.

    Args:
        subject: "reward" or "heldout".
        pairs: what people said; several may share a prompt, and prompts are then resampled whole.
        chosen, rejected: the model's scores of the two replies, in the pairs' order.
    """
    estimates = []
    lengths = np.array([[len(pair.chosen), len(pair.rejected)] for pair in pairs])
    prompts = np.array([repr(pair.prompt) for pair in pairs])
    for split, rows in _by_objective(pairs).items():
        clusters = prompts[rows] if len(set(prompts[rows])) < len(rows) else None
        found = accuracy(np.asarray(chosen)[rows], np.asarray(rejected)[rows], clusters)
        longer = accuracy(lengths[rows, 0], lengths[rows, 1], clusters)
        estimates += [
            found.named("reward_accuracy", subject, None, split),
            longer.named("longer_reply_accuracy", subject, None, split),
            Estimate("chance_accuracy", subject, None, split, 0.5, None, None, len(rows), "a coin"),
        ]
    return estimates


def _by_objective(pairs: Sequence[Preference]) -> dict[str, list[int]]:
    """Row numbers of all pairs and of each objective that occurs."""
    groups = {"all": list(range(len(pairs)))}
    for objective in OBJECTIVES:
        if rows := [i for i, pair in enumerate(pairs) if pair.objective == objective]:
            groups[objective] = rows
    return groups
