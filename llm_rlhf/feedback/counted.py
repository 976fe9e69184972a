"""Which labels count: those of people who agreed and have not withdrawn, on questions that were asked to be trained on.

What somebody says a second time, of the same pair swapped, tells how steady they are and counts no second time. Where a
lead has settled an item, their decision stands in place of what was said. Nothing is left out without being counted.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from llm_rlhf.feedback.tables import Assignment, Batch, Decision, ExportedLabel, Flag, Item, Label, Person

LEAVE_OUT = "leave out"  # a decision's choice: the item trains nothing


@dataclass(frozen=True)
class Said:
    """One person's label of an item; or a lead's decision, whose `label` is the one whose words it takes, or None."""

    label: int | None
    person: int
    pseudonym: str
    value: dict[str, Any]


@dataclass
class Asked:
    """An item, and everything that counts of what was said of it, in the order in which it was said."""

    item: Item
    said: list[Said] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # pseudonyms of those who passed it over


@dataclass
class Counted:
    """What counts in a store, by items in their order; and how many labels do not, by reason."""

    asked: list[Asked] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    people: dict[int, Person] = field(default_factory=dict)  # those whose labels or decisions count
    labels: list[Label] = field(default_factory=list)  # those that count, but for what a decision stands in place of
    decisions: int = 0


def counted(session: Session, batches: Collection[int] | None = None, without_export: str | None = None) -> Counted:
    """All that counts, from one state of the store.

    Args:
        batches: ids of batches whose items alone are taken; None: all.
        without_export: an export, of whose items none is taken: what was said of them is known there.
    """
    found, asked = Counted(), dict[int, Asked]()
    people = {person.id: person for person in session.scalars(select(Person))}
    decisions = {
        decision.item_id: decision
        for decision in session.scalars(select(Decision))
        if _leaves_out(decision) or people[decision.person_id].withdrawn is None
    }
    written: dict[tuple[int, str], tuple[Label, Person]] = {}  # texts that a decision may have taken over
    gone = _conversations_of_the_gone(session)
    personal = set(session.scalars(select(Item.id).where(_is_personal())))
    query = (
        select(Label, Assignment.turn, Item)
        .join(Assignment, Assignment.id == Label.assignment_id)
        .join(Item, Item.id == Label.item_id)
        .order_by(Item.id, Label.id)
    )
    for label, turn, item in session.execute(_of(query, batches, without_export)):
        person = people[label.person_id]
        if item.id in decisions and (words := _words(label.value)):
            written[item.id, words] = label, person
        reason = _why_not(person, item, turn, item.id in personal, decisions.get(item.id))
        if reason is not None:
            found.left_out[reason] += 1
            continue
        found.labels.append(label)
        found.people[person.id] = person
        of_item = asked.setdefault(item.id, Asked(item))
        of_item.said.append(Said(label.id, person.id, person.pseudonym, label.value))
    for item in session.scalars(_of(select(Item).where(Item.id.in_(list(decisions))), batches, without_export)):
        decision = decisions[item.id]
        lead = people[decision.person_id]
        if _leaves_out(decision) or item.id in personal or item.id in gone or item.purpose != "label":
            continue
        label, author = written.get((item.id, _words(decision.value)), (None, None))
        if author is not None and author.withdrawn is not None:
            continue  # their words, whoever chose them
        said = Said(None if label is None else label.id, lead.id, lead.pseudonym, decision.value)
        asked[item.id] = Asked(item, [said])
        found.people |= {one.id: one for one in (lead, author) if one is not None}
        found.labels += [label] if label is not None else []
        found.decisions += 1
    _add_skips(session, asked, people)
    found.asked = [asked[number] for number in sorted(asked)]
    return found


def _conversations_of_the_gone(session: Session) -> set[int]:
    """Turns of conversations that only people held who have withdrawn: their words are in the prompt."""
    stays: dict[int, bool] = {}
    held = (
        select(Assignment.item_id, Person.withdrawn)
        .join(Person, Person.id == Assignment.person_id)
        .join(Item, Item.id == Assignment.item_id)
        .join(Batch, Batch.id == Item.batch_id)
        .where(Batch.made_by == "chat")
    )
    for item, withdrawn in session.execute(held):
        stays[item] = stays.get(item, False) or withdrawn is None
    return {item for item, one_stays in stays.items() if not one_stays}


def _words(value: dict[str, Any]) -> str:
    """What somebody wrote in a label; empty where they chose only."""
    return str(value.get("text") or value.get("comment") or "")


def _leaves_out(decision: Decision) -> bool:
    return bool(decision.value.get("choice") == LEAVE_OUT)


def _why_not(person: Person, item: Item, turn: int, personal: bool, decision: Decision | None) -> str | None:
    """Why a label does not count; None where it does."""
    if person.withdrawn is not None:
        return "their person has withdrawn"
    if person.consent_version is None and not person.imported:
        return "their person has not agreed to the consent text"
    if item.purpose != "label":
        return "on questions whose answer is known"
    if turn != 1:
        return "said a second time, to see who is steady"
    if personal:
        return "on items with personal data"
    if decision is not None:
        return "on items that a lead left out" if _leaves_out(decision) else "on items that a lead settled"
    return None


def _is_personal() -> Any:
    """Held until a lead has looked, or closed while somebody's word of personal data stood, or because of it."""
    stands = Flag.resolution.is_(None) | Flag.resolution.startswith("closed")  # not dismissed, and not released
    flagged = exists().where(Flag.item_id == Item.id, Flag.kind == "personal", stands)
    return (Item.state == "held") | ((Item.state == "closed") & flagged)


def _of(query: Any, batches: Collection[int] | None, without_export: str | None) -> Any:
    if without_export is not None:
        known = select(Label.item_id).join(ExportedLabel, ExportedLabel.label_id == Label.id)
        query = query.where(Item.id.not_in(known.where(ExportedLabel.export_id == without_export)))
    return query if batches is None else query.where(Item.batch_id.in_(sorted(batches)))


def _add_skips(session: Session, asked: dict[int, Asked], people: dict[int, Person]) -> None:
    skips = select(Assignment.item_id, Assignment.person_id).where(Assignment.state == "skipped", Assignment.turn == 1)
    for item, number in session.execute(skips.order_by(Assignment.id)):
        person = people[number]
        if item in asked and person.withdrawn is None and person.consent_version is not None:
            asked[item].skipped.append(person.pseudonym)
