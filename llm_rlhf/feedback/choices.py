"""A store's labels in the shapes that numbers are counted from: by place, by length, and beside the others' choices."""

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple

from llm_rlhf.feedback.records import Records, Said, Who

OTHERS = "the others"
COMPARED = ("compare", "chat")
LEAST = 0.05  # weight of a vote, beside 1 of somebody who always agrees


class Against(NamedTuple):
    """Somebody's choices beside those of everybody else on the same items."""

    agreed: int  # with the majority of the others
    known: int  # items on which the others have one
    longer: list[float]  # 1: chose the longer answer; items on which somebody else chose too
    others_longer: list[float]  # share of the others that did, of the same items


class Choices:
    """A store's labels in the shapes that numbers are counted from."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.people: list[Who] = records.people
        self.said = [said for said in records.said if said.purpose != "entry"]
        self.asked = [said for said in self.said if said.turn == 1 and said.purpose == "label"]
        self._by_person = grouped(self.said, lambda said: said.person)
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

    @cached_property
    def paces(self) -> dict[str, dict[str, tuple[float, list[float]]]]:
        """Seconds a word, by kind of task and person: the median, and all; of labels on our page."""
        found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for one in self.said:
            if not one.elsewhere:
                found[one.kind][one.person].append(one.seconds / max(1, one.read))
        return {
            kind: {who: (statistics.median(of), of) for who, of in people.items()} for kind, people in found.items()
        }

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


def grouped(said: Iterable[Said], key: Callable[[Said], str]) -> dict[str, list[Said]]:
    """Labels by a name of theirs, names in order."""
    groups: dict[str, list[Said]] = defaultdict(list)
    for one in said:
        groups[key(one)].append(one)
    return dict(sorted(groups.items()))
