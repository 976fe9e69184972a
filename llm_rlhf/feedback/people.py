"""The people of a store: invited by a link, known by a pseudonym, free to withdraw.

Tokens of links and cookies are random and never kept: the store holds their SHA-256, so that who reads the store can
come in as nobody.
"""

import datetime
import hashlib
import secrets

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from llm_rlhf.errors import DataError
from llm_rlhf.feedback.documents import current_version
from llm_rlhf.feedback.refusals import Forbidden, Unknown
from llm_rlhf.feedback.settings import settings_of
from llm_rlhf.feedback.tables import Assignment, Batch, Identity, Invitation, Item, Label, Person, Visit, now

ROLES = ("annotator", "lead")
COLOURS = ("amber", "azure", "bronze", "copper", "coral", "golden", "green", "grey", "indigo", "ivory", "jade", "olive")
BIRDS = ("crane", "curlew", "falcon", "finch", "heron", "ibis", "linnet", "osprey", "plover", "raven", "robin", "wren")


def invite(
    session: Session, role: str = "annotator", name: str | None = None, simulated: bool = False
) -> tuple[Person, str]:
    """A new person and the token of their link, which is told this once.

    Args:
        name: who that is, kept in a table of its own; None: nobody wrote it down.
    """
    if role not in ROLES:
        raise DataError(f"The role is {role!r}; it is one of {', '.join(ROLES)}.")
    person = Person(pseudonym=_pseudonym(session), role=role, simulated=simulated)
    session.add(person)
    session.flush()
    if name:
        session.add(Identity(person_id=person.id, name=name))
    return person, link_for(session, person)


def link_for(session: Session, person: Person) -> str:
    """Another token for somebody who is known. Earlier links stay good until they run out.

    Raises:
        DataError: for who has withdrawn.
    """
    if person.withdrawn is not None:
        raise DataError(f"{person.pseudonym} has withdrawn; there is no new link. Invite a new person instead.")
    token = secrets.token_urlsafe(24)
    until = now() + datetime.timedelta(days=settings_of(session).invitation_days)
    session.add(Invitation(token_sha256=digest(token), person_id=person.id, expires=until))
    session.flush()
    return token


def enter(session: Session, token: str) -> tuple[Person, str]:
    """Who a link is for, and the token of a cookie for them.

    Raises:
        Unknown: where the link is none of ours, has run out, or its person has withdrawn.
    """
    invitation = session.scalar(select(Invitation).where(Invitation.token_sha256 == digest(token)))
    if invitation is None or invitation.expires < now():
        raise Unknown("This link is not known, or has run out. Ask for a new one.")
    person = session.get_one(Person, invitation.person_id)
    if person.withdrawn is not None:
        raise Unknown("The person that this link was for has withdrawn.")
    invitation.used = invitation.used or now()
    cookie = secrets.token_urlsafe(32)
    until = now() + datetime.timedelta(days=settings_of(session).session_days)
    session.execute(delete(Visit).where(Visit.expires < now()))
    session.add(Visit(token_sha256=digest(cookie), person_id=person.id, expires=until))
    return person, cookie


def visitor(session: Session, cookie: str | None, writes: bool = False) -> Person:
    """Whose cookie that is.

    Args:
        writes: what this person does in other windows waits until this transaction is over.

    Raises:
        Unknown: where it is nobody's, or has run out.
    """
    visit = session.get(Visit, digest(cookie)) if cookie else None
    if visit is None or visit.expires < now():
        raise Unknown("You are not logged in. Open the link that you were invited by.")
    return session.get_one(Person, visit.person_id, with_for_update={"key_share": True} if writes else None)


def leave(session: Session, cookie: str) -> None:
    """Log out: this cookie is nobody's from now on."""
    session.execute(delete(Visit).where(Visit.token_sha256 == digest(cookie)))


def only_lead(person: Person) -> None:
    if person.role != "lead":
        raise Forbidden("This page is the lead's.")


def consent(session: Session, person: Person, version: int) -> None:
    """Note that somebody agreed to the consent text that they were shown.

    Raises:
        DataError: where there is a newer one.
    """
    if version != current_version(session, "consent"):
        raise DataError("The text has changed since it was shown; read it again.")
    person.consent_version, person.consented = version, now()


def has_consented(session: Session, person: Person) -> bool:
    """Whether somebody has agreed to the newest text."""
    return person.consent_version is not None and person.consent_version == current_version(session, "consent")


def withdraw(session: Session, person: Person) -> None:
    """From now on nothing of theirs is exported, their questions are others', and no link lets them in.

    Their labels stay in the store, so that exports made before can be named, until a lead deletes them.
    """
    person.withdrawn = now()
    session.execute(delete(Visit).where(Visit.person_id == person.id))
    session.execute(delete(Invitation).where(Invitation.person_id == person.id))
    session.execute(delete(Identity).where(Identity.person_id == person.id))
    held = select(Assignment).where(Assignment.person_id == person.id, Assignment.state.in_(("open", "done")))
    for assignment in session.scalars(held):
        item = session.get_one(Item, assignment.item_id)
        if assignment.turn == 1 and session.get_one(Batch, item.batch_id).made_by == "chat":
            _free_place(session, item, wanted=1)  # a conversation of theirs is shown to nobody
        elif assignment.turn == 1 and item.purpose == "label":
            _free_place(session, item)  # somebody else may be asked
        if assignment.state == "open":
            assignment.state, assignment.draft, assignment.ended = "expired", None, now()


def _free_place(session: Session, item: Item, wanted: int = 0) -> None:
    """Counted by the database: somebody else may take a place of the same item at this moment."""
    fewer = update(Item).where(Item.id == item.id, Item.taken > 0)
    session.execute(fewer.values(taken=Item.taken - 1, wanted=Item.wanted - wanted))


def shut_out(session: Session, person: Person) -> None:
    """No link and no cookie of theirs is good any more. What they said stays, and counts; a new link lets them in."""
    session.execute(delete(Visit).where(Visit.person_id == person.id))
    session.execute(delete(Invitation).where(Invitation.person_id == person.id))


def forget(session: Session, person: Person) -> int:
    """Delete the labels of somebody who has withdrawn; how many there were."""
    if person.withdrawn is None:
        raise DataError(f"{person.pseudonym} has not withdrawn; nothing is deleted.")
    theirs = session.scalars(select(Label).where(Label.person_id == person.id)).all()
    for label in theirs:
        session.delete(label)
    return len(theirs)


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _pseudonym(session: Session) -> str:
    """Two words that nobody in the store has, and a number once they are used up."""
    for length in range(3, 12):
        for _ in range(20):
            number = "" if length == 3 else f"-{secrets.randbelow(10 ** (length - 2))}"
            name = f"{secrets.choice(COLOURS)}-{secrets.choice(BIRDS)}{number}"
            if not session.scalar(select(func.count()).where(Person.pseudonym == name)):
                return name
    raise AssertionError("pseudonyms are used up")
