"""Checkpoints that are whole or not there, and the log lines that go with them.

A checkpoint is a `checkpoint-N` folder of transformers.Trainer with our state beside it. Its `complete.json`, written
last and by a rename, holds the digest of every file, so that a run killed at any moment finds the newest whole one.
"""

import shutil
from pathlib import Path
from typing import Any

from llm_rlhf.json_lines import lines_of, parse_json
from llm_rlhf.run_folder import digests, read_json, write_json, write_text

COMPLETE = "complete.json"


class SealedCheckpoints:
    """Mixed into a trainer: its checkpoints count only when every process has written its part of one.

    Overrides private methods of transformers' Trainer, guarded by tests/ppo/test_trl_contract.py (`_save_checkpoint`)
    and tests/methods/test_methods_contract.py (`_run_epoch`).
    """

    args: Any
    accelerator: Any
    state: Any
    control: Any

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The parent's checkpoint, sealed when every process has written its part, and only then the old ones go."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            folder = Path(self.args.output_dir)
            seal(folder / f"checkpoint-{self.state.global_step}", self._own_state())
            rotate(folder, limit)
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """The parent's; none where the checkpoint is of the last step: the parent counts only behind a step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def _own_state(self) -> dict[str, Any]:
        """What the trainer needs of a checkpoint besides its files."""
        return {"processes": self.accelerator.num_processes}


def seal(checkpoint: Path, state: dict[str, Any]) -> None:
    """Declare the checkpoint whole. `state` is what the trainer needs besides the files."""
    write_json(checkpoint / COMPLETE, {"state": state, "files": digests(checkpoint, but=COMPLETE)})


def sealed_state(checkpoint: Path) -> dict[str, Any] | None:
    """The state of a whole checkpoint; None where a file is missing or differs from what was sealed."""
    seal = read_json(checkpoint / COMPLETE)
    if seal is None or digests(checkpoint, but=COMPLETE) != seal["files"]:
        return None
    state: dict[str, Any] = seal["state"]
    return state


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders, whole or not, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=step_of)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint."""
    return next((path for path in reversed(checkpoints(folder)) if sealed_state(path) is not None), None)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def rotate(folder: Path, keep: int | None) -> None:
    """Delete all but the newest `keep` checkpoints (None: delete none). Call it when the newest one is sealed."""
    if keep is not None:
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)


def forget_after(log: Path, step: int) -> None:
    """Drop the lines of a JSON-lines log that belong to later optimizer steps, and a line cut off in writing.

    A resumed run does those steps again, and says the same again.
    """
    if not log.is_file():
        return
    kept = []
    for _, line in lines_of(log.read_bytes()):
        try:
            text = line.decode("utf-8")
            if parse_json(text)["step"] <= step:
                kept.append(text + "\n")
        except ValueError:
            continue
    write_text(log, "".join(kept))
