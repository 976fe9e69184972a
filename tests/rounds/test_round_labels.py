"""The labels of a round: one snapshot, taken once, its pairs told apart by what they are about."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from llm_rlhf.data.checks import prompt_share
from llm_rlhf.errors import DataError
from llm_rlhf.feedback import queue, saying, snapshot
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.documents import current_version
from llm_rlhf.feedback.people import consent, invite, withdraw
from llm_rlhf.feedback.tables import Export, Person
from llm_rlhf.json_lines import read_json_lines
from llm_rlhf.rounds.labels import other_pairs, pairs_about, progress_of, write_labels
from llm_rlhf.run_folder import read_json


def _asked(database: Database, about: int, questions: int, rounds: str = "x") -> int:
    return _added(database, str(about), questions, "select", {"rounds": rounds, "round": about})


def _added(database: Database, about: str, questions: int, made_by: str, details: dict[str, Any]) -> int:
    with database.write() as session:
        return queue.add(
            session,
            [
                queue.Question(
                    "compare", [{"role": "user", "content": f"{about}.{n}?"}], [{"text": "a"}, {"text": "b"}]
                )
                for n in range(questions)
            ],
            made_by,
            details,
        ).batch


def _person(database: Database) -> int:
    with database.write() as session:
        person, _ = invite(session)
        consent(session, person, current_version(session, "consent"))
        return person.id


def _say(database: Database, person: int, count: int) -> None:
    with database.write() as session:
        who = session.get_one(Person, person)
        for _ in range(count):
            assignment = queue.next_for(session, who)
            assert assignment is not None
            saying.record(session, assignment, {"choice": "better", "better": 0, "strength": 3}, 9.0)


@pytest.mark.parametrize("margins", [False, True])
def test_pairs_are_told_apart_by_what_they_are_about(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, margins: bool
) -> None:
    first, second = _asked(database, 1, 3), _asked(database, 2, 2)
    _asked(database, 3, 4)  # of a later round: no part of these labels
    person = _person(database)
    _say(database, person, 6)
    monkeypatch.chdir(tmp_path)
    card = write_labels(database, tmp_path / "labels", Path("run"), {1: first, 2: second}, margins)
    assert card["labels"] == 5
    assert card["people"] == 1
    rows = {about: read_json_lines(pairs_about(tmp_path / "labels", about)) for about in (1, 2)}
    assert {about: len(of) for about, of in rows.items()} == {1: 3, 2: 2}
    assert all(row["prompt"][0]["content"].startswith(f"{about}.") for about, of in rows.items() for row in of)
    assert all(("margin" in row) == margins for of in rows.values() for row in of)
    with database.read() as session:
        (noted,) = session.scalars(select(Export)).all()
    assert noted.details["folder"] == str(tmp_path / "labels"), "where who withdraws is told that labels lie"
    assert noted.details["made_for"] == str(tmp_path / "run"), "also of a folder that was named from here"
    assert sorted(path.name for path in tmp_path.iterdir() if "feedback" not in path.name) == ["labels"]


def test_what_else_the_store_holds_counts(database: Database, tmp_path: Path) -> None:
    """But not what was asked for rounds of another name, for a later one, or what the first round has collected."""
    imported = _added(database, "import", 2, "import", {"file": "x"})
    person = _person(database)
    _say(database, person, 1)
    (tmp_path / "collected").mkdir()
    export = snapshot.write(database, tmp_path / "collected", batches=[imported])["export"]
    first = _asked(database, 1, 2)
    _asked(database, 2, 1)
    _asked(database, 7, 1, rounds="of another name")
    _added(database, "chat", 3, "chat", {"talk": 1, "run": "round-1"})
    _say(database, person, 8)

    def others(name: str, **how: Any) -> tuple[list[str], list[str], dict[str, Any]]:
        target = tmp_path / name
        card = write_labels(database, target, tmp_path / "run", {1: first}, **how)
        files = (pairs_about(target, 1), other_pairs(target))
        about, rest = ([row["prompt"][0]["content"] for row in read_json_lines(file)] for file in files)
        assert card["files"]["preferences.jsonl"]["rows"] == len(about) + len(rest)
        assert read_json(target / snapshot.CARD) == card
        return about, rest, card

    asked, chats = ["1.0?", "1.1?"], ["chat.0?", "chat.1?", "chat.2?"]
    assert others("all")[:2] == (asked, ["import.0?", "import.1?", *chats])
    assert others("known", without_export=export)[:2] == (asked, ["import.1?", *chats]), "said after it was collected"
    assert others("elsewhere", without_export="0123456789abcdef")[:2] == (asked, ["import.0?", "import.1?", *chats])
    known = [*asked, "import.1?", *chats]
    shares = {text: prompt_share([{"role": "user", "content": text}], "split") for text in known}
    limit = sorted(shares[text] for text in chats)[1]  # one of them falls to evaluation
    about, rest, card = others("evaluated", without_export=export, evaluation_share=limit)
    assert about + rest == [text for text in known if shares[text] >= limit]
    assert card["left_out"]["rows"][snapshot.EVALUATED] == len(known) - len(about + rest) >= 1


def test_what_a_round_was_begun_with_stays(database: Database, tmp_path: Path) -> None:
    batch = _asked(database, 1, 4)
    person = _person(database)
    with pytest.raises(DataError, match="Nobody has answered"):
        write_labels(database, tmp_path / "labels", tmp_path / "run", {1: batch})
    _say(database, person, 2)
    card = write_labels(database, tmp_path / "labels", tmp_path / "run", {1: batch})
    _say(database, person, 2)
    assert write_labels(database, tmp_path / "labels", tmp_path / "run", {1: batch}) == card
    assert card["labels"] == 2


def test_progress_counts_what_counts(database: Database) -> None:
    batch, person, other = _asked(database, 1, 4), _person(database), _person(database)
    assert progress_of(database, batch) == (0, 4)
    _say(database, person, 2)
    _say(database, other, 1)
    assert progress_of(database, batch) == (3, 4)
    with database.write() as session:
        withdraw(session, session.get_one(Person, other))
    assert progress_of(database, batch) == (2, 4)
    assert progress_of(database, batch + 1) == (0, 0)


def test_who_withdraws_before_a_round_is_trained_is_no_part_of_it(database: Database, tmp_path: Path) -> None:
    batch, person, other = _asked(database, 1, 4), _person(database), _person(database)
    _say(database, person, 2)
    _say(database, other, 1)

    def labels(run: str) -> int:
        return int(write_labels(database, tmp_path / "labels", tmp_path / run, {1: batch})["labels"])

    assert labels("run") == 3
    with database.write() as session:
        withdraw(session, session.get_one(Person, other))
    (tmp_path / "trained" / "reward").mkdir(parents=True)
    assert labels("trained") == 3, "what a round was made of stays told"
    assert labels("run") == 2
    assert len(read_json_lines(pairs_about(tmp_path / "labels", 1))) == 2
