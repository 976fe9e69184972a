"""The queue: everything is asked as often as it wants, and every choice is kept once."""

import datetime
import random
import threading

import pytest
from sqlalchemy import func, select
from web_helpers import filled, pair

from llm_rlhf.errors import DataError
from llm_rlhf.feedback import people, queue, saying
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.queue import Question
from llm_rlhf.feedback.refusals import Forbidden, Settled
from llm_rlhf.feedback.tables import Assignment, Flag, Item, Label, Person, now

BETTER = {"choice": "better", "better": 0, "strength": 2}


def somebody(database: Database, role: str = "annotator") -> Person:
    with database.write() as session:
        return people.invite(session, role)[0]


def test_a_question_is_asked_of_as_many_people_as_it_wants(database: Database) -> None:
    filled(database, [pair(1), pair(2)], people_per_item=2)
    for expected in (2, 2, 0):
        person = somebody(database)
        said = 0
        while True:
            with database.write() as session:
                assignment = queue.next_for(session, person)
                if assignment is None:
                    break
                saying.record(session, assignment, BETTER)
                said += 1
        assert said == expected
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Label)) == 4
        assert set(session.scalars(select(Item.taken))) == {2}


def test_many_at_once_take_no_place_twice(database: Database) -> None:
    filled(database, [pair(number) for number in range(20)], people_per_item=2)
    persons = [somebody(database) for _ in range(8)]
    failures: list[BaseException] = []

    def work(person: Person) -> None:
        try:
            while True:
                with database.write() as session:
                    assignment = queue.next_for(session, person)
                    if assignment is None:
                        return
                with database.write() as session:
                    saying.record(session, session.get_one(Assignment, assignment.id), BETTER)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(person,)) for person in persons]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with database.read() as session:
        per_item = session.execute(select(Label.item_id, func.count()).group_by(Label.item_id)).all()
        assert sorted(count for _, count in per_item) == [2] * 20


def test_a_pair_is_asked_once_whatever_the_order_of_its_answers(database: Database) -> None:
    question = pair(1)
    filled(database, [question])
    question.answers.reverse()
    with database.write() as session:
        added = queue.add(session, [question], "import", {})
    assert (added.items, added.known) == ([], 1)


def test_a_label_is_kept_by_the_items_places_whatever_the_page_showed(database: Database) -> None:
    filled(database, [pair(number) for number in range(8)])
    person = somebody(database)
    orders = set()
    rng = random.Random(0)
    for _ in range(8):
        with database.write() as session:
            assignment = queue.next_for(session, person, rng=rng)
            assert assignment is not None
            orders.add(tuple(assignment.order))
            place_of_second = assignment.order.index(1)
            label = saying.record(session, assignment, BETTER | {"better": place_of_second})
            assert label.value["better"] == 1
    assert orders == {(0, 1), (1, 0)}


def test_the_same_said_twice_is_one_label_and_another_is_refused(database: Database) -> None:
    filled(database, [pair(1)])
    person = somebody(database)
    with database.write() as session:
        assignment = queue.next_for(session, person)
        assert assignment is not None
        first = saying.record(session, assignment, BETTER)
        assert saying.record(session, assignment, BETTER).id == first.id
        with pytest.raises(Settled, match="answered before"):
            saying.record(session, assignment, {"choice": "tie"})


def test_undo_takes_the_label_back_and_keeps_it_as_a_draft(database: Database) -> None:
    filled(database, [pair(1), pair(2)])
    person = somebody(database)
    with database.write() as session:
        first = queue.next_for(session, person)
        assert first is not None
        saying.record(session, first, BETTER)
        second = queue.next_for(session, person)
        assert second is not None
        assert saying.undo(session, person) is first
        assert first.draft is not None
        assert session.scalar(select(func.count()).select_from(Label)) == 0
        saying.record(session, first, {"choice": "tie"})
        again = queue.next_for(session, person)
        assert again is not None
        assert again.item_id == second.item_id


def test_what_was_opened_and_left_is_somebody_elses(database: Database) -> None:
    filled(database, [pair(1)])
    first, second = somebody(database), somebody(database)
    with database.write() as session:
        left = queue.next_for(session, first)
        assert left is not None
        assert queue.next_for(session, second) is None
        left.expires = now() - datetime.timedelta(seconds=1)
    with database.write() as session:
        taken = queue.next_for(session, second)
        assert taken is not None
        saying.record(session, taken, BETTER)
    with database.write() as session, pytest.raises(Settled, match="no longer yours"):
        saying.record(session, session.get_one(Assignment, left.id), BETTER)


def test_a_skipped_question_is_asked_of_somebody_else(database: Database) -> None:
    filled(database, [pair(1)])
    first, second = somebody(database), somebody(database)
    with database.write() as session:
        assignment = queue.next_for(session, first)
        assert assignment is not None
        saying.skip(session, assignment, "about a place I do not know")
        assert queue.next_for(session, first) is None
        assert queue.next_for(session, second) is not None


def test_a_known_question_that_was_skipped_can_be_taken_back_as_any_other(database: Database) -> None:
    """It has no places that could be gone; a refusal would also give away that its answer is known."""
    filled(database, [pair(1, purpose="gold", expected={"value": dict(BETTER)})], gold_share=1.0)
    person = somebody(database)
    with database.write() as session:
        assignment = queue.next_for(session, person)
        assert assignment is not None
        saying.skip(session, assignment, "not for me")
        assert saying.undo(session, person) is assignment


def test_anothers_question_cannot_be_answered(database: Database) -> None:
    filled(database, [pair(1)])
    first, second = somebody(database), somebody(database)
    with database.write() as session:
        assignment = queue.next_for(session, first)
        assert assignment is not None
        with pytest.raises(Forbidden):
            saying.assignment_of(session, second, assignment.id)


def test_an_entry_test_comes_first_and_is_begun_again_until_it_is_passed(database: Database) -> None:
    expected = {"value": BETTER, "why": "it is the first"}
    tests = [pair(number, purpose="entry", expected=dict(expected)) for number in (1, 2)]
    filled(database, [pair(3), *tests])
    person = somebody(database)

    def answer(better: int) -> str:
        with database.write() as session:
            assignment = queue.next_for(session, session.get_one(Person, person.id))
            assert assignment is not None
            purpose = session.get_one(Item, assignment.item_id).purpose
            saying.record(session, assignment, BETTER | {"better": assignment.order.index(better)})
            return purpose

    assert [answer(1), answer(1)] == ["entry", "entry"]
    assert [answer(0), answer(0)] == ["entry", "entry"]
    assert answer(0) == "label"
    with database.read() as session:
        found = session.get_one(Person, person.id)
        assert (found.entry_tries, found.entry_score) == (2, 1.0)


def test_who_reports_the_whole_entry_test_is_not_in(database: Database) -> None:
    tests = [pair(number, purpose="entry", expected={"value": dict(BETTER)}) for number in (1, 2)]
    filled(database, [pair(3), *tests])
    person = somebody(database)
    for _ in tests:
        with database.write() as session:
            assignment = queue.next_for(session, session.get_one(Person, person.id))
            assert assignment is not None
            saying.report(session, assignment, "personal", "a name")
    with database.write() as session:
        again = queue.next_for(session, session.get_one(Person, person.id))
        assert again is not None
        assert session.get_one(Item, again.item_id).purpose == "entry"
        assert session.get_one(Person, person.id).entry_tries == 1
        assert session.scalar(select(func.count()).select_from(Flag)) == 2


def test_a_repeat_comes_with_the_answers_swapped(database: Database) -> None:
    filled(database, [pair(number) for number in range(3)], repeat_share=1.0, repeat_after=1)
    person = somebody(database)
    seen: dict[int, list[list[int]]] = {}
    for _ in range(5):
        with database.write() as session:
            assignment = queue.next_for(session, person)
            if assignment is None:
                break
            seen.setdefault(assignment.item_id, []).append(assignment.order)
            saying.record(session, assignment, BETTER)
    repeated = [orders for orders in seen.values() if len(orders) == 2]
    assert repeated
    assert all(first == second[::-1] for first, second in repeated)


def test_a_known_question_and_a_repeat_are_of_the_topic_that_was_chosen(database: Database) -> None:
    expected = {"value": BETTER, "why": "it is the first"}
    gold = pair(1, purpose="gold", expected=expected, topic="plants")
    asked = [pair(2, topic="stars"), pair(3, topic="plants"), pair(4, topic="stars")]
    filled(database, [gold, *asked], gold_share=1.0, repeat_share=1.0, repeat_after=1)
    person = somebody(database)
    topics = []
    for topic in ("stars", "stars", "plants", "plants", "stars"):
        with database.write() as session:
            assignment = queue.next_for(session, person, topic=topic)
            assert assignment is not None
            topics.append(session.get_one(Item, assignment.item_id).topic)
            saying.record(session, assignment, BETTER)
    assert topics == ["stars", "stars", "plants", "plants", "stars"]


def test_what_looks_like_personal_data_is_shown_to_nobody(database: Database) -> None:
    question = pair(1)
    question.answers[0]["text"] = "Write to jane.doe@example.org."
    filled(database, [question])
    person = somebody(database)
    with database.write() as session:
        assert queue.next_for(session, person) is None
        assert session.scalar(select(Item.held_for)) == "looks like personal data: e-mail address"


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (Question("compare", [{"role": "user", "content": "Why?"}], [{"text": "So."}]), "has 1 answers; it takes 2"),
        (Question("guess", [{"role": "user", "content": "Why?"}]), "is one of compare"),
        (Question("demonstrate", [{"role": "assistant", "content": "Why?"}]), "ends with the user's turn"),
        (
            Question("compare", [{"role": "user", "content": "Why?"}], [{"text": "So."}, {"text": "So."}]),
            "are the same",
        ),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(database: Database, question: Question, says: str) -> None:
    with database.write() as session, pytest.raises(DataError, match=says):
        queue.add(session, [question], "import", {})
