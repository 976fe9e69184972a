"""Checkpoints that are damaged, half written, of another launch, or that the disk has no room for."""

import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from method_helpers import make
from transformers import TrainerCallback

from llm_rlhf import checkpoints
from llm_rlhf.errors import RunError, RunFolderError
from llm_rlhf.evaluation.run_report import _resumed_without
from llm_rlhf.methods.training import train_policy
from llm_rlhf.run_folder import RunFolder, read_json, write_json
from llm_rlhf.training import append_line

STEPS, KILLED_AT = 8, 7
WEIGHTS = "policy/adapter_model.safetensors"


class Killed(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == KILLED_AT:
            raise KeyboardInterrupt


def train(base: Path, folder: Path, killed: bool = False, partial: bool = False, limit: int = 2, **options: Any) -> Any:
    """DPO, a checkpoint at every second step."""
    folder.mkdir(parents=True, exist_ok=True)
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": limit}
    trainer = make("dpo", base, folder, max_steps=STEPS, logging_steps=2, **(saving | options))
    if killed:
        trainer.add_callback(Killed())
    run = RunFolder(folder.parent)
    run.allow_partial_resume = partial
    train_policy(trainer, run, folder, "dpo", {"loss": "loss"})
    return trainer


@pytest.fixture(scope="module")
def whole(base_folder: Path, tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("whole") / "dpo"
    train(base_folder, folder)
    return (folder / WEIGHTS).read_bytes()


@pytest.fixture(scope="module")
def interrupted(base_folder: Path, tmp_path_factory) -> Path:
    """Killed at step 7, with the checkpoints of steps 4 and 6."""
    folder = tmp_path_factory.mktemp("interrupted") / "dpo"
    with pytest.raises(KeyboardInterrupt):
        train(base_folder, folder, killed=True)
    assert [path.name for path in checkpoints.all_in(folder)] == ["checkpoint-4", "checkpoint-6"]
    return folder


@pytest.fixture
def left(interrupted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted, tmp_path / "run" / "dpo"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        pytest.param("adapter_model.safetensors", cut, "has changed", id="fault_13_truncated_weights"),
        pytest.param("adapter_model.safetensors", flip, "has changed", id="fault_14_a_flipped_bit"),
        pytest.param("optimizer.pt", flip, "has changed", id="fault_14_a_flipped_bit_of_the_optimizer"),
        pytest.param("optimizer.pt", Path.unlink, "is missing", id="fault_15_no_optimizer"),
        pytest.param("rng_state.pth", Path.unlink, "is missing", id="fault_15_no_random_state"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    name, damage, told, base_folder, left: Path, whole: bytes, capsys
) -> None:
    damage(left / "checkpoint-6" / name)
    train(base_folder, left)
    out = capsys.readouterr().out
    assert f"warning: dpo: checkpoint-6 is damaged ({name} {told}) and is passed over." in out
    assert "dpo was interrupted; it goes on from optimizer step 4." in out
    assert (left / WEIGHTS).read_bytes() == whole


def test_fault_15_with_no_whole_checkpoint_nothing_begins_anew_without_being_asked(
    base_folder, left: Path, whole: bytes, capsys
) -> None:
    before = (left / "checkpoint-6" / "trainer_state.json").read_bytes()
    for checkpoint in checkpoints.all_in(left):
        (checkpoint / "optimizer.pt").unlink()
    with pytest.raises(RunFolderError) as refused:
        train(base_folder, left)
    for words in ("none of its checkpoints is whole", "checkpoint-4: optimizer.pt is missing",
                  "--allow-partial-resume goes on without it", "--from dpo"):  # fmt: skip
        assert words in str(refused.value)
    assert (left / "checkpoint-6" / "trainer_state.json").read_bytes() == before
    trainer = train(base_folder, left, partial=True)
    out = capsys.readouterr().out
    anew = "optimizer and learning rate's schedule begin anew"
    assert f"warning: dpo goes on from checkpoint-6 without optimizer.pt ({anew}): not as it would have." in out
    assert "goes on from optimizer step 6" in out
    assert trainer.state.global_step == STEPS
    assert (left / WEIGHTS).read_bytes() != whole  # Adam began anew


def test_fault_15_a_whole_checkpoint_is_taken_before_a_newer_partial_one(base_folder, left: Path, whole: bytes) -> None:
    (left / "checkpoint-6" / "optimizer.pt").unlink()
    train(base_folder, left, partial=True)
    assert (left / WEIGHTS).read_bytes() == whole
    assert not (left / "resumed_without.json").exists()


def test_fault_15_weights_are_not_gone_on_without(base_folder, left: Path) -> None:
    for checkpoint in checkpoints.all_in(left):
        flip(checkpoint / "adapter_model.safetensors")
    with pytest.raises(RunFolderError) as refused:
        train(base_folder, left, partial=True)
    assert "--allow-partial-resume" not in str(refused.value)


def test_fault_15_what_is_damaged_is_put_aside_and_not_lost(base_folder, left: Path) -> None:
    for checkpoint in checkpoints.all_in(left):
        flip(checkpoint / "optimizer.pt")
    damaged = (left / "checkpoint-6" / "optimizer.pt").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        train(base_folder, left, partial=True, killed=True)
    assert (left / "checkpoint-6-damaged" / "optimizer.pt").read_bytes() == damaged
    assert read_json(left / "checkpoint-6" / "complete.json")["lacks"] == ["optimizer.pt"]
    assert [path.name for path in checkpoints.all_in(left)] == ["checkpoint-4", "checkpoint-6"]
    train(base_folder, left)  # once allowed, it is what there is
    assert read_json(left / "resumed_without.json") == [{"step": 6, "lacks": ["optimizer.pt"]}]
    (told,) = _resumed_without(RunFolder(left.parent))
    assert told.startswith("dpo was trained on from a checkpoint of step 6 without optimizer.pt (optimizer and")


@pytest.mark.parametrize("seal", ["{}", "[]", "null", "3", '{"state": {}}', '{"files": {}}', '{"state": {', ""])
def test_fault_16_what_was_never_finished_is_no_checkpoint(seal, base_folder, left: Path, whole: bytes, capsys) -> None:
    shutil.copytree(left / "checkpoint-6", left / "checkpoint-7")
    (left / "checkpoint-7" / "complete.json").write_text(seal)
    (left / "checkpoint-9").mkdir()
    train(base_folder, left)
    out = capsys.readouterr().out
    for unfinished in ("checkpoint-9", "checkpoint-7"):
        assert f"warning: dpo: {unfinished} was not finished and is passed over." in out
    assert "goes on from optimizer step 6" in out
    assert (left / WEIGHTS).read_bytes() == whole
    assert [path.name for path in checkpoints.all_in(left)] == ["checkpoint-6", "checkpoint-8"]


def test_before_the_first_checkpoint_it_says_that_it_begins_anew(base_folder, tmp_path, whole: bytes, capsys) -> None:
    (tmp_path / "dpo" / "checkpoint-2").mkdir(parents=True)
    train(base_folder, tmp_path / "dpo")
    assert "dpo was interrupted before its first checkpoint was finished; it begins anew." in capsys.readouterr().out
    assert (tmp_path / "dpo" / WEIGHTS).read_bytes() == whole


def test_fault_19_another_number_of_processes_is_refused_in_a_line(base_folder, left: Path) -> None:
    seal = left / "checkpoint-6" / "complete.json"
    write_json(seal, read_json(seal) | {"state": {"processes": 4}})
    with pytest.raises(RunFolderError, match=r"made by 4 processes, now there are 1.*Launch as before.*--from dpo"):
        train(base_folder, left)


def test_fault_20_other_versions_are_told(base_folder, left: Path, whole: bytes, capsys) -> None:
    seal = left / "checkpoint-6" / "complete.json"
    known = read_json(seal)
    now = known["versions"]["torch"]
    write_json(seal, known | {"versions": known["versions"] | {"torch": "2.0.0"}})
    train(base_folder, left)
    assert f"made with other versions (torch 2.0.0 -> {now})" in capsys.readouterr().out
    assert (left / WEIGHTS).read_bytes() == whole


def test_fault_22_pruning_that_fails_is_a_warning(base_folder, left: Path, whole: bytes, monkeypatch, capsys) -> None:
    def fails(path: Any, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", fails)
    train(base_folder, left)
    assert "checkpoint-4 is no longer needed but cannot be deleted" in capsys.readouterr().out
    assert (left / WEIGHTS).read_bytes() == whole


full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk without room")


@full
@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_fault_10_a_full_disk_during_a_save(name, base_folder, left: Path, whole: bytes) -> None:
    """What is written of the new one is removed, the old one stays, and with room it goes on from there."""
    broken = left / "checkpoint-8"

    class Full(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == STEPS:
                broken.mkdir()
                (broken / name).symlink_to("/dev/full")

    fill = Full()
    with pytest.MonkeyPatch.context() as patched:
        trainer_made = make

        def with_a_full_disk(*args: Any, **kwargs: Any) -> Any:
            trainer = trainer_made(*args, **kwargs)
            trainer.add_callback(fill)
            return trainer

        patched.setitem(globals(), "make", with_a_full_disk)
        with pytest.raises(RunError, match=r"checkpoint-8 cannot be written.*that of step 6 is kept.*Make room"):
            train(base_folder, left)
    assert not broken.exists()
    assert [path.name for path in checkpoints.finished_in(left)] == ["checkpoint-4", "checkpoint-6"]
    train(base_folder, left)
    assert (left / WEIGHTS).read_bytes() == whole


def small_files(folder: str, name: str) -> None:
    """In a process of its own: files of this size at most can be written, as on a disk that is nearly full."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    from safetensors.torch import save_file

    writers = {
        "safetensors": lambda path: save_file({"weights": torch.zeros(10_000)}, path),
        "torch": lambda path: torch.save(torch.zeros(10_000), path),
        "python": lambda path: Path(path).write_bytes(bytes(40_000)),
    }
    told = r"partial-sft cannot be written: .*Make room"
    with pytest.raises(RunError, match=told), RunFolder(folder).making("sft", {}) as partial:
        writers[name](partial / "weights")


@pytest.mark.parametrize("name", ["safetensors", "torch", "python"])
def test_fault_10_a_full_disk_in_any_writer_is_one_message(name, tmp_path) -> None:
    process = multiprocessing.get_context("fork").Process(target=small_files, args=(str(tmp_path), name))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert not (tmp_path / "sft").exists()


@full
def test_fault_11_a_log_that_cannot_be_written_is_a_warning(base_folder, tmp_path, whole: bytes, capsys) -> None:
    log = tmp_path / "dpo" / "metrics.jsonl"
    log.parent.mkdir()

    class Full(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            log.symlink_to("/dev/full")

    with pytest.MonkeyPatch.context() as patched:
        trainer_made = make

        def with_a_full_disk(*args: Any, **kwargs: Any) -> Any:
            trainer = trainer_made(*args, **kwargs)
            trainer.add_callback(Full())
            return trainer

        patched.setitem(globals(), "make", with_a_full_disk)
        train(base_folder, log.parent)
    assert capsys.readouterr().out.count(f"warning: {log} cannot be written") == 1  # once, not at every line
    assert (log.parent / WEIGHTS).read_bytes() == whole


def test_numbers_that_json_has_not_are_null_in_a_log(tmp_path) -> None:
    append_line(tmp_path / "log", {"step": 1, "grad_norm": float("inf"), "loss": float("nan"), "said": "\u2028"})
    assert json.loads((tmp_path / "log").read_text(encoding="utf-8"), parse_constant=lambda name: 1 / 0) == {
        "step": 1, "grad_norm": None, "loss": None, "said": "\u2028",
    }  # fmt: skip


class Photographs:
    """Copies a folder before every change to a file that Python's auditing tells of."""

    EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")

    def __init__(self, folder: Path, to: Path) -> None:
        self.folder, self.to, self.on, self.taken = folder, to, False, 0
        sys.addaudithook(self.see)  # for good: `on` turns it off

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or event not in self.EVENTS:
            return
        if event == "open" and not (isinstance(arguments[1], str) and set("wxa+") & set(arguments[1])):
            return
        if isinstance(arguments[0], (str, os.PathLike)) and str(self.folder) in str(arguments[0]):
            self.on = False
            shutil.copytree(self.folder, self.to / f"{self.taken:03}" / "dpo")
            self.taken += 1
            self.on = True

    def __iter__(self) -> Iterator[Path]:
        return iter(sorted(self.to.glob("*/dpo")))


@pytest.mark.slow
def test_fault_03_fault_04_killed_at_any_write_of_a_save(base_folder, left: Path, whole: bytes, tmp_path) -> None:
    """A whole checkpoint is always there, and from each kind of state it ends alike."""
    photographs = Photographs(left, tmp_path / "photographs")

    class Save(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            photographs.on = state.global_step == STEPS - 1  # the step counts after it

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            photographs.on = False

    with pytest.MonkeyPatch.context() as patched:
        trainer_made = make

        def watched(*args: Any, **kwargs: Any) -> Any:
            trainer = trainer_made(*args, **kwargs)
            trainer.add_callback(Save())
            return trainer

        patched.setitem(globals(), "make", watched)
        try:
            train(base_folder, left, limit=1)
        finally:
            photographs.on = False
    kinds: dict[tuple[Any, ...], Path] = {}
    for photograph in photographs:
        found = checkpoints.latest(photograph)
        assert found is not None, photograph
        files = frozenset(path.name for path in found.path.iterdir())
        kinds[(found.step, files, len(checkpoints.all_in(photograph)))] = photograph
    assert photographs.taken > 15
    assert {step for step, *_ in kinds} == {6, 8}
    for photograph in kinds.values():
        train(base_folder, photograph)
        assert (photograph / WEIGHTS).read_bytes() == whole, photograph
