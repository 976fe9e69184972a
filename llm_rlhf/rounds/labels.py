"""What people have said when a round begins: one snapshot, its pairs told apart by the round that they are about.

Beside what was asked about the rounds, everything else that the store holds counts: chats, what came from files and
logs, what somebody selected by hand. What was asked for rounds of another name is theirs.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from llm_rlhf.errors import DataError
from llm_rlhf.feedback import snapshot
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.tables import Assignment, Batch, ExportedLabel, Item, Label, Person
from llm_rlhf.json_lines import read_json_lines
from llm_rlhf.run_folder import read_json

PAIRS, DEMONSTRATIONS, RATINGS = "preferences.jsonl", "demonstrations.jsonl", "ratings.jsonl"


def labels_folder(folder: Path, number: int) -> Path:
    """Where the labels lie that a round is trained on."""
    return folder / "labels" / f"for-round-{number}"


def pairs_about(labels: Path, about: int) -> Path:
    """The file of the pairs about a round's answers, among the labels for a later one."""
    return labels / f"about-round-{about}.jsonl"


def other_pairs(labels: Path) -> Path:
    """The file of the pairs that nobody was asked for by a round."""
    return labels / "others.jsonl"


def write_labels(
    database: Database,
    target: Path,
    run: Path,
    batches: dict[int, int],
    margins: bool = False,
    without_export: str | None = None,
    evaluation_share: float = 0.0,
) -> dict[str, Any]:
    """The card of the labels that a round is trained on, written down once: what is there is what it was begun with.

    Unless somebody of them has withdrawn before any stage was begun with it: then they are written down anew.

    Args:
        run: the round's folder, which somebody who withdraws is told of.
        batches: by earlier round, the batch that was asked about it.
        margins: how much better people found the one is the pair's margin, which the loss reads.
        without_export: what the first round collected, whose questions are among its data already.
        evaluation_share: of the recipe's pairs, which must stay what it is. What rounds ask never falls there; of what
            else was said, pairs that would are left out.

    Raises:
        DataError: where no label counts.
    """
    known = read_json(target / snapshot.CARD)
    begun = run.is_dir() and any(one.is_dir() for one in run.iterdir())
    if isinstance(known, dict) and (begun or not _withdrawn(database, known)):
        return known
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    made_for = str(run.absolute())  # whoever reads of it may stand elsewhere
    taken = [*batches.values(), *_others(database)]
    try:
        card = snapshot.write(
            database, partial, made_for, taken, margins=margins, becomes=target, without_export=without_export,
            evaluation_share=evaluation_share,
        )  # fmt: skip
    except DataError:
        partial.rmdir()
        raise
    rows = read_json_lines(partial / PAIRS)
    files = {pairs_about(partial, about): _items(database, batch) for about, batch in batches.items()}
    for file, items in files.items():
        snapshot.write_lines(file, [row for row in rows if _items_of(row) & items])
    asked = frozenset().union(*files.values())
    snapshot.write_lines(other_pairs(partial), [row for row in rows if not _items_of(row) & asked])
    shutil.rmtree(target, ignore_errors=True)
    os.rename(partial, target)
    return card


def _others(database: Database) -> list[int]:
    """The batches that no rounds have asked for."""
    with database.read() as session:
        return [batch.id for batch in session.scalars(select(Batch)) if "rounds" not in batch.details]


def _withdrawn(database: Database, card: dict[str, Any]) -> bool:
    """Whether somebody whose labels a card tells of has withdrawn since."""
    gone = select(ExportedLabel.label_id).join(Person, Person.id == ExportedLabel.person_id)
    gone = gone.where(ExportedLabel.export_id == card.get("export"), Person.withdrawn.is_not(None)).limit(1)
    with database.read() as session:
        return session.scalar(gone) is not None


def progress_of(database: Database, batch: int) -> tuple[int, int]:
    """Labels that count of a batch, each person's first of each question, and how many are wanted of it."""
    of_batch = (Item.batch_id == batch, Item.state == "open")  # what is held waits for a lead, and nobody for it
    with database.read() as session:
        wanted = session.scalar(select(func.coalesce(func.sum(Item.wanted), 0)).where(*of_batch))
        labels = select(func.count()).select_from(Label).join(Item, Item.id == Label.item_id)
        labels = labels.join(Assignment, Assignment.id == Label.assignment_id)
        labels = labels.join(Person, Person.id == Label.person_id)
        said = session.scalar(labels.where(*of_batch, Assignment.turn == 1, Person.withdrawn.is_(None)))
    return said or 0, int(wanted or 0)


def _items(database: Database, batch: int) -> frozenset[int]:
    with database.read() as session:
        return frozenset(session.scalars(select(Item.id).where(Item.batch_id == batch)))


def _items_of(row: dict[str, Any]) -> set[int]:
    provenance = row["provenance"]
    return {provenance["item"], *provenance.get("items", [])}
