"""Labels, thumbs, ranks and trees as pairs: what stands in the file, and the pair it must become."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from llm_rlhf.data.sources import Loaded, load_demonstrations, load_preferences, load_prompts, load_ratings
from llm_rlhf.data.storage import Rows
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import Source


def source(path: Path, rows: Sequence[Mapping[str, object]], **keys: object) -> Source:
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Source(source=str(path / "rows.jsonl"), **keys)  # type: ignore[arg-type]


def two(label: object, names: tuple[str, str] = ("output_1", "output_2"), column: str = "label") -> dict[str, object]:
    return {"instruction": f"Which, {label}?", names[0]: "first", names[1]: "second", column: label}


def better(loaded: Loaded) -> list[tuple[str, float, int | None]]:
    return [(pair.chosen, pair.confidence, pair.position) for pair in loaded.rows]


def reasons(loaded: Loaded) -> list[tuple[int, str]]:
    return [(item.origin.row, item.reason) for item in loaded.set_aside]


# --- two replies and a label

FIRST, SECOND = ("first", 1.0, 1), ("second", 1.0, 2)


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("output_1", "output_2"), [1, 2], [FIRST, SECOND]),
        (("output_1", "output_2"), ["1", "2"], [FIRST, SECOND]),
        (("output_1", "output_2"), [1, 1], [FIRST, FIRST]),
        (("response_0", "response_1"), [0, 1], [FIRST, SECOND]),
        (("response_0", "response_1"), [1, 1], [SECOND, SECOND]),
        (("response_a", "response_b"), ["a", "B"], [FIRST, SECOND]),
        (("response_a", "response_b"), ["model_a", "response_b"], [FIRST, SECOND]),
        (("answer_1", "answer_2"), ["answer_2", "1"], [SECOND, FIRST]),
        (("output_1", "output_2"), [1.2, 1.9], [("first", pytest.approx(0.8), 1), ("second", pytest.approx(0.9), 2)]),
    ],
)
def test_labels_as_they_occur(
    names: tuple[str, str], labels: list[object], expected: list[object], tmp_path: Path
) -> None:
    rows = [two(label, names) for label in labels]
    assert better(load_preferences([source(tmp_path, rows)])) == expected


def test_ties_and_labels_that_say_nothing_are_set_aside_under_their_names(tmp_path: Path) -> None:
    rows = [two(label, column="preference") for label in (1, 1.5, 0.0, None, 2, 7, "tie")]
    rows = rows[:-2] + rows[-1:]  # a 7 would make the scale uncertain
    loaded = load_preferences([source(tmp_path, rows)])
    assert better(loaded) == [FIRST, SECOND]
    assert reasons(loaded) == [(2, "tie"), (3, "unusable label"), (4, "missing field"), (6, "tie")]
    assert loaded.counts()["read"] == 6


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("response_a", "response_b"), [0, 1]),  # 1: the first is better, or the one numbered 1?
        (("output_1", "output_2"), [0, 1]),
        (("response_0", "response_1"), [0, 1, 2]),  # 2: the second, or a tie?
        (("output_1", "output_2"), [-3, 3]),
        (("output_1", "output_2"), [0.3, 0.8]),
    ],
)
def test_labels_with_two_readings_are_not_guessed(names: tuple[str, str], labels: list[float], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"may mean either.*'labels: \[1, 2\]'"):
        load_preferences([source(tmp_path, [two(label, names) for label in labels])])


def test_labels_as_the_recipe_says(tmp_path: Path) -> None:
    rows = [two(label, ("human_ref_A", "human_ref_B"), "labels") for label in (1, 0, 0.9, 0.5, 3)]
    loaded = load_preferences([source(tmp_path, rows, labels=[1, 0])])
    assert better(loaded) == [FIRST, SECOND, ("first", pytest.approx(0.9), 1)]
    assert reasons(loaded) == [(4, "tie"), (5, "unusable label")]
    words = [two(label) for label in ("left", "Right", "both", "none")]
    loaded = load_preferences([source(tmp_path, words, labels=["left", "right"])])
    assert better(loaded) == [FIRST, SECOND]
    assert reasons(loaded) == [(3, "tie"), (4, "unusable label")]


def test_two_label_columns_ask_for_the_one_meant(tmp_path: Path) -> None:
    row = {"prompt": "q", "response_0": "first", "response_1": "second", "winner": 0, "choice": 1}
    with pytest.raises(DataError, match=r"winner; choice.*columns: \{label: \.\.\.\}"):
        load_preferences([source(tmp_path, [row])])
    safer = source(tmp_path, [row], columns={"label": "choice"})
    assert better(load_preferences([safer])) == [SECOND]


def test_two_whole_conversations_and_a_winner(tmp_path: Path) -> None:
    ask = {"role": "user", "content": "Which?"}
    row = {
        "conversation_a": [ask, {"role": "assistant", "content": "first"}],
        "conversation_b": [ask, {"role": "assistant", "content": "second"}],
    }
    rows = [{**row, "winner": winner} for winner in ("model_b", "tie (bothbad)", "model_a")]
    loaded = load_preferences([source(tmp_path, rows)])
    assert better(loaded) == [SECOND, FIRST]
    assert loaded.rows[0].prompt == [ask]
    assert reasons(loaded) == [(2, "tie")]
    assert [row.messages for row in load_prompts([source(tmp_path, rows)], Rows()).rows] == [[ask]]


def test_balanced_positions_keep_as_many_of_each_and_count_the_rest(tmp_path: Path) -> None:
    rows = [{**two(1 if i < 30 else 2), "instruction": f"Which, {i}?"} for i in range(100)]
    loaded = load_preferences([source(tmp_path, rows, balance_positions=True)])
    assert sorted(pair.position for pair in loaded.rows) == [1] * 30 + [2] * 30
    assert {pair.origin.row for pair in loaded.rows} >= set(range(1, 31))
    assert loaded.left_out == {"left out to balance positions": 40}
    with pytest.raises(DataError, match="balance_positions"):
        load_preferences([source(tmp_path, rows[:30], balance_positions=True)])


# --- thumbs


def test_a_thumb_may_say_that_its_reply_was_cut(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Key?", "completion": "Mat", "label": True, "stopped": True},
        {"prompt": "Key?", "completion": "Hat", "label": False, "stopped": False},
    ]
    path = tmp_path / "thumbs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_preferences([Source(source=str(path))])
    assert [pair.sides for pair in loaded.rows] == [(("Mat", True), ("Hat", False))]
    assert not loaded.unread
    assert [(row.reply, row.stopped) for row in load_ratings([Source(source=str(path))]).rows] == [
        ("Mat", True),
        ("Hat", False),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Key?", "completion": "Mat", "label": True},
        {"prompt": "Key?", "completion": "Mat"},
        {"instruction": "Key?", "output": "Mat"},
        {"messages": [{"role": "user", "content": "Key?"}, {"role": "assistant", "content": "Mat"}]},
    ],
)
def test_nothing_that_was_cut_is_imitated(tmp_path: Path, row: dict[str, object]) -> None:
    path = tmp_path / "shown.jsonl"
    path.write_text("".join(json.dumps({**row, "stopped": value}) + "\n" for value in (True, False)))
    loaded = load_demonstrations([Source(source=str(path))], Rows())
    assert [found.messages[-1]["content"] for found in loaded.rows] == ["Mat"]
    assert loaded.counts()["set_aside"] == {"reply was cut at its length": 1}
    assert not loaded.unread


def test_thumbs_make_pairs_where_one_prompt_has_both(tmp_path: Path) -> None:
    def row(prompt: str, completion: str, label: object) -> dict[str, object]:
        return {"prompt": prompt, "completion": completion, "label": label}

    rows = [
        row("One?", "good", True),
        row("Two?", "alone", "up"),
        row("one? ", "bad", False),
        row("One?", "worse", 0),
        row("One?", "better", 1),
        row("One?", "third", True),
        row("Three?", "what", "perhaps"),
    ]
    loaded = load_preferences([source(tmp_path, rows)])
    assert [(pair.chosen, pair.rejected) for pair in loaded.rows] == [("good", "bad"), ("better", "worse")]
    assert sorted(reasons(loaded)) == [
        (2, "no opposite feedback on the prompt"),
        (6, "no opposite feedback on the prompt"),
        (7, "unusable label"),
    ]
    assert (loaded.read, loaded.used, loaded.made) == (7, 4, 2)
    told = load_demonstrations([source(tmp_path, rows)], Rows())
    assert [row.messages[-1]["content"] for row in told.rows] == ["good", "alone", "better", "third"]
    assert sorted(reasons(told)) == [(3, "down-voted completion"), (4, "down-voted completion"), (7, "unusable label")]


# --- ranked replies

RATED = [{"text": "c", "score": 3}, {"text": "a", "score": 9.5}, {"text": "b", "score": 4}, {"text": "b2", "score": 4}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "responses": RATED},
        {"instruction": "q", "completions": [{"response": r["text"], "overall_score": r["score"]} for r in RATED]},
        {"prompt": "q", "responses": ["c", "a", "b", "b2"], "scores": [3, 9.5, 4, 4]},
        {"question": "q", "candidates": [{"output": r["text"], "preference": str(r["score"])} for r in RATED]},
    ],
)
def test_the_best_reply_against_the_worst_with_the_gap_as_margin(row: dict[str, object], tmp_path: Path) -> None:
    loaded = load_preferences([source(tmp_path, [row])])
    (pair,) = loaded.rows
    assert (pair.chosen, pair.rejected, pair.margin, pair.position) == ("a", "c", 6.5, 2)
    assert loaded.counts()["parts_set_aside"] == {"reply neither the best nor the worst": 2}
    every = load_preferences([source(tmp_path, [row], pairs="all")])
    assert [(p.chosen, p.rejected, p.margin) for p in every.rows] == [
        ("a", "b", 5.5),
        ("a", "b2", 5.5),
        ("a", "c", 6.5),
        ("b", "c", 1.0),
        ("b2", "c", 1.0),
    ]
    assert every.counts()["parts_set_aside"] == {"tie": 1}
    assert (every.read, every.used, every.made) == (1, 1, 5)


def test_of_ranks_the_lowest_is_the_best(tmp_path: Path) -> None:
    row = {
        "prompt": "q",
        "answers": [{"answer": "b", "rank": 2}, {"answer": "c", "rank": 3}, {"answer": "a", "rank": 1}],
    }
    (pair,) = load_preferences([source(tmp_path, [row])]).rows
    assert (pair.chosen, pair.rejected, pair.margin, pair.position) == ("a", "c", 2.0, 3)


@pytest.mark.parametrize(
    ("ranking", "expected"),
    [
        ([1, 2, 0], []),  # ranks: the third reply is the best; an order: the second
        ([2, 3, 1], []),
        ([1, 0, 2], ["b"]),  # the second reply either way
        ([3, 1, 1], ["b"]),  # no order has a number twice
    ],
)
def test_a_ranking_that_may_be_an_order_of_the_replies_is_not_guessed(
    ranking: list[int], expected: list[str], tmp_path: Path
) -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c"], "ranking": ranking}
    other = {"prompt": "r", "responses": ["a", "d"], "ranking": [1, 0]}
    loaded = load_preferences([source(tmp_path, [row, other])])
    assert [one.chosen for one in loaded.rows] == [*expected, "d"]
    assert reasons(loaded) == ([] if expected else [(1, "ambiguous ranking")])
    as_ranks = load_preferences([source(tmp_path, [row], columns={"ranks": "ranking"})])
    assert as_ranks.rows[0].chosen == "abc"[ranking.index(min(ranking))]


def test_ranked_rows_that_make_no_pair(tmp_path: Path) -> None:
    def row(*replies: tuple[object, object]) -> dict[str, object]:
        return {"prompt": "q", "responses": [{"text": text, "score": score} for text, score in replies]}

    rows = [
        row(("a", 2), ("b", 1), ("", 3), ("d", "N/A")),
        row(("a", 1), ("b", 1)),
        row(("a", 1), ("b", None)),
        row(("a", 1), ("a", 2)),
        {
            "prompt": "q",
            "responses": [{"text": "a", "rating": 1, "reward": 2}, {"text": "b", "rating": 2, "reward": 1}],
        },
    ]
    loaded = load_preferences([source(tmp_path, rows)])
    assert [(pair.chosen, pair.rejected) for pair in loaded.rows] == [("a", "b")]
    assert loaded.parts == {
        "empty reply": 1,
        "reply without a score or a rank": 1,
    }
    assert reasons(loaded) == [
        (2, "tie"),
        (3, "fewer than two rated replies"),
        (4, "no pair of different replies with different scores"),
        (5, "fewer than two rated replies"),
    ]


# --- trees


def message(key: str, parent: str | None, role: str, rank: int | None = None, **more: object) -> dict[str, object]:
    return {"message_id": key, "parent_id": parent, "role": role, "text": f"text {key}", "rank": rank, **more}


FLAT = [
    message("q", None, "prompter"),
    message("worst", "q", "assistant", 2),
    message("best", "q", "assistant", 0),
    message("middle", "q", "assistant", 1),
    message("unranked", "q", "assistant"),
    message("deleted", "q", "assistant", 3, deleted=True),
    message("q2", "worst", "prompter"),
    message("only", "q2", "assistant", 0),
    message("q3", "best", "prompter"),
    message("reply", "q3", "assistant"),
    message("orphan", "gone", "assistant"),
]


def nested(key: str | None) -> list[dict[str, object]]:
    children = [row for row in FLAT if row["parent_id"] == key]
    return [
        {k: v for k, v in row.items() if k != "parent_id"} | {"replies": nested(str(row["message_id"]))}
        for row in children
    ]


def test_a_tree_gives_the_same_rows_nested_or_flat(tmp_path: Path) -> None:
    (root,) = nested(None)
    forms = {
        "flat": source(tmp_path, FLAT),
        "nested": {"message_tree_id": "q", "prompt": root},
        "message": root,
    }
    for name, form in forms.items():
        one = form if isinstance(form, Source) else source(tmp_path, [form])
        pairs = load_preferences([one])
        assert [(p.chosen, p.rejected, p.margin, p.position) for p in pairs.rows] == [
            ("text best", "text worst", 2.0, 2)
        ]
        assert pairs.rows[0].prompt == [{"role": "user", "content": "text q"}]
        told = load_demonstrations([one], Rows())
        said = [[turn["content"].removeprefix("text ") for turn in row.messages] for row in told.rows]
        assert said == [["q", "best"], ["q", "best", "q3", "reply"]]
        assert not any(row.every_reply for row in told.rows)
        asked = [[t["content"].removeprefix("text ") for t in row.messages] for row in load_prompts([one], Rows()).rows]
        assert sorted(asked) == [["q"], ["q", "best", "q3"], ["q", "worst", "q2"]]
        pairs.counts()
        if name == "flat":
            assert dict(sorted(reasons(pairs))) == {
                4: "reply neither the best nor the worst",
                5: "reply without a rank",
                6: "deleted message",
                7: "no two ranked replies follow",
                8: "no other ranked reply to compare with",
                9: "no two ranked replies follow",
                10: "reply without a rank",
                11: "no way up to a first message",
            }
    every = load_preferences([source(tmp_path, FLAT, pairs="all")])
    assert [(p.chosen, p.rejected) for p in every.rows] == [
        ("text best", "text middle"),
        ("text best", "text worst"),
        ("text middle", "text worst"),
    ]


def test_messages_that_answer_each_other_in_a_circle_are_set_aside(tmp_path: Path) -> None:
    rows = [*FLAT[:3], message("a", "b", "prompter"), message("b", "a", "assistant"), message("b", "a", "assistant")]
    loaded = load_preferences([source(tmp_path, rows)])
    assert len(loaded.rows) == 1
    assert sorted(reasons(loaded)) == [
        (4, "no way up to a first message"),
        (5, "no way up to a first message"),
        (6, "message_id stands twice"),
    ]
