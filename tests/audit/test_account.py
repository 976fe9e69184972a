"""The counts of `data check`, worked by hand on a few rows."""

import pytest

from llm_rlhf.audit.check import DataCheck, Lengths
from llm_rlhf.audit.counts import Account, quantiles
from llm_rlhf.audit.text import findings, render
from llm_rlhf.data.rows import Conversation, Demonstration, Origin, Preference, Prompt, Rating


def user(text: str) -> Conversation:
    return [{"role": "user", "content": text}]


def pair(row: int, prompt: str, chosen: str, rejected: str, **options: object) -> Preference:
    return Preference(user(prompt), chosen, rejected, "overall", Origin("pairs.jsonl", row), **options)  # type: ignore[arg-type]


def account_of(rows: list) -> Account:
    account = Account()
    for row in rows:
        account.add(row)
    return account


def rows_of(listed: object) -> list[int]:
    return [origin.row for origin, _ in listed.first]  # type: ignore[attr-defined]


def test_repeats() -> None:
    account = account_of(
        [
            pair(1, "What is rust?", "Iron oxide.", "Paint."),
            pair(2, "What is rust?", "Iron oxide.", "Paint."),  # once more
            pair(3, "What is rust?", "Paint.", "Iron oxide."),  # the other way round
            pair(4, "what  is RUST?", "Oxide.", "Dirt."),  # the same prompt but for case and space
            pair(5, "What is dust?", "Iron oxide.", "Paint."),
        ]
    )
    assert rows_of(account.duplicate_rows) == [2]
    assert rows_of(account.judged_both_ways) == [3]
    assert rows_of(account.repeated_prompts) == [2, 3, 4]
    assert len(account.openings) == 2


def test_balance() -> None:
    account = account_of(
        [
            pair(1, "a", "long reply", "short", position=1),
            pair(2, "b", "ab", "abc", position=2),
            pair(3, "c", "abc", "xyz", position=1),  # of one length: says nothing
            pair(4, "d", "I'm sorry, I can't help with that.", "Sure!", confidence=0.7),
            pair(5, "e", "Sure, take this.", "Sorry, no.", margin=2.0),
            pair(6, "f", "I cannot say.", "I won’t say!"),  # both refuse: says nothing
        ]
    )
    assert (account.first_is_chosen, account.with_position) == (2, 3)
    assert (account.longer_is_chosen, account.of_different_length) == (4, 5)
    assert (account.refusal_is_chosen, account.one_refuses) == (1, 2)
    assert (account.soft_labels, account.with_margin) == (1, 1)
    assert account.cut == 0


def test_replies_that_were_cut_are_counted() -> None:
    pairs = [pair(1, "a", "b", "c", chosen_stopped=False, rejected_stopped=False), pair(2, "a", "d", "e")]
    ratings = [Rating(user("a"), "f", True, "helpful", Origin("r", n), stopped=n == 1) for n in (1, 2)]
    assert account_of([*pairs, *ratings]).cut == 3


def test_turns_lengths_and_objectives_of_each_kind() -> None:
    talk = [*user("Hi"), {"role": "assistant", "content": "Hello"}, *user("Bye")]
    account = account_of(
        [
            Prompt(talk, "helpful", Origin("p", 1)),
            Demonstration([*talk, {"role": "assistant", "content": "So long"}], Origin("p", 2)),
        ]
    )
    assert dict(account.user_turns) == {2: 2}
    assert dict(account.objectives) == {"helpful": 1}
    assert account.characters == {"prompt": [12, 12], "reply": [7]}  # "Hi\nHello\nBye"
    assert quantiles(list(range(1, 102))) == {"median": 51, "p95": 96, "max": 101}
    assert quantiles([]) == {}


def test_thoughts_are_read_as_replies_are() -> None:
    def told(row: int, thoughts: str) -> Demonstration:
        reply = {"role": "assistant", "content": "Hello", "reasoning_content": thoughts}
        return Demonstration([*user("Hi"), reply], Origin("p", row))

    account = account_of(
        [told(1, "They greet."), told(2, "Greet back."), told(3, "They greet."), told(4, "to a@b.org")]
    )
    assert rows_of(account.duplicate_rows) == [3]
    assert account.judged_both_ways.count == 0
    assert account.characters["thoughts"] == [11, 11, 11, 10]
    assert account.personal["e-mail address"].count == 1


def test_personal_data_is_counted_by_row_and_shown_masked() -> None:
    account = account_of([pair(7, "Write to a@b.org and c@d.org", "x@y.org is better", "no")])
    listed = account.personal["e-mail address"]
    assert listed.as_dict() == {"count": 1, "first": [{"source": "pairs.jsonl", "row": 7, "note": "a@*.***"}]}


def test_near_duplicates_name_both_rows_once() -> None:
    long = "How do I get red wine out of a white wool carpet without calling a cleaner?"
    account: Account = account_of([pair(1, long, "a", "b"), pair(9, long.replace("wool", "pool"), "a", "b")])
    account.find_near_duplicates(0.8)
    assert account.near.count == 2
    assert account.near.as_dict()["first"] == [
        {"source": "pairs.jsonl", "row": 1, "note": "like pairs.jsonl, row 9 (0.87)"}
    ]


def check_of(account: Account) -> DataCheck:
    return DataCheck(["pairs.jsonl"], lists={"preferences": account})


def test_findings_say_what_is_out_of_balance_and_only_that() -> None:
    """30 of 40 first: Wilson's interval is [0.60, 0.86], clear of a half. 24 of 40: [0.45, 0.74], not."""
    texts = [finding.text for finding in findings(check_of(Account(rows=40, first_is_chosen=30, with_position=40)))]
    assert texts == [
        "preferences: the chosen reply stands first in 75.0% [59.8%, 85.8%] of 40 pairs: "
        "balance_positions: true takes as many of each."
    ]
    assert findings(check_of(Account(rows=40, first_is_chosen=24, with_position=40))) == []
    assert findings(check_of(Account(rows=40, first_is_chosen=40, with_position=40))) == []  # listed by rank
    (shorter,) = findings(check_of(Account(rows=100, longer_is_chosen=20, of_different_length=100)))
    assert "is the shorter one in 80.0% [71.1%, 86.7%] of 100 pairs" in shorter.text


def test_nothing_left_would_stop_a_run() -> None:
    reading = {"read": 2, "kept": 0, "set_aside": {"empty prompt": 2}, "left_out": {}, "repaired": {}}
    (finding,) = findings(DataCheck(["x"], reading={"preferences": reading}))
    assert finding.stops
    assert "!! Nothing is left of preferences." in render(DataCheck(["x"], reading={"preferences": reading}))


@pytest.mark.parametrize(
    ("limit_name", "remedy"),
    [
        ("model.context_length", "raise it where memory allows, or accept the cut."),
        ("the model's context", "take a base that reads more, or accept the cut."),  # raising a key would be refused
        ("the context less ppo.response_length", "lower ppo.response_length, or accept the cut."),
    ],
)
def test_what_does_not_fit_is_answered_by_what_can_be_changed(limit_name: str, remedy: str) -> None:
    lengths = Lengths("pairs", limit_name, 512, 10, 10, {"median": 9, "p95": 600, "max": 700}, too_long=1)
    (found,) = findings(DataCheck(["pairs.jsonl"], lengths=[lengths]))
    assert found.text.endswith(f"set aside at {limit_name} = 512: {remedy}")
