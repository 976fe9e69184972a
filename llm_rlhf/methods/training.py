"""What the methods beside PPO have in common: checkpoints, snapshots, and what a training leaves.

Private methods of transformers' Trainer that are overridden, guarded by tests/methods/test_methods_contract.py:
`_save`, `_load_from_checkpoint`, and `_save_checkpoint` in ppo/checkpoint.py.
"""

import math
import shutil
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import TrainerCallback

from llm_rlhf import stopping
from llm_rlhf.errors import RecipeError
from llm_rlhf.models.adapters import POLICY
from llm_rlhf.models.base import adapters_in_float32, announce
from llm_rlhf.models.decoding import save_language
from llm_rlhf.ppo import checkpoint
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.training import METRICS, StageLog, StopsOnBadLoss, attach_log, is_sharded, whole_weights

SNAPSHOTS = 8  # light copies of the policy in the course of a training, as PPO's defaults make


class TrainedPolicy(StopsOnBadLoss, checkpoint.SealedCheckpoints):
    """Mixed into TRL's trainers: what is saved is the policy's adapter, and a killed training goes on from it."""

    model: Any
    model_wrapped: Any

    def save_policy(self, folder: Path) -> None:
        """Write what any PEFT user loads on the base. Called on every process."""
        weights = whole_weights(self)
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model)
            model.save_pretrained(folder, selected_adapters=[POLICY], state_dict=weights)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The parent would write the reward adapters too, and a tokenizer and arguments that nobody reads."""
        self.save_policy(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The parent would load every adapter by folders it does not find."""
        weights = load_peft_weights(resume_from_checkpoint, device="cpu")
        set_peft_model_state_dict(self.accelerator.unwrap_model(self.model), weights, adapter_name=POLICY)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes a card beside every checkpoint, about a model that is not there."""


class PolicySnapshots(TrainerCallback):
    """Saves the policy's adapter some times in a training, as `snapshots/step-N`: what the evaluation's curve asks."""

    def __init__(self, trainer: TrainedPolicy, folder: Path) -> None:
        self.trainer, self.folder = trainer, folder

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % max(1, math.ceil(state.max_steps / SNAPSHOTS)) == 0:
            self.trainer.save_policy(self.folder / "snapshots" / f"step-{state.global_step}")


def train_policy(trainer: Any, run: RunFolder, folder: Path, stage: str, shown: dict[str, str]) -> None:
    """Train from the start, or from what an interrupted launch left, to `policy/`, `snapshots/` and `metrics.jsonl`.

    Args:
        trainer: one of TRL's with `TrainedPolicy` mixed in, whose `output_dir` is `folder`.
        shown: metric name to the short name it has on the progress line.

    Raises:
        RecipeError: where the interrupted launch had another number of processes, or weights are spread over them.
    """
    adapters_in_float32(trainer.model)
    attach_log(trainer, StageLog(stage, folder, shown, run.followers))
    trainer.add_callback(PolicySnapshots(trainer, folder))
    found = checkpoint.latest(folder)
    run.state.wait_for_everyone()  # before the main process deletes what is newer than that checkpoint
    if found is not None:
        _check_processes(found, run, is_sharded(trainer.accelerator))
        announce(f"{stage} was interrupted; it goes on from optimizer step {checkpoint.step_of(found)}.")
    if run.state.is_main_process:
        _forget_after(folder, 0 if found is None else checkpoint.step_of(found))
    run.state.wait_for_everyone()
    stopping.train(trainer, found)
    trainer.save_policy(folder / "policy")
    run.state.wait_for_everyone()
    if run.state.is_main_process:
        stops = trainer.accelerator.unwrap_model(trainer.model).generation_config.eos_token_id  # of load_causal_lm
        drawn = {"temperature": getattr(trainer.args, "temperature", 1.0)}  # those that do not sample imitate at 1
        save_language(folder / "policy", trainer.processing_class, stops, **drawn)
        for old in checkpoint.checkpoints(folder):
            shutil.rmtree(old)


def _check_processes(found: Path, run: RunFolder, sharded: bool) -> None:
    if sharded:
        raise RecipeError(
            f"{found.parent} holds what an interrupted launch left, which cannot be read into weights that FSDP or "
            "ZeRO-3 have spread over processes; delete it to start this stage anew, or use DDP."
        )
    state = checkpoint.sealed_state(found) or {}
    if state.get("processes") != run.state.num_processes:
        raise RecipeError(
            f"{found} was made by {state.get('processes')} processes, now there are {run.state.num_processes}. Launch "
            f"as before, or delete {found.parent} to start this stage anew."
        )


def _forget_after(folder: Path, step: int) -> None:
    """Undo what was written after the checkpoint of this step: it will be written again."""
    if step == 0:
        (folder / METRICS).unlink(missing_ok=True)
    else:
        checkpoint.forget_after(folder / METRICS, step)
    for later in checkpoint.checkpoints(folder):
        if checkpoint.step_of(later) > step:
            shutil.rmtree(later)
    for snapshot in (folder / "snapshots").glob("step-*"):
        if int(snapshot.name.removeprefix("step-")) > step:
            shutil.rmtree(snapshot)
