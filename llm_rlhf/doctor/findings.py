"""A finding of `llm-rlhf doctor`: what was looked at, what was found, what to do about it."""

from typing import Literal, NamedTuple

Mark = Literal["good", "note", "broken"]


class Finding(NamedTuple):
    """One line. A note is worth knowing and stops nothing; something broken stops every run here."""

    name: str
    mark: Mark
    found: str
    remedy: str = ""
