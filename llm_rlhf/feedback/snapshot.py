"""What a store's labels come to at one moment, as files to train on: from click to training.

Writes into a folder: preferences.jsonl demonstrations.jsonl ratings.jsonl annotations.jsonl verdicts.jsonl card.json
The rows are the same bytes for the same labels. The card says what stands behind them; the store keeps which labels
went where, so that somebody who withdraws can be told.
"""

import contextlib
import json
import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from llm_rlhf.data.checks import opening, prompt_share
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.feedback.counted import Counted, counted
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.runs_of_labels import CARD
from llm_rlhf.feedback.tables import Batch, Export, ExportedLabel, Item, Person, now
from llm_rlhf.feedback.training_rows import TrainingRows, training_rows
from llm_rlhf.redaction import redacted_tree
from llm_rlhf.run_folder import digests, write_json

EVALUATED = "pairs whose prompts fall to evaluation"
SUMMARY = (
    "export", "created", "store", "people", "simulated_people", "imported_people", "labels", "labels_by_kind",
    "decisions", "items", "guidelines_versions", "consent_versions",
)  # fmt: skip


def write(
    database: Database,
    folder: Path,
    made_for: str | None = None,
    batches: Collection[int] | None = None,
    recorded: bool = True,
    margins: bool = True,
    becomes: Path | None = None,
    without_export: str | None = None,
    evaluation_share: float = 0.0,
) -> dict[str, Any]:
    """Write all that counts in the store into a folder, which is there, and note in the store what was exported.

    Args:
        made_for: the run it is for, as a person finds it; kept in the store and told to whoever withdraws.
        batches: ids of batches whose items alone are taken; None: all.
        recorded: False: only to look at, and gone soon; the store does not note it.
        becomes: what the folder will be called, where that is not its name yet.
        margins: False: a pair's margin stands in its `provenance`, where no loss reads it.
        without_export: an export whose items are left out.
        evaluation_share: pairs are left out whose prompts would fall to evaluation in a recipe with this share.

    Returns:
        the card.

    Raises:
        DataError: where no label counts.
    """
    while True:
        with database.read() as session:
            found = counted(session, batches, without_export)
            if not found.asked:
                raise DataError(_nothing(session, database, found))
            made = training_rows(found.asked)
            if not margins:
                _put_margins_aside(made)
            if evaluation_share:
                _leave_to_evaluation(made, evaluation_share)
            card = card_of(session, database, found, made)
        rows, of_files = write_rows(made, folder), digests(folder)
        card["files"] = {name: {**of_files[name], "rows": count} for name, count in rows.items()}
        write_json(folder / CARD, card)
        if not recorded or record(database, found, card, becomes or folder, made_for):
            return card


def _put_margins_aside(made: TrainingRows) -> None:
    for row in made.rows["preferences.jsonl"]:
        if (margin := row.pop("margin", None)) is not None:
            row["provenance"]["margin"] = margin


def _leave_to_evaluation(made: TrainingRows, share: float) -> None:
    pairs = made.rows["preferences.jsonl"]
    made.rows["preferences.jsonl"] = [row for row in pairs if prompt_share(opening(row["prompt"]), "split") >= share]
    made.left_out[EVALUATED] += len(pairs) - len(made.rows["preferences.jsonl"])


def check(store: str | Path) -> None:
    """RecipeError, DataError where there is no such store, or nothing in it to train on."""
    with _opened(store) as database, database.read() as session:
        found = counted(session)
        if not found.asked:
            raise DataError(_nothing(session, database, found))


def look_at(store: str | Path, folder: Path, margins: bool = True) -> dict[str, Any]:
    """The files as `write` writes them, of which the store notes nothing, as they are gone soon; the card."""
    with _opened(store) as database:
        return write(database, folder, recorded=False, margins=margins)


def newer(store: str | Path, card: dict[str, Any]) -> int:
    """How many labels, of questions to train on, were given since a card was written; 0 where the store is gone."""
    try:
        with _opened(store) as database, database.read() as session:
            exported = select(ExportedLabel.label_id).where(ExportedLabel.export_id == card.get("export"))
            known = set(session.scalars(exported))
            return sum(label.id not in known for label in counted(session).labels) if known else 0
    except RecipeError:
        return 0


def summary(card: dict[str, Any]) -> dict[str, Any]:
    """What of a card a run's manifest and report hold: who and what stands behind it."""
    return {name: card[name] for name in SUMMARY} | {
        "rows": {name.removesuffix(".jsonl"): of["rows"] for name, of in card["files"].items()},
        "strategies": dict(sum((Counter(batch["strategies"]) for batch in card["batches"]), Counter())),
    }


def in_words(card: dict[str, Any]) -> str:
    """Who and what stands behind the rows, in a line."""
    who = [(card["people"], "person", "people"), (card["simulated_people"], "simulated one", "simulated ones"),
           (card["imported_people"], "from a file", "from files")]  # fmt: skip
    named = [f"{count:,} {one if count == 1 else many}" for count, one, many in who if count]
    rows = [f"{name.removesuffix('.jsonl')} {of['rows']:,}" for name, of in card["files"].items() if of.get("rows")]
    labels = "1 label" if card["labels"] == 1 else f"{card['labels']:,} labels"
    return f"{labels} by {' and '.join(named) or 'nobody'}{': ' if rows else ''}{', '.join(rows)}"


@contextlib.contextmanager
def _opened(store: str | Path) -> Iterator[Database]:
    database = Database.of(store, create=False)
    try:
        yield database
    finally:
        database.close()


def write_rows(made: TrainingRows, folder: Path) -> dict[str, int]:
    """The files of rows; how many rows each has."""
    for name, rows in made.rows.items():
        write_lines(folder / name, rows)
    return {name: len(rows) for name, rows in made.rows.items()}


def record(database: Database, found: Counted, card: dict[str, Any], folder: Path, made_for: str | None = None) -> bool:
    """Note the export in one transaction; False where somebody has withdrawn since the labels were read."""
    with database.write() as session:
        gone = select(Person.id).where(Person.id.in_(sorted(found.people)), Person.withdrawn.is_not(None)).limit(1)
        if session.scalar(gone) is not None:
            return False
        details = {**card, "folder": str(folder.absolute()), "made_for": made_for}
        session.add(Export(id=card["export"], details=details))
        session.flush()
        session.add_all(
            ExportedLabel(export_id=card["export"], label_id=label.id, person_id=label.person_id)
            for label in found.labels
        )
    return True


def card_of(session: Session, database: Database, found: Counted, made: TrainingRows) -> dict[str, Any]:
    """Who and what stands behind the labels that count, and what came to nothing."""
    kinds = {one.item.id: one.item.kind for one in found.asked}
    people = list(found.people.values())
    return {
        "export": secrets.token_hex(8),
        "created": now().isoformat(timespec="seconds") + "Z",
        "store": database.name,
        "people": sum(not (person.simulated or person.imported) for person in people),
        "simulated_people": sum(person.simulated for person in people),
        "imported_people": sum(person.imported and not person.simulated for person in people),
        "labels": len(found.labels),
        "labels_by_kind": _counts(kinds[label.item_id] for label in found.labels),
        "hasty_labels": sum(label.hasty for label in found.labels),
        "decisions": found.decisions,
        "items": len(found.asked),
        "left_out": {
            "labels": dict(sorted(found.left_out.items())),
            "rows": {reason: count for reason, count in sorted(made.left_out.items()) if count},
            "skips": sum(len(one.skipped) for one in found.asked),
        },
        "guidelines_versions": _versions(label.guidelines_version for label in found.labels),
        "consent_versions": _versions(label.consent_version for label in found.labels),
        "batches": _batches(session, [one.item for one in found.asked]),
    }


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _versions(of_labels: Iterable[int | None]) -> list[int]:
    return sorted({version for version in of_labels if version is not None})


def _batches(session: Session, items: list[Item]) -> list[dict[str, Any]]:
    """By which rules the items that were labelled had been selected, batch by batch."""
    together: dict[int, list[Item]] = {}
    for item in items:
        together.setdefault(item.batch_id, []).append(item)
    return [
        {
            "id": number,
            "made_by": (batch := session.get_one(Batch, number)).made_by,
            "details": redacted_tree(batch.details),
            "items": len(of_batch),
            "strategies": _counts(item.strategy or "none" for item in of_batch),
            "propensities": _propensities(of_batch),
        }
        for number, of_batch in sorted(together.items())
    ]


def _propensities(items: list[Item]) -> dict[str, Any] | None:
    """The probabilities of having been selected; None where nothing was drawn."""
    known = sorted(item.propensity for item in items if item.propensity is not None)
    if not known:
        return None
    # Kish's number: how many items drawn alike would tell as much, when each counts by the inverse of its probability
    weights = [1 / one for one in known]
    return {
        "known": len(known),
        "unknown": len(items) - len(known),
        "lowest": known[0],
        "median": known[len(known) // 2],
        "highest": known[-1],
        "effective_items": round(sum(weights) ** 2 / sum(weight**2 for weight in weights), 1),
    }


def _nothing(session: Session, database: Database, found: Counted) -> str:
    """What to do where there is nothing to train on."""
    if found.left_out:
        why = ", ".join(f"{count} {reason}" for reason, count in found.left_out.most_common())
        return f"No label in the store {database.name} counts: {why}. People must label before a run can train on it."
    if session.scalar(select(Item.id).limit(1)) is None:
        return (
            f"The store {database.name} is empty. Put questions into it (llm-rlhf feedback select), let people answer "
            "them (llm-rlhf feedback serve), then run again."
        )
    return (
        f"Nobody has answered a question of the store {database.name} yet. Let people answer them "
        "(llm-rlhf feedback serve), then run again."
    )


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Rows as JSON lines, whatever a model has written in them."""
    with path.open("wb") as file:
        file.writelines(_line(row) for row in rows)


def _line(row: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half a character, which a model can write; whoever reads the row sets it aside
        return (json.dumps(row) + "\n").encode()
