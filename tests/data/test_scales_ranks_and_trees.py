"""The three readers of many replies by themselves: labels on a scale, ranks, and trees; every row by hand."""

import pytest

from llm_rlhf.data.checks import BadRow
from llm_rlhf.data.formats.labelled_replies import (
    NO_OPPOSITE,
    Scale,
    as_number,
    compared_pair,
    find_scale,
    opposed_pairs,
)
from llm_rlhf.data.formats.rankings import BETWEEN, Rated, chosen_pairs, ranked_pairs
from llm_rlhf.data.formats.trees import NOT_NEEDED, UNRANKED, Node, flat_trees, grow, nested_tree
from llm_rlhf.data.rows import Origin, RawRow
from llm_rlhf.errors import DataError


def raw(fields: object, row: int = 1) -> RawRow:
    return RawRow(Origin("here", row), fields)


# ---- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "labels", "expected"),
    [
        (("output_1", "output_2"), [2, 1], (1.0, 2.0)),
        (("response_0", "response_1"), [0, 1], (0.0, 1.0)),
        (("response_a", "response_b"), ["a", "tie"], (None, None)),
        (("response_a", "response_b"), [1, 1.5], (1.0, 2.0)),  # over 1: no scale from 0
    ],
)
def test_a_scale_is_told_by_all_labels_of_a_file(columns, labels, expected) -> None:
    rows = ["no row", *({columns[0]: "x", columns[1]: "y", "label": label} for label in labels)]
    assert find_scale(rows, None, "f") == Scale(*columns, "label", *expected)
    assert find_scale(rows, [1, 0], "f") == Scale(*columns, "label", 1, 0)  # what the source says comes first


def test_no_scale_without_replies_and_none_where_two_columns_could_be_meant() -> None:
    with pytest.raises(DataError, match=r"No row of f has two replies and a label"):
        find_scale([{"prompt": "q", "label": 1}], None, "f")
    two = {"output_1": "x", "output_2": "y", "preference": 1, "winner": 2}
    with pytest.raises(DataError, match=r"more than one candidate for a comparison: preference; winner\. Name"):
        find_scale([two], None, "f")


@pytest.mark.parametrize(
    ("label", "chosen", "confidence"), [(1, "x", 1.0), (1.25, "x", 0.75), ("2", "y", 1.0), (1.9, "y", 0.9)]
)
def test_a_label_between_the_ends_is_a_probability_of_the_second(label, chosen, confidence) -> None:
    row = {"prompt": "q", "output_1": "x", "output_2": "y", "label": label}
    found = compared_pair(raw(row), Scale("output_1", "output_2", "label", 1.0, 2.0), "overall")
    assert (found.chosen, found.position) == (chosen, 1 if chosen == "x" else 2)
    assert found.confidence == pytest.approx(confidence)


def test_numbers_and_what_is_none() -> None:
    known = {" 1.5 ": 1.5, 2: 2.0, True: 1.0, "x": None, "nan": None, "1e400": None, 10**400: None, None: None}
    assert {value: as_number(value) for value in known} == known


def test_each_thumb_serves_once_in_the_order_it_came() -> None:
    """Two up, two down for one prompt, however it is written; a third up finds nobody, and a label says nothing."""
    said = [("q?", "a", True), ("Q? ", "b", True), ("q?", "c", False), ("q?", "d", 1), ("q?", "e", 0), ("q?", "f", "?")]
    rows = [raw({"prompt": p, "completion": c, "label": label}, i) for i, (p, c, label) in enumerate(said, 1)]
    found = [
        (up.origin.row, down and down.origin.row, got.reason if isinstance(got, BadRow) else (got.chosen, got.rejected))
        for up, down, got in opposed_pairs(rows, "helpful")
    ]
    assert found == [
        (1, 3, ("a", "c")), (2, 5, ("b", "e")), (6, None, "unusable label"), (4, None, NO_OPPOSITE)
    ]  # fmt: skip


# ---- ranks -----------------------------------------------------------------------------------------------------------


def rated(*scores: float) -> list[Rated]:
    return [Rated({"role": "assistant", "content": f"r{i}"}, score, i) for i, score in enumerate(scores, 1)]


def test_best_and_worst_or_all_pairs_with_their_ties() -> None:
    row = raw({})
    assert [(a.position, b.position) for a, b in chosen_pairs(rated(1, 3, 2), "best_worst", row)] == [(2, 1)]
    assert row.parts == {BETWEEN: 1}
    row = raw({})
    assert [(a.position, b.position) for a, b in chosen_pairs(rated(1, 3, 1), "all", row)] == [(2, 1), (2, 3)]
    assert row.parts == {"tie": 1}
    with pytest.raises(BadRow, match="all 2 replies have the same score"):
        chosen_pairs(rated(1, 1), "all", row)
    with pytest.raises(BadRow, match="fewer than two rated replies"):
        chosen_pairs(rated(1), "all", row)


def test_a_rank_is_better_where_it_is_lower_and_its_gap_is_the_margin() -> None:
    replies = [("a", 2), ("b", 0), (" ", 1), ("c", None), ("d", 1)]
    row = raw({"prompt": "q", "responses": [{"text": text, "rank": rank} for text, rank in replies]})
    (pair,) = ranked_pairs(row, "helpful", "best_worst")
    assert (pair.chosen, pair.rejected, pair.margin, pair.position) == ("b", "a", 2.0, 2)
    assert row.parts == {"empty reply": 1, "reply without a score or a rank": 1, BETWEEN: 1}


def test_scores_that_stand_beside_the_replies() -> None:
    row = raw({"prompt": "q", "responses": ["a", "b", "b "], "scores": [0.5, 2, 1.0]})
    found = ranked_pairs(row, "helpful", "all")
    assert [(p.chosen.strip(), p.rejected.strip(), p.margin) for p in found] == [("b", "a", 1.5), ("b", "a", 0.5)]
    assert row.parts == {"tie": 0, "chosen equals rejected": 1}  # b and b, which white space tells apart


# ---- trees -----------------------------------------------------------------------------------------------------------


def message(role: str, text: str, *replies: dict, **fields: object) -> dict:
    return {"role": role, "text": text, "replies": list(replies), **fields}


TREE = message(
    "prompter", "q",
    message("assistant", "best", message("prompter", "more", message("assistant", "end")), rank=0),
    message("assistant", "worse", message("prompter", "aside", message("assistant", "lost")), rank=1),
    message("assistant", "gone", message("prompter", "below"), rank=2, deleted=True),
)  # fmt: skip


def unused(kind) -> dict[str, str]:
    grown = grow(nested_tree(raw({"prompt": TREE})), kind, "helpful", "best_worst", set())
    return {node.fields["text"]: bad.reason for node, bad in grown.unused}


def rows_of(kind) -> list:
    return [row for row, _ in grow(nested_tree(raw({"prompt": TREE})), kind, "helpful", "best_worst", set()).rows]


def test_a_tree_as_pairs() -> None:
    (pair,) = rows_of("preferences")
    assert (pair.prompt, pair.chosen, pair.rejected) == ([{"role": "user", "content": "q"}], "best", "worse")
    assert (pair.margin, pair.position) == (1.0, 1)
    below = "below a message that cannot be used"
    assert unused("preferences") == {
        "gone": "deleted message", "below": below, "more": NOT_NEEDED["preferences"], "end": UNRANKED,
        "aside": NOT_NEEDED["preferences"], "lost": UNRANKED,
    }  # fmt: skip


def test_a_tree_as_demonstrations_follows_the_best_replies_alone() -> None:
    talks = [[turn["content"] for turn in row.messages] for row in rows_of("demonstrations")]
    assert talks == [["q", "best"], ["q", "best", "more", "end"]]
    assert {text: why for text, why in unused("demonstrations").items() if why == NOT_NEEDED["demonstrations"]} == (
        dict.fromkeys(("worse", "aside", "lost"), NOT_NEEDED["demonstrations"])
    )


def test_a_tree_as_prompts_is_every_way_down_to_a_prompter() -> None:
    ways = [[turn["content"] for turn in row.messages] for row in rows_of("prompts")]
    assert ways == [["q"], ["q", "best", "more"], ["q", "worse", "aside"]]


def test_one_message_a_row_in_any_order() -> None:
    rows = [
        raw({"message_id": "b", "parent_id": "a", "role": "assistant", "text": "x"}, 1),
        raw({"message_id": "a", "parent_id": None, "role": "prompter", "text": "q"}, 2),
        raw({"message_id": "a", "parent_id": None, "role": "prompter", "text": "again"}, 3),
        raw({"message_id": "c", "parent_id": "nobody", "role": "assistant", "text": "y"}, 4),
        raw({"message_id": "d", "parent_id": "e", "role": "assistant", "text": "in a ring"}, 5),
        raw({"message_id": "e", "parent_id": "d", "role": "prompter", "text": "in a ring"}, 6),
    ]
    found = list(flat_trees(rows))
    (root,) = [one for one in found if isinstance(one, Node)]
    assert (root.raw.origin.row, [reply.fields["text"] for reply in root.replies]) == (2, ["x"])
    assert [(one[0].origin.row, one[1].reason) for one in found if not isinstance(one, Node)] == [
        (3, "message_id stands twice"), *((row, "no way up to a first message") for row in (4, 5, 6))
    ]  # fmt: skip
