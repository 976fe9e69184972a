"""How good the labels of a store are: how far people agree, which habits they have, and what is shown of whom.

Every number has its interval and n (`Estimate`, as in a run's report): `subject` is a pseudonym or "all", `reference`
whom it is compared with, `split` the kind of task. Of comparisons, only the first turn counts, but for `steady`; those
of the entry test count for nothing here but its tries. What cannot be measured is told, with the reason.
"""

import itertools
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property, partial
from typing import Any, NamedTuple

from llm_rlhf.feedback.queue import agrees
from llm_rlhf.feedback.records import Records, Said, Who
from llm_rlhf.statistics.agreement import Level, cohen_kappa, krippendorff_alpha, raw_agreement
from llm_rlhf.statistics.clustered import clustered_proportion
from llm_rlhf.statistics.intervals import Estimate, Interval, median, paired_shares, wilson

ENOUGH = 20  # items that two people share, from which their kappa is told
LEAST = 0.05
ALL, OTHERS = "all", "the others"
COMPARED = ("compare", "chat")


@dataclass(frozen=True)
class Day:
    """What somebody did on a day (UTC)."""

    day: date
    person: str
    labels: int
    passed: int  # questions passed over
    seconds: Interval | None  # median of a label's; None without labels
    hasty: Interval | None  # share said in less time than reading takes


class Against(NamedTuple):
    """Somebody's choices beside those of everybody else on the same items."""

    agreed: int  # with the majority of the others
    known: int  # items on which the others have one
    longer: list[float]  # 1: chose the longer answer; items on which somebody else chose too
    others_longer: list[float]  # share of the others that did, of the same items


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


class Counted:
    """A store's labels in the shapes that numbers are counted from."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.people: list[Who] = records.people
        self.said = [said for said in records.said if said.purpose != "entry"]
        self.asked = [said for said in self.said if said.turn == 1 and said.purpose == "label"]
        self._by_person = _by(self.said, lambda said: said.person)
        self.votes: dict[int, dict[str, int]] = defaultdict(dict)  # item -> person -> the better answer
        self._voted: dict[str, set[int]] = defaultdict(set)  # items that a person chose on
        self.lengths: dict[int, int | None] = {}  # which answer has more words; None where neither has
        for said in self.said:
            if said.kind in COMPARED:
                a, b = said.words
                self.lengths[said.item] = None if a == b else int(b > a)
        for said in self.asked:
            if said.kind in COMPARED and said.chose:
                self.votes[said.item][said.person] = said.value["better"]
                self._voted[said.person].add(said.item)

    def of(self, person: str) -> list[Said]:
        """Their labels, repeats and known questions included."""
        return self._by_person.get(person, [])

    def compared(self, person: str) -> list[Said]:
        """Their comparisons, each once."""
        return [said for said in self.of(person) if said.turn == 1 and said.kind in COMPARED]

    def common(self, one: str, other: str) -> list[tuple[int, int]]:
        """What both chose, on the items that both have chosen on."""
        return [(self.votes[item][one], self.votes[item][other]) for item in self._voted[one] & self._voted[other]]

    def against(self, person: str) -> Against:
        """Leave one out: this person beside the others, on the items that both have chosen on."""
        agreed = known = 0
        longer, others_longer = [], []
        for item in sorted(self._voted[person]):
            votes = self.votes[item]
            others = [better for other, better in votes.items() if other != person]
            if not others:
                continue
            second = sum(others)
            if 2 * second != len(others):
                known += 1
                agreed += votes[person] == int(2 * second > len(others))
            if (long := self.lengths[item]) is not None:
                longer.append(float(votes[person] == long))
                others_longer.append(sum(better == long for better in others) / len(others))
        return Against(agreed, known, longer, others_longer)

    def weighed(self, person: str) -> tuple[int, int]:
        """(agreed, known) as of `against`, where the others' votes weigh 2 a - 1: a is how often each agrees with
        everybody else, this person aside.

        Where all err independently, that is how much better than chance each is, up to a factor; it keeps those who
        click at random out of the majority, and decides most items on which the others are split. No vote weighs less
        than LEAST, so that a few people of whom nothing is known have the plain majority.
        """
        weights = self._weights(person)
        agreed = known = 0
        for item in self._voted[person]:
            votes = self.votes[item]
            balance = sum(weights[other] * (2 * better - 1) for other, better in votes.items() if other != person)
            if balance:
                known += 1
                agreed += votes[person] == int(balance > 0)
        return agreed, known

    def _weights(self, person: str) -> dict[str, float]:
        """Of everybody but this person; LEAST for those who agree by chance or less."""
        weights = {}
        for one, beside in self._pairs.items():
            same, common = (
                sum(n) for n in zip(*(n for other, n in beside.items() if other != person), (0, 0), strict=True)
            )
            weights[one] = max(LEAST, 2 * same / common - 1) if common else LEAST
        return weights

    @cached_property
    def _pairs(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Of every two people: on how many items they agree, of how many that both chose on."""
        found: dict[str, dict[str, tuple[int, int]]] = {person: {} for person in self._voted}
        for one, other in itertools.combinations(sorted(self._voted), 2):
            both = self.common(one, other)
            found[one][other] = found[other][one] = sum(a == b for a, b in both), len(both)
        return found

    def places(self, person: str) -> list[int]:
        """0 for the left, 1 for the right, of every comparison on which this person chose."""
        return [said.place for said in self.compared(person) if said.place is not None]

    def longer(self, person: str) -> list[bool]:
        """Whether the longer answer was chosen, of every comparison whose answers differ in length."""
        return [
            said.value["better"] == self.lengths[said.item]
            for said in self.compared(person)
            if said.chose and self.lengths[said.item] is not None
        ]


def estimates(counted: Counted) -> tuple[Numbers, list[str]]:
    """All numbers, and what could not be measured, with the reason."""
    found: list[Estimate] = []
    missing: list[str] = []
    for name, split, level, judges in _agreements(counted.asked):
        try:
            found.append(krippendorff_alpha(judges, level).named(name, ALL, split=split))
        except ValueError as error:
            missing.append(f"Agreement on {split}: {str(error).partition(': ')[2]}")
    found.extend(_kappas(counted))
    for who in counted.people:
        found.extend(_of_person(counted, who.pseudonym))
    found.extend(_of_all(counted))
    return Numbers(found), missing


def days(counted: Counted) -> list[Day]:
    """Throughput, the newest day first, known questions and repeats included."""
    said, passed = defaultdict(list), Counter((one.day, one.person) for one in counted.records.passed)
    for one in counted.said:
        said[one.day, one.person].append(one)
    return [
        Day(
            day,
            person,
            len(theirs := said.get((day, person), [])),
            passed[day, person],
            median([one.seconds for one in theirs]) if theirs else None,
            wilson(sum(one.hasty for one in theirs), len(theirs)) if theirs else None,
        )
        for day, person in sorted({*said, *passed}, key=lambda key: (-key[0].toordinal(), key[1]))
    ]


def _of_person(counted: Counted, person: str) -> Iterator[Estimate]:
    """Everything of one person that there is something to count for."""
    theirs = counted.of(person)
    if theirs:
        yield wilson(sum(one.hasty for one in theirs), len(theirs)).named("hasty", person)
    for kind, group in _by(theirs, lambda one: one.kind).items():
        yield median([one.seconds for one in group]).named("seconds", person, split=kind)
    passed = sum(one.person == person for one in counted.records.passed)
    if passed + len(theirs):
        yield wilson(passed, passed + len(theirs)).named("skipped", person)
    compared = counted.compared(person)
    if compared:
        yield wilson(sum(not one.chose for one in compared), len(compared)).named("undecided", person)
    if places := counted.places(person):
        yield wilson(places.count(0), len(places)).named("left", person)
    if longer := counted.longer(person):
        yield wilson(sum(longer), len(longer)).named("longer", person)
    beside = counted.against(person)
    if beside.known:
        yield wilson(beside.agreed, beside.known).named("agreement", person, OTHERS)
    if beside.longer:
        yield paired_shares(beside.longer, beside.others_longer).named("longer_excess", person, OTHERS)
    if known := [one.right for one in theirs if one.right is not None]:
        yield wilson(sum(known), len(known)).named("gold", person)
    if same := list(_steady(theirs)):
        yield wilson(sum(same), len(same)).named("steady", person)


def _of_all(counted: Counted) -> Iterator[Estimate]:
    """Of everybody together; people differ, so that each is a cluster."""
    rows: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for who in counted.people:
        person = who.pseudonym
        theirs = counted.of(person)
        rows["hasty"] += [(person, one.hasty) for one in theirs]
        rows["undecided"] += [(person, not one.chose) for one in counted.compared(person)]
        rows["left"] += [(person, place == 0) for place in counted.places(person)]
        rows["longer"] += [(person, longer) for longer in counted.longer(person)]
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


def _steady(said: Sequence[Said]) -> Iterator[bool]:
    """Of one person's swapped repeats: whether the same was said again, whatever the strength."""
    before = {one.item: one for one in said if one.turn == 1}
    for again in said:
        if again.turn == 2 and (first := before.get(again.item)) is not None:
            yield agrees(again.value, first.value)


def _kappas(counted: Counted) -> Iterator[Estimate]:
    """Of every two people with ENOUGH common items on which both chose."""
    for one, other in itertools.combinations([who.pseudonym for who in counted.people], 2):
        both = counted.common(one, other)
        if len(both) < ENOUGH:
            continue
        a, b = zip(*both, strict=True)
        yield raw_agreement(a, b).named("raw_agreement", one, other)
        if len({*a, *b}) > 1:
            yield cohen_kappa(a, b).named("kappa", one, other)


def _agreements(asked: Sequence[Said]) -> Iterator[tuple[str, str, Level, list[list[Any]]]]:
    """What people can agree on, for each kind of task there is: its name, the scale, and a row a person."""
    for kind, said in _by(asked, lambda one: one.kind).items():
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


def _by(said: Iterable[Said], key: Callable[[Said], str]) -> dict[str, list[Said]]:
    groups: dict[str, list[Said]] = defaultdict(list)
    for one in said:
        groups[key(one)].append(one)
    return dict(sorted(groups.items()))
