"""Who has withdrawn, which exports made before hold labels of theirs, and which runs were trained on those.

A run that used labels has `collect/card.json` with the id of its export; an export that was written for a run names it.
A run whose recipe starts from a folder of an affected one (a model, data) is affected through it.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from llm_rlhf.feedback.tables import Export, ExportedLabel, Label, Person
from llm_rlhf.run_folder import MANIFEST

CARDS = "collect/card.json"  # below a run's folder
RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Exported:
    """An export that holds labels of somebody."""

    id: str
    created: datetime
    labels: int  # of theirs
    folder: str | None
    made_for: str | None  # the run it was written for, where it was for one


@dataclass(frozen=True)
class Affected:
    """A run that was trained on labels of somebody who has withdrawn since."""

    run: str
    export: str | None  # None: through another run alone
    through: str | None = None  # that run


@dataclass(frozen=True)
class Withdrawal:
    person: str
    when: datetime
    kept: int  # labels that are still in the store, exported no more
    exports: list[Exported]
    runs: list[Affected]

    def as_json(self) -> dict[str, Any]:
        told = asdict(self)
        told["when"] = self.when.isoformat(timespec="seconds") + "Z"
        for export in told["exports"]:
            export["created"] = export["created"].isoformat(timespec="seconds") + "Z"
        return told


def withdrawals(session: Session, folders: Iterable[Path]) -> list[Withdrawal]:
    """Of everybody who has withdrawn, the latest first.

    Args:
        folders: that runs lie in, at any depth.
    """
    gone = session.scalars(select(Person).where(Person.withdrawn.is_not(None)).order_by(Person.withdrawn.desc())).all()
    if not gone:
        return []
    folders = list(folders)
    used = dict(_used(folders))
    recipes = dict(_recipes(folders))
    return [_of(session, person, used, recipes) for person in gone]


def _of(session: Session, person: Person, used: dict[Path, str], recipes: dict[Path, list[Path]]) -> Withdrawal:
    assert person.withdrawn is not None, "only who has withdrawn is asked for"
    kept = session.scalar(select(func.count()).select_from(Label).where(Label.person_id == person.id)) or 0
    counts = (
        select(ExportedLabel.export_id, func.count())
        .where(ExportedLabel.person_id == person.id)
        .group_by(ExportedLabel.export_id)
    )
    theirs = {row[0]: row[1] for row in session.execute(counts)}
    query = select(Export).where(Export.id.in_(sorted(theirs))).order_by(Export.created, Export.id)
    exports = [
        Exported(one.id, one.created, theirs[one.id], one.details.get("folder"), one.details.get("made_for"))
        for one in session.scalars(query)
    ]
    direct = {run: export for run, export in used.items() if export in theirs}
    runs = [Affected(str(run), export) for run, export in sorted(direct.items())]
    found = {run.resolve() for run in direct}
    for one in exports:
        if one.made_for is not None and (named := Path(one.made_for).resolve()) not in found:
            runs.append(Affected(one.made_for, one.id))
            found.add(named)
    return Withdrawal(person.pseudonym, person.withdrawn, kept, exports, [*runs, *_through(found, recipes)])


def _through(found: set[Path], recipes: dict[Path, list[Path]]) -> list[Affected]:
    """Runs whose recipes name something in the folder of an affected run, and so on."""
    runs, seen, todo = [], set(found), sorted(found)
    while todo:
        source = todo.pop()
        for run, named in recipes.items():
            if run.resolve() not in seen and any(path.is_relative_to(source) for path in named):
                runs.append(Affected(str(run), None, str(source)))
                seen.add(run.resolve())
                todo.append(run.resolve())
    return runs


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, one in value.items():
            if name not in (
                "output_dir",
                "store",
            ):  # its own folder, and where labels came from: the card tells of those
                yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _used(folders: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Runs that used labels, with the id of their export."""
    for folder in folders:
        for card in sorted(folder.rglob(CARDS)):
            try:
                export = json.loads(card.read_text()).get("export")
            except (OSError, ValueError, AttributeError):
                continue  # no card of ours; a run's own check tells of a damaged one
            if isinstance(export, str):
                yield card.parent.parent, export


def _recipes(folders: Iterable[Path]) -> Iterator[tuple[Path, list[Path]]]:
    """Runs, with the paths that their recipes name."""
    for folder in folders:
        for recipe in sorted(folder.rglob(RECIPE)):
            if (recipe.parent / MANIFEST).is_file():
                with contextlib.suppress(OSError, yaml.YAMLError):  # a run's own check tells of a damaged one
                    values = _texts(yaml.safe_load(recipe.read_text(errors="replace")))
                    yield recipe.parent, [Path(value).resolve() for value in values if "/" in value]
