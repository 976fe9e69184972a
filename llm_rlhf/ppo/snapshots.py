"""Light copies of the policy taken at every evaluation in training, and the choice of the best.

`snapshots/step-N` holds the adapter alone; `snapshots.jsonl` beside it, a line each: step, scores by the training
reward and by the held-out reward model, KL, length. Together they are the over-optimisation curve.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llm_rlhf.json_lines import read_json_lines
from llm_rlhf.ppo.watch import Watch

LOG = "snapshots.jsonl"


class Snapshots(TrainerCallback):
    """Writes a snapshot and its line when the trainer has evaluated.

    Args:
        folder: where `snapshots/` and its log are kept.
        save_policy: writes the policy into a folder (called on every process).
        watch: what it has seen at the same step is in the line too: means by objective (`sides`), and those that
            are `worse` or `doubtful`.
    """

    def __init__(self, folder: Path, save_policy: Callable[[Path], None], watch: Watch | None = None) -> None:
        self.folder, self.save_policy, self.watch = folder, save_policy, watch
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
            if self.watch is not None and self.watch.lines and self.watch.lines[-1]["step"] == state.global_step:
                row |= {name: self.watch.lines[-1][name] for name in ("sides", "worse", "doubtful")}
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        if not self.log.is_file():
            return []
        return read_json_lines(self.log)


def best(rows: list[dict[str, Any]], kl_limit: float | None) -> dict[str, Any]:
    """The snapshot with the highest held-out score (without a judge: training score) among those that may be chosen.

    Its KL must be within the limit, and no side may be worse in it or look so: a gain in the mean that one side paid
    for is not the best. The starting policy, step 0, is one of them.

    Raises:
        ValueError: when none is left.
    """
    sound = [row for row in rows if _is_sound(row)]
    within = [row for row in sound if kl_limit is None or row["kl"] <= kl_limit]
    if not within:
        least = min((row["kl"] for row in sound), default=None)
        raise ValueError(
            f"No snapshot in which no side is worse has a KL within keep_kl_limit ({kl_limit} nats per response); the "
            f"least of {len(sound)} such ones is {least}. Raise the limit, raise kl_coef, or evaluate more often."
        )
    return max(within, key=lambda row: row["scores"] if row["heldout"] is None else row["heldout"])


def last_sound(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The newest snapshot in which no side is worse or looks so; the first has none to be worse than."""
    return next(row for row in reversed(rows) if _is_sound(row))


def _is_sound(row: dict[str, Any]) -> bool:
    """A fall is shown some time after it began: what is kept must not even look like one."""
    return not row.get("worse") and not row.get("doubtful")
