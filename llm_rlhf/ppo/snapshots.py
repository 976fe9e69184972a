"""Light copies of the policy taken at every evaluation in training, and the choice of the best.

`snapshots/step-N` holds the adapter alone; `snapshots.jsonl` beside it, a line each: step, scores by the training
reward and by the held-out judge, KL, length. Together they are the over-optimisation curve.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

LOG = "snapshots.jsonl"


class Snapshots(TrainerCallback):
    """Writes a snapshot and its line when the trainer has evaluated.

    Args:
        folder: where `snapshots/` and its log are kept.
        save_policy: writes the policy into a folder (called on every process).
    """

    def __init__(self, folder: Path, save_policy: Callable[[Path], None]) -> None:
        self.folder, self.save_policy = folder, save_policy
        self.log = folder / LOG

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        known = metrics or {}
        if "eval_objective/scores" not in known:
            return
        self.save_policy(self.folder / "snapshots" / f"step-{state.global_step}")
        if state.is_world_process_zero:
            row = {
                "step": state.global_step,
                "scores": known["eval_objective/scores"],
                "heldout": known.get("eval_heldout/scores"),
                "kl": known["eval_objective/kl"],
                "response_length": known["eval_response_length"],
            }
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        if not self.log.is_file():
            return []
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]


def best(rows: list[dict[str, Any]], kl_limit: float | None) -> dict[str, Any]:
    """The snapshot with the highest held-out score (without a judge: training score) whose KL is within the limit.

    Raises:
        ValueError: when none is within the limit.
    """
    within = [row for row in rows if kl_limit is None or row["kl"] <= kl_limit]
    if not within:
        least = min((row["kl"] for row in rows), default=None)
        raise ValueError(
            f"No snapshot has a KL within keep_kl_limit ({kl_limit} nats per response); the least is {least}. Raise "
            "the limit, raise kl_coef, or evaluate more often."
        )
    return max(within, key=lambda row: row["scores"] if row["heldout"] is None else row["heldout"])
