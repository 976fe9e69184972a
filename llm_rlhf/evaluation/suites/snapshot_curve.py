"""The over-optimisation curve: the rewards of a run's snapshots, on the same prompts, against their distance.

Every snapshot answers the prompts anew with the same random numbers, so that what differs between two of them is the
policy. The first point is the model that PPO started from, at distance 0.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_rlhf.data.rows import Prompt
from llm_rlhf.models.inference import Reply, ReplyCache, reply_logprobs, sample_replies
from llm_rlhf.statistics.overoptimization import Parting, fit_curve, fitted, parting

LEAST_PROMPTS = 20  # as `parting` needs
JUDGES = {"heldout": "held-out reward", "gold": "true score"}  # what is no part of the training, the surest last


def snapshot_folders(ppo: Path) -> dict[int, Path]:
    """The snapshots of a run by optimizer step, in order; that of step 0 is left out: it is what PPO started from."""
    found = {int(folder.name.rsplit("-", 1)[1]): folder for folder in (ppo / "snapshots").glob("step-*")}
    return {step: folder for step, folder in sorted(found.items()) if step > 0}


def snapshot_curve(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    snapshots: Mapping[int, Path],
    measure: Callable[[Sequence[Prompt], Sequence[Reply]], Mapping[str, Sequence[float]]],
    *,
    response_length: int,
    temperature: float,
    seed: int,
    batch_size: int,
    known: Callable[[int], ReplyCache] | None = None,
) -> dict[str, Any]:
    """Mean rewards and KL of the start and of every snapshot, their fits, and where the rewards part.

    Args:
        model: what `load_roles` gave; a snapshot's adapter is loaded beside the others and taken out again.
        measure: scores of replies by name: "reward", "heldout" and, where the truth is known, "gold".
        known: where the replies of a step are kept; step 0 is the start.

    Returns:
        {"points": [{"step", "kl", "sqrt_kl", NAME ...}], "prompts": int, "fits": {NAME: ...}, "parting": {JUDGE: ...}}.
    """
    messages = [prompt.messages for prompt in prompts]
    scores: dict[str, list[np.ndarray]] = {}
    points: list[dict[str, Any]] = []
    for step, folder in [(0, None), *snapshots.items()]:
        adapters = [] if folder is None else ["snapshot"]
        if folder is not None:
            model.load_adapter(str(folder), adapter_name="snapshot")
        try:
            replies = sample_replies(
                model, tokenizer, messages, adapters, response_length=response_length, temperature=temperature,
                seed=seed, batch_size=batch_size, progress=f"evaluate: snapshot at step {step}" if step else None,
                known=known(step) if known is not None else None,
            )  # fmt: skip
            kl = _mean_kl(model, tokenizer, adapters, replies, batch_size)
        finally:
            if folder is not None:
                model.delete_adapter("snapshot")
        found = {name: np.asarray(values, dtype=np.float64) for name, values in measure(prompts, replies).items()}
        for name, values in found.items():
            scores.setdefault(name, []).append(values)
        means = {name: float(values.mean()) for name, values in found.items()}
        points.append({"step": step, "kl": kl, "sqrt_kl": max(kl, 0.0) ** 0.5, **means})
    distance = np.array([point["sqrt_kl"] for point in points])
    matrices = {name: np.stack(rows) for name, rows in scores.items()}
    return {
        "points": points,
        "prompts": len(prompts),
        "fits": {name: _fit(distance, matrix - matrix[0]) for name, matrix in matrices.items()},
        "parting": {
            judge: _parting(parting(distance, matrices["reward"], matrices[judge], seed=seed, judge=called))
            for judge, called in JUDGES.items()
            if judge in matrices
        },
    }


def _mean_kl(model: Any, tokenizer: Any, adapters: list[str], replies: list[Reply], batch_size: int) -> float:
    """Nats a reply from the base; an estimate from samples, so that it can lie a little under 0."""
    if not adapters:
        return 0.0
    own, base = (reply_logprobs(model, names, replies, tokenizer.pad_token_id, batch_size) for names in (adapters, []))
    return float(np.mean(np.subtract(own, base)))


def _fit(distance: np.ndarray, gains: np.ndarray) -> dict[str, Any] | None:
    """The curve of Gao et al. for reinforcement learning; None where too few points are away from the start."""
    if (distance > 0).sum() < 3:
        return None
    return fitted(distance, fit_curve(distance, gains, "rl"))


def _parting(found: Parting) -> dict[str, Any]:
    row = {name: value._asdict() if hasattr(value, "_asdict") else value for name, value in found._asdict().items()}
    return {**row, "alarm": bool(found.alarm), "p": float(found.p), "checkpoint": int(found.checkpoint)}
