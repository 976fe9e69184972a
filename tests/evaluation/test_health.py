"""Health of replies, counted by hand."""

import math

import pytest

from llm_rlhf.evaluation.suites.health import (
    distinct_across,
    distinct_of,
    ended,
    health,
    loops,
    ngrams,
    repetition_of,
    words,
)


class TestOneReply:
    def test_ngrams(self) -> None:
        assert ngrams([1, 2, 3, 4], 2) == [(1, 2), (2, 3), (3, 4)]
        assert ngrams([1], 2) == []
        with pytest.raises(ValueError, match="at least 1"):
            ngrams([1], 0)

    def test_distinct(self) -> None:
        """a b a b a: five words, two distinct; four pairs ab ba ab ba, two distinct."""
        reply = list("ababa")
        assert distinct_of(reply, 1) == 2 / 5
        assert distinct_of(reply, 2) == 2 / 4
        assert math.isnan(distinct_of(reply, 6))

    def test_repetition(self) -> None:
        """1 2 3 4 1 2 3 4 has five 4-grams; the last, 1 2 3 4, stood before."""
        assert repetition_of([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
        assert repetition_of([1, 2, 3, 4, 5]) == 0

    @pytest.mark.parametrize(
        ("reply", "expected"),
        [
            ([1] * 24, True),
            ([1] * 23, False),  # too short to tell from laughter
            ([1, 2, 3, 4, 5, 6, 7, 8] * 3, True),
            ([1, 2, 3, 4, 5, 6, 7, 8] * 3 + [9, 10], True),  # it broke out again
            ([9, 10] + [1, 2, 3, 4, 5, 6, 7, 8] * 3, True),
            (list(range(12)) * 2, False),  # twice is a repetition, not a loop
            (list(range(12)) * 2 + list(range(20, 40)), False),
            (list(range(12)) * 3, True),
            ((list(range(12)) * 3)[:-1], False),  # the third copy is not whole
            (list(range(100)), False),
            ([], False),
        ],
    )
    def test_loops(self, reply: list[int], expected: bool) -> None:
        assert loops(reply) is expected

    def test_ended(self) -> None:
        assert ended([5, 2], {2})
        assert not ended([2, 5], {2})
        assert not ended([], {2})

    def test_words(self) -> None:
        assert words("Don't stop, STOP!") == ["don", "'", "t", "stop", ",", "stop", "!"]
        assert words("") == []


class TestReplies:
    def test_means(self) -> None:
        found = health([[1, 2, 1, 2, 1], [1, 2, 3], []], stopped=[True, True, False])
        assert {name: found[name].estimate for name in found} == pytest.approx(
            {
                "length": 8 / 3,
                "empty": 1 / 3,
                "loops": 0.0,
                "distinct_1": (2 / 5 + 1) / 2,
                "distinct_2": (2 / 4 + 1) / 2,
                "repetition": 0.0,  # the one reply with 4-grams: 1212, 2121
                "eos_rate": 2 / 3,
            }
        )
        assert found["length"].n == 3
        assert found["distinct_1"].n == 2
        assert "1 replies too short" in found["distinct_1"].method
        assert found["repetition"].n == 1

    def test_rates_keep_a_width(self) -> None:
        found = health([[1, 2, 3]] * 10, stopped=[True] * 10)
        assert found["eos_rate"].low == pytest.approx(0.722, abs=1e-3)  # Wilson, 10 of 10
        assert found["loops"].high == pytest.approx(0.278, abs=1e-3)

    def test_several_replies_to_a_prompt(self) -> None:
        found = health([[1], [1, 2], [3, 4, 5]], stopped=[True, False, True], clusters=["p", "p", "q"])
        assert {found[name].n for name in ("length", "empty", "eos_rate")} == {2}

    def test_nothing_to_measure(self) -> None:
        with pytest.raises(ValueError, match="no replies"):
            health([])
        with pytest.raises(ValueError, match="2 entries of stopped"):
            health([[1]], stopped=[True, False])
        assert "distinct_1" not in health([[], []])


class TestAcross:
    def test_pairs_of_two_replies(self) -> None:
        """12 23 34 and 12 25: five pairs, four distinct. Without the first 2 of 2, without the second 3 of 3: alike."""
        found = distinct_across([[1, 2, 3, 4], [1, 2, 5]], 2)
        assert found.estimate == 4 / 5
        assert found.low is None

    def test_jackknife(self) -> None:
        """Words a b, a c, a a: a b c over 6. Left out one at a time: {a c} of 4, {a b} of 4, {a b c} of 4.
        Values .5, .5, .75, mean .5833; variance 2/3 (.0069 + .0069 + .0278) = .0278, error 1/6."""
        found = distinct_across([["a", "b"], ["a", "c"], ["a", "a"]], 1)
        assert found.estimate == 0.5
        assert found.high == pytest.approx(0.5 + 1.959964 / 6)

    def test_the_same_reply_to_everything(self) -> None:
        replies = [[1, 2, 3, 4, 5]] * 20
        assert distinct_across(replies, 2).estimate == 4 / 80
        with pytest.raises(ValueError, match="none of 2 replies has 3 tokens"):
            distinct_across([[1], [2]], 3)
