"""What is loaded from a run folder must be what its stages wrote: every file is held against its stage's manifest.

A run of the recipe checks whole stages as it skips them; commands that load parts of a run check these parts.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llm_rlhf.errors import RunFolderError
from llm_rlhf.launch import agreed
from llm_rlhf.run_folder import MANIFEST, file_digest, whole_manifest

LEVELS = 4  # from a stage's folder to its deepest parts, value/value and snapshots/step-40
LONG = 2 << 30  # bytes from which a word is said: a disk takes seconds to read them


def check_unchanged(places: Iterable[str | Path | None]) -> None:
    """Hold each file, or all files under each folder, against the manifest of the stage that it is part of.

    Called on every process, of which one reads. A place that is part of no stage, as a hub id, has no manifest.

    Raises:
        RunFolderError: naming the first file that is missing or another than its stage wrote, and what to do.
    """
    told: str | None = agreed(lambda: _first_change([Path(place) for place in places if place is not None]))
    if told is not None:
        raise RunFolderError(told)


def check_report_unchanged(folder: Path) -> None:
    """Hold the report that lies on top of a run folder, and the replies it rests on, against the stage that made them.

    Raises:
        RunFolderError: as `check_unchanged`.
    """
    stage = folder / "evaluate"
    if _stage_of(stage) is None:  # what `llm-rlhf evaluate` wrote has no manifest
        return
    check_unchanged([stage / "report.json", *sorted(stage.glob("replies*.jsonl"))])
    if file_digest(folder / "report.json") != file_digest(stage / "report.json"):
        raise RunFolderError(
            f"{folder / 'report.json'} is not what the evaluation wrote, which is {stage / 'report.json'}. Copy that "
            "one over it, or run the recipe again, which does."
        )


def _first_change(places: list[Path]) -> str | None:
    expected: dict[Path, tuple[Path, str, int]] = {}  # by file: its stage, digest and size
    for place in places:
        found = _stage_of(place)
        if found is None:
            continue
        stage, files, inside = found
        parts = [name for name in files if inside in (".", name) or name.startswith(f"{inside}/")]
        expected |= {stage / name: (stage, files[name]["sha256"], files[name].get("bytes", 0)) for name in parts}
    size = sum(of for _, _, of in expected.values())
    if size > LONG:
        print(f"  checking {size / 2**30:.1f} GiB of weights against the manifests of their stages", flush=True)
    for path, (stage, digest, _) in expected.items():
        if not path.is_file() or file_digest(path) != digest:
            return (
                f"{path} is missing or has changed since its stage wrote it ({stage / MANIFEST} has its SHA-256). Put "
                f"the file back, or run the recipe with --from {stage.name} to make it again."
            )
    return None


def _stage_of(place: Path) -> tuple[Path, dict[str, dict[str, Any]], str] | None:
    """The folder of the stage that a place is part of, what its manifest says of its files, and the place's name in it.

    Looked for above the place as it is named, as a whole path (`.` has nothing above it), and where links lead.
    """
    for named in (place, Path(os.path.abspath(place)), place.resolve()):
        for folder in [named, *named.parents][: LEVELS + 1]:
            if (folder / MANIFEST).is_file() and (folder.parent / "recipe.yaml").is_file():
                manifest = whole_manifest(folder)
                if manifest is None:
                    raise RunFolderError(
                        f"{folder / MANIFEST} cannot be read, so that nobody knows whether {place} is as it was "
                        f"written. Put it back, or run the recipe with --from {folder.name} to make the stage again."
                    )
                return folder, manifest["files"], named.relative_to(folder).as_posix()
    return None
