"""How good the labels of a store are: how far people agree, which habits they have, and what is shown of whom.

Every number has its interval and n (`Estimate`, as in a run's report): `subject` is a pseudonym or "all", `reference`
whom it is compared with, `split` the kind of task. Of comparisons, only the first turn counts, but for `steady`; those
of the entry test count for nothing here but its tries. What cannot be measured is told, with the reason.
"""

import itertools
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from llm_rlhf.feedback.choices import COMPARED, OTHERS, Choices, grouped
from llm_rlhf.feedback.records import Said, Who, records_of
from llm_rlhf.feedback.saying import agrees
from llm_rlhf.feedback.suspicions import Suspicion, suspicions
from llm_rlhf.statistics.agreement import Level, cohen_kappa, krippendorff_alpha, raw_agreement
from llm_rlhf.statistics.clustered import clustered_proportion
from llm_rlhf.statistics.intervals import Estimate, Interval, median, paired_shares, wilson

ENOUGH = 20  # items that two people share, from which their kappa is told
RESAMPLES = 1000  # of alpha: the page is waited for
FEWEST = 10  # items that an interval of alpha takes
ALL = "all"


@dataclass(frozen=True)
class Day:
    """What somebody did on a day (UTC)."""

    day: date
    person: str
    labels: int
    passed: int  # questions passed over
    seconds: Interval | None  # median of a label's; None without labels on our page
    hasty: Interval | None  # share said in less time than reading takes


class Numbers:
    """A list of estimates with its look-up."""

    def __init__(self, estimates: Iterable[Estimate]) -> None:
        self.estimates = list(estimates)
        self._found = {
            (e.name, e.subject, e.split): e for e in self.estimates if e.name not in ("kappa", "raw_agreement")
        }

    def of(self, name: str, subject: str = ALL, split: str = ALL) -> Estimate | None:
        return self._found.get((name, subject, split))

    def named(self, name: str) -> list[Estimate]:
        return [estimate for estimate in self.estimates if estimate.name == name]


@dataclass(frozen=True)
class Quality:
    """All that the lead's page and `feedback report` say of the labels."""

    people: list[Who]
    labels: dict[str, int]  # of each person, entry test aside
    days: list[Day]
    numbers: Numbers
    missing: list[str]  # what could not be measured, and why
    suspicions: list[Suspicion]
    asked: int  # questions that the suspicions were found among
    reasons: dict[str, int]  # why questions were passed over, the most frequent first
    withdrawn: int  # people whose labels are left out

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "labels": sum(self.labels.values()),
            "people": [asdict(who) | {"labels": self.labels[who.pseudonym]} for who in self.people],
            "withdrawn": self.withdrawn,
            "estimates": [estimate.as_dict() for estimate in self.numbers.estimates],
            "not_measured": self.missing,
            "suspicions": [
                {
                    "person": one.person,
                    "reason": one.reason,
                    "title": one.title,
                    "p": one.p,
                    "text": one.text,
                    "estimate": one.estimate.as_dict(),
                }
                for one in self.suspicions
            ],
            "questions_asked": self.asked,
            "skip_reasons": self.reasons,
            "days": [
                {
                    "day": day.day.isoformat(),
                    "person": day.person,
                    "labels": day.labels,
                    "skipped": day.passed,
                    "seconds": None if day.seconds is None else day.seconds._asdict(),
                    "hasty": None if day.hasty is None else day.hasty._asdict(),
                }
                for day in self.days
            ],
        }


def quality_of(session: Session) -> Quality:
    """The store's, as it is now."""
    choices = Choices(records_of(session))
    numbers, missing = estimates(choices)
    named, asked = suspicions(choices)
    reasons = Counter(passed.reason for passed in choices.records.passed)
    return Quality(
        people=choices.people,
        labels={who.pseudonym: len(choices.of(who.pseudonym)) for who in choices.people},
        days=days(choices),
        numbers=numbers,
        missing=missing,
        suspicions=named,
        asked=asked,
        reasons=dict(reasons.most_common()),
        withdrawn=choices.records.withdrawn,
    )


def estimates(choices: Choices) -> tuple[Numbers, list[str]]:
    """All numbers, and what could not be measured, with the reason."""
    found: list[Estimate] = []
    missing: list[str] = []
    for name, split, level, judges in _agreements(choices.asked):
        try:
            found.append(_of_enough(krippendorff_alpha(judges, level, RESAMPLES)).named(name, ALL, split=split))
        except ValueError as error:
            missing.append(f"Agreement on {split}: {str(error).partition(': ')[2]}")
    found.extend(_kappas(choices))
    for who in choices.people:
        found.extend(_of_person(choices, who.pseudonym))
    found.extend(_of_all(choices))
    return Numbers(found), missing


def _of_enough(alpha: Interval) -> Interval:
    """Few units resampled give intervals that are far too narrow."""
    if alpha.n >= FEWEST:
        return alpha
    return alpha._replace(low=None, high=None, method=f"{alpha.method}; fewer than {FEWEST} have no interval")


def days(choices: Choices) -> list[Day]:
    """Throughput, the newest day first, known questions and repeats included."""
    said, passed = defaultdict(list), Counter((one.day, one.person) for one in choices.records.passed)
    for one in choices.said:
        said[one.day, one.person].append(one)
    return [
        Day(
            day,
            person,
            len(theirs := said.get((day, person), [])),
            passed[day, person],
            median([one.seconds for one in timed]) if (timed := _timed(theirs)) else None,
            wilson(sum(one.hasty for one in timed), len(timed)) if timed else None,
        )
        for day, person in sorted({*said, *passed}, key=lambda key: (-key[0].toordinal(), key[1]))
    ]


def _of_person(choices: Choices, person: str) -> Iterator[Estimate]:
    """Everything of one person that there is something to count for."""
    theirs = choices.of(person)
    timed = _timed(theirs)
    if timed:
        yield wilson(sum(one.hasty for one in timed), len(timed)).named("hasty", person)
    for kind, group in grouped(timed, lambda one: one.kind).items():
        yield median([one.seconds for one in group]).named("seconds", person, split=kind)
    passed = sum(one.person == person for one in choices.records.passed)
    if passed + len(timed):
        yield wilson(passed, passed + len(timed)).named("skipped", person)
    compared = choices.compared(person)
    if compared:
        yield wilson(sum(not one.chose for one in compared), len(compared)).named("undecided", person)
    if places := choices.places(person):
        yield wilson(places.count(0), len(places)).named("left", person)
    if longer := choices.longer(person):
        yield wilson(sum(longer), len(longer)).named("longer", person)
    beside = choices.against(person)
    if beside.known:
        yield wilson(beside.agreed, beside.known).named("agreement", person, OTHERS)
    if beside.longer:
        yield paired_shares(beside.longer, beside.others_longer).named("longer_excess", person, OTHERS)
    if known := [one.right for one in theirs if one.right is not None]:
        yield wilson(sum(known), len(known)).named("gold", person)
    if same := list(_steady(theirs)):
        yield wilson(sum(same), len(same)).named("steady", person)


def _of_all(choices: Choices) -> Iterator[Estimate]:
    """Of everybody together; people differ, so that each is a cluster."""
    rows: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for who in choices.people:
        person = who.pseudonym
        theirs = choices.of(person)
        rows["hasty"] += [(person, one.hasty) for one in _timed(theirs)]
        rows["undecided"] += [(person, not one.chose) for one in choices.compared(person)]
        rows["left"] += [(person, place == 0) for place in choices.places(person)]
        rows["longer"] += [(person, longer) for longer in choices.longer(person)]
        rows["gold"] += [(person, one.right) for one in theirs if one.right is not None]
        rows["steady"] += [(person, same) for same in _steady(theirs)]
    for name, of in rows.items():
        if not of:
            continue
        who_said, yes = zip(*of, strict=True)
        if len(set(who_said)) == 1:
            yield wilson(sum(yes), len(yes)).named(name, ALL)
        else:
            interval = clustered_proportion([float(one) for one in yes], who_said)
            yield interval._replace(method=interval.method.replace("wordings", "people")).named(name, ALL)


def _timed(said: Sequence[Said]) -> list[Said]:
    return [one for one in said if not one.elsewhere]


def _steady(said: Sequence[Said]) -> Iterator[bool]:
    """Of one person's swapped repeats: whether the same was said again, whatever the strength."""
    before = {one.item: one for one in said if one.turn == 1}
    for again in said:
        if again.turn == 2 and (first := before.get(again.item)) is not None:
            yield agrees(again.value, first.value)


def _kappas(choices: Choices) -> Iterator[Estimate]:
    """Of every two people with ENOUGH common items on which both chose."""
    for one, other in itertools.combinations([who.pseudonym for who in choices.people], 2):
        both = choices.common(one, other)
        if len(both) < ENOUGH:
            continue
        a, b = zip(*both, strict=True)
        yield raw_agreement(a, b).named("raw_agreement", one, other)
        if len({*a, *b}) > 1:
            yield cohen_kappa(a, b).named("kappa", one, other)


def _agreements(asked: Sequence[Said]) -> Iterator[tuple[str, str, Level, list[list[Any]]]]:
    """What people can agree on, for each kind of task there is: its name, the scale, and a row a person."""
    for kind, said in grouped(asked, lambda one: one.kind).items():
        for split, level, read in _read(kind, said):
            people = {person: row for row, person in enumerate(sorted({one.person for one in said}))}
            items = {item: column for column, item in enumerate(sorted({one.item for one in said}))}
            judges: list[list[Any]] = [[None] * len(items) for _ in people]
            for one in said:
                judges[people[one.person]][items[one.item]] = read(one.value)
            yield "alpha", f"{kind}: {split}", level, judges


def _read(kind: str, said: Sequence[Said]) -> list[tuple[str, Level, Callable[[dict[str, Any]], Any]]]:
    """The questions that a label of this kind answers, each with its scale."""
    if kind in COMPARED:
        return [("which is better", "nominal", _winner), ("how much better", "ordinal", _signed)]
    if kind == "rate":
        return [(name, "ordinal", operator.itemgetter(name)) for name in ("helpful", "harmless")]
    if kind == "rank":
        return [("the best", "nominal", _best)]
    if kind == "correct":
        return [("which is better", "nominal", operator.itemgetter("better"))]
    if kind == "annotate":
        names = sorted({name for one in said for name in one.value["labels"]})
        return [(name, "nominal", partial(_has, name)) for name in names]
    return []  # nobody can agree on a text of their own


def _best(value: dict[str, Any]) -> str:
    return str([place for place, rank in enumerate(value["ranks"]) if rank == 1])


def _has(name: str, value: dict[str, Any]) -> bool:
    return name in value["labels"]


def _winner(value: dict[str, Any]) -> str:
    return str(value["better"]) if value["choice"] == "better" else str(value["choice"])


def _signed(value: dict[str, Any]) -> int | None:
    """From -4, the first is far better, to 4, the second is; 0 a tie; None where both are bad."""
    if value["choice"] == "both bad":
        return None
    return 0 if value["choice"] == "tie" else int(value["strength"] * (1 if value["better"] else -1))
