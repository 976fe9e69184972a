"""The training of one adapter by a trainer of TRL's: what is saved is the adapter, and a killed training goes on.

Private methods of transformers' Trainer that are overridden, guarded by tests/methods/test_methods_contract.py:
`_save`, `_load_from_checkpoint`, and those of llm_rlhf/checkpoints.py.
"""

from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from peft.utils import load_peft_weights

from llm_rlhf import checkpoints, stopping
from llm_rlhf.finite import BATCHES, FiniteSteps, check_weights
from llm_rlhf.models.adapters import POLICY
from llm_rlhf.models.base import adapters_in_float32
from llm_rlhf.models.freed_memory import keep_freed_memory
from llm_rlhf.models.liger import in_training
from llm_rlhf.run_folder import RunFolder, remove
from llm_rlhf.training import (
    METRICS,
    StageLog,
    attach_log,
    compute_in_own_types,
    how_computed,
    is_sharded,
    whole_weights,
)


class TrainedAdapter(FiniteSteps, checkpoints.SealedCheckpoints):
    """Mixed into TRL's trainers: what is saved is the adapter that trains, with the head if it has one."""

    model: Any
    model_wrapped: Any

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with in_training(self.args):
            return super().train(*args, **kwargs)  # type: ignore[misc]

    def save_adapter(self, folder: Path) -> None:
        """Write what any PEFT user loads on the base. Called on every process.

        Raises:
            NonFiniteError: where a weight is not finite.
        """
        check_weights(self.model, str(folder))
        weights = whole_weights(self)
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model)
            model.save_pretrained(folder, selected_adapters=[POLICY], state_dict=weights)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The parent would write the reward adapters too, and a tokenizer and arguments that nobody reads."""
        self.save_adapter(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The parent would load every adapter by folders it does not find."""
        weights = load_peft_weights(resume_from_checkpoint, device="cpu")
        set_peft_model_state_dict(self.accelerator.unwrap_model(self.model), weights, adapter_name=POLICY)

    def take_back(self, state: dict[str, Any]) -> None:
        """Set what `_own_state` kept in the checkpoint that training goes on from."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes a card beside every checkpoint, about a model that is not there."""


def train_adapter(trainer: Any, run: RunFolder, stage: str, shown: dict[str, str]) -> None:
    """Train from the start, or from what an interrupted launch left; `metrics.jsonl` is written beside it.

    Args:
        trainer: one of TRL's with `TrainedAdapter` mixed in, which nobody but this launch writes to.
        stage: as it is called on the screen and in the log.
        shown: metric name to the short name it has on the progress line.

    Raises:
        RunFolderError, RecipeError: where an interrupted launch's checkpoints cannot be gone on from
            (`checkpoints.to_resume`).
    """
    adapters_in_float32(trainer.model)
    compute_in_own_types(trainer)
    keep_freed_memory(trainer.accelerator.device.type)
    folder = Path(trainer.args.output_dir)
    trainer.add_callback(checkpoints.LogsAtCheckpoints())
    attach_log(trainer, StageLog(stage, folder, shown, run.followers))
    run.computed = how_computed(trainer)
    found = checkpoints.to_resume(folder, stage, run.allow_partial_resume, is_sharded(trainer.accelerator))
    if run.state.is_main_process:
        folder.mkdir(exist_ok=True)
        _forget_after(folder, 0 if found is None else found.step)
    run.state.wait_for_everyone()
    if found is not None:
        trainer.take_back(found.state)
    stopping.train(trainer, None if found is None else found.path)


def _forget_after(folder: Path, step: int) -> None:
    """Undo what was written after the checkpoint of this step: it will be written again."""
    if step == 0:
        (folder / METRICS).unlink(missing_ok=True)
    else:
        checkpoints.forget_after(folder / METRICS, step)
    later = [path for path in checkpoints.all_in(folder) if checkpoints.step_of(path) > step]
    later += [path for path in folder.glob("snapshots/step-*") if int(path.name.removeprefix("step-")) > step]
    for path in later:
        remove(path)
    for path in folder.glob(f"{BATCHES}*"):
        if int(path.name.removeprefix(BATCHES).split("-")[0]) >= step:
            path.unlink()
