"""Numbers of the lead's page: by hand on a few labels, and whether they recover what was planted."""

import datetime
from typing import Any

import pytest
from planted import DAY, GOOD, PLANTED, planted

from llm_rlhf.feedback import people, queue, saying
from llm_rlhf.feedback.choices import Choices
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.quality import days, estimates
from llm_rlhf.feedback.queue import Question
from llm_rlhf.feedback.records import Passed, Records, Said, Who, records_of
from llm_rlhf.feedback.settings import change
from llm_rlhf.feedback.suspicions import suspicions
from llm_rlhf.feedback.tables import Label
from llm_rlhf.statistics.intervals import Estimate, wilson


def said(person: str, item: int, better: int | None, **other: Any) -> Said:
    value = {"choice": "tie"} if better is None else {"choice": "better", "better": better, "strength": 2}
    known: dict[str, Any] = {"order": (0, 1), "words": (10, 20), "read": 40, "seconds": 8.0, "hasty": False, "day": DAY}
    return Said(person, item, "compare", value, **(known | other))


def of(records: Records, name: str, subject: str = "all", split: str = "all") -> Estimate:
    found = estimates(Choices(records))[0].of(name, subject, split)
    assert found is not None
    return found


def trio(said: list[Said], passed: list[Passed] | None = None) -> Records:
    return Records([Who("a"), Who("b"), Who("c")], said, passed or [])


class TestByHand:
    def test_the_left_place_is_the_pages_and_not_the_items(self) -> None:
        records = trio(
            [said("a", 1, 0), said("a", 2, 0, order=(1, 0)), said("a", 3, 1, order=(1, 0)), said("a", 4, None)]
        )
        left = of(records, "left", "a")
        assert (left.estimate, left.n) == (2 / 3, 3)  # the tie chose no place
        assert of(records, "undecided", "a").estimate == 1 / 4

    def test_the_longer_answer_and_the_others_on_the_same_items(self) -> None:
        records = trio(
            [
                *(said("a", item, 1) for item in (1, 2, 3)),
                said("b", 1, 0),
                said("c", 1, 1),
                said("b", 2, 0),
                said("a", 4, 1, words=(7, 7)),  # neither is longer
            ]
        )
        assert of(records, "longer", "a").n == 3
        excess = of(records, "longer_excess", "a")
        assert (excess.estimate, excess.n) == ((0.5 + 1) / 2, 2)  # nobody else chose on item 3

    def test_agreement_is_with_the_majority_of_the_others(self) -> None:
        votes = {1: (0, 0, 0), 2: (0, 1, 1), 3: (1, 0, 1), 4: (1, 1, None)}
        records = trio(
            [said(who, item, vote) for item, of in votes.items() for who, vote in zip("abc", of, strict=True)]
        )
        agreement = of(records, "agreement", "a")
        assert (agreement.estimate, agreement.n) == (2 / 3, 3)  # on item 3 the others are split
        assert (agreement.low, agreement.high) == wilson(2, 3)[1:3]

    def test_a_swapped_repeat_is_steady_where_the_same_answer_is_chosen(self) -> None:
        records = trio(
            [
                *(said("a", item, 0) for item in (1, 2)),
                said("a", 1, 0, turn=2, order=(1, 0)),
                said("a", 2, 1, turn=2, order=(1, 0)),
                said("b", 2, 0),
            ]
        )
        assert of(records, "steady", "a").estimate == 0.5
        assert of(records, "left", "a").n == 2  # repeats are not counted again
        assert of(records, "agreement", "b").estimate == 1  # with what was said first

    def test_known_questions_and_the_entry_test(self) -> None:
        records = trio(
            [
                said("a", 1, 0, purpose="gold", right=True),
                said("a", 2, 0, purpose="gold", right=False),
                said("a", 3, 0, purpose="entry", right=True),
            ]
        )
        assert (of(records, "gold", "a").estimate, of(records, "gold", "a").n) == (0.5, 2)

    def test_kappa_is_told_from_twenty_common_items_on(self) -> None:
        def kappas(items: int) -> list[Estimate]:
            both = [said(who, item, item % 2) for who in "ab" for item in range(items)]
            return estimates(Choices(trio(both)))[0].named("kappa")

        assert not kappas(19)
        (kappa,) = kappas(20)
        assert (kappa.subject, kappa.reference, kappa.estimate, kappa.n) == ("a", "b", 1.0, 20)

    def test_alpha_by_kind_and_what_it_cannot_tell(self) -> None:
        votes = [said(who, item, better) for item, better in ((1, 0), (2, 1), (3, 0)) for who in "ab"]
        rating = {"helpful": 5, "harmless": 7}
        rated = [Said(who, 9, "rate", rating, (0,), (5,), 9, 3.0, False, DAY) for who in "ab"]
        numbers, missing = estimates(Choices(trio(votes + rated)))
        alpha = numbers.of("alpha", split="compare: which is better")
        assert alpha is not None
        assert (alpha.estimate, alpha.n) == (1.0, 3)
        assert any("rate: helpful" in line and "all 2 labels" in line for line in missing)

    def test_of_labels_from_a_file_neither_place_nor_time_is_known(self) -> None:
        numbers, _ = estimates(Choices(trio([said("a", item, 0, elsewhere=True, seconds=0.0) for item in range(30)])))
        told = {one.name for one in numbers.estimates if one.subject == "a"}
        assert told == {"undecided", "longer"}

    def test_throughput_by_day_and_person(self) -> None:
        later = DAY + datetime.timedelta(days=1)
        first = [said("a", item, 0, seconds=float(item), hasty=item == 1) for item in range(1, 7)]
        found = days(Choices(trio([*first, said("b", 1, 0, day=later)], [Passed("b", "cannot judge", DAY)])))
        assert [(one.day, one.person, one.labels, one.passed) for one in found] == [
            (later, "b", 1, 0),
            (DAY, "a", 6, 0),
            (DAY, "b", 0, 1),
        ]
        assert found[1].seconds is not None
        assert found[1].seconds[:4] == (3.5, 1.0, 6.0, 6)
        assert found[1].hasty == wilson(1, 6)
        assert found[2].seconds is None


class TestPlanted:
    """Twenty stores of 200 comparisons by ten annotators; what 400 such stores and others gave, the docs tell."""

    @pytest.fixture(scope="class")
    @classmethod
    def named(cls) -> list[set[tuple[str, str]]]:
        stores = (Choices(planted(seed, per_item=6)) for seed in range(20))
        return [{(one.person, one.reason) for one in suspicions(store)[0]} for store in stores]

    @pytest.mark.parametrize(("person", "reason"), PLANTED.items())
    def test_each_is_named_for_their_own_reason(
        self, named: list[set[tuple[str, str]]], person: str, reason: str
    ) -> None:
        assert sum((person, reason) in store for store in named) >= 18
        assert all({why for who, why in store if who == person} <= {reason} for store in named)

    def test_no_good_one_is_named(self, named: list[set[tuple[str, str]]]) -> None:
        assert not {who for store in named for who, _ in store} & set(GOOD)

    def test_where_all_are_good_nobody_is(self) -> None:
        for seed in range(20):
            assert not suspicions(Choices(planted(seed, people=GOOD, noise=0.3, left_lean=0.1)))[0]

    def test_who_chooses_at_random_is_not_said_to_love_length_where_the_shorter_is_better(self) -> None:
        for seed in range(10):
            found = suspicions(Choices(planted(seed, per_item=6, long_is_better=0.1)))[0]
            assert "longer" not in {one.reason for one in found if one.person != "lengthy"}

    def test_what_all_do_alike_is_no_habit_of_one(self) -> None:
        records = planted(0, people=("a", "b", "c", "d"), long_is_better=0.9)
        assert not suspicions(Choices(records))[0]

    def test_a_small_lean_is_not_named_however_often_it_is_seen(self) -> None:
        rows = [said("a", item, 0 if item % 20 < 11 else 1) for item in range(5000)]  # 55 % left
        assert not suspicions(Choices(trio(rows)))[0]
        rows = [said("a", item, 0 if item % 20 < 13 else 1) for item in range(5000)]  # 65 %
        assert [one.reason for one in suspicions(Choices(trio(rows)))[0]] == ["left"]

    def test_who_is_fast_is_named_with_what_it_rests_on(self) -> None:
        slow = [said(who, item, item % 2, seconds=10.0, words=(9, 9)) for who in "ab" for item in range(40)]
        fast = [said("c", item, item % 2, seconds=4.0, words=(9, 9)) for item in range(40)]
        (found,) = suspicions(Choices(trio(slow + fast)))[0]
        assert (found.person, found.reason) == ("c", "fast")
        assert "40 of 40 labels" in found.text

    def test_who_says_the_contrary_is_told_apart_from_chance(self) -> None:
        votes = [said(who, item, item % 2, words=(9, 9)) for who in "abd" for item in range(60)]
        contrary = [said("c", item, 1 - item % 2, words=(9, 9)) for item in range(60)]
        four = Records([Who(name) for name in "abcd"], votes + contrary, [])
        assert [(one.person, one.reason) for one in suspicions(Choices(four))[0]] == [("c", "against")]

    def test_who_misses_known_questions_is_named(self) -> None:
        rows = [said("a", item, item % 2, purpose="gold", right=item < 12, words=(9, 9)) for item in range(40)]
        assert [one.reason for one in suspicions(Choices(trio(rows)))[0]] == ["known"]


def test_a_store_is_read_whole_but_for_who_has_withdrawn(database: Database) -> None:
    answers = [{"text": "One two.", "source": "sft"}, {"text": "One two three.", "source": "ppo"}]
    with database.write() as session:
        change(session, {"gold_share": 0.0, "repeat_share": 0.0, "people_per_item": 3})
        prompts = ([{"role": "user", "content": f"And what of {n}?"}] for n in range(2))
        queue.add(session, [Question("compare", prompt, answers) for prompt in prompts], "import", {})
        anna, bert, gone = (people.invite(session)[0] for _ in range(3))
        for person in (anna, bert, gone):
            first = queue.next_for(session, person)
            assert first is not None
            saying.record(session, first, {"choice": "better", "better": 0, "strength": 1}, 3.0)
        second = queue.next_for(session, bert)
        assert second is not None
        saying.skip(session, second, "cannot judge")
        people.withdraw(session, gone)
    with database.read() as session:
        records = records_of(session)
        label = session.query(Label).first()
    assert records.withdrawn == 1
    assert [who.pseudonym for who in records.people] == [anna.pseudonym, bert.pseudonym]
    assert [(one.person, one.words, one.read, one.place) for one in records.said] == [
        (who.pseudonym, (2, 3), 9, 0) for who in (anna, bert)
    ]
    assert label is not None
    assert records.passed == [Passed(bert.pseudonym, "cannot judge", label.created.date())]
