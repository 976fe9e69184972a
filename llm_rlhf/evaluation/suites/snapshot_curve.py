"""The over-optimisation curve: the rewards of a run's snapshots, on the same prompts, against their distance.

Every snapshot answers the prompts anew with the same random numbers, so that what differs between two of them is the
policy. The first point is the model that PPO started from, at distance 0.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_rlhf.statistics.clustered import clustered_difference
from llm_rlhf.statistics.intervals import Labels
from llm_rlhf.statistics.overoptimization import Parting, fit_curve, fitted, parting

LEAST_PROMPTS = 20  # as `parting` needs
JUDGES = {"heldout": "held-out reward", "gold": "true score"}  # what is no part of the training, the surest last


def snapshot_folders(stage: Path) -> dict[int, Path]:
    """Snapshots in a method's folder by optimizer step, in order, without that of step 0, the start."""
    found = {int(folder.name.rsplit("-", 1)[1]): folder for folder in (stage / "snapshots").glob("step-*")}
    return {step: folder for step, folder in sorted(found.items()) if step > 0}


def snapshot_curve(
    steps: Sequence[int],
    kl: Sequence[float],
    scores: Sequence[Mapping[str, Sequence[float]]],
    seed: int,
    wordings: Labels | None = None,
) -> dict[str, Any]:
    """Mean rewards and KL of the start and of every snapshot, their fits, and where the rewards part.

    Args:
        steps: of each snapshot; the first is 0, the start.
        kl: mean nats of a reply from the start.
        scores: of the snapshots' replies, all to the same prompts, by name: "reward", "heldout" and, where the truth is
            known, "gold".
        wordings: of each prompt, whose errors go together; None: each prompt stands alone.

    Returns:
        {"points": [{"step", "kl", "sqrt_kl", NAME ...}], "prompts": int, "gains": {NAME: [{"estimate", "low", "high"},
        over the first point, of each]}, "fits": {NAME: ...}, "parting": {JUDGE: ...}}.
    """
    matrices = {name: np.array([found[name] for found in scores], dtype=np.float64) for name in scores[0]}
    points = [
        {"step": step, "kl": nats, "sqrt_kl": max(nats, 0.0) ** 0.5}
        | {name: float(matrix[i].mean()) for name, matrix in matrices.items()}
        for i, (step, nats) in enumerate(zip(steps, kl, strict=True))
    ]
    distance = np.array([point["sqrt_kl"] for point in points])
    return {
        "points": points,
        "prompts": matrices["reward"].shape[1],
        "gains": {name: _gains(matrix, wordings) for name, matrix in matrices.items()},
        "fits": {name: _fit(distance, matrix - matrix[0], wordings) for name, matrix in matrices.items()},
        "parting": {
            judge: _parting(
                parting(distance, matrices["reward"], matrices[judge], seed=seed, judge=called, clusters=wordings)
            )
            for judge, called in JUDGES.items()
            if judge in matrices
        },
    }


def _gains(scores: np.ndarray, wordings: Labels | None) -> list[dict[str, float | None]]:
    """The paired gain of each row over the first, with its interval over prompts; of the first itself exactly 0."""
    labels = np.arange(scores.shape[1]) if wordings is None else wordings
    gains: list[dict[str, float | None]] = [{"estimate": 0.0, "low": 0.0, "high": 0.0}]
    for row in scores[1:]:
        found = clustered_difference(row, scores[0], labels)
        gains.append({"estimate": found.estimate, "low": found.low, "high": found.high})
    return gains


def _fit(distance: np.ndarray, gains: np.ndarray, wordings: Labels | None) -> dict[str, Any] | None:
    """The curve of Gao et al. for reinforcement learning; None where too few points are away from the start."""
    if (distance > 0).sum() < 3:
        return None
    return fitted(distance, fit_curve(distance, gains, "rl", wordings))


def _parting(found: Parting) -> dict[str, Any]:
    row = {name: value._asdict() if hasattr(value, "_asdict") else value for name, value in found._asdict().items()}
    return {**row, "alarm": bool(found.alarm), "p": float(found.p), "checkpoint": int(found.checkpoint)}
