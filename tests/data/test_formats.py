"""Rows of every format, one at a time: the rules for transcripts, and that no row slips through."""

import copy
import json
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_rlhf.data.checks import BadRow, prompt_of
from llm_rlhf.data.files import Opened
from llm_rlhf.data.formats.conversations import to_preference
from llm_rlhf.data.formats.parsing import parse
from llm_rlhf.data.formats.recognition import SERVES
from llm_rlhf.data.formats.table import FORMATS, formats_of
from llm_rlhf.data.formats.transcripts import parse_transcript
from llm_rlhf.data.rows import Origin, Preference, RawRow
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import Source

ASK = [{"role": "user", "content": "Where is the key?"}]
GOOD = {"role": "assistant", "content": "Under the mat."}
BAD = {"role": "assistant", "content": "Find it yourself."}
ASK_TEXT = "\n\nHuman: Where is the key?"


def hh(chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": chosen, "rejected": rejected}


def reason(row: Mapping[str, object], form: str = "hh") -> str:
    with pytest.raises(BadRow) as bad:
        to_preference(RawRow(Origin("here", 1), row), form, "overall")
    return bad.value.reason


def test_a_pair_may_state_how_probable_it_is() -> None:
    row = {"prompt": "Key?", "chosen": "Mat", "rejected": "Hat"}
    pair = to_preference(RawRow(Origin("here", 1), {**row, "confidence": "0.75"}), "preference", "overall")
    assert pair.confidence == 0.75
    for wrong in (0.5, 0.2, 3, True, "sure"):
        assert reason({**row, "confidence": wrong}, "preference") == "confidence is no probability"


def test_a_row_may_say_that_a_reply_was_cut() -> None:
    texts = {"prompt": "Key?", "chosen": "Mat", "rejected": "Hat"}
    transcripts = hh(f"{ASK_TEXT}\n\nAssistant: Mat", f"{ASK_TEXT}\n\nAssistant: Hat")
    for form, row in (("preference", texts), ("hh", transcripts)):
        for value in (False, "false", 0):
            raw = RawRow(Origin("here", 1), {**row, "rejected_stopped": value, "chosen_stopped": None})
            assert to_preference(raw, form, "overall").sides == (("Mat", True), ("Hat", False))
        for nothing in (None, "", "nan", "None", "null", float("nan")):
            raw = RawRow(Origin("here", 1), {**row, "rejected_stopped": nothing})
            assert to_preference(raw, form, "overall").sides == (("Mat", True), ("Hat", True))
        for wrong in ("perhaps", 3, [False, True]):
            assert reason({**row, "chosen_stopped": wrong}, form) == "wrong type"


# --- HH transcripts


def test_a_pair_of_several_turns() -> None:
    talk = "\n\nHuman: Hi\n\nAssistant: Hello. \n\nTwo paragraphs.\n\nHuman: Where is the key?\n\nAssistant:"
    raw = RawRow(Origin("here", 1), hh(f"{talk} Under the mat.", f"{talk} Under my hat!"))
    pair = to_preference(raw, "hh", "harmless")
    # The longest common prefix of the two texts would end in "Under m".
    assert pair.prompt == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello. \n\nTwo paragraphs."},
        {"role": "user", "content": "Where is the key?"},
    ]
    assert (pair.chosen, pair.rejected, pair.objective) == ("Under the mat.", "Under my hat!", "harmless")
    assert raw.repairs == set()


def test_turns_of_one_role_on_both_sides_are_joined() -> None:
    talk = "\n\nHuman: Hi\n\nHuman: Hello?\n\nAssistant: Yes\n\nAssistant: I hear you\n\nHuman: Key?\n\nAssistant: "
    raw = RawRow(Origin("here", 1), hh(f"{talk}Mat", f"{talk}Hat"))
    pair = to_preference(raw, "hh", "overall")
    assert [m["content"] for m in pair.prompt] == ["Hi\n\nHello?", "Yes\n\nI hear you", "Key?"]
    assert raw.repairs == {"turns of one role in a row joined"}


@pytest.mark.parametrize("reply", ["Human: hat", "A hat.  Human: No, a mat.", "See\nAssistant: a hat"])
def test_a_marker_inside_a_turn_is_text(reply: str) -> None:
    raw = RawRow(Origin("here", 1), hh(f"{ASK_TEXT}\n\nAssistant: {reply}", f"{ASK_TEXT}\n\nAssistant: None"))
    pair = to_preference(raw, "hh", "overall")
    assert (pair.prompt, pair.chosen) == (ASK, reply)
    assert raw.repairs == {"role marker inside a turn kept as text"}


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (f"{ASK_TEXT}\n\nAssistant: ", f"{ASK_TEXT}\n\nAssistant: Hat", "empty chosen reply"),
        (f"{ASK_TEXT}\n\nAssistant: Hat", f"{ASK_TEXT}\n\nAssistant:", "empty rejected reply"),
        (f"{ASK_TEXT}\n\nAssistant:\u200b", f"{ASK_TEXT}\n\nAssistant: Hat", "empty chosen reply"),
        (f"{ASK_TEXT}\n\nAssistant: Hat", f"{ASK_TEXT}\n\nAssistant:  Hat\n", "chosen equals rejected"),
        (
            f"{ASK_TEXT}\n\nAssistant: Under the",
            f"{ASK_TEXT}\n\nAssistant: Under the mat.",
            "one transcript is the beginning of the other",
        ),
        (
            f"{ASK_TEXT}\n\nAssistant: Mat\n\nHuman: Thanks\n\nAssistant: Welcome",
            f"{ASK_TEXT}\n\nAssistant: Mat",
            "one transcript is the beginning of the other",
        ),
        (
            f"{ASK_TEXT}\n\nAssistant: Mat\n\nAssistant: Or hat",
            f"{ASK_TEXT}\n\nAssistant: Hat",
            "parts before the last turn",
        ),
        (f"{ASK_TEXT}\n\nAssistant: Mat", "\n\nHuman: Who?\n\nAssistant: Me", "no shared prompt"),
        (f"{ASK_TEXT}\n\nAssistant: Mat", f"{ASK_TEXT}", "does not end with an assistant turn"),
        (
            f"{ASK_TEXT}\n\nAssistant: Mat\n\nHuman:",
            f"{ASK_TEXT}\n\nAssistant: Hat\n\nHuman:",
            "does not end with an assistant turn",
        ),
        ("\n\nAssistant: Mat", "\n\nAssistant: Hat", "does not start with a Human turn"),
        ("Key?\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: c", "does not start with a Human turn"),
        ("", "", "does not start with a Human turn"),
        ("\n\nHuman: \n\nAssistant: Mat", "\n\nHuman: \n\nAssistant: Hat", "empty prompt"),
        (
            "\n\nHuman:\n\nAssistant: a\n\nHuman: b\n\nAssistant: Mat",
            "\n\nHuman:\n\nAssistant: a\n\nHuman: b\n\nAssistant: Hat",
            "empty turn",
        ),
        (
            f"{ASK_TEXT}\n\nAssistant: Well\n\nAssistant: Mat",
            f"{ASK_TEXT}\n\nAssistant: Well\n\nAssistant: Hat",
            "prompt does not end with a user turn",
        ),
    ],
)
def test_transcripts_set_aside(chosen: str, rejected: str, expected: str) -> None:
    assert reason(hh(chosen, rejected)) == expected


TURN = (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
    .map(str.strip)
    .filter(lambda text: text and "\n\nHuman:" not in text and "\n\nAssistant:" not in text)
)


@settings(max_examples=200, deadline=None)
@given(st.lists(TURN, min_size=1, max_size=7))
def test_fault_44_transcripts_come_back_as_they_went(contents: list[str]) -> None:
    talk = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    names = {"user": "Human", "assistant": "Assistant"}
    written = "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in talk)
    assert parse_transcript(written) == talk


SCRAPS = st.lists(
    st.sampled_from(
        ["\n\nHuman:", "\n\nAssistant:", "Human:", "\n", " ", "a", "b\n\nc", "\u200b", "\0", "\ud800", "👋"]
    ),
    max_size=12,
).map("".join)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.one_of(SCRAPS, st.none(), st.integers()), st.one_of(SCRAPS, st.text()))
def test_fault_42_any_pair_of_transcripts_is_kept_or_set_aside(chosen: object, rejected: str) -> None:
    raw = RawRow(Origin("here", 1), {"chosen": chosen, "rejected": rejected})
    try:
        pair = to_preference(raw, "hh", "overall")
    except BadRow:
        return
    assert [m["role"] for m in pair.prompt] == ["user", "assistant"] * (len(pair.prompt) // 2) + ["user"]
    assert pair.chosen.strip() != pair.rejected.strip()
    json.dumps(pair.prompt).encode()
    (pair.chosen + pair.rejected).encode("utf-8")


TEXTS = st.sampled_from(["", "a", "b", "Human: a", "\n\nHuman: a\n\nAssistant: b", "\u200b", "\0", "\ud800", "user"])
ROLES = st.sampled_from(["system", "user", "assistant", "prompter", "tool", "", None])
NUMBERS = st.sampled_from([0, 1, 2, -1, 1.5, True, 10**400, float("nan"), "1", "a", "tie", None])
MORE_OF_A_MESSAGE = {"weight": NUMBERS, "reasoning": TEXTS, "tool_calls": st.lists(TEXTS, max_size=1)}
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": ROLES, "content": TEXTS | st.none()}, optional=MORE_OF_A_MESSAGE), max_size=5
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
REPLIES = st.lists(
    st.fixed_dictionaries({}, optional={"text": TEXTS | ANYTHING, "score": NUMBERS, "rank": NUMBERS}), max_size=4
)
NODES = st.recursive(
    st.fixed_dictionaries({"role": ROLES, "text": TEXTS, "rank": NUMBERS, "replies": st.just([])}),
    lambda inner: st.fixed_dictionaries(
        {"role": ROLES, "text": TEXTS, "rank": NUMBERS, "replies": st.lists(inner | ANYTHING, max_size=3)}
    ),
    max_leaves=6,
)
COLUMNS = {
    "prompt": TEXTS | MESSAGES | NODES,
    **dict.fromkeys(("chosen", "rejected", "completion", "messages", "output_1", "output_2"), TEXTS | MESSAGES),
    **dict.fromkeys(("label", "margin", "rank", "objective"), NUMBERS | TEXTS),
    **dict.fromkeys(
        ("instruction", "input", "output", "text", "role", "facts", "turns", "instances"), TEXTS | ANYTHING
    ),
    "responses": REPLIES,
    **dict.fromkeys(
        ("score", "helpfulness", "is_safe", "score_chosen", "score_rejected", "overall_preference"), NUMBERS
    ),
    **dict.fromkeys(("better_response_id", "safer_response_id", "rater_1", "rater_2", "Response_0"), NUMBERS | TEXTS),
    **dict.fromkeys(("system", "tools", "question", "answer", "goal", "conversations"), TEXTS | MESSAGES),
    "history": st.lists(st.lists(TEXTS, max_size=3), max_size=2) | MESSAGES,
    "replies": st.lists(NODES, max_size=2),
    **dict.fromkeys(("message_id", "parent_id"), st.sampled_from(["a", "b", "c", None, 1])),
}
ROWS = st.fixed_dictionaries({}, optional={name: values | ANYTHING for name, values in COLUMNS.items()}) | ANYTHING


def texts_in(value: object) -> list[str]:
    """Every text in a row, at any depth."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in texts_in(one)]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=4))
def test_fault_42_rows_of_any_shape_become_rows_or_reasons_and_none_is_lost(
    rows: list[object],
) -> None:
    def read() -> Iterator[RawRow]:
        return (RawRow(Origin("here", number), copy.deepcopy(row)) for number, row in enumerate(rows, 1))

    for row in rows:
        formats_of(row)
    written = "\n".join(text for row in rows for text in texts_in(row))
    for kind, forms in SERVES.items():
        for form in forms:
            source = Source(source="here", labels=[1, 2], pairs="all")
            try:
                entries = list(parse(Opened("here", "", read), form, source, kind))  # asserts that every row is in it
            except DataError:  # no row has two replies and a label; or a label is a point on a scale
                assert form in ("comparison", "feedback")
                continue
            assert sum(entry.rows for entry in entries) == len(rows)
            for entry in entries:
                if entry.made is None:
                    assert entry.reason or entry.unread
                    continue
                prompt = prompt_of(entry.made)
                assert prompt[-1]["role"] == "user"
                assert all(turn["content"].strip() for turn in prompt)
                repr(entry.made).encode("utf-8")
                if isinstance(entry.made, Preference):
                    assert entry.made.chosen.strip() != entry.made.rejected.strip()
                    assert entry.made.chosen in written
                    assert entry.made.rejected in written
                    assert 0.5 < entry.made.confidence <= 1
                    assert entry.made.margin is None or entry.made.margin >= 0


def test_every_format_serves_something() -> None:
    assert {form for forms in SERVES.values() for form in forms} == set(FORMATS)


# --- messages and text


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"chosen": "a", "rejected": "b"}, "missing field"),
        ({"prompt": "q", "chosen": "a"}, "missing field"),
        ({"prompt": "q", "chosen": "a", "rejected": "a "}, "chosen equals rejected"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "empty prompt"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "empty prompt"),
        ({"prompt": 7, "chosen": "a", "rejected": "b"}, "wrong type"),
        ({"prompt": "q", "chosen": ["a"], "rejected": "b"}, "wrong type"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "objective": "kind"}, "unknown objective"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "objective": 1}, "wrong type"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "two"}, "wrong type"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": True}, "wrong type"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("nan")}, "wrong type"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("-inf")}, "wrong type"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": -1}, "negative margin"),
        ({"prompt": ASK_TEXT, "chosen": "a", "rejected": "b"}, "transcript where one turn is expected"),
        ({"prompt": ASK, "chosen": [GOOD, BAD], "rejected": [BAD]}, "not one assistant turn after the prompt"),
        ({"prompt": ASK, "chosen": [], "rejected": [BAD]}, "not one assistant turn after the prompt"),
        ({"chosen": [], "rejected": [BAD]}, "empty conversation"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "empty prompt"),
        ({"chosen": [*ASK, GOOD], "rejected": [*ASK, GOOD, *ASK, BAD]}, "parts before the last turn"),
    ],
)
def test_message_pairs_set_aside(row: dict[str, object], expected: str) -> None:
    assert reason(row, "preference") == expected
