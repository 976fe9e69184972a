"""The tables of a feedback store: who was asked what, in which order it was shown, and what they said.

A person is a pseudonym; the name behind it stands in `identity` alone, which can be deleted. An item is a question (two
answers to compare, say), an assignment is one person's turn with it, a label is what that person finally said. Nothing
here knows an IP address. Texts of answers stand once, in the item; a label names them by their place there, whatever
order the page showed them in.

Times are UTC, without a zone, as both databases keep them alike.
"""

import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, MetaData, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def now() -> datetime.datetime:
    """UTC, without a zone."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


def only_where(condition: str) -> dict[str, Any]:
    """The arguments that make an index one of those rows alone, in both databases."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


class Table(DeclarativeBase):
    metadata = MetaData(  # names, so that a migration can say which constraint it means
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012 - as SQLAlchemy reads it


class Setting(Table):
    """One of the store's settings (settings.py), by its name."""

    __tablename__ = "setting"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[dict[str, Any]]  # {"value": ...}


class Document(Table):
    """A version of the text that people agree to ("consent") or label by ("guidelines"). It is never changed."""

    __tablename__ = "document"
    __table_args__ = (UniqueConstraint("kind", "version"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    version: Mapped[int]  # from 1
    text: Mapped[str] = mapped_column(Text)  # Markdown
    created: Mapped[datetime.datetime] = mapped_column(default=now)


class Person(Table):
    """Somebody who labels or leads, by a pseudonym."""

    __tablename__ = "person"

    id: Mapped[int] = mapped_column(primary_key=True)
    pseudonym: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))  # annotator or lead
    simulated: Mapped[bool] = mapped_column(default=False)  # a program that answers in a person's place
    created: Mapped[datetime.datetime] = mapped_column(default=now)
    consent_version: Mapped[int | None]
    consented: Mapped[datetime.datetime | None]
    entry_score: Mapped[float | None]  # share of the entry test's questions answered as expected, the last time
    entry_tries: Mapped[int] = mapped_column(default=0)
    entry_passed: Mapped[datetime.datetime | None]
    withdrawn: Mapped[datetime.datetime | None]  # from then on nothing of theirs is exported


class Identity(Table):
    """Who a pseudonym is. Nothing else refers to it: a row is deleted, and only the pseudonym is left."""

    __tablename__ = "identity"

    person_id: Mapped[int] = mapped_column(ForeignKey("person.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(Text)


class Invitation(Table):
    """A link by which one person comes in. The link's token is not kept, only its SHA-256."""

    __tablename__ = "invitation"

    id: Mapped[int] = mapped_column(primary_key=True)
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id", ondelete="CASCADE"))
    created: Mapped[datetime.datetime] = mapped_column(default=now)
    expires: Mapped[datetime.datetime]
    used: Mapped[datetime.datetime | None]  # the first time; until it expires, the same link logs in again


class Visit(Table):
    """A log-in. The cookie's token is not kept, only its SHA-256."""

    __tablename__ = "visit"

    token_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id", ondelete="CASCADE"))
    created: Mapped[datetime.datetime] = mapped_column(default=now)
    expires: Mapped[datetime.datetime]


class Batch(Table):
    """Items that came together: what was drawn, by which rule, from whose answers."""

    __tablename__ = "batch"

    id: Mapped[int] = mapped_column(primary_key=True)
    created: Mapped[datetime.datetime] = mapped_column(default=now)
    made_by: Mapped[str] = mapped_column(String(32))  # select, import, chat, monitor, gold, entry
    details: Mapped[dict[str, Any]]  # run, policy, strategy, seed, budget, file, ...: plain values for a manifest


class Item(Table):
    """One question to people."""

    __tablename__ = "item"
    __table_args__ = (
        # What is still to be asked, in its order; what enough people have said is not in it.
        Index("ix_item_next", "state", "purpose", text("priority DESC"), "id", **only_where("taken < wanted")),
        Index("ix_item_purpose", "purpose", "state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    batch_id: Mapped[int] = mapped_column(ForeignKey("batch.id"), index=True)
    kind: Mapped[str] = mapped_column(String(16))  # one of labels.KINDS
    # open; held: looks like personal data, shown to leads alone; closed: asked no more
    state: Mapped[str] = mapped_column(String(8), default="open")
    held_for: Mapped[str | None] = mapped_column(Text)  # why it is held or was closed
    key: Mapped[str] = mapped_column(String(64), unique=True)  # of kind, prompt and answers in any order
    prompt: Mapped[list[Any]]  # messages, the last one the user's
    answers: Mapped[list[Any]]  # [{"text": ..., "source": model or None, ...}, ...]
    objective: Mapped[str] = mapped_column(String(16), default="overall")  # helpful, harmless or overall
    topic: Mapped[str | None] = mapped_column(String(64), index=True)
    purpose: Mapped[str] = mapped_column(String(8), default="label")  # label, gold or entry: the last two never train
    expected: Mapped[dict[str, Any] | None]  # of gold and entry items: the label that is right, and why
    wanted: Mapped[int] = mapped_column(default=1)  # people to ask
    taken: Mapped[int] = mapped_column(default=0)  # of them, those who have it open or have said something
    priority: Mapped[float] = mapped_column(default=0.0)  # higher comes first
    strategy: Mapped[str | None] = mapped_column(String(32))  # by which rule it was selected
    propensity: Mapped[float | None]  # its probability of having been selected, in (0, 1]
    facts: Mapped[dict[str, Any]] = mapped_column(default=dict)  # scores, doubt, what a world's rule judges by
    created: Mapped[datetime.datetime] = mapped_column(default=now)


class Assignment(Table):
    """One person's turn with one item."""

    __tablename__ = "assignment"
    __table_args__ = (
        UniqueConstraint("item_id", "person_id", "turn"),
        Index("ix_assignment_person_state", "person_id", "state"),
        Index("ix_assignment_expiry", "state", "expires"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("item.id"))
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    turn: Mapped[int] = mapped_column(default=1)  # 2: the same again with the answers swapped, to see who is steady
    order: Mapped[list[Any]]  # place on the page, from the left: which answer of the item stands there
    state: Mapped[str] = mapped_column(String(8), default="open")  # open, done, skipped, expired
    skip_reason: Mapped[str | None] = mapped_column(Text)
    draft: Mapped[dict[str, Any] | None]
    shown: Mapped[datetime.datetime] = mapped_column(default=now)
    expires: Mapped[datetime.datetime]  # an open one is somebody else's from then on
    ended: Mapped[datetime.datetime | None]


class Label(Table):
    """What a person said of an item: one a turn, the final choice."""

    __tablename__ = "label"

    id: Mapped[int] = mapped_column(primary_key=True)
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignment.id"), unique=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("item.id"), index=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), index=True)
    value: Mapped[dict[str, Any]]  # as labels.py, by the item's own places
    seconds: Mapped[float]  # from shown to said
    hasty: Mapped[bool]  # said in less time than reading takes: told, never refused
    agrees_with_gold: Mapped[bool | None]  # of gold and entry items
    guidelines_version: Mapped[int | None]
    consent_version: Mapped[int | None]
    created: Mapped[datetime.datetime] = mapped_column(default=now)


class Flag(Table):
    """Something about an item that a lead should look at."""

    __tablename__ = "flag"

    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("item.id"), index=True)
    person_id: Mapped[int | None] = mapped_column(ForeignKey("person.id"))
    kind: Mapped[str] = mapped_column(String(16))  # report, personal
    text: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime.datetime] = mapped_column(default=now)
    resolved: Mapped[datetime.datetime | None]
    resolution: Mapped[str | None] = mapped_column(Text)


class Decision(Table):
    """What a lead settled where people disagreed. It takes the place of their labels in the next export."""

    __tablename__ = "decision"

    item_id: Mapped[int] = mapped_column(ForeignKey("item.id"), primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    value: Mapped[dict[str, Any]]  # as a label's; {"choice": "leave out"}: the item is not exported
    comment: Mapped[str | None] = mapped_column(Text)
    created: Mapped[datetime.datetime] = mapped_column(default=now)


class Talk(Table):
    """A conversation that somebody holds with the policy. Its turns are items of kind chat."""

    __tablename__ = "talk"

    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), index=True)
    mode: Mapped[str] = mapped_column(String(16))  # helpful or red-team
    topic: Mapped[str | None] = mapped_column(String(64))
    messages: Mapped[list[Any]]  # what both sides go on from
    created: Mapped[datetime.datetime] = mapped_column(default=now)
    ended: Mapped[datetime.datetime | None]


class Export(Table):
    """A file of labels that was written, so that a withdrawal can name what holds them."""

    __tablename__ = "export"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)  # also in the card beside the file, and in manifests
    created: Mapped[datetime.datetime] = mapped_column(default=now)
    details: Mapped[dict[str, Any]]  # format, folder, file digests, counts


class ExportedLabel(Table):
    __tablename__ = "exported_label"

    export_id: Mapped[str] = mapped_column(ForeignKey("export.id"), primary_key=True)
    label_id: Mapped[int] = mapped_column(primary_key=True)  # no foreign key: a deleted label was exported all the same
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), index=True)
