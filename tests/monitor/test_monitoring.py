"""A log against a report: planted drifts of replies and of prompts, rows to look at, thumbs, the queue, the command."""

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.errors import DataError
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.tables import Batch, Item
from llm_rlhf.monitor import report as monitor_report
from llm_rlhf.monitor.drift import Reference
from llm_rlhf.monitor.log import Log, Logged
from llm_rlhf.monitor.page import html, lines
from llm_rlhf.monitor.reading import Read
from llm_rlhf.monitor.report import Monitored, drawn, monitor, period_of
from llm_rlhf.monitor.rows import counted, questions, thumbs, to_look_at, to_queue, write_rows

TEXTS = ("1.25", "1.25", "1.0", "1.5", "no")
REFERENCES = {
    "reward": Reference(1.0, 0.9, 1.1, 300, 0.1, "report.json"),
    "heldout_reward": Reference(0.5, 0.4, 0.6, 300, 0.1, "report.json"),
    "refusal": Reference(0.2, 0.15, 0.25, 300, 0.02, "evaluate/replies.jsonl"),
}


class Planted:
    """Instruments whose scores stand in the texts: "1.5" scores 1.5, "no" refuses and scores 0."""

    run, models = Path("run"), {"reward": ["a"], "heldout_reward": ["b"]}

    def lengths(self, texts):
        return np.array([len(text) for text in texts], float)

    def read(self, rows) -> Read:
        scores = np.array(
            [np.nan if not text else 0.0 if text == "no" else float(text.split()[0]) for _, text, _ in rows]
        )
        apart = np.array([2.0 if "apart" in text else 0.0 for _, text, _ in rows])
        refused = np.array([float(text == "no") for _, text, _ in rows])
        return Read({"reward": scores, "heldout_reward": scores - 0.5 + apart, "refusal": refused})

    def answer(self, prompts):
        """The policy: as the report says of `usual`, and worse where it is asked something hard."""
        asked = [p[-1]["content"].split() for p in prompts]
        return [
            (p, "-1.0" if kind == "hard" else TEXTS[int(number) % 5], True)
            for p, (kind, number) in zip(prompts, asked, strict=True)
        ]


def logged(day: int, number: int, text: str, asked: str = "easy", thumb: bool | None = None, **other: Any) -> Logged:
    when = datetime.datetime(2026, 11, day) + datetime.timedelta(minutes=number)
    fields = {"model": None, "harmful": None, **other}
    prompt = [{"role": "user", "content": f"{asked} {number}"}]
    return Logged(
        number + 1, f"{day}-{number}", True, when, prompt, text, None, thumb, fields["model"], fields["harmful"]
    )


def usual(day: int, count: int = 60) -> list[Logged]:
    """A reward of 1.0 and 20 % of refusals, as the report has them."""
    return [logged(day, i, TEXTS[i % 5]) for i in range(count)]


@pytest.fixture
def watched(monkeypatch):
    def found(replies: list[Logged], by: str = "day", ask_anew: int = 40) -> Monitored:
        monkeypatch.setattr(monitor_report, "references_of", lambda run, lengths: (REFERENCES, []))
        return monitor(Log(replies, lines=len(replies)), Planted(), by, ask_anew)  # type: ignore[arg-type]

    return found


def told(found: Monitored) -> list[tuple[str, str, str, str]]:
    return [(a.test.period[-2:], a.test.measure, a.test.against, a.cause) for a in found.alarms]


def test_days_as_the_report_says_are_no_alarm(watched) -> None:
    found = watched([reply for day in range(1, 8) for reply in usual(day)])
    (first, *_) = [one for one in found.measured if one.measure == "reward"]
    assert first.estimate == pytest.approx(1.0)
    assert told(found) == []
    assert len(found.tests) == 7 * 3 * 2
    assert any("No drift was found" in part for part in html(found, []).split("<"))


def test_worse_replies_to_the_same_prompts_are_the_replies(watched) -> None:
    bad = [logged(4, i, text) for i, text in enumerate(["-0.5", "0.0", "0.5", "-0.25", "no"] * 12)]
    found = watched([*usual(1), *usual(2), *usual(3), *bad])
    assert ("04", "reward", "report", "replies") in told(found)
    assert ("04", "reward", "own answers", "replies") in told(found)
    assert {day for day, *_ in told(found)} == {"04"}
    assert "the replies have changed" in "\n".join(lines(found, []))


def test_other_prompts_are_the_prompts(watched) -> None:
    hard = [logged(4, i, text, "hard") for i, text in enumerate(["-1.5", "-0.5", "-1.0", "-1.0"] * 15)]
    found = watched([*usual(1), *usual(2), *hard])
    causes = {(day, measure): cause for day, measure, against, cause in told(found) if against == "report"}
    assert causes["04", "reward"] == causes["04", "heldout_reward"] == "prompts"
    assert not any(against == "own answers" and measure != "refusal" for _, measure, against, _ in told(found))


def test_without_answers_anew_nobody_knows_which(watched) -> None:
    bad = [logged(4, i, "-1.0" if i % 2 else "0.0") for i in range(60)]
    found = watched([*usual(1), *bad], ask_anew=0)
    assert ("04", "reward", "report", "") in told(found)
    assert "could not be told apart" in found.alarms[0].words
    assert found.own == {}


def test_a_refusal_share_that_doubles(watched) -> None:
    found = watched([*usual(1), *[logged(2, i, "no" if i % 5 < 4 else "4.0") for i in range(100)]])
    assert ("02", "refusal", "report", "replies") in told(found)


def test_weeks_and_days() -> None:
    assert period_of(logged(29, 0, "1"), "day") == "2026-11-29"
    assert period_of(logged(29, 0, "1"), "week") == "2026-W48"
    assert period_of(logged(30, 0, "1"), "week") == "2026-W49"


def test_the_draw_repeats_and_takes_conversations_in_turn() -> None:
    replies = [logged(1, i, "1.0") for i in range(30)] + [logged(2, i, "1.0") for i in range(3)]
    days = [period_of(reply, "day") for reply in replies]
    first = drawn(replies, days, 10)
    assert first == drawn(replies, days, 10)
    assert [sum(i < 30 for i in first), len(first)] == [10, 13]
    one = [
        Logged(**{**vars(reply), "conversation": "same" if i < 20 else f"c{i}"}) for i, reply in enumerate(replies[:30])
    ]
    assert sum(i >= 20 for i in drawn(one, days[:30], 11)) == 10, "each conversation once before any is met again"


def test_of_a_large_log_a_draw_is_read(monkeypatch) -> None:
    monkeypatch.setattr(monitor_report, "references_of", lambda run, lengths: (REFERENCES, []))
    log = Log([*usual(1, 50), *usual(2, 5)], lines=55)
    found = monitor(log, Planted(), ask_anew=0, most=20)  # type: ignore[arg-type]
    assert [found.periods.count(day) for day in ("2026-11-01", "2026-11-02")] == [20, 5]
    assert found.notes[0] == "Of 55 replies 25 were drawn, at most 20 of each day."
    assert len(log.replies) == 55, "thumbs are taken of all"


def test_what_people_should_look_at(watched) -> None:
    replies = [
        *usual(1),
        logged(2, 0, "-9.0"),
        logged(2, 1, "no", harmful=True),
        logged(2, 2, "1.0", thumb=False),
        logged(2, 3, "1.0 apart"),
        logged(2, 4, "", thumb=False),
        logged(2, 5, "-9.0"),
    ]
    found = watched(replies)
    chosen = dict(to_look_at(found, 1))
    assert chosen[60] == ["lowest"]
    assert chosen[63] == ["disagreement"]
    assert chosen[64] == ["thumbs_down"], "the newest"
    everything = dict(to_look_at(found, 99))
    assert "refused" not in everything.get(61, []), "the log says that refusing was right"
    assert sum("refused" in why for why in everything.values()) == 12
    assert counted(to_look_at(found, 2)) == {"thumbs_down": 2, "refused": 2, "lowest": 2, "disagreement": 2}
    asked = questions(found, to_look_at(found, 1))
    assert len(asked) == 3, "what says nothing cannot be asked about"
    assert {question.kind for question in asked} == {"rate"}
    lowest = next(question for question in asked if question.answers[0]["text"] == "-9.0")
    assert lowest.facts == {
        "reasons": ["lowest"], "period": "2026-11-02", "line": 1, "reward": -9.0, "heldout_reward": -9.5,
    }  # fmt: skip
    page = html(found, to_look_at(found, 1))
    assert page.count("<svg") == 4
    assert "<script" not in page


def test_compared_with_the_policys_own_answer(watched) -> None:
    found = watched([*usual(1, 10), logged(1, 20, "-3.0")])
    asked = questions(found, to_look_at(found, 1), "compare")
    texts = {tuple(answer["text"] for answer in question.answers): question.kind for question in asked}
    assert texts["-3.0", "1.25"] == "compare"
    with pytest.raises(DataError, match="it is one of rate, annotate, correct, compare"):
        questions(found, [], "rank")


def test_thumbs_become_rows_that_training_reads(tmp_path) -> None:
    from llm_rlhf.data.sources import load_ratings

    given = [
        logged(1, 0, "a", thumb=True),
        logged(1, 1, "b", thumb=False),
        logged(1, 2, "c"),
        logged(1, 3, "", thumb=True),
        dataclasses.replace(logged(1, 4, "d", thumb=True), ended=False),
    ]
    path = tmp_path / "thumbs.jsonl"
    assert write_rows(path, thumbs(given)) == 3
    from llm_rlhf.recipe.sections import Source

    rows = load_ratings([Source(source=str(path))]).rows
    assert [(row.reply, row.good, row.stopped) for row in rows] == [
        ("a", True, True), ("b", False, True), ("d", True, False),
    ]  # fmt: skip


def test_the_queue_takes_them_once_and_holds_what_looks_personal(watched, tmp_path) -> None:
    found = watched([*usual(1), logged(2, 0, "-9.0", "mail:jane.doe@example.com"), logged(2, 1, "-8.0", model="m")])
    asked = questions(found, to_look_at(found, 2))
    store = str(tmp_path / "feedback.db")
    first = to_queue(store, asked, {"log": "log.jsonl"})
    again = to_queue(store, asked, {"log": "log.jsonl"})
    assert (len(first.items), first.held) == (len(asked), 1)
    assert (len(again.items), again.known) == (0, len(asked))
    database = Database.of(store)
    with database.read() as session:
        assert session.scalars(select(Batch)).first().made_by == "monitor"
        states = {item.answers[0]["text"]: (item.state, item.strategy) for item in session.scalars(select(Item))}
    database.close()
    assert states["-9.0"] == ("held", "monitor")
    assert states["-8.0"][0] == "open"


@pytest.mark.slow
def test_the_command_on_a_real_run(finished, tmp_path) -> None:
    """A log of what the evaluation's own policy said, three days long: its scores are those of the evaluation."""
    run = finished
    rows = [json.loads(line) for line in (run / "evaluate" / "replies.jsonl").read_text("utf-8").splitlines()]
    day = 86_400
    said = [
        {
            "request": {"messages": row["prompt"]},
            "response": {"choices": [{"message": {"role": "assistant", "content": row["ppo"]["reply"]}}]},
            "created": 1793880000 + number * day,
            "feedback": "up" if number % 2 else "down",
        }
        for number in range(3)
        for row in rows
        if row["ppo"]["reply"].strip()
    ]
    log, store = tmp_path / "log.jsonl", tmp_path / "store.db"
    log.write_text("".join(json.dumps(row) + "\n" for row in said), "utf-8")
    arguments = ["monitor", log, "--policy", run, "--output", tmp_path / "out", "--to-queue", store, "--ask-anew", "4"]
    result = CliRunner().invoke(app, [*map(str, arguments), "--json", "--fail-on-alarm", "--rows", "2"])
    assert result.exit_code in (0, 1), result.output + repr(result.exception)
    found = json.loads(result.stdout)
    assert (result.exit_code == 1) == bool(found["alarms"])
    assert found["log"]["replies"] == len(said)
    known = [row["ppo"]["reward"] for row in rows if row["ppo"]["reply"].strip()]
    reward = [one for one in found["periods"] if one["measure"] == "reward"]
    assert [one["estimate"] for one in reward] == pytest.approx([float(np.mean(known))] * 3, abs=0.05), (
        "a text is cut into tokens anew, which need not be those that were sampled"
    )
    assert found["asked_anew"] == 12
    assert found["queue"]["new"] > 0
    assert (tmp_path / "out" / "monitor.html").read_text("utf-8").startswith("<!doctype html>")
    shown = CliRunner().invoke(app, [*map(str, arguments), "--rows", "2", "--by", "week", "--ask-anew", "0"])
    assert shown.exit_code == 0, shown.output
    assert "the report" in shown.stdout
    assert "that were there already" in shown.stdout


def test_what_cannot_be_asked_for(tmp_path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("{}\n", "utf-8")
    result = CliRunner().invoke(app, ["monitor", str(log), "--policy", "x", "--by", "month"])
    assert result.exit_code == 2
    assert "--by is 'month'; it is day or week." in result.output


def test_a_store_that_cannot_be_is_told_before_the_work(tmp_path) -> None:
    log = tmp_path / "log.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    log.write_text(json.dumps({"messages": turns, "created": 1793880000}) + "\n", "utf-8")
    store = tmp_path / "nowhere" / "store.db"
    result = CliRunner().invoke(app, ["monitor", str(log), "--policy", "x", "--to-queue", str(store)])
    assert result.exit_code == 2
    assert "cannot be made: there is no folder" in " ".join(result.output.split())


def test_a_draw_of_a_log_is_fair_to_long_conversations(monkeypatch) -> None:
    # 180 of 200 replies are of one conversation, and score 0: the mean is 0.1, and one a conversation would say 0.5
    monkeypatch.setattr(monitor_report, "references_of", lambda run, lengths: (REFERENCES, []))
    long = [Logged(**{**vars(logged(1, i, "0.0")), "conversation": "long"}) for i in range(180)]
    log = Log([*long, *(logged(1, 200 + i, "1.0") for i in range(20))])
    (found,) = [
        one
        for one in monitor(log, Planted(), ask_anew=0, most=40).measured
        if one.measure == "reward"  # type: ignore[arg-type]
    ]
    assert found.n == 40
    assert found.estimate < 0.25


def test_a_day_of_three_rows_alarms_nobody_and_is_named(watched) -> None:
    found = watched([*usual(1), *(logged(2, i, "-9.0") for i in range(3))])
    assert told(found) == []
    assert any("Too few conversations in 2026-11-02 (fewer than 10)" in note for note in found.notes)
