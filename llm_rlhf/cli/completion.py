"""What the shell offers after a key: recipes, run folders and their stages. It reads names of files, nothing else."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llm_rlhf.recipe.sections import METHODS

ASKED = "_LLM_RLHF_COMPLETE"  # by typer's script for the shell, with the words typed in COMP_WORDS, one a line


@contextlib.contextmanager
def colons_whole() -> Iterator[None]:
    """Within, bash's completion of RUN:STAGE: bash cuts words at colons, and replaces the last piece alone.

    The pieces are put together before they are completed, and what stands before the last colon is taken off what is
    offered, as bash-completion's `__ltrim_colon_completions` does. Where COMP_WORDBREAKS has no colon, nothing is cut.
    """
    if os.environ.get(ASKED) != "complete_bash":
        yield
        return
    words = os.environ.get("COMP_WORDS", "").split("\n")[: int(os.environ.get("COMP_CWORD", 0)) + 1]
    whole = joined(words)
    os.environ |= {"COMP_WORDS": "\n".join(whole), "COMP_CWORD": str(len(whole) - 1)}
    offered = io.StringIO()
    try:
        with contextlib.redirect_stdout(offered):
            yield
    finally:
        cut = "" if whole[-1:] == words[-1:] else whole[-1].rpartition(":")[0] + ":"
        print("\n".join(line.removeprefix(cut) for line in offered.getvalue().splitlines()))


def joined(words: Sequence[str]) -> list[str]:
    """The words, those that bash cut at colons put together again."""
    whole: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        of_the_last = set(word) == {":"} or (set(before) == {":"} and word)  # an empty word stands behind a space
        if of_the_last and whole:
            whole[-1] += word
        else:
            whole.append(word)
    return whole


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
