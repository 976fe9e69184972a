import json
import time
from pathlib import Path

import pytest

from llm_rlhf.data.checks import (
    EMPTY_SYSTEM_REMOVED,
    JOINED_TURNS,
    BadRow,
    SetAside,
    check_prompt,
    extract,
    fit_conversation,
    is_blank,
    normalised_prompt,
    opening,
    prompt_share,
    tidy_turns,
    write_quarantine,
)
from llm_rlhf.data.messages import check_messages
from llm_rlhf.data.rows import Conversation, Origin

HERE = Origin("here", 1)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


# --- keys and hashes


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How are you?", "how  ARE\n\tyou? "),
        ("ﬁne", "FINE"),  # a ligature
        ("straße", "STRASSE"),
        ("１２３", "123"),  # full width
        ("e\u0301te\u0301", "ÉTÉ"),
        ("a\u00a0b", "a b"),  # no-break space
    ],
)
def test_prompts_that_differ_in_case_width_or_space_have_one_key(one: str, other: str) -> None:
    assert normalised_prompt([user(one)]) == normalised_prompt([user(other)])


def test_roles_and_turn_boundaries_belong_to_the_key() -> None:
    keys = {
        normalised_prompt(messages)
        for messages in (
            [user("a b")],
            [system("a b")],
            [user("a"), user("b")],
            [user("a user: b")],
            [user("a\nuser: b")],  # typed by a person: a line break is white space, not a turn
        )
    }
    assert len(keys) == 4


def test_normalising_twice_changes_nothing() -> None:
    for text in ("ΐ ﬃ ǰ İ \u0345", "Ⅷ ½ ㎏ ﷺ", "a" * 9000 + "é" * 9000):
        once = normalised_prompt([user(text)]).removeprefix("user: ")
        assert normalised_prompt([user(once)]).removeprefix("user: ") == once


@pytest.mark.slow
def test_a_long_run_of_combining_marks_is_normalised_in_time() -> None:
    start = time.monotonic()
    prompt_share([user("a" + "\u0301\u0323" * 100_000)])  # unbounded, this sort takes half a minute
    assert time.monotonic() - start < 10


def test_share_by_hand() -> None:
    # SHA-256 of "split\nuser: hello" begins with these eight bytes (`printf 'split\nuser: hello' | sha256sum`).
    first_bytes = 0xC185C1BCFD8887DA
    assert prompt_share([user(" Hello ")], "split") == pytest.approx(first_bytes / 2**64, abs=2**-52)


def test_shares_are_uniform_and_independent_between_purposes() -> None:
    prompts = [[user(f"question {i}")] for i in range(4000)]
    split = [prompt_share(p, "split") for p in prompts]
    limit = [prompt_share(p, "limit") for p in prompts]
    assert all(0 <= share < 1 for share in split)
    # A binomial count of 4000 at 0.1 has a standard deviation of 19, and at 0.01 one of 6.3; five of them are allowed.
    assert abs(sum(share < 0.1 for share in split) - 400) < 95
    assert abs(sum(a < 0.1 and b < 0.1 for a, b in zip(split, limit, strict=True)) - 40) < 32


def test_opening_is_the_first_user_turn_alone() -> None:
    talk = [system("Be kind."), user("One"), assistant("Two"), user("Three")]
    assert opening(talk) == [user("One")]


# --- turns


def test_turns_of_one_role_are_joined_with_a_blank_line() -> None:
    repairs: set[str] = set()
    tidy = tidy_turns([system("s"), user("a"), user("b"), assistant("c"), assistant("d"), user("e")], repairs)
    assert tidy == [system("s"), user("a\n\nb"), assistant("c\n\nd"), user("e")]
    assert repairs == {JOINED_TURNS}


def test_an_empty_system_message_is_removed() -> None:
    repairs: set[str] = set()
    assert tidy_turns([system(" "), user("a")], repairs) == [user("a")]
    assert repairs == {EMPTY_SYSTEM_REMOVED}


def test_tidy_turns_need_no_repair_and_are_not_the_same_objects() -> None:
    turns = [user("a"), assistant("b")]
    repairs: set[str] = set()
    tidy = tidy_turns(turns, repairs)
    assert tidy == turns
    assert tidy[0] is not turns[0]
    assert repairs == set()


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "empty prompt"),
        ([user("")], "empty prompt"),
        ([user("\u200b\ufeff \n")], "empty prompt"),
        ([system("s")], "prompt does not end with a user turn"),
        ([user("a"), assistant("b")], "prompt does not end with a user turn"),
        ([user("a"), assistant(""), user("c")], "empty turn"),
        ([assistant("a"), user("b")], "does not start with a user turn"),
        ([user("a"), system("s"), user("b")], "system message after the start"),
    ],
)
def test_prompts_that_cannot_be_answered(turns: Conversation, reason: str) -> None:
    with pytest.raises(BadRow) as bad:
        check_prompt(turns, set())
    assert bad.value.reason == reason


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "missing field"),
        ("text", "wrong type"),
        (["text"], "wrong type"),
        ([{"content": "a"}], "missing field"),
        ([{"role": "user"}], "missing field"),
        ([{"role": "user", "content": [{"type": "image", "image": "a.png"}]}], "not text alone"),
        ([{"role": "tool", "content": "a"}], "tools are not supported"),
        ([{"role": "narrator", "content": "a"}], "unknown role"),
        ([{"role": "user", "content": "a\0b"}], "NUL character"),
        ([{"role": "user", "content": "a\ud800b"}], "lone surrogate"),
    ],
)
def test_messages_of_the_wrong_shape(value: object, reason: str) -> None:
    with pytest.raises(BadRow) as bad:
        check_messages(value, "prompt")
    assert bad.value.reason == reason
    assert "prompt" in bad.value.detail


def test_blank_is_what_cannot_be_seen() -> None:
    assert all(is_blank(text) for text in ("", " \t\n", "\u200b", "\ufeff", "\u202e\u00a0"))
    assert not any(is_blank(text) for text in ("a", "\u200ba", "👋", "."))


# --- long conversations


def words(conversation: Conversation) -> int:
    """A tokenizer for these tests: one token a word, one for each turn's frame."""
    return sum(1 + len(message["content"].split()) for message in conversation)


TALK = [system("be kind"), user("a b c"), assistant("d e"), user("f g"), assistant("h"), user("i j")]
# tokens:       3               4               3              3              2             3        = 18


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (18, TALK),
        (17, [TALK[0], *TALK[3:]]),  # dropping the first turn alone would leave an assistant turn in front
        (11, [TALK[0], *TALK[3:]]),
        (10, [TALK[0], TALK[5]]),
        (6, [TALK[0], TALK[5]]),
        (5, None),  # the last user turn would fit alone, but a system message is never dropped
    ],
)
def test_the_oldest_turns_go_first(limit: int, kept: Conversation | None) -> None:
    assert fit_conversation(TALK, words, limit) == kept


def test_a_reply_stays_with_the_user_turn_it_answers() -> None:
    talk = [user("a b c"), assistant("d"), user("e"), assistant("f g h")]
    assert fit_conversation(talk, words, 6) == talk[2:]
    assert fit_conversation(talk, words, 5) is None
    assert fit_conversation([assistant("a")], words, 5) is None


# --- quarantine


def test_quarantine_is_plain_ascii_json(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    detail = extract("שלום \ud800 \0 \x1b[31m" + "x" * 200)
    write_quarantine([SetAside(Origin("data/é.jsonl", 3), "lone surrogate", detail)], path)
    assert path.read_bytes().isascii()
    record = json.loads(path.read_text(encoding="ascii"))
    assert record == {"source": "data/é.jsonl", "row": 3, "reason": "lone surrogate", "detail": detail}
    assert "שלום" in detail
    assert detail.endswith(" ...")
    assert detail.replace("שלום", "").isprintable()
    detail.encode("utf-8")
