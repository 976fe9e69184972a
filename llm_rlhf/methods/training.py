"""What the methods beside PPO have in common: snapshots, and what a training leaves."""

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llm_rlhf.models.adapter_training import TrainedAdapter, train_adapter
from llm_rlhf.models.decoding import save_language
from llm_rlhf.run_folder import RunFolder

SNAPSHOTS = 8  # light copies of the policy in the course of a training, as PPO's defaults make


class PolicySnapshots(TrainerCallback):
    """Saves the policy's adapter some times in a training, as `snapshots/step-N`: what the evaluation's curve asks."""

    def __init__(self, trainer: TrainedAdapter, folder: Path) -> None:
        self.trainer, self.folder = trainer, folder

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % max(1, math.ceil(state.max_steps / SNAPSHOTS)) == 0:
            self.trainer.save_adapter(self.folder / "snapshots" / f"step-{state.global_step}")


def train_policy(trainer: Any, run: RunFolder, folder: Path, stage: str, shown: dict[str, str]) -> None:
    """Train from the start, or from what an interrupted launch left, to `policy/`, `snapshots/` and `metrics.jsonl`.

    Args:
        trainer: one of TRL's with `TrainedAdapter` mixed in, whose `output_dir` is `folder`.
        shown: metric name to the short name it has on the progress line.

    Raises:
        RunFolderError, RecipeError: as `train_adapter`.
    """
    trainer.add_callback(PolicySnapshots(trainer, folder))
    train_adapter(trainer, run, stage, shown)
    trainer.save_adapter(folder / "policy")
    run.state.wait_for_everyone()
    if run.state.is_main_process:
        stops = trainer.accelerator.unwrap_model(trainer.model).generation_config.eos_token_id  # of load_causal_lm
        drawn = {"temperature": getattr(trainer.args, "temperature", 1.0)}  # those that do not sample imitate at 1
        save_language(folder / "policy", trainer.processing_class, stops, **drawn)
