"""What a run leaves, so that it can be moved: folders of adapters, and which base one stands on.

A base inside the adapter's own run is named from the adapter's folder (`../../sft/model`), a base from the hub by its
id. Older runs named it by its path from the directory that they were made in; these are still found.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from llm_rlhf.run_folder import read_json, write_json, write_text
from llm_rlhf.runs import BASES

CONFIG = "adapter_config.json"
_BASE = "base_model_name_or_path"
_LEVELS = 4  # from a run to its deepest adapters, RUN/ppo/snapshots/step-40 and RUN/ppo/value/value


def recorded_base(folder: str | Path) -> str:
    """What an adapter's file calls its base; ValueError where it names none."""
    path = Path(folder) / CONFIG
    try:
        recorded = json.loads(path.read_text(encoding="utf-8")).get(_BASE)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not recorded:
        raise ValueError(f"The adapter {folder} does not say what its base is ({_BASE} is empty in {path}).")
    return str(recorded)


def places_of_base(folder: str | Path) -> list[Path]:
    """Folders where the base of an adapter may be, the likeliest first.

    From the adapter's own folder, where it is named so; else, where it is one that runs make, in the adapter's own run,
    as a copied run stands on its own files; from the working directory; and from the adapter's folder.
    """
    folder, recorded = Path(folder), Path(recorded_base(folder))
    from_here = Path(os.path.normpath(folder / recorded))
    if recorded.parts and recorded.parts[0] in (".", ".."):
        return [from_here, recorded]
    runs = list(folder.absolute().parents)[:_LEVELS] if recorded.parts[-2:] in BASES else []
    return [*(run / Path(*recorded.parts[-2:]) for run in runs), recorded, from_here]


def base_of(folder: str | Path) -> str:
    """The folder of an adapter's base where there is one, else the hub id that the adapter names.

    Raises:
        ValueError: where it names a folder that is not there, or nothing.
    """
    places = places_of_base(folder)
    for place in places:
        if (place / "config.json").is_file():
            return str(place)
    recorded = recorded_base(folder)
    if is_hub_id(recorded):
        return recorded
    raise ValueError(
        f"The adapter {folder} stands on {recorded}, which is not there; nor is there a model at "
        f"{' or '.join(dict.fromkeys(map(str, places)))}."
    )


def is_hub_id(name: str) -> bool:
    """Whether it is written as an id of the hub, and not as a path."""
    return not (Path(name).is_absolute() or len(Path(name).parts) > 2 or name.startswith((".", "~")))


def name_base_from_folder(folder: Path, run: Path) -> str:
    """Write the base of an adapter of this run so that both can be moved together; what is written is returned."""
    recorded = recorded_base(folder)
    base = Path(recorded)
    if base.parts[0] == "..":  # of an adapter that another one began as
        base = run / Path(*(part for part in base.parts if part != ".."))
    if base.is_dir() and base.absolute().is_relative_to(run.absolute()):
        named = Path(os.path.relpath(base, folder)).as_posix()
        write_json(folder / CONFIG, json.loads((folder / CONFIG).read_text(encoding="utf-8")) | {_BASE: named})
        return named
    return recorded


_CARD = """---
library_name: peft
{base}tags:
- llm-rlhf
---

# {name}

A {kind} on `{on}`, left by a stage of a run of llm-rlhf. {how}
To hand it on, `llm-rlhf export` makes a folder that loads anywhere, with a model card that says what was measured.
"""
"""What an adapter's README.md says, in place of PEFT's empty one."""


def write_card(folder: Path, name: str) -> None:
    """A short README.md beside an adapter."""
    known: dict[str, Any] = read_json(folder / CONFIG) or {}
    base = recorded_base(folder)
    hub = is_hub_id(base)
    how = "" if hub else "The path is from this folder; both move together. "
    kind = "reward model's adapter and score head" if known.get("task_type") == "SEQ_CLS" else "LoRA adapter"
    text = _CARD.format(name=name, kind=kind, on=base, how=how.strip(), base=f"base_model: {base}\n" if hub else "")
    write_text(folder / "README.md", text)


_TEXT = (".json", ".jsonl", ".md", ".html", ".yaml")
_OF_THE_TRAINERS = ("training_args.bin", "README.md")  # pickled paths of this machine; cards of no model


def make_movable(folder: Path, run: Path) -> None:
    """Take the place of the run out of what a stage of it has left in `folder`.

    Adapters name their base from where they are, and get a short card; what the trainers wrote of themselves goes; and
    in every text, files of the run are named from its folder.
    """
    for path in [path for name in _OF_THE_TRAINERS for path in folder.rglob(name)]:
        path.unlink()
    for config in folder.rglob(CONFIG):
        name_base_from_folder(config.parent, run)
        place = config.parent.relative_to(folder.parent).as_posix().removeprefix("partial-")
        write_card(config.parent, f"{run.name}/{place}")
    places = [re.escape(str(run.absolute()))]
    if not run.is_absolute():  # as files of it were named by the recipe
        places.append(r'(?<=")' + re.escape(str(run)))
    here = re.compile(f"(?:{'|'.join(places)})" + r"(/|(?![\w.-]))")
    for path in folder.rglob("*"):
        if path.suffix in _TEXT and path.is_file():
            text = path.read_text(encoding="utf-8")
            named = here.sub(lambda found: "" if found[1] else ".", text)
            if named != text:
                write_text(path, named)
