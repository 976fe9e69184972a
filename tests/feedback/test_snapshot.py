"""From click to training: which labels count, what rows they become, and what the card and the store say of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from feedback_helpers import asked, better, quiet, says, somebody
from sqlalchemy import select

from llm_rlhf.data.sources import load_demonstrations, load_preferences, load_ratings
from llm_rlhf.data.storage import Rows
from llm_rlhf.errors import DataError
from llm_rlhf.evaluation.judges import Pair, StoredJudge
from llm_rlhf.feedback import people
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.snapshot import write
from llm_rlhf.feedback.tables import Decision, Export, ExportedLabel, Flag, Item, Person
from llm_rlhf.feedback.training_rows import FILES
from llm_rlhf.recipe.sections import Source

TIE, BAD = {"choice": "tie"}, {"choice": "both bad"}


def taken(database: Database, folder: Path, **how: Any) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    folder.mkdir()
    card = write(database, folder, **how)
    rows = {name: [json.loads(line) for line in (folder / name).read_text().splitlines()] for name in FILES}
    return card, rows


def texts(row: dict[str, Any]) -> tuple[str, str]:
    return row["chosen"][0]["content"], row["rejected"][0]["content"]


def test_several_peoples_labels_are_one_row_with_the_share_that_agrees(database: Database, tmp_path: Path) -> None:
    item = asked(database, "compare", "Name a prime.", ["13", "15"])
    persons = [somebody(database) for _ in range(4)]
    values = [better(0, 4), better(0, 1), better(1, 3), TIE]
    labels = [says(database, person, item, value) for person, value in zip(persons, values, strict=True)]
    card, rows = taken(database, tmp_path / "to")
    (row,) = rows["preferences.jsonl"]
    assert texts(row) == ("13", "15")
    assert row["confidence"] == 0.625  # (1 + 1 + 0 + 1/2) / 4
    assert row["margin"] == pytest.approx((1 + 0 - 2 / 3 + 0) / 4, abs=1e-6)
    assert row["provenance"] == {
        "kind": "compare", "item": item, "labels": labels, "annotators": sorted(p.pseudonym for p in persons)
    }  # fmt: skip
    assert [(line["winner"], line["annotator"]) for line in rows["verdicts.jsonl"]] == [
        (winner, person.pseudonym) for winner, person in zip(["a", "a", "b", "tie"], persons, strict=True)
    ]
    assert (card["people"], card["labels"], card["labels_by_kind"]) == (4, 4, {"compare": 4})
    assert card["files"]["preferences.jsonl"]["rows"] == 1


def test_a_margin_counts_for_the_answer_that_was_chosen(database: Database, tmp_path: Path) -> None:
    for text, values in {"a": [better(1, 4), better(1, 2)], "b": [better(1, 1), better(1, 1), better(0, 4)]}.items():
        item = asked(database, "compare", text, ["13", "15"])
        for value in values:
            says(database, somebody(database), item, value)
    _, rows = taken(database, tmp_path / "to")
    assert [texts(row) for row in rows["preferences.jsonl"]] == [("15", "13")] * 2
    assert rows["preferences.jsonl"][0]["margin"] == pytest.approx((1 + 1 / 3) / 2, abs=1e-6)
    assert rows["preferences.jsonl"][1]["margin"] == 0  # (0 + 0 - 1) / 3, where most prefer it all the same


def test_margins_may_be_noted_and_not_trained_on(database: Database, tmp_path: Path) -> None:
    says(database, somebody(database), asked(database, "compare", "Name a prime.", ["13", "15"]), better(0, 4))
    _, rows = taken(database, tmp_path / "to", margins=False)
    assert "margin" not in rows["preferences.jsonl"][0]
    assert rows["preferences.jsonl"][0]["provenance"]["margin"] == 1
    (row,) = load_preferences([Source(source=str(tmp_path / "to" / "preferences.jsonl"))]).rows
    assert row.margin is None


def test_what_does_not_decide_is_no_pair_and_is_counted(database: Database, tmp_path: Path) -> None:
    first, second = somebody(database), somebody(database)
    for text, values in {"a": [TIE, TIE], "b": [BAD, BAD], "c": [better(0), better(1)], "d": [BAD, better(1)]}.items():
        item = asked(database, "compare", text, ["x", "y"])
        for person, value in zip((first, second), values, strict=True):
            says(database, person, item, value)
    card, rows = taken(database, tmp_path / "to")
    assert [texts(row) for row in rows["preferences.jsonl"]] == [("y", "x")]
    assert rows["preferences.jsonl"][0]["confidence"] == 0.75
    assert card["left_out"]["rows"] == {
        "pairs of which both are bad": 1, "pairs on which people are evenly divided": 1, "pairs that tie": 1
    }  # fmt: skip


def test_answers_that_had_not_come_whole_are_in_no_pair_and_counted(database: Database, tmp_path: Path) -> None:
    """Who chooses in a chat before both answers have come has judged their beginnings."""
    person = somebody(database)
    for kind, value in (("compare", better(0)), ("correct", {"better": 1, "text": "The Danube."})):
        item = asked(database, kind, "Name a river.", ["The Alps.", "The Da"])
        says(database, person, item, value)
        with database.write() as session:
            found = session.get_one(Item, item)
            found.answers = [found.answers[0], {**found.answers[1], "complete": False}]
    card, rows = taken(database, tmp_path / "to")
    assert rows["preferences.jsonl"] == rows["verdicts.jsonl"] == []
    assert [row["completion"][0]["content"] for row in rows["demonstrations.jsonl"]] == ["The Danube."]
    assert card["left_out"]["rows"] == {"pairs of answers that had not come whole": 3}  # one, and two of the correction


def test_a_reply_that_was_cut_is_trained_on_as_it_was_sampled(database: Database, tmp_path: Path) -> None:
    """The second answer ran into its length; what a person wrote ends by itself."""
    person = somebody(database)
    for kind, value in (
        ("compare", better(0)), ("correct", {"better": 1, "text": "The Danube."}), ("rank", {"ranks": [2, 1]}),
    ):  # fmt: skip
        _cut(database, asked(database, kind, "Name a river.", ["The Alps.", "The Da"]), person, value)
    _cut(database, asked(database, "thumb", "Name a river.", ["The Da"]), person, {"good": True})
    card, rows = taken(database, tmp_path / "to")
    found = load_preferences([Source(source=str(tmp_path / "to" / "preferences.jsonl"))])
    assert [pair.sides for pair in found.rows] == [
        (("The Alps.", True), ("The Da", False)),
        (("The Da", False), ("The Alps.", True)),
        (("The Danube.", True), ("The Da", False)),
        (("The Da", False), ("The Alps.", True)),
    ]
    assert not found.unread
    (rated,) = load_ratings([Source(source=str(tmp_path / "to" / "ratings.jsonl"))]).rows
    assert (rated.reply, rated.stopped) == ("The Da", False)
    assert len(rows["verdicts.jsonl"]) == 3
    assert not card["left_out"]["rows"]


def _cut(database: Database, item: int, person: int, value: dict[str, Any]) -> None:
    says(database, person, item, value)
    with database.write() as session:
        found = session.get_one(Item, item)
        found.answers = [*found.answers[:-1], {**found.answers[-1], "stopped": False}]


def test_only_labels_that_count_are_taken(database: Database, tmp_path: Path) -> None:
    item = asked(database, "compare", "Name a river.", ["Danube", "Alps"])
    steady, gone, silent = somebody(database), somebody(database), somebody(database, consents=False)
    robot = somebody(database, simulated=True)
    counting = [says(database, person, item, better(0)) for person in (steady, robot)]
    for person in (gone, silent):
        says(database, person, item, better(1))
    says(database, steady, item, better(1), turn=2)
    known = asked(
        database, "compare", "1 + 1?", ["2", "3"], purpose="gold", expected={"value": better(0), "why": "sum"}
    )
    says(database, steady, known, better(0))
    held = asked(database, "compare", "Who am I?", ["Ann", "Bob"])
    closed = asked(database, "compare", "Where do I live?", ["Here", "There"])
    for person, one in ((steady, held), (robot, closed)):
        says(database, person, one, better(0))
    with database.write() as session:
        people.withdraw(session, session.get_one(Person, gone.id))
        session.get_one(Item, held).state = "held"
        session.get_one(Item, closed).state = "closed"
        session.add(Flag(item_id=closed, kind="personal", text="an address"))
    card, rows = taken(database, tmp_path / "to")
    assert [row["provenance"]["labels"] for row in rows["preferences.jsonl"]] == [counting]
    assert rows["preferences.jsonl"][0]["confidence"] == 1
    assert (card["people"], card["simulated_people"], card["labels"]) == (1, 1, 2)
    assert card["left_out"]["labels"] == {
        "on items with personal data": 2,
        "on questions whose answer is known": 1,
        "said a second time, to see who is steady": 1,
        "their person has not agreed to the consent text": 1,
        "their person has withdrawn": 1,
    }


def test_a_leads_decision_stands_in_place_of_the_labels(database: Database, tmp_path: Path) -> None:
    person, lead = somebody(database), somebody(database, role="lead")
    items = [asked(database, "compare", text, ["x", "y"]) for text in ("a", "b", "c")]
    for item in items:
        says(database, person, item, better(0))
    written = asked(database, "demonstrate", "Say hello.", [])
    label = says(database, person, written, {"text": "Hello."})
    with database.write() as session:
        values = [better(1, 4), {"choice": "leave out"}, {"text": "Hello."}]
        for item, value in zip([*items[:2], written], values, strict=True):
            session.add(Decision(item_id=item, person_id=lead.id, value=value))
    card, rows = taken(database, tmp_path / "to")
    assert [(texts(row), row["provenance"]["annotators"]) for row in rows["preferences.jsonl"]] == [
        (("y", "x"), [lead.pseudonym]),
        (("x", "y"), [person.pseudonym]),
    ]
    assert rows["demonstrations.jsonl"][0]["provenance"]["labels"] == [label]  # whose words they are
    assert card["decisions"] == 2
    with database.write() as session:
        people.withdraw(session, session.get_one(Person, person.id))
    _, rows = taken(database, tmp_path / "again")
    assert (len(rows["preferences.jsonl"]), rows["demonstrations.jsonl"]) == (1, [])


def test_rankings_corrections_and_ratings_become_pairs(database: Database, tmp_path: Path) -> None:
    person = somebody(database)
    ranked = asked(database, "rank", "Describe the sea.", ["wide", "wet", "water"])
    says(database, person, ranked, {"ranks": [1, 2, 2]})
    corrected = asked(database, "correct", "Is rain acid?", ["Never.", "A bit."], objective="helpful")
    says(database, person, corrected, {"better": 1, "text": "Slightly: about pH 5.6."})
    for answer, helpful, harmless in (("Trees save water.", 6, 4), ("They are tired.", 3, 4)):
        rated = asked(database, "rate", "Why do leaves fall?", [answer])
        says(database, person, rated, {"helpful": helpful, "harmless": harmless})
    says(database, person, asked(database, "thumb", "Name a river.", ["The Alps."]), {"good": False})
    noted = asked(database, "annotate", "Hi", ["What?"])
    says(database, person, noted, {"labels": ["rude"], "comment": "Not kind."})
    card, rows = taken(database, tmp_path / "to")
    assert [(*texts(row), row["objective"], row.get("margin")) for row in rows["preferences.jsonl"]] == [
        ("wide", "wet", "overall", None),
        ("wide", "water", "overall", None),
        ("A bit.", "Never.", "helpful", None),
        ("Slightly: about pH 5.6.", "A bit.", "helpful", None),
        ("Trees save water.", "They are tired.", "helpful", 0.5),
    ]
    assert [(row["completion"][0]["content"], row["label"], row["objective"]) for row in rows["ratings.jsonl"]] == [
        ("Trees save water.", True, "helpful"),
        ("They are tired.", False, "helpful"),
        ("The Alps.", False, "overall"),
    ]
    assert [row["completion"][0]["content"] for row in rows["demonstrations.jsonl"]] == ["Slightly: about pH 5.6."]
    assert (rows["annotations.jsonl"][0]["labels"], rows["annotations.jsonl"][0]["comments"]) == (
        {"rude": 1}, ["Not kind."]
    )  # fmt: skip
    assert card["left_out"]["rows"] == {
        "pairs that tie": 1, "replies rated alike": 1, "replies rated neither good nor bad": 2
    }  # fmt: skip


def test_the_files_are_read_as_sources_and_by_judges_and_nothing_is_unread(database: Database, tmp_path: Path) -> None:
    person, other = somebody(database), somebody(database)
    item = asked(database, "compare", "Human: hello?", ["Human: no", "yes"])  # texts that look like transcripts
    for one, value in ((person, better(0, 4)), (other, better(0, 2)), (somebody(database), better(1, 1))):
        says(database, one, item, value)
    says(database, person, asked(database, "demonstrate", "Say thanks.", []), {"text": "Thank you."})
    says(database, person, asked(database, "thumb", "Hi", ["Hello!"]), {"good": True})
    taken(database, tmp_path / "to")

    def source(name: str) -> list[Source]:
        return [Source(source=str(tmp_path / "to" / name))]

    pairs = load_preferences(source("preferences.jsonl"))
    assert (pairs.rows[0].chosen, pairs.rows[0].confidence, pairs.rows[0].margin) == ("Human: no", 0.666667, 0.444444)
    shown, liked = load_demonstrations(source("demonstrations.jsonl"), Rows()), load_ratings(source("ratings.jsonl"))
    assert shown.rows[0].messages[-1]["content"] == "Thank you."
    assert liked.rows[0].good
    for loaded in (pairs, shown, liked):
        assert not loaded.unread
        assert not loaded.set_aside
    judge = StoredJudge(tmp_path / "to" / "verdicts.jsonl")
    (reading,) = judge.read_pairs([Pair([{"role": "user", "content": "Human: hello?"}], "yes", "Human: no")], None, 0)
    assert reading.value == pytest.approx(1 / 3)


def test_the_same_store_gives_the_same_bytes_and_knows_what_it_gave(database: Database, tmp_path: Path) -> None:
    quiet(database)
    person = somebody(database)
    label = says(database, person, asked(database, "compare", "Grüße?", ["ja", "日本"]), better(1))
    cards = [taken(database, tmp_path / name, made_for=f"runs/{name}")[0] for name in ("one", "two")]
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert cards[0]["export"] != cards[1]["export"]
    with database.read() as session:
        exports = session.scalars(select(Export).order_by(Export.created)).all()
        assert sorted(one.details["made_for"] for one in exports) == ["runs/one", "runs/two"]
        held = session.execute(select(ExportedLabel.export_id, ExportedLabel.label_id, ExportedLabel.person_id)).all()
        assert set(held) == {(card["export"], label, person.id) for card in cards}


def test_who_withdraws_while_files_are_written_is_in_none(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_rlhf.feedback import snapshot

    stays, goes = somebody(database), somebody(database)
    item = asked(database, "compare", "Name a prime.", ["13", "15"])
    kept = says(database, stays, item, better(0))
    says(database, goes, item, better(1))
    original, times = snapshot.training_rows, []

    def withdrawing(found: Any) -> Any:
        made = original(found)
        times.append(len(found[0].said))
        if len(times) == 1:
            with database.write() as session:
                people.withdraw(session, session.get_one(Person, goes.id))
        return made

    monkeypatch.setattr(snapshot, "training_rows", withdrawing)
    _, rows = taken(database, tmp_path / "to")
    assert times == [2, 1]
    assert [row["provenance"]["labels"] for row in rows["preferences.jsonl"]] == [[kept]]


def test_a_read_sees_one_state_of_the_store(database: Database) -> None:
    with database.read() as session:
        assert session.scalars(select(Person)).all() == []
        somebody(database)
        assert session.scalars(select(Person)).all() == []


def test_where_nothing_counts_it_says_what_to_do(database: Database, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        write(database, tmp_path)
    item = asked(database, "compare", "Name a prime.", ["13", "15"])
    with pytest.raises(DataError, match="Nobody has answered"):
        write(database, tmp_path)
    says(database, somebody(database, consents=False), item, better(0))
    with pytest.raises(DataError, match="1 their person has not agreed"):
        write(database, tmp_path)


def test_the_card_says_how_items_were_selected(database: Database, tmp_path: Path) -> None:
    person = somebody(database)
    for text, chance in (("a", 0.5), ("b", 0.25), ("c", None)):
        item = asked(database, "compare", text, ["x", "y"], strategy="random" if chance else None, propensity=chance)
        says(database, person, item, better(0))
    card, _ = taken(database, tmp_path / "to")
    assert [batch["strategies"] for batch in card["batches"]] == [{"random": 1}, {"random": 1}, {"none": 1}]
    assert card["batches"][1]["propensities"] == {
        "known": 1, "unknown": 0, "lowest": 0.25, "median": 0.25, "highest": 0.25, "effective_items": 1.0
    }  # fmt: skip
    only, rows = taken(database, tmp_path / "one", batches=[card["batches"][0]["id"]])
    assert (only["labels"], len(rows["preferences.jsonl"])) == (1, 1)


def test_an_item_that_was_released_and_closed_for_another_reason_counts(database: Database, tmp_path: Path) -> None:
    person = somebody(database)
    for text, resolution in (("a", "released: a made-up name"), ("b", "closed: an address"), ("c", None)):
        item = asked(database, "compare", text, ["x", "y"])
        says(database, person, item, better(0))
        with database.write() as session:
            session.get_one(Item, item).state = "closed"
            session.add(Flag(item_id=item, kind="personal", text="?", resolution=resolution))
    _, rows = taken(database, tmp_path / "to")
    assert [row["prompt"][-1]["content"] for row in rows["preferences.jsonl"]] == ["a"]
