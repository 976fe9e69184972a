"""A store's questions and labels as files that others read; the store notes whose labels they hold."""

from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.feedback import snapshot
from llm_rlhf.feedback.counted import Counted, counted
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.documents import current
from llm_rlhf.feedback.exchange import argilla, jsonl, label_studio, potato
from llm_rlhf.feedback.exchange.entries import Entry, Told
from llm_rlhf.feedback.queue import Question
from llm_rlhf.feedback.settings import settings_of
from llm_rlhf.feedback.tables import Batch, Decision, Item
from llm_rlhf.feedback.training_rows import training_rows
from llm_rlhf.run_folder import digests, writable, write_json

FORMATS = ("jsonl", "potato", "argilla", "label-studio")


def export(database: Database, folder: Path, form: str) -> dict[str, Any]:
    """Write the questions that are open or answered, with every label that counts, into an empty folder.

    Args:
        form: one of FORMATS. jsonl is labels.jsonl beside the files that a run would train on.

    Returns:
        the card, which lies beside the files.

    Raises:
        RecipeError: where the folder is not empty. DataError: where there is no question.
    """
    if form not in FORMATS:
        raise RecipeError(f"--format is {form!r}; it is one of {', '.join(FORMATS)}.")
    if folder.is_dir() and any(folder.iterdir()):
        raise RecipeError(f"The folder {folder} is not empty; name another, so that nothing is written over.")
    writable(folder)
    with database.read() as session:
        found = counted(session)
        entries = _entries(session, found)
        labels, guidelines = settings_of(session).labels, current(session, "guidelines").text
        made = training_rows(found.asked)
        card = snapshot.card_of(session, database, found, made)
    if not entries:
        raise DataError(f"The store {database.name} has no question to export.")
    rows = {}
    if form == "jsonl":
        rows = snapshot.write_rows(made, folder)
        jsonl.write(entries, folder / jsonl.LABELS)
    elif form == "potato":
        potato.write(entries, folder, labels)
    elif form == "argilla":
        argilla.write(entries, folder, labels, guidelines)
    else:
        label_studio.write(entries, folder, labels)
    card |= {"format": form, "questions": len(entries)}
    card["files"] = {name: of | ({"rows": rows[name]} if name in rows else {}) for name, of in digests(folder).items()}
    write_json(folder / snapshot.CARD, card)
    if not snapshot.record(database, found, card, folder):
        raise DataError("Somebody has withdrawn while the files were written. Delete them, and export again.")
    return card


def _entries(session: Session, found: Counted) -> list[Entry]:
    """Every question that may be shown, in the store's order: those that were answered, and those that are open."""
    labels = {label.id: label for label in found.labels}
    told = {
        one.item.id: [
            Told(
                said.pseudonym,
                said.value,
                labels[said.label].seconds if said.label is not None else None,
                labels[said.label].created if said.label is not None else None,
            )
            for said in one.said
        ]
        for one in found.asked
    }
    settled = set(session.scalars(select(Decision.item_id)))
    held = set(session.scalars(select(Item.id).join(Batch, Batch.id == Item.batch_id).where(Batch.made_by == "chat")))
    query = select(Item).where(Item.purpose == "label").order_by(Item.id)
    return [
        Entry(_question(item), told.get(item.id, []))
        for item in session.scalars(query)
        if item.id in told or (item.state == "open" and item.id not in held and item.id not in settled)
    ]


def _question(item: Item) -> Question:
    about = {name: getattr(item, name) for name in ("objective", "topic", "strategy", "propensity", "facts")}
    return Question(item.kind, item.prompt, item.answers, **about)
