"""Who has withdrawn, which exports made before hold labels of theirs, and which runs were trained on those.

Runs are found in their folders (runs_of_labels.py); an export that was written for a run names it, too.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from llm_rlhf.feedback.runs_of_labels import Runs
from llm_rlhf.feedback.tables import Export, ExportedLabel, Label, Person


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
    runs = Runs(folders)
    return [_of(session, person, runs) for person in gone]


def _of(session: Session, person: Person, known: Runs) -> Withdrawal:
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
    runs = [
        Affected(str(run), export)
        for run, used in sorted(known.used.items())
        for export in sorted(used & theirs.keys())
    ]
    found = {Path(one.run).resolve() for one in runs}
    for one in exports:
        if one.made_for is not None and (named := Path(one.made_for).resolve()) not in found:
            runs.append(Affected(one.made_for, one.id))
            found.add(named)
    runs += [Affected(str(run), None, str(source)) for run, source in known.going_on_from(found)]
    return Withdrawal(person.pseudonym, person.withdrawn, kept, exports, runs)
