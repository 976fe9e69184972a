"""A run folder: locked while in use, and holding only artefacts that were finished and are unchanged.

    runs/NAME/  recipe.yaml  manifest.json  report.html  report.md  report.json
      data/     counts.json, quarantine.jsonl
      collect/  what people have said, where the recipe asks for it
      sft/ reward/ ppo/ evaluate/     artefacts; each with manifest.json (SHA-256 of every file) and metrics.jsonl
      partial-STAGE/                  what a stage is writing; never taken for finished, but training goes on from it
      archive/TIME/                   what --from replaced

A stage writes into `partial-STAGE`; when it is done, the manifest is written last and the folder is renamed, so that
a run killed at any moment leaves either the finished artefact or none. Its checkpoints are no part of the artefact, and
go when that is there. All processes of a launch walk the stages together; only the main one touches these files.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from llm_rlhf.errors import RunError, RunFolderError, first_line, of_disk, shown
from llm_rlhf.launch import blind_processes, processes
from llm_rlhf.progress import tell
from llm_rlhf.provenance import git_state, machine, versions
from llm_rlhf.redaction import redacted_strings, redacted_tree

MANIFEST = "manifest.json"
LOCK = ".lock"
INPUTS = "inputs.json"  # of a stage that is not finished
CHECKPOINTS = "checkpoint-*"  # folders of an unfinished training, at any depth of its stage
SPENT = re.compile(r"checkpoint-\d+(-damaged)?")  # what we wrote of these; others are somebody's
PROGRESS = (CHECKPOINTS, "replies", "picked.jsonl")  # what took long, and an interrupted stage goes on from
CHANGES_SHOWN, KEYS_SHOWN = 5, 3  # of a recipe that is another; of a row or section that one of two lacks


class RunFolder:
    """One run's folder.

    Args:
        path: where it is or will be.
        as_today: reads the inputs of a stage that an older version recorded under other names.
        written: whether this launch writes into it; what is only read may lie on a disk that cannot be written.

    Raises:
        RunFolderError: where the folder that is to be written cannot be, or the processes do not share it.
    """

    def __init__(
        self, path: str | Path, as_today: Callable[[dict[str, Any]], dict[str, Any]] = dict, written: bool = True
    ) -> None:
        self.path, self.as_today = Path(path), as_today
        self.allow_partial_resume = False  # go on from a checkpoint that lacks its optimizer's state, or the like
        self.followers: list[Callable[[str, int, Mapping[str, Any]], None]] = []  # told of every stage's metrics
        self.computed: dict[str, str] = {}  # how the stage at work computes, for its manifest (training.how_computed)
        self.state = processes()
        if not written:
            return
        self._is_new = not self.path.exists()
        if self.state.is_main_process:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                probe = self.path / ".writable"
                probe.touch()
                probe.unlink()
            except OSError as error:
                raise RunFolderError(
                    f"The run folder {self.path} cannot be written: {error}. Set output_dir."
                ) from None
        self.state.wait_for_everyone()
        if blind := blind_processes(self.path):
            raise RunFolderError(
                f"The run folder {self.path} is not the same for all processes: {', '.join(blind)} cannot see what the "
                "first one writes there. Set output_dir to a disk that all machines share."
            )

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this launch; a second run on it is refused.

        A folder that was made for this launch goes again where nothing was put into it: the recipe was refused.
        """
        lock = FileLock(self.path / LOCK, timeout=0)
        if self.state.is_main_process:
            try:
                lock.acquire()
            except Timeout:
                raise RunFolderError(
                    f"Another run is using {self.path}; wait for it, or set another output_dir."
                ) from None
        try:
            yield
        except BaseException:
            if self.state.is_main_process and self._is_new and [one.name for one in self.path.iterdir()] == [LOCK]:
                shutil.rmtree(self.path, ignore_errors=True)
            raise
        finally:
            lock.release()

    def finished(self, stage: str, inputs: dict[str, Any]) -> bool:
        """Whether the stage's artefact is there, unchanged, and made from the same inputs.

        Raises:
            RunFolderError: where it is there but its files or its inputs differ; says what differs. Where an
                interrupted launch left half of it, begun from other inputs, that would be lost.
        """
        folder = self.path / stage
        if not folder.exists():
            self._check_begun(stage, inputs)
            return False
        self._remove_spent(folder)
        manifest = whole_manifest(folder)
        again = f"Run with --from {stage} to make it again (the old one moves to {self.path / 'archive'})"
        if manifest is None:
            raise RunFolderError(f"{folder} has no readable {MANIFEST}, so it was not finished here. {again}.")
        damaged = [
            name for name, entry in manifest["files"].items() if _digest_or_none(folder / name) != entry["sha256"]
        ]
        if damaged:
            raise RunFolderError(f"{folder / damaged[0]} is missing or has changed since it was written. {again}.")
        if changes := self._changes(manifest.get("inputs", {}), inputs):
            raise RunFolderError(f"{folder} was made by another recipe: {changes}. {again}, or set another output_dir.")
        return True

    def _check_begun(self, stage: str, inputs: dict[str, Any]) -> None:
        partial = self._partial(stage)
        if not _has_progress(partial):
            return
        recorded = read_json(partial / INPUTS)
        anew = f"Run with --from {stage} to begin anew (what is there moves to {self.path / 'archive'})"
        if not isinstance(recorded, dict):
            raise RunFolderError(
                f"{partial} holds what an interrupted launch has trained so far, but not from which recipe: {INPUTS} "
                f"cannot be read. {anew}."
            )
        if changes := self._changes(recorded, inputs):
            raise RunFolderError(
                f"{partial} holds what an interrupted launch has trained so far, by another recipe: {changes}. Change "
                f"it back to go on from there. {anew}, or set another output_dir."
            )

    def _changes(self, recorded: dict[str, Any], inputs: dict[str, Any]) -> str:
        """In words, the first ways in which the inputs of a stage differ from those recorded; empty where none."""
        changes = differences(self.as_today(recorded), _plain(inputs))
        more = f"; and {len(changes) - CHANGES_SHOWN} more" if len(changes) > CHANGES_SHOWN else ""
        return "; ".join(changes[:CHANGES_SHOWN]) + more

    def _partial(self, stage: str) -> Path:
        return self.path / f"partial-{stage}"

    def _remove_spent(self, folder: Path) -> None:
        """Delete what a finished stage needed while it trained."""
        if not self.state.is_main_process:
            return
        (folder / INPUTS).unlink(missing_ok=True)
        for spent in [path for path in folder.rglob(CHECKPOINTS) if path.is_dir() and SPENT.fullmatch(path.name)]:
            remove(spent)

    @contextlib.contextmanager
    def making(self, stage: str, inputs: dict[str, Any], resumes: bool = False) -> Iterator[Path]:
        """A folder to write a stage's artefact into; it becomes the artefact when the block ends without an error.

        Args:
            resumes: the stage can go on from what an interrupted launch left there, if that was made from the same
                inputs; otherwise the folder is empty.

        Raises:
            RunError: where the disk is full, or fails.
        """
        partial, self.computed = self._partial(stage), {}
        if self.state.is_main_process and not (resumes and self._begun_from(inputs, partial)):
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir()
            write_json(partial / INPUTS, _plain(inputs))
        self.state.wait_for_everyone()
        started = time.monotonic()
        try:
            yield partial
            self.state.wait_for_everyone()
            self._finish(stage, inputs, started)
        except Exception as error:
            if not of_disk(error):
                raise
            raise RunError(
                f"{partial} cannot be written: {first_line(error)}. Make room, and give the same command again: it "
                "goes on from what is there."
            ) from error
        self.state.wait_for_everyone()

    def _finish(self, stage: str, inputs: dict[str, Any], started: float) -> None:
        """Declare what a stage has written its artefact."""
        partial = self._partial(stage)
        if self.state.is_main_process:
            open_to_readers(partial)
            manifest = {
                "stage": stage,
                "seconds": round(time.monotonic() - started, 3),
                "processes": self.state.num_processes,
                "machine": machine(),
                **({"computed": self.computed} if self.computed else {}),
                "inputs": _plain(inputs),
                "files": {name: known for name, known in digests(partial).items() if _is_kept(name)},
            }
            write_json(partial / MANIFEST, manifest)
            sync(partial)
            os.rename(partial, self.path / stage)
            sync(self.path, deep=False)
            self._remove_spent(self.path / stage)

    def archive(self, stages: list[str]) -> list[str]:
        """Move what these stages made, or were making, to `archive/TIME/`; returns the names moved."""
        moved = [name for name in stages if (self.path / name).exists()]
        moved += [f"partial-{name}" for name in stages if _has_progress(self._partial(name))]
        if self.state.is_main_process:
            move_to_archive(self.path, moved)
        self.state.wait_for_everyone()
        return moved

    def manifest(self, stage: str) -> dict[str, Any]:
        """The manifest of a finished stage."""
        manifest = whole_manifest(self.path / stage)
        if manifest is None:
            raise RunFolderError(f"{self.path / stage} is not finished; run the recipe without --only first.")
        return manifest

    def _begun_from(self, inputs: dict[str, Any], partial: Path) -> bool:
        """Whether an interrupted launch began the stage from these inputs."""
        recorded = read_json(partial / INPUTS)
        return recorded is not None and self.as_today(recorded) == _plain(inputs)

    def describe(self, recipe: dict[str, Any]) -> None:
        """Save the resolved recipe, versions and git state of this launch.

        The recipe without its `output_dir`, which is where it lies, also when the folder has been moved.
        """
        if not self.state.is_main_process:
            return
        recipe = {key: value for key, value in recipe.items() if key != "output_dir"}
        recipe = redacted_tree(recipe)  # one that was made in Python has not been looked at
        write_text(self.path / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
        before = read_json(self.path / MANIFEST)
        kept = {"round": before["round"]} if isinstance(before, dict) and "round" in before else {}
        write_json(
            self.path / MANIFEST,
            kept
            | {
                "launched": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "chat_template_date": (recipe.get("model") or {}).get("chat_template_date"),
                "processes": self.state.num_processes,
                "device": str(self.state.device),
                "machine": machine(),
                "versions": versions(),
                "git": git_state(),
            },
        )


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """What differs between two trees of plain values, one "key: old -> new" each; rows of a list by their numbers."""
    if isinstance(old, list) and isinstance(new, list) and any(isinstance(row, dict) for row in (*old, *new)):
        old, new = (dict(enumerate(rows)) for rows in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in [*old, *(k for k in new if k not in old)]:
            found += differences(old.get(key), new.get(key), f"{prefix}{key}.")
        return found
    return [] if old == new else [f"{prefix.rstrip('.')}: {_shown(old)} -> {_shown(new)}"]


def _shown(value: Any) -> str:
    """A value in a few words: of a row or a section that only one of two has, the first keys that say something."""
    if value is None:
        return "not set"
    if not isinstance(value, dict):
        return shown(value)
    telling = [f"{key}: {_shown(of)}" for key, of in value.items() if of not in (None, [], {})]
    return f"{{{', '.join(telling[:KEYS_SHOWN])}{', ...' if len(telling) > KEYS_SHOWN else ''}}}"


def read_json(path: Path) -> Any:
    """What the file holds; None where there is no readable JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def whole_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished stage; None where it is none, half of one, or not there."""
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not isinstance(manifest.get("inputs", {}), dict):
        return None
    return manifest if all(isinstance(entry, dict) and "sha256" in entry for entry in files.values()) else None


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one; without secrets."""
    write_text(path, json.dumps(redacted_strings(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write through a temporary file beside `path`, so that a reader never meets half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def open_to_readers(folder: Path) -> None:
    """Give every file under the folder at least the mode that the umask gives a new one.

    safetensors and others write through temporary files, which nobody but their owner may read, and rename these: a
    server with an account of its own could not load such weights.
    """
    probe = folder / f".mode-{os.getpid()}"
    probe.touch()
    wanted = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if not path.is_file() or path.is_symlink():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode | wanted != mode:
            path.chmod(mode | wanted)


def writable(folder: Path) -> None:
    """Make the folder; RunFolderError where that, or a file in it, cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunFolderError(f"Nothing can be written into the folder {folder}: {error}; name another.") from None


def move_to_archive(folder: Path, names: Sequence[str]) -> None:
    """Move these files and folders of a folder to its `archive/TIME/`, so that nothing is written over."""
    if not names:
        return
    now = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    places = (folder / "archive" / (f"{now}-{number}" if number else now) for number in itertools.count())
    target = next(place for place in places if not place.exists())  # a clock may go back
    target.mkdir(parents=True)
    for name in names:
        os.rename(folder / name, target / name)


def text_digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path, but: str = "") -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file under a folder, by its name there; `but` one that is left out."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / but)
    return {p.relative_to(folder).as_posix(): {"sha256": file_digest(p), "bytes": p.stat().st_size} for p in files}


def remove(folder: Path) -> None:
    """Delete what is no longer needed; where that fails, a word and no more."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        tell(f"warning: {folder} is no longer needed but cannot be deleted: {error}.")


def _is_kept(name: str) -> bool:
    """Whether a file of a partial folder, by its name there, becomes part of the artefact."""
    return name not in (INPUTS, MANIFEST) and not any(map(SPENT.fullmatch, Path(name).parts[:-1]))


def _has_progress(partial: Path) -> bool:
    return any(next(partial.rglob(pattern), None) is not None for pattern in PROGRESS)


def _digest_or_none(path: Path) -> str | None:
    return file_digest(path) if path.is_file() else None


def _plain(value: Any) -> Any:
    """As it is read back from a file."""
    return json.loads(json.dumps(redacted_tree(value)))


def sync(folder: Path, deep: bool = True) -> None:
    """Make the folder's entries, and everything in it (`deep`), survive a power cut."""
    for path in [*(folder.rglob("*") if deep else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
