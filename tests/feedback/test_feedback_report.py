"""`llm-rlhf feedback report`: the numbers of the lead's page in the terminal and as JSON."""

import json
from pathlib import Path

import pytest
from feedback_helpers import asked, better, says, somebody
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.feedback import people, snapshot
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.tables import Person


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, list[str]]:
    """A clicker of one side and two who agree, on 40 comparisons; the pseudonyms."""
    path = tmp_path / "feedback.db"
    database = Database.of(path)
    who = [somebody(database) for _ in range(3)]
    for number in range(40):
        item = asked(database, "compare", f"And what of {number}?", [f"One {number}.", f"Two {number}."])
        for place, person in enumerate(who):
            says(database, person, item, better(0 if place == 0 else number % 2))
    database.close()
    return path, [person.pseudonym for person in who]


def told(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["feedback", "report", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_numbers_are_told_with_their_intervals(store: tuple[Path, list[str]]) -> None:
    path, (left, first, second) = store
    text = told(path)
    assert "120 labels by 3 people" in text
    assert f"{left}  chooses the left: the left answer in 40 of 40" in text
    assert "100 (91 to 100; 40)" in text  # Wilson's for 40 of 40
    assert "compare: which is better" in text
    assert f"{first} and {second}: 1.00" in text
    assert max(map(len, text.splitlines())) < 180


def test_a_program_reads_the_same(store: tuple[Path, list[str]]) -> None:
    path, names = store
    found = json.loads(told(path, "--json"))
    assert found["labels"] == 120
    assert [(one["person"], one["reason"]) for one in found["suspicions"]] == [(names[0], "left")]
    assert all({"estimate", "low", "high", "n", "method"} <= set(one) for one in found["estimates"])
    assert found["withdrawals"] == []


def test_a_withdrawal_names_the_runs_it_affects(store: tuple[Path, list[str]], tmp_path: Path) -> None:
    path, names = store
    run = tmp_path / "elsewhere/one"
    (run / "collect").mkdir(parents=True)
    database = Database.of(path)
    card = snapshot.write(database, run / "collect")
    with database.write() as session:
        people.withdraw(session, session.query(Person).filter_by(pseudonym=names[1]).one())
    database.close()
    text = told(path, "--runs", tmp_path / "elsewhere")
    assert "1 person withdrew and is left out." in text
    assert f"export {card['export']} of " in text
    assert f"run {run} was trained on export {card['export']}" in text
    found = json.loads(told(path, "--json", "--runs", tmp_path / "elsewhere"))
    assert [one["run"] for one in found["withdrawals"][0]["runs"]] == [str(run)]
    assert found["withdrawn"] == 1


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    Database.of(tmp_path / "feedback.db").close()
    assert "llm-rlhf feedback serve opens the page" in told(tmp_path / "feedback.db")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["none.db"], "There is no feedback store"), (["{store}", "--runs", "nowhere"], "--runs is nowhere")],
)
def test_what_is_not_there_is_told(
    store: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["feedback", "report", *(a.format(store=store[0]) for a in arguments)])
    assert result.exit_code == 2
    assert message in result.output
