"""The one line that a hurried reader takes home: an average that hides a side is never called better.

| overall | sides | headline |
|---|---|---|
| any | one shown better, the other shown worse | traded |
| any | shown worse | worse on both sides, worse on one side |
| better | both better, or shown to hold | better |
| better | one not shown to hold, or not measured | better on average |
| else | | worse on average, difference not shown, ... |
| nothing, and neither is a side | but suites of the user's own were | by own suites alone |

What was found of either side always follows the word. How a side is judged: sides.py. A suite of the user's own is no
judge of a side, and never makes a policy better; where nothing else compared the policies, the headline says what it
found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llm_rlhf.evaluation.report.measures import Entry, contest, find, measure_of, own_names, within
from llm_rlhf.evaluation.report.numbers import value_text
from llm_rlhf.evaluation.report.sides import OVERALL, Side, first_found, judgement, margin_text, side_of

Tone = Literal["good", "bad", "warn", "flat", "none"]
TONES = ("good", "bad", "warn", "flat", "none")
BY_OWN = "by own suites alone"
# What a suite of the user's own shows, in words that no verdict on a policy has.
SHOWN_BY_OWN = {"better": "a gain", "worse": "a loss"}


@dataclass(frozen=True)
class Headline:
    """A verdict in a word, its colour, and what it is made of."""

    word: str
    tone: Tone  # "good" alone is green; "warn" is the colour of a warning
    helpful: Side
    harmless: Side
    margins: tuple[str, ...]  # by which a side may not have lost, by instrument
    own: tuple[str, ...] = ()  # what the user's own suites found, where nothing else compared the policies

    @property
    def text(self) -> str:
        """One line: the word in capitals, then both sides."""
        return f"{self.word.upper()}: {', '.join([*self.own, self.helpful.phrase, self.harmless.phrase])}"

    def as_dict(self) -> dict[str, Any]:
        """For report.json and `--json`."""
        sides = {"helpful": self.helpful.status, "harmless": self.harmless.status}
        return {"word": self.word, "tone": self.tone, "text": self.text, "sides": sides, "margins": list(self.margins)}


def headline_of(estimates: Sequence[Entry]) -> Headline:
    """The headline of a policy's estimates; see the table above. Own suites are known within `measures.with_own`."""
    helpful, harmless = side_of(estimates, "helpful"), side_of(estimates, "harmless")
    word, tone = _word(first_found(estimates, OVERALL), helpful, harmless)
    asked = [e for side in (helpful, harmless) for e in side.evidence[: 1 if _by_truth(side) else None]]
    margins = tuple(dict.fromkeys(margin_text(e, estimates) for e in asked))
    own = own_gains(estimates) if word == "not measured" else []
    if own:
        word, tone = BY_OWN, "warn" if any(judgement(e) == "worse" for e in own) else "flat"
    return Headline(word, tone, helpful, harmless, margins, tuple(own_phrase(e) for e in own))


def own_gains(estimates: Sequence[Entry]) -> list[Entry]:
    """The policy's paired difference by each suite of the user's own that has one, in the suites' order."""
    policy, _ = contest(estimates)
    return [e for name in own_names() if (e := find(estimates, f"{name}_gain", policy, ["all"])) is not None]


def own_phrase(entry: Entry) -> str:
    """A few words of a suite, such as `brevity −3.2 (a loss)`; what is good, the suite's own `good` says."""
    found = judgement(entry)
    return f"{within(measure_of(entry['name']).label)} {value_text(entry)} ({SHOWN_BY_OWN.get(found, found)})"


def _word(overall: Entry | None, helpful: Side, harmless: Side) -> tuple[str, Tone]:
    sides = (helpful, harmless)
    if helpful.lost and harmless.lost:
        return "worse on both sides", "bad"
    if helpful.lost or harmless.lost:
        other = harmless if helpful.lost else helpful
        return ("traded", "warn") if other.status == "better" else ("worse on one side", "bad")
    found = "not measured" if overall is None else judgement(overall)
    unsure: Tone = "flat" if all(side.kept for side in sides) else "warn"
    if found == "better":
        return ("better", "good") if all(side.kept for side in sides) else ("better on average", "warn")
    if found == "worse":
        return "worse on average", "bad"
    if found in ("higher", "lower"):
        return f"{found}, says its own judge", "warn"
    if found == "not measured":
        measured = any(side.status != "not measured" for side in sides)
        return ("no average measured", unsure) if measured else ("not measured", "none")
    if found == "difference not shown" and any(side.status == "better" for side in sides):
        return "difference not shown on average", unsure
    return found, "flat"


def _by_truth(side: Side) -> bool:
    """Whether the true score judged, beside which refusals need no margin."""
    return bool(side.evidence) and str(side.evidence[0]["name"]).startswith("gold")
