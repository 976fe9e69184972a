"""What is shown of an annotator, and not merely estimated: who answers like chance, clicks one side, loves length, rushes.

Each question has a margin, and its p-value is that of the margin, not of a perfect annotator, so that a small habit is not
shown by many labels. All questions about all people are one family, by Holm's steps: in 95 of 100 stores whose people
are all within the margins, nobody is named. Who is not named is not shown to be good: with few labels, nothing is shown.

| reason | is shown where |
|---|---|
| side | one side of the page is chosen in more than 60 % of the choices (exact binomial, both sides asked) |
| longer | the longer answer is, in more than 60 %, and over 10 points more often than by the others on the same pairs |
| chance | agreement with the others' majority, votes weighed by how often each agrees with the rest, is lower than the median of everybody else's by over 5 points (exact binomial), and not shown to be above 1/2: its interval holds it. None of the two above explains it |
| against | as chance, and below 1/2 for certain (exact binomial, over all questions by Bonferroni) |
| known | known questions are answered right less often than the store's `entry_pass` asks (exact binomial) |
| fast | in more than half of the labels it took less than half the others' median time a word, for that kind of task |
"""  # noqa: E501 - a table's rows

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from llm_rlhf.feedback.choices import OTHERS, Choices
from llm_rlhf.statistics.intervals import Estimate, paired_shares, wilson
from llm_rlhf.statistics.shown import at_least, at_most, holm, paired_above

LEVEL = 0.05  # that anybody is named wrongly
SIDED = 0.6  # share of one side, or of the longer answer, from which it matters
EXCESS = 0.1  # over the others' share of the longer answer
FAST = 0.5  # of the others' median time a word
LOWER = 0.05  # under the median of the others' agreement
FEWEST = 10  # rows for a question to be asked at all

TITLES = {
    "left": "chooses the left",
    "right": "chooses the right",
    "longer": "chooses the longer",
    "chance": "answers like chance",
    "against": "answers against the rest",
    "known": "misses known questions",
    "fast": "much faster than the rest",
}


@dataclass(frozen=True)
class Suspicion:
    """Something that is shown of somebody."""

    person: str
    reason: str  # of TITLES
    p: float  # Holm's, over all questions about all people
    estimate: Estimate  # what it rests on
    text: str  # the same in words

    @property
    def title(self) -> str:
        return TITLES[self.reason]


class _Asked(NamedTuple):
    person: str
    reason: str
    p: float
    estimate: Estimate
    text: str


def suspicions(choices: Choices) -> tuple[list[Suspicion], int]:
    """Whom something is shown of, and how many questions were asked: the family that Holm's steps go over."""
    people = [who.pseudonym for who in choices.people]
    weighed = {person: choices.weighed(person) for person in people}
    asked = [
        question
        for person in people
        for question in (
            _side(person, choices),
            _longer(person, choices),
            _chance(person, weighed),
            _known(person, choices),
            _fast(person, choices),
        )
        if question is not None
    ]
    named = []
    for question, p in zip(asked, holm([question.p for question in asked]), strict=True):
        if p > LEVEL:
            continue
        reason = question.reason
        if reason == "chance" and at_most(*weighed[question.person], 0.5) * len(asked) <= LEVEL:
            reason = "against"
        named.append(Suspicion(question.person, reason, p, question.estimate, question.text))
    explained = {one.person for one in named if one.reason in ("left", "right", "longer")}
    return [one for one in named if one.reason not in ("chance", "against") or one.person not in explained], len(asked)


def _side(person: str, choices: Choices) -> _Asked | None:
    places = choices.places(person)
    if len(places) < FEWEST:
        return None
    left, n = places.count(0), len(places)
    most, reason = (left, "left") if 2 * left >= n else (n - left, "right")
    estimate = wilson(most, n).named(reason, person)
    text = f"the {reason} answer in {most} of {n} choices, {_percent(estimate)}"
    return _Asked(person, reason, min(1.0, 2 * at_least(most, n, SIDED)), estimate, text)


def _longer(person: str, choices: Choices) -> _Asked | None:
    """Both must hold: the longer may be the better; and where it is the worse, a random clicker has more of it."""
    beside = choices.against(person)
    if len(beside.longer) < FEWEST:
        return None
    own = choices.longer(person)
    p = max(
        at_least(sum(own), len(own), SIDED),
        paired_above(beside.longer, beside.others_longer, EXCESS),
    )
    estimate = paired_shares(beside.longer, beside.others_longer).named("longer_excess", person, OTHERS)
    text = (
        f"the longer answer in {sum(own)} of {len(own)} choices; {_points(estimate)} more often than the others on the "
        f"same {estimate.n} pairs"
    )
    return _Asked(person, "longer", p, estimate, text)


def _chance(person: str, weighed: dict[str, tuple[int, int]]) -> _Asked | None:
    agreed, known = weighed[person]
    rest = [a / n for other, (a, n) in weighed.items() if other != person and n >= FEWEST]
    if known < FEWEST or not rest:
        return None
    typical = statistics.median(rest)
    if typical - LOWER <= 0.5:
        return None  # the others agree hardly better than chance: nothing tells who reads
    estimate = wilson(agreed, known).named("agreement_weighed", person, OTHERS)
    text = (
        f"agrees with what most of the others say in {agreed} of {known}, {_percent(estimate)}; chance is 50%, the "
        f"others' median {typical:.0%}"
    )
    assert estimate.low is not None
    p = at_most(agreed, known, typical - LOWER) if estimate.low <= 0.5 else 1.0
    return _Asked(person, "chance", p, estimate, text)


def _known(person: str, choices: Choices) -> _Asked | None:
    answers = [one.right for one in choices.of(person) if one.right is not None]
    asked = choices.records.entry_pass
    if len(answers) < FEWEST or not 0 < asked < 1:
        return None
    right, n = sum(answers), len(answers)
    estimate = wilson(right, n).named("gold", person)
    text = f"{right} of {n} known questions right, {_percent(estimate)}; the store asks for {asked:.0%}"
    return _Asked(person, "known", at_most(right, n, asked), estimate, text)


def _fast(person: str, choices: Choices) -> _Asked | None:
    """By the median of the others' medians, so that one who labels much does not set the pace."""
    paces: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in (said for said in choices.said if not said.elsewhere):
        paces[one.kind][one.person].append(one.seconds / max(1, one.read))
    faster = []
    for by_person in paces.values():
        others = [statistics.median(paces) for other, paces in by_person.items() if other != person]
        if others:
            faster += [pace < FAST * statistics.median(others) for pace in by_person.get(person, ())]
    if len(faster) < FEWEST:
        return None
    estimate = wilson(sum(faster), len(faster)).named("fast", person, OTHERS)
    text = (
        f"less than half the others' median time a word in {sum(faster)} of {len(faster)} labels, {_percent(estimate)}"
    )
    return _Asked(person, "fast", at_least(sum(faster), len(faster), 0.5), estimate, text)


def _percent(estimate: Estimate) -> str:
    return f"{estimate.estimate:.0%} ({estimate.low:.0%} to {estimate.high:.0%})"


def _points(estimate: Estimate) -> str:
    assert estimate.low is not None and estimate.high is not None  # noqa: PT018 - of a paired share
    return f"{100 * estimate.estimate:.0f} points ({100 * estimate.low:.0f} to {100 * estimate.high:.0f})"
