"""Which runs were trained on which exports of labels, by what lies in their folders.

A run with `collect/card.json` used that card's export; one whose recipe names files beside a card (labels of a round)
used that one's. A run whose recipe names something in another run's folder goes on from it, and so does one that starts
from a model that `llm-rlhf export` wrote: its `export.json` has the digests of the weights that it is made of.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from llm_rlhf.run_folder import MANIFEST, read_json

CARD = "card.json"  # beside exported labels; of a run's own in its folder collect/
RECIPE = "recipe.yaml"
EXPORTED = "export.json"  # in a folder that `llm-rlhf export` wrote
WEIGHTS = (".safetensors", ".bin")
OWN = ("output_dir", "store")  # keys of a recipe that name what it writes, and the store: the card tells of that


class Runs:
    """The runs in some folders, at any depth.

    Attributes:
        used: run -> ids of exports that it was trained on.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        folders = list(folders)
        named = {run: set(paths) for folder in folders for run, paths in _recipes(folder)}
        cards = {place: export for folder in folders for place, export in _cards(folder)}
        self.used: dict[Path, set[str]] = {run: set() for run in named}
        for place, export in cards.items():
            if place.name == "collect":
                self.used.setdefault(place.parent, set()).add(export)
        for run, paths in named.items():
            self.used[run] |= {export for place, export in cards.items() if _any_in(paths, place.resolve())}
        self._named = named
        made = {path: weights for paths in named.values() for path in paths if (weights := _made_of(path))}
        kept = {run: _weights(run) for run in named} if made else {}
        for paths in named.values():
            for path in paths & made.keys():
                paths |= {run.resolve() for run, weights in kept.items() if weights & made[path]}

    def going_on_from(self, sources: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
        """Runs that go on from these, or from one that does; each with the one that it goes on from."""
        todo = sorted(source.resolve() for source in sources)
        seen = set(todo)
        while todo:
            source = todo.pop()
            for run, paths in self._named.items():
                if run.resolve() not in seen and _any_in(paths, source):
                    seen.add(run.resolve())
                    todo.append(run.resolve())
                    yield run, source


def _any_in(paths: Iterable[Path], folder: Path) -> bool:
    return any(path.is_relative_to(folder) for path in paths)


def _cards(folder: Path) -> Iterator[tuple[Path, str]]:
    """Folders of exported labels, with the id of their export. What is no card of ours is passed over."""
    for card in sorted(folder.rglob(CARD)):
        try:
            export = json.loads(card.read_text()).get("export")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(export, str):
            yield card.parent, export


def _recipes(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Runs, with the paths that their recipes name; a recipe that is damaged names none."""
    for recipe in sorted(folder.rglob(RECIPE)):
        if not (recipe.parent / MANIFEST).is_file():
            continue
        try:
            texts = list(_texts(yaml.safe_load(recipe.read_text(errors="replace"))))
        except (OSError, yaml.YAMLError):
            texts = []
        yield recipe.parent, [Path(text).resolve() for text in texts if "/" in text]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from () if name in OWN else _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _made_of(path: Path) -> set[str]:
    """Digests of the weights that an exported model is made of; none of anything else."""
    mark = read_json(path / EXPORTED) if path.is_dir() else None
    weights = mark.get("weights") if isinstance(mark, dict) else None
    return set(map(str, weights.values())) if isinstance(weights, dict) else set()


def _weights(run: Path) -> set[str]:
    """Digests of the weights that a run's stages made."""
    found = set()
    for manifest in run.glob(f"*/{MANIFEST}"):
        known = read_json(manifest)
        files = known.get("files") if isinstance(known, dict) else None
        if isinstance(files, dict):
            found |= {str(of.get("sha256")) for name, of in files.items() if name.endswith(WEIGHTS)}
    return found
