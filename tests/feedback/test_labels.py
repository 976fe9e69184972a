"""Labels: what may be said of each kind of item, and whose place on the page is which answer."""

import itertools
from typing import Any

import pytest

from llm_rlhf.errors import DataError
from llm_rlhf.feedback.labels import checked, from_page, from_scale, preferred, to_page, to_scale


@pytest.mark.parametrize(
    ("point", "better", "strength"),
    [(1, 0, 4), (2, 0, 3), (3, 0, 2), (4, 0, 1), (5, 1, 1), (6, 1, 2), (7, 1, 3), (8, 1, 4)],
)
def test_the_scale_runs_from_the_left_to_the_right(point: int, better: int, strength: int) -> None:
    value = from_scale(point)
    assert value == {"choice": "better", "better": better, "strength": strength}
    assert to_scale(value) == point


@pytest.mark.parametrize("point", [0, 9, -1])
def test_a_point_beside_the_scale_is_refused(point: int) -> None:
    with pytest.raises(DataError, match="1 to 8"):
        from_scale(point)


def test_what_was_chosen_on_the_left_is_the_answer_that_stood_there() -> None:
    # Answer 1 stands on the left, and the left one is chosen.
    assert from_page({"choice": "better", "better": 0, "strength": 1}, [1, 0])["better"] == 1


def test_ranks_follow_their_answers() -> None:
    # From the left stand the answers 2, 0, 1; the left is best, then the middle, then the right.
    assert from_page({"ranks": [1, 2, 3]}, [2, 0, 1]) == {"ranks": [2, 3, 1]}


def test_translating_there_and_back_changes_nothing() -> None:
    for order in itertools.permutations(range(4)):
        value = {"ranks": [3, 1, 2, 1]}
        assert to_page(from_page(value, order), order) == value
    for order in itertools.permutations(range(2)):
        value = {"better": 1, "text": "So."}
        assert to_page(from_page(value, order), order) == value


@pytest.mark.parametrize(
    ("kind", "value", "answers", "says"),
    [
        ("compare", {"choice": "better", "better": 0}, 2, "'better' and 'strength'"),
        ("compare", {"choice": "tie", "better": 0, "strength": 1}, 2, "'better' and 'strength'"),
        ("compare", {"choice": "better", "better": 2, "strength": 1}, 2, "better"),
        ("compare", {"choice": "better", "better": 0, "strength": 5}, 2, "strength"),
        ("compare", {"choice": "tie", "why": "so"}, 2, "why"),
        ("compare", "tie", 2, "no label of a compare task"),
        ("rate", {"helpful": 8, "harmless": 1}, 1, "helpful"),
        ("rate", {"helpful": True, "harmless": 1}, 1, "helpful"),
        ("rank", {"ranks": [1, 2]}, 3, "has 2 ranks"),
        ("rank", {"ranks": [1, 3, 3]}, 3, "leave one out"),
        ("demonstrate", {"text": "  "}, 0, "text"),
        ("demonstrate", {"text": "x" * 20_001}, 0, "text"),
        ("correct", {"better": 1, "text": "So."}, 1, "the item has 1"),
        ("annotate", {"labels": []}, 1, "choose a label or write a comment"),
    ],
)
def test_what_is_no_label_is_refused(kind: str, value: Any, answers: int, says: str) -> None:
    with pytest.raises(DataError, match=says):
        checked(kind, value, answers)


@pytest.mark.parametrize(
    ("kind", "value", "answers"),
    [
        ("compare", {"choice": "tie"}, 2),
        ("rate", {"helpful": 1, "harmless": 7}, 1),
        ("rank", {"ranks": [2, 1, 2]}, 3),
        ("demonstrate", {"text": "So."}, 0),
        ("correct", {"better": 0, "text": "So."}, 1),
        ("annotate", {"labels": ["rude"], "comment": ""}, 1),
        ("chat", {"choice": "both bad"}, 2),
    ],
)
def test_what_is_a_label_is_kept_as_it_was_said(kind: str, value: Any, answers: int) -> None:
    assert checked(kind, value, answers) == value


@pytest.mark.parametrize(
    ("kind", "value", "share"),
    [
        ("compare", {"choice": "better", "better": 0, "strength": 1}, 1.0),
        ("chat", {"choice": "better", "better": 1, "strength": 1}, 0.0),
        ("compare", {"choice": "both bad"}, 0.5),
        ("rank", {"ranks": [2, 1]}, 0.0),
        ("rank", {"ranks": [1, 1]}, 0.5),
        ("rank", {"ranks": [1, 2, 3]}, None),
        ("rate", {"helpful": 1, "harmless": 7}, None),
    ],
)
def test_what_a_label_says_of_the_first_of_two(kind: str, value: Any, share: float | None) -> None:
    assert preferred(kind, value) == share
