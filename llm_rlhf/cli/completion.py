"""What the shell offers after a key: recipes, run folders and their stages. It reads names of files, nothing else."""

from collections.abc import Callable
from pathlib import Path

from llm_rlhf.recipe.sections import METHODS


def recipes(incomplete: str) -> list[str]:
    """YAML files beside what is being typed."""
    return _below(incomplete, lambda path: path.suffix in (".yaml", ".yml"))


def policies(incomplete: str) -> list[str]:
    """Run folders, and behind a colon the stages and snapshots of one."""
    run, colon, _ = incomplete.partition(":")
    if not colon:
        return _below(incomplete, lambda path: (path / "recipe.yaml").is_file())
    stages = [stage for stage in ("sft", *METHODS) if (Path(run) / stage).is_dir()]
    snapshots = sorted(path.name for path in Path(run).glob("*/snapshots/step-*"))
    return [name for stage in ("base", *stages, *snapshots) if (name := f"{run}:{stage}").startswith(incomplete)]


def _below(incomplete: str, wanted: Callable[[Path], bool]) -> list[str]:
    """What begins as typed and is wanted, or lies in a folder that does; with none, the shell offers its own files."""
    before, slash, begun = incomplete.rpartition("/")
    found = []
    for entry in _entries(before + slash or "."):
        if entry.name.startswith(begun):
            inside = [] if wanted(entry) or not entry.is_dir() else _entries(entry)
            found += [path for path in (entry, *inside) if wanted(path)]
    return [str(path) for path in found]


def _entries(folder: str | Path) -> list[Path]:
    try:
        return sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))
    except OSError:
        return []
