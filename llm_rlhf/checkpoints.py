"""Checkpoints that are whole or not there, which one a launch goes on from, and the log lines that go with them.

A checkpoint is a `checkpoint-N` folder of transformers.Trainer with our state beside it. Its `complete.json`, written
last and by a rename when everything else is on the disk, holds the digest of every file, so that a run killed at any
moment finds the newest whole one. The newest two are kept until the stage's artefact is finished.
"""

import functools
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback

from llm_rlhf.errors import RecipeError, RunError, RunFolderError, first_line, of_disk, shown
from llm_rlhf.finite import check_weights
from llm_rlhf.json_lines import lines_of, parse_json
from llm_rlhf.launch import agreed, processes
from llm_rlhf.progress import tell
from llm_rlhf.provenance import versions
from llm_rlhf.run_folder import digests, read_json, remove, sync, write_json, write_text

COMPLETE = "complete.json"
# What training can go on without, if not as it would have: moments, schedule, random states, and what is only read
# by people. Everything else of a checkpoint is weights, and where it stands.
SPARED = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "training_args.bin", "README.md")
SUMMARY = "train_runtime"  # in the line that transformers logs when a training has ended
RESUMED_WITHOUT = "resumed_without.json"  # of a training that went on from a checkpoint that was not whole
PARTIAL = "--allow-partial-resume"


class Found(NamedTuple):
    """The checkpoint that a launch goes on from, and its state besides the files."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return step_of(self.path)


class LogsAtCheckpoints(TrainerCallback):
    """A checkpoint between two log lines would lose what the second is to average over."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save


class SealedCheckpoints:
    """Mixed into a trainer: its checkpoints count only when every process has written its part of one.

    Overrides private methods of transformers' Trainer, guarded by tests/ppo/test_trl_contract.py (`_save_checkpoint`)
    and tests/methods/test_methods_contract.py (`_run_epoch`).
    """

    args: Any
    accelerator: Any
    state: Any
    control: Any
    model: Any
    state_then: dict[str, Any] | None = None  # own state to seal, where a checkpoint is of a moment that has passed

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The parent's checkpoint, sealed when every process has written its part, and only then the old ones go.

        Raises:
            NonFiniteError: where a weight is not finite; nothing is written.
            RunError: where it cannot be written, to a full disk for one; what was written of it is removed.
        """
        check_weights(self.model, f"the checkpoint of optimizer step {self.state.global_step}")
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                seal(checkpoint, self.state_then or self._own_state())
        except Exception as error:
            if not (isinstance(error, OSError) or of_disk(error)):
                raise
            shutil.rmtree(checkpoint, ignore_errors=True)
            kept = latest(folder)
            earlier = "there is none before it" if kept is None else f"that of step {kept.step} is kept"
            raise RunError(
                f"The checkpoint {checkpoint} cannot be written ({first_line(error)}); {earlier}. Make room, and give "
                "the same command again to go on from there; fewer and smaller ones: save_steps, save_total_limit."
            ) from error
        finally:
            self.args.save_total_limit = limit
        if self.accelerator.is_main_process:
            rotate(folder, limit)
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """The parent's; none where the checkpoint is of the last step, or an evaluation before the first stopped it.

        The parent asks only behind a step.
        """
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def _own_state(self) -> dict[str, Any]:
        """What the trainer needs of a checkpoint besides its files."""
        return {"processes": self.accelerator.num_processes}


def seal(checkpoint: Path, state: dict[str, Any]) -> None:
    """Declare the checkpoint whole. `state` is what the trainer needs besides the files."""
    sync(checkpoint)
    write_json(
        checkpoint / COMPLETE, {"state": state, "versions": versions(), "files": digests(checkpoint, but=COMPLETE)}
    )
    sync(checkpoint.parent, deep=False)


def sealed_state(checkpoint: Path) -> dict[str, Any] | None:
    """The state of a whole checkpoint; None where a file is missing or differs from what was sealed."""
    seal = _seal_of(checkpoint)
    return None if seal is None or damages(checkpoint, seal) else seal["state"]


def damages(checkpoint: Path, seal: dict[str, Any]) -> dict[str, str]:
    """The files of a sealed checkpoint that are not as they were, each with what is wrong with it."""
    there = digests(checkpoint, but=COMPLETE)
    wrong = {name: "is missing" for name in seal["files"] if name not in there}
    wrong |= {name: "has changed" for name, known in there.items() if known != seal["files"].get(name, known)}
    return wrong


def _seal_of(checkpoint: Path) -> dict[str, Any] | None:
    seal = read_json(checkpoint / COMPLETE)
    known = isinstance(seal, dict) and isinstance(seal.get("state"), dict) and isinstance(seal.get("files"), dict)
    return seal if known else None


def all_in(folder: Path) -> list[Path]:
    """The checkpoint folders, whole or not, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=step_of)


def finished_in(folder: Path) -> list[Path]:
    """Those that were sealed, whatever became of them since, oldest first."""
    return [path for path in all_in(folder) if _seal_of(path) is not None]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def latest(folder: Path) -> Found | None:
    """The newest whole checkpoint, without a word on others."""
    for path in reversed(finished_in(folder)):
        if (state := sealed_state(path)) is not None:
            return Found(path, state)
    return None


def to_resume(folder: Path, stage: str, partial: bool = False, sharded: bool = False) -> Found | None:
    """The checkpoint that this launch goes on from, told; None where an interrupted one left none. On every process.

    The main process looks, and the others take what it found.

    Args:
        stage: what is called interrupted.
        partial: go on from one that lacks what `SPARED` names, as `--allow-partial-resume` asks.
        sharded: weights are spread over processes, which cannot read a checkpoint back.

    Raises:
        RunFolderError: where some were finished and none is whole; where it was made by another number of processes.
        RecipeError: where there is one, and weights are sharded.
    """
    found: Found | None = agreed(functools.partial(_look, folder, stage, partial, sharded))
    return found


def _look(folder: Path, stage: str, partial: bool, sharded: bool) -> Found | None:
    there = list(reversed(all_in(folder)))
    seals = {path: seal for path in there if (seal := _seal_of(path)) is not None}
    wrong = {path: damages(path, seal) for path, seal in seals.items()}
    usable = [path for path in seals if not wrong[path]]
    if partial and not usable:
        usable = [path for path in seals if all(map(_is_spared, wrong[path]))]
    if not usable and wrong:
        raise RunFolderError(
            f"{stage} was interrupted, and none of its checkpoints is whole: "
            f"{'. '.join(_told(path, of) for path, of in wrong.items())}. Bring the files back, or begin the stage "
            f"again with --from {stage.split('/')[0]}."
        )
    if not usable:
        if there:
            tell(f"      {stage} was interrupted before its first checkpoint was finished; it begins anew.")
        return None
    found = Found(usable[0], seals[usable[0]]["state"])
    _check(found, stage, sharded)
    for path in there[: there.index(found.path)]:
        why = f"is damaged ({_first(wrong[path])})" if path in wrong else "was not finished"
        tell(f"warning: {stage}: {path.name} {why} and is passed over.")
    if lacks := wrong[found.path]:
        tell(f"warning: {stage} goes on from {found.path.name} {without(list(lacks))}: not as it would have.")
        _patch(found.path, seals[found.path], lacks)
    _warn_of_versions(stage, seals[found.path])
    tell(f"      {stage} was interrupted; it goes on from optimizer step {found.step}.")
    return found


def without(lacks: list[str]) -> str:
    """What a training goes on without, in words: transformers reads optimizer and schedule together or neither."""
    anew = {"optimizer.pt", "scheduler.pt"} & set(lacks)
    return f"without {', '.join(lacks)}" + (" (optimizer and learning rate's schedule begin anew)" if anew else "")


def _told(checkpoint: Path, wrong: dict[str, str]) -> str:
    remedy = f"; {PARTIAL} goes on without it" if all(map(_is_spared, wrong)) else ""
    return f"{checkpoint}: {_first(wrong)}{remedy}"


def _first(wrong: dict[str, str]) -> str:
    return " ".join(next(iter(wrong.items())))


def _check(found: Found, stage: str, sharded: bool) -> None:
    if sharded:
        raise RecipeError(
            f"{found.path.parent} holds what an interrupted launch left, which cannot be read into weights that FSDP "
            f"or ZeRO-3 have spread over processes; launch as before, or begin again with --from {stage.split('/')[0]}."
        )
    here = processes().num_processes
    if found.state.get("processes") != here:
        raise RunFolderError(
            f"{found.path} was made by {found.state.get('processes')} processes, now there are {here}: rows would be "
            f"shared out in another way. Launch as before, or begin the stage again with --from {stage.split('/')[0]}."
        )


def _is_spared(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in SPARED)


def _patch(checkpoint: Path, seal: dict[str, Any], wrong: dict[str, str]) -> None:
    """Put aside what is damaged, and seal what is left: from here on it is a checkpoint that never had it.

    `resumed_without.json` beside it tells, for good.
    """
    aside = checkpoint.with_name(f"{checkpoint.name}-damaged")
    for name in wrong:
        if (checkpoint / name).exists():
            aside.mkdir(exist_ok=True)
            (checkpoint / name).rename(aside / name)
    known = read_json(checkpoint.parent / RESUMED_WITHOUT) or []
    write_json(checkpoint.parent / RESUMED_WITHOUT, [*known, {"step": step_of(checkpoint), "lacks": sorted(wrong)}])
    left = {name: digest for name, digest in seal["files"].items() if name not in wrong}
    write_json(checkpoint / COMPLETE, seal | {"files": left, "lacks": sorted(wrong)})


def _warn_of_versions(stage: str, seal: dict[str, Any]) -> None:
    then, now = seal.get("versions", {}), versions()
    changed = [f"{name} {then[name]} -> {now.get(name)}" for name in then if then[name] != now.get(name)]
    if changed:
        tell(
            f"warning: {stage}'s checkpoint was made with other versions ({', '.join(changed)}): the end may differ in "
            "its last bits from that of a run without an interruption."
        )


def rotate(folder: Path, keep: int | None) -> None:
    """Delete all but the newest `keep` finished checkpoints (None: none). Call it when the newest is sealed."""
    if keep is not None:
        kept = finished_in(folder)[-keep:]
        for old in all_in(folder):
            if old not in kept and step_of(old) < step_of(kept[-1]):
                remove(old)


def forget_after(log: Path, step: int) -> None:
    """Drop the lines of a JSON-lines log that belong to later optimizer steps, and a line cut off in writing.

    A resumed run does those steps again, and says the same again; also what is said of a training as a whole.
    """
    if not log.is_file():
        return
    kept, unread = [], []
    content = log.read_bytes()
    for number, line in lines_of(content):
        try:
            known = parse_json(line)
            later = known["step"] > step or SUMMARY in known
        except (ValueError, TypeError, KeyError):
            unread.append(number)
            continue
        if not later:
            kept.append(line.decode("utf-8") + "\n")
    if unread and not content.endswith(b"\n"):
        unread.pop()  # the process was killed as it wrote this one
    if unread:
        tell(f"warning: {log}: lines that are no JSON of a step are left out: {shown(unread)}.")
    write_text(log, "".join(kept))
