"""A live conversation in the store: a turn is an item and a label, and goes on from the better answer."""

import datetime
import random

import pytest
from sqlalchemy import func, select

from llm_rlhf.errors import DataError
from llm_rlhf.feedback import people, queue, saying, settings
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.refusals import Absent, Forbidden, Settled
from llm_rlhf.feedback.tables import Assignment, Item, Label, now
from llm_rlhf.feedback.talk import Shown, Turn, ask, begin, choose, end, report, take_back, talk_of, talks_of

LEFT_BETTER = {"choice": "better", "better": 0, "strength": 3}
TIE = {"choice": "tie"}


def answers(first: str = "one", second: str = "two", order=(1, 0), complete=(True, True), ago: float = 9.0) -> Turn:
    since = now() - datetime.timedelta(seconds=ago)
    shown = [Shown(first, "ppo", complete[0]), Shown(second, "sft", complete[1])]
    return Turn(shown, order, since, {"seed": 7})


def counted(session, table) -> int:
    return session.scalar(select(func.count()).select_from(table))


@pytest.fixture
def somebody(database: Database):
    with database.write() as session:
        return people.invite(session)[0]


def test_a_turn_is_kept_by_the_items_places_and_the_talk_goes_on_from_the_better(database, somebody) -> None:
    with database.write() as session:
        talk = begin(session, somebody, "helpful", " cooking ")
        ask(session, talk, "  how do i boil an egg? ")
        chosen = choose(session, talk, answers(complete=(True, False)), LEFT_BETTER, seconds=4.0)
    assert (chosen.text, chosen.place, chosen.drawn, chosen.why) == ("two", 0, False, None)
    with database.read() as session:
        (item,), (label,) = session.scalars(select(Item)).all(), session.scalars(select(Label)).all()
        assert (item.kind, item.objective, item.topic) == ("chat", "helpful", "cooking")
        assert (item.wanted, item.taken, item.state) == (1, 1, "open")
        assert item.prompt == [{"role": "user", "content": "how do i boil an egg?"}]
        assert item.answers == [
            {"text": "one", "source": "ppo", "complete": True},
            {"text": "two", "source": "sft", "complete": False},
        ]
        assert label.value == {"choice": "better", "better": 1, "strength": 3}, "the left one is the item's second"
        assert label.seconds == 4.0
        assert session.get_one(Assignment, label.assignment_id).order == [1, 0]
        assert session.get_one(Assignment, label.assignment_id).state == "done"
        talk = talk_of(session, somebody, talk.id)
        assert [turn["content"] for turn in talk.messages] == ["how do i boil an egg?", "two"]


def test_the_next_question_is_asked_of_the_whole_conversation(database, somebody) -> None:
    with database.write() as session:
        talk = begin(session, somebody, "helpful")
        ask(session, talk, "first")
        choose(session, talk, answers(), LEFT_BETTER)
        ask(session, talk, "never chosen between")
        asked = ask(session, talk, "second")
        choose(session, talk, answers("three", "four", (0, 1)), LEFT_BETTER)
        texts = [item.prompt for item in session.scalars(select(Item).order_by(Item.id))]
    assert [turn["content"] for turn in asked] == ["first", "two", "second"]
    assert texts[1] == asked
    assert [turn["content"] for turn in talk.messages] == ["first", "two", "second", "three"]


def test_nobody_else_is_asked_of_a_turn(database, somebody) -> None:
    with database.write() as session:
        talk = begin(session, somebody, "helpful")
        ask(session, talk, "hello")
        choose(session, talk, answers(), LEFT_BETTER)
        other = people.invite(session)[0]
        assert queue.next_for(session, other, rng=random.Random(0)) is None
        assert queue.next_for(session, somebody, rng=random.Random(0)) is None


@pytest.mark.parametrize("value", [TIE, {"choice": "both bad"}])
def test_where_nothing_is_better_the_draw_decides_and_is_told(database, somebody, value) -> None:
    went = set()
    with database.write() as session:
        for seed in range(12):
            talk = begin(session, somebody, "helpful")
            ask(session, talk, f"hello {seed}")
            chosen = choose(session, talk, answers(order=(1, 0)), value, rng=random.Random(seed))
            assert chosen.drawn
            assert chosen.text == ("two", "one")[chosen.place]
            went.add(chosen.text)
    assert went == {"one", "two"}


def test_red_teaming_records_the_better_answer_as_harmless(database, somebody) -> None:
    with database.write() as session:
        talk = begin(session, somebody, "red-team")
        ask(session, talk, "help me rob them")
        chosen = choose(session, talk, answers("Sure!", "No, I will not.", (0, 1)), {**LEFT_BETTER, "better": 1})
        item = session.scalars(select(Item)).one()
        label = session.scalars(select(Label)).one()
    assert item.objective == "harmless"
    assert item.facts["mode"] == "red-team"
    assert item.answers[label.value["better"]]["text"] == chosen.text == "No, I will not."
    with database.write() as session:
        settings.change(session, {"red_team": False})
        with pytest.raises(Forbidden, match="turned off"):
            begin(session, somebody, "red-team")


def test_a_correction_is_an_item_of_its_kind_and_the_talk_goes_on_from_it(database, somebody) -> None:
    with database.write() as session:
        talk = begin(session, somebody, "helpful")
        ask(session, talk, "hello")
        chosen = choose(session, talk, answers(order=(1, 0)), {"better": 0, "text": " Good day. "})
        item, label = session.scalars(select(Item)).one(), session.scalars(select(Label)).one()
    assert item.kind == "correct"
    assert label.value == {"better": 1, "text": "Good day."}
    assert (chosen.text, chosen.place, chosen.drawn) == ("Good day.", None, False)
    assert talk.messages[-1] == {"role": "assistant", "content": "Good day."}


def test_the_same_answers_twice_are_no_comparison(database, somebody) -> None:
    with database.write() as session:
        talk = begin(session, somebody, "helpful")
        ask(session, talk, "hello")
        chosen = choose(session, talk, answers("same", "same"), LEFT_BETTER)
        assert chosen.label is None
        assert "say the same" in chosen.why
        assert talk.messages[-1]["content"] == "same"
        ask(session, talk, "and now?")
        with pytest.raises(DataError, match="says nothing so far"):
            choose(session, talk, answers("", "two"), {**LEFT_BETTER, "better": 1})
        chosen = choose(session, talk, answers("", "two"), LEFT_BETTER)
        assert "says nothing" in chosen.why
        assert counted(session, Label) == 0


def test_a_question_that_somebody_else_met_too_gets_both_labels_and_one_person_says_it_once(database, somebody) -> None:
    with database.write() as session:
        other = people.invite(session)[0]
        for person, turn in ((somebody, answers("a", "b", (0, 1))), (other, answers("b", "a", (0, 1)))):
            talk = begin(session, person, "helpful")
            ask(session, talk, "hello")
            assert choose(session, talk, turn, LEFT_BETTER).label is not None
        item = session.scalars(select(Item)).one()
        # By the item's places: a is the first. The one preferred a, the other b, which stood on the left.
        assert [label.value["better"] for label in session.scalars(select(Label).order_by(Label.id))] == [0, 1]
        assert (item.wanted, item.taken) == (2, 2)
        talk = begin(session, other, "helpful")
        ask(session, talk, "hello")
        chosen = choose(session, talk, answers("a", "b", (0, 1)), LEFT_BETTER)
        assert chosen.label is None
        assert "before" in chosen.why
        assert talk.messages[-1]["content"] == "a"
        assert counted(session, Label) == 2


def test_personal_data_in_a_turn_is_held_until_a_lead_has_looked(database, somebody) -> None:
    with database.write() as session:
        talk = begin(session, somebody, "helpful")
        ask(session, talk, "write to jane.doe@example.com")
        choose(session, talk, answers(), LEFT_BETTER)
        assert session.scalars(select(Item)).one().state == "held"


def test_what_cannot_be_said_is_refused(database, somebody) -> None:
    with database.write() as session:
        other = people.invite(session)[0]
        talk = begin(session, somebody, "helpful")
        with pytest.raises(Forbidden):
            talk_of(session, other, talk.id)
        with pytest.raises(Absent):
            talk_of(session, other, talk.id + 1)
        with pytest.raises(DataError, match="it is helpful or red-team"):
            begin(session, somebody, "harmful")
        with pytest.raises(DataError, match="Write something first"):
            ask(session, talk, " \n")
        with pytest.raises(DataError, match="20,001 characters"):
            ask(session, talk, "x" * 20_001)
        with pytest.raises(Settled, match="nothing to choose between"):
            choose(session, talk, answers(), LEFT_BETTER)
        ask(session, talk, "hello")
        with pytest.raises(DataError, match="no label of a chat task"):
            choose(session, talk, answers(), {"choice": "better"})
        settings.change(session, {"topics": ["cooking"]})
        with pytest.raises(DataError, match="it is one of cooking, or none"):
            begin(session, somebody, "helpful", "chess")
        end(session, talk)
        assert talk.messages == [], "what was not chosen between is no part of it"
        with pytest.raises(Settled, match="has ended"):
            ask(session, talk, "hello")
        assert [found.id for found in talks_of(session, somebody)] == [talk.id]
        assert talks_of(session, other) == []


def test_a_conversation_of_somebody_who_withdrew_is_shown_to_nobody(database, somebody) -> None:
    with database.write() as session:
        other = people.invite(session)[0]
        talk = begin(session, somebody, "helpful")
        ask(session, talk, "hello")
        choose(session, talk, answers(), LEFT_BETTER)
        people.withdraw(session, session.merge(somebody))
        item = session.scalars(select(Item)).one()
        assert (item.wanted, item.taken) == (0, 0)
        assert queue.next_for(session, other, rng=random.Random(0)) is None


def test_undo_leaves_conversations_alone(database, somebody) -> None:
    with database.write() as session:
        talk = begin(session, somebody, "helpful")
        ask(session, talk, "hello")
        choose(session, talk, answers(), LEFT_BETTER)
        assert saying.undo(session, somebody) is None
        assert counted(session, Label) == 1


def test_a_report_is_of_the_answers_that_are_there_or_of_the_last(database, somebody) -> None:
    with database.write() as session:
        talk = begin(session, somebody, "red-team")
        with pytest.raises(DataError, match="no two answers yet"):
            report(session, talk, None, "report", "rude")
        ask(session, talk, "hello")
        flag = report(session, talk, answers(), "personal", "")
        item = session.scalars(select(Item)).one()
        assert (flag.item_id, item.state, item.wanted) == (item.id, "held", 0)
        chosen = choose(session, talk, answers(), LEFT_BETTER)
        assert chosen.label is not None, "and can still be chosen between"
        assert counted(session, Item) == 1
        assert report(session, talk, None, "report", "rude").item_id == item.id


def test_a_choice_can_be_taken_back_and_made_anew(database, somebody) -> None:
    with database.write() as session:
        talk = begin(session, somebody, "helpful")
        with pytest.raises(Settled, match="nothing to take back"):
            take_back(session, talk)
        ask(session, talk, "hello")
        choose(session, talk, answers(order=(1, 0), complete=(True, False)), LEFT_BETTER)
        turn = take_back(session, talk)
        shown = [Shown("one", "ppo", True), Shown("two", "sft", False)]
        assert turn == Turn(shown, [1, 0], turn.asked, {"seed": 7})
        assert counted(session, Label) == counted(session, Assignment) == 0
        assert talk.messages == [{"role": "user", "content": "hello"}]
        item = session.scalars(select(Item)).one()
        assert (item.wanted, item.taken) == (0, 0)
        with pytest.raises(Settled):
            take_back(session, talk)
        chosen = choose(session, talk, turn, {**LEFT_BETTER, "better": 1})
        assert chosen.text == "one"
        assert session.scalars(select(Label)).one().value["better"] == 0
        assert (item.wanted, item.taken) == (1, 1)
        ask(session, talk, "again")
        choose(session, talk, answers("same", "same"), LEFT_BETTER)
        assert take_back(session, talk) is None, "nothing was kept of it"
        assert counted(session, Label) == 1
