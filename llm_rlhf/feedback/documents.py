"""The texts that people agree to and label by, in versions that never change: a label names the one it was given by."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from llm_rlhf.feedback.settings import CONSENT, GUIDELINES
from llm_rlhf.feedback.tables import Document

VERSIONS = "llm_rlhf_versions"  # of a session, its newest ones
DEFAULTS = {"guidelines": GUIDELINES, "consent": CONSENT}


def current_version(session: Session, kind: str) -> int:
    """The newest version's number, from 1; 0 where there is none yet. Read once a session."""
    if VERSIONS not in session.info:
        newest = select(Document.kind, func.max(Document.version)).group_by(Document.kind)
        session.info[VERSIONS] = {row.kind: row[1] for row in session.execute(newest)}
    return int(session.info[VERSIONS].get(kind, 0))


def current(session: Session, kind: str) -> Document:
    """The newest version. A new store has those of settings.py."""
    found = session.scalar(select(Document).where(Document.kind == kind).order_by(Document.version.desc()).limit(1))
    assert found is not None, "a store has them from the start"
    return found


def publish(session: Session, kind: str, text: str) -> Document:
    """A text as the newest version, if it is not the newest already."""
    version = current_version(session, kind)
    if version and current(session, kind).text == text:
        return current(session, kind)
    document = Document(kind=kind, version=version + 1, text=text)
    session.add(document)
    session.flush()
    session.info.pop(VERSIONS, None)
    return document


def prepare(session: Session) -> None:
    """Give a new store its texts."""
    for kind, text in DEFAULTS.items():
        if not current_version(session, kind):
            publish(session, kind, text)
