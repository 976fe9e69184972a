"""Questions and labels out of files, into a store.

Whoever labelled elsewhere becomes a person of the store by a hash of their name there, with a key that only this store
has: the same name is the same person again, and nobody can tell which. They have agreed to nothing here; whether they
agreed where they labelled is for whoever imports to know, and cards and reports count them apart.
"""

import hashlib
import hmac
import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.feedback import queue, saying
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.exchange import argilla, jsonl, label_studio, potato
from llm_rlhf.feedback.exchange.entries import Entry
from llm_rlhf.feedback.labels import KINDS, checked, from_page
from llm_rlhf.feedback.tables import Assignment, Item, Label, Person, Setting, now
from llm_rlhf.json_lines import lines_of, parse_json
from llm_rlhf.run_folder import file_digest

FORMATS = ("auto", "data", "jsonl", "potato", "argilla", "label-studio")
KEY = "import_key"  # the setting that no page shows
REASONS_SHOWN = 5
AT_ONCE = 200  # questions whose labels are written together


@dataclass
class Brought:
    """What came of a file."""

    format: str
    questions: int = 0  # new ones
    known: int = 0  # that the store had
    held: int = 0  # of the new ones, until a lead has looked
    labels: int = 0  # new ones
    known_labels: int = 0
    people: int = 0  # whose labels these are, that the store had not
    set_aside: Counter[str] = field(default_factory=Counter)


def bring_in(
    database: Database, path: Path, form: str = "auto", kind: str | None = None, source: dict[str, Any] | None = None
) -> Brought:
    """Put the questions of a file into the queue, and the labels that it has beside them; all of them or none.

    Args:
        path: a file, or the folder of another tool's project.
        form: one of FORMATS; data: what `data check` knows.
        kind: of task, where the file does not say; of `data`, what its rows are asked as.
        source: keys of a recipe's source, for `data`.

    Raises:
        RecipeError, DataError: where it cannot be read, or nothing is left of it.
    """
    if form not in FORMATS:
        raise RecipeError(f"--format is {form!r}; it is one of {', '.join(FORMATS)}.")
    if kind is not None and (kind not in KINDS or kind in ("chat", "thumb")):
        asked = ", ".join(name for name in KINDS if name not in ("chat", "thumb"))
        raise RecipeError(f"--kind is {kind!r}; it is one of {asked}.")
    if not path.exists():
        raise RecipeError(f"There is no file {path}.")
    parts = _parts(path) if form != "data" else [path]
    form = _recognised(parts[0]) if form == "auto" else form
    found = Brought(form)
    entries = [entry for part in parts for entry in _read(part, form, kind, source or {}, found)]
    if not entries:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in found.set_aside.most_common(REASONS_SHOWN))
        raise DataError(f"Nothing is left of {path}, read as {form}{': ' + reasons if reasons else ''}.")
    details = {"file": path.name, "format": form, **({"sha256": file_digest(path)} if path.is_file() else {})}
    with database.write() as session:
        _add(session, entries, details, found)
    return found


def _parts(path: Path) -> list[Path]:
    """What of a folder is brought in: of one that `feedback export` wrote, the project of each kind of task."""
    if not path.is_dir() or _recognised(path) != "data":
        return [path]
    if (path / jsonl.LABELS).is_file():
        return [path / jsonl.LABELS]
    inside = [one for one in sorted(path.iterdir()) if one.is_dir() or one.suffix == ".json"]
    by_form: dict[str, list[Path]] = {}
    for one in inside:
        by_form.setdefault(_recognised(one), []).append(one)
    by_form.pop("data", None)
    if len(by_form) > 1:
        named = ", ".join(f"{paths[0].name} ({form})" for form, paths in by_form.items())
        raise DataError(f"{path} holds projects of several tools, such as {named}; name one of them.")
    return next(iter(by_form.values()), [path])


def _recognised(path: Path) -> str:
    """The format of a file, by what is in it."""
    if potato.is_of(path):
        return "potato"
    if path.is_dir():
        return "argilla" if (path / argilla.RECORDS).is_file() else "data"
    if path.suffix == ".json":
        try:
            value = parse_json(path.read_text(encoding="utf-8"))
        except ValueError:
            return "data"
        return "label-studio" if label_studio.is_of(value) else "argilla" if argilla.is_of(value) else "data"
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            first = next((line for _, line in lines_of(file.readline())), b"")
        try:
            return "jsonl" if jsonl.is_of(parse_json(first)) else "data"
        except ValueError:
            return "data"
    return "data"


def _read(path: Path, form: str, kind: str | None, source: dict[str, Any], found: Brought) -> Iterable[Entry]:
    entries: Iterable[Entry | DataError]
    if form == "data":
        entries, reasons = jsonl.read_data(path, kind, source)
        found.set_aside.update(reasons)
    else:
        readers = {"jsonl": jsonl, "potato": potato, "argilla": argilla, "label-studio": label_studio}
        inside = form == "argilla" and path.is_dir()
        entries = readers[form].read(path / argilla.RECORDS if inside else path, kind)
    for entry in entries:
        try:
            if isinstance(entry, DataError):
                raise entry
            queue.check(entry.question)
        except DataError as error:
            found.set_aside[str(error)] += 1
        else:
            found.set_aside.update(str(error) for error in entry.unread)
            yield entry


def _add(session: Session, entries: list[Entry], details: dict[str, Any], found: Brought) -> None:
    for entry in entries:
        if entry.told and entry.question.wanted is None:
            entry.question.wanted = len(entry.told)  # nobody else is asked, unless a lead wants more
    added = queue.add(session, (entry.question for entry in entries), "import", details)
    found.questions, found.known, found.held = len(added.items), added.known, added.held
    labelled = [entry for entry in entries if entry.told]
    key = _key(session)
    names = {told.annotator for entry in labelled for told in entry.told}
    persons = {name: _person(session, key, name, found) for name in sorted(names)}
    for start in range(0, len(labelled), AT_ONCE):
        _say(session, labelled[start : start + AT_ONCE], persons, found)


def _places(entry: Entry, item: Item) -> list[int]:
    """Where the item has the answers of a file, which may list them in another order."""
    texts = [answer["text"] for answer in item.answers]
    return [texts.index(answer["text"]) for answer in entry.question.answers]


def _say(session: Session, entries: list[Entry], persons: dict[str, Person], found: Brought) -> None:
    """What people said of some items, each once: whoever has had an item before has said what they said."""
    keys = {entry.question.key for entry in entries}
    items = {item.key: item for item in session.scalars(select(Item).where(Item.key.in_(keys)).with_for_update())}
    numbers = [item.id for item in items.values()]
    had = select(Assignment.item_id, Assignment.person_id).where(Assignment.item_id.in_(numbers))
    taken = {(item, person) for item, person in session.execute(had)}
    new: list[tuple[Assignment, dict[str, Any], float]] = []
    for entry in entries:
        item = items[entry.question.key]
        places = _places(entry, item)
        for told in entry.told:
            person = persons[told.annotator]
            if (item.id, person.id) in taken:
                found.known_labels += 1
                continue
            taken.add((item.id, person.id))
            moment = told.created or now()
            when = {"shown": moment, "expires": moment, "ended": moment}
            assignment = Assignment(item_id=item.id, person_id=person.id, order=places, state="done", **when)
            value = checked(item.kind, from_page(told.value, places), len(item.answers))
            new.append((assignment, value, max(0.0, min(told.seconds or 0.0, saying.MOST_SECONDS))))
            item.taken += 1
    session.add_all(assignment for assignment, _, _ in new)
    session.flush()
    session.add_all(
        Label(
            assignment_id=assignment.id,
            item_id=assignment.item_id,
            person_id=assignment.person_id,
            value=value,
            seconds=seconds,
            hasty=False,  # nobody knows what the page was that they saw
            created=assignment.ended,
        )
        for assignment, value, seconds in new
    )
    session.flush()
    found.labels += len(new)


def _person(session: Session, key: str, name: str, found: Brought) -> Person:
    pseudonym = f"imported-{hmac.new(key.encode(), name.encode(), hashlib.sha256).hexdigest()[:12]}"
    person = session.scalar(select(Person).where(Person.pseudonym == pseudonym))
    if person is None:
        person = Person(pseudonym=pseudonym, role="annotator", imported=True)
        session.add(person)
        session.flush()
        found.people += 1
    return person


def _key(session: Session) -> str:
    setting = session.get(Setting, KEY)
    if setting is None:
        setting = Setting(name=KEY, value={"value": secrets.token_hex(16)})
        session.add(setting)
        session.flush()
    return str(setting.value["value"])
