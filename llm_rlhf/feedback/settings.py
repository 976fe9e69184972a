"""The settings of a feedback store, which its lead can change: defaults stand here and nowhere else."""

from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from llm_rlhf.errors import RecipeError
from llm_rlhf.feedback.tables import Setting
from llm_rlhf.recipe.values import read_section

READ = "llm_rlhf.settings"
MOST = 100_000  # of what is counted: more of it, and dates or databases overflow
MOST_NAME, MOST_LABELS = 64, 32  # characters of a label or a topic, as labels and tables keep it; labels of an answer
MOST_TITLE = 200  # characters
GUIDELINES = """\
Read the question and both answers to their ends before you choose.

**Better** is the answer that you would rather give to somebody who asked in earnest:

1. It does what was asked, and what it says is true.
2. It harms nobody. A kind refusal is better than help with hurting somebody; a refusal of a harmless question is bad.
3. It says so briefly and politely. Longer is not better by itself.

Choose how much better it is. **Tie** is for two answers between which nothing decides; **both bad** for two that you
would not give. Skip what you cannot judge, and say why. If something upsets you, stop: nobody counts breaks.
"""
CONSENT = """\
What you say here is kept under a pseudonym with the time it took you, and is used to train and to evaluate language
models. The name behind your pseudonym is kept apart and can be deleted; no addresses of your machine are kept. Answers
come from a program and can be wrong or unpleasant.

You can stop at any time, and withdraw: from then on nothing of yours is used for another model.
"""


@dataclass
class Settings:
    title: str = "Which answer is better?"  # of the page
    people_per_item: int = 1  # how many people are asked each question that comes in
    lease_minutes: int = 30  # after which a question that somebody opened and left is somebody else's
    gold_share: float = 0.05  # of questions whose answer is known, among those shown; where there are some
    repeat_share: float = 0.03  # of questions that a person sees again with the answers swapped
    repeat_after: int = 10  # questions in between, at least
    entry_test: bool = True  # people answer the entry test's questions before any other, where there are some
    entry_pass: float = 0.7  # share of them to answer as expected
    words_per_second: float = 8.0  # read faster than this, a label is marked as hasty (600 words a minute skims: 10)
    labels: list[str] = field(  # of annotate tasks
        default_factory=lambda: ["wrong fact", "off topic", "rude", "unsafe", "refuses needlessly", "personal data"]
    )
    topics: list[str] = field(default_factory=list)  # people may choose among these; empty: those of the items
    red_team: bool = True  # chats may be held in red-team mode
    session_days: int = 7  # after which somebody logs in again
    invitation_days: int = 30  # for which an invitation's link logs in

    def __post_init__(self) -> None:
        for name in ("gold_share", "repeat_share", "entry_pass"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share, 0 to 1")
        for name in ("people_per_item", "lease_minutes", "repeat_after", "session_days", "invitation_days"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"{name} is {getattr(self, name)}; it is 1 to {MOST:,}")
        for name in ("labels", "topics"):
            texts = getattr(self, name)
            if not all(text.strip() and len(text) <= MOST_NAME for text in texts) or len(set(texts)) < len(texts):
                raise ValueError(f"{name} has one that is empty, longer than {MOST_NAME} characters, or there twice")
        if len(self.labels) > MOST_LABELS:
            raise ValueError(f"labels has {len(self.labels)}; it is {MOST_LABELS} at most")
        if len(self.title) > MOST_TITLE:
            raise ValueError(f"title has {len(self.title)} characters; it is {MOST_TITLE} at most")
        if not 0 < self.words_per_second <= MOST:
            raise ValueError(f"words_per_second is {self.words_per_second}; it is above 0, and at most {MOST:,}")


def settings_of(session: Session) -> Settings:
    """The store's settings, read once in a session."""
    if (read := session.info.get(READ)) is None:
        known = {f.name for f in fields(Settings)}
        stored = session.scalars(select(Setting)).all()
        read = Settings(**{setting.name: setting.value["value"] for setting in stored if setting.name in known})
        session.info[READ] = read
    return read


def change(session: Session, changes: dict[str, Any]) -> Settings:
    """Change some of them, by name, checked by name and type.

    Raises:
        RecipeError: for a name that is none, or a value that cannot be.
    """
    for name in changes:
        try:
            read_section(Settings, {name: changes[name]}, "feedback.")
        except RecipeError:
            raise
        except ValueError as error:  # of Settings itself
            raise RecipeError(f"{error}.") from None
        session.merge(Setting(name=name, value={"value": changes[name]}))
    session.flush()
    session.info.pop(READ, None)
    return settings_of(session)
