"""Bradley-Terry ratings, against numbers worked by hand."""

import itertools
import math

import numpy as np
import pytest

from llm_rlhf.statistics.ratings import Rated, Ratings, bradley_terry

LEAST = 100  # resamples, where the interval is not what is tested


def rows(*records: tuple[str, str, float, int]) -> tuple[list[str], list[str], list[float]]:
    """Comparisons from (first, second, outcome, how often)."""
    expanded = [(a, b, outcome) for a, b, outcome, times in records for _ in range(times)]
    return [a for a, _, _ in expanded], [b for _, b, _ in expanded], [outcome for _, _, outcome in expanded]


def of(found: Ratings, player: str) -> Rated:
    return next(row for row in found.table if row.player == player)


def elo(wins: float, losses: float) -> float:
    return 400 * math.log10(wins / losses)


class TestEstimate:
    def test_three_wins_of_four(self) -> None:
        """Odds 3 : 1 are 400 log10 3 = 190.8 points; with half a win and half a loss more, odds 3.5 : 1.5, 147.2."""
        games = rows(("new", "base", 1, 3), ("new", "base", 0, 1))
        plain = bradley_terry(*games, reference="base", resamples=LEAST, prior_ties=0)
        assert of(plain, "new").rating.estimate == pytest.approx(190.848, abs=1e-3)
        assert of(bradley_terry(*games, reference="base", resamples=LEAST), "new").rating.estimate == pytest.approx(
            147.190, abs=1e-3
        )

    def test_the_reference_is_zero_whoever_it_is(self) -> None:
        games = rows(("new", "base", 1, 3), ("new", "base", 0, 1))
        found = bradley_terry(*games, reference="new", resamples=LEAST)
        assert of(found, "new").rating[:3] == (0.0, None, None)
        assert of(found, "base").rating.estimate == pytest.approx(-147.190, abs=1e-3)

    def test_a_chain_adds_up(self) -> None:
        """a : b 3 to 1 and b : c 3 to 1; each pair is a bridge, so each gets a whole tie."""
        games = rows(("a", "b", 1, 3), ("a", "b", 0, 1), ("c", "b", 0, 3), ("c", "b", 1, 1))
        found = bradley_terry(*games, reference="c", resamples=LEAST)
        assert [row.player for row in found.table] == ["a", "b", "c"]
        assert of(found, "b").rating.estimate == pytest.approx(elo(3.5, 1.5))
        assert of(found, "a").rating.estimate == pytest.approx(2 * elo(3.5, 1.5))

    def test_a_circle_is_level(self) -> None:
        found = bradley_terry(*rows(("a", "b", 1, 2), ("b", "c", 1, 2), ("c", "a", 1, 2)), reference="a", resamples=100)
        assert [row.rating.estimate for row in found.table] == pytest.approx([0, 0, 0], abs=1e-6)

    def test_a_triangle_shares_two_ties(self) -> None:
        """Three pairs, n each: resistance 2 / 3n, so 2/3 of a tie a pair. By symmetry a's odds against each of the
        two others, who are level, are those of its own pairs: (2 + 1/3) to (1 + 1/3)."""
        games = rows(
            ("a", "b", 1, 2), ("a", "b", 0, 1), ("a", "c", 1, 2), ("a", "c", 0, 1), ("b", "c", 0.5, 3)
        )  # fmt: skip
        found = bradley_terry(*games, reference="b", resamples=LEAST)
        assert of(found, "a").rating.estimate == pytest.approx(elo(2 + 1 / 3, 1 + 1 / 3))
        assert of(found, "c").rating.estimate == pytest.approx(0, abs=1e-6)

    def test_a_tie_is_half_a_win_and_half_a_loss(self) -> None:
        tied = bradley_terry(*rows(("a", "b", 1, 2), ("a", "b", 0.5, 4)), reference="b", resamples=LEAST)
        split = bradley_terry(*rows(("a", "b", 1, 4), ("a", "b", 0, 2)), reference="b", resamples=LEAST)
        assert of(tied, "a").rating.estimate == pytest.approx(of(split, "a").rating.estimate, abs=1e-6)

    def test_sides_and_order_do_not_matter(self) -> None:
        rng = np.random.default_rng(0)
        names = np.array(["a", "b", "c", "d"])
        one = rng.integers(4, size=200)
        other = (one + rng.integers(1, 4, size=200)) % 4
        outcome, prompts = rng.choice([0, 0.5, 1], size=200), rng.integers(30, size=200)
        found = bradley_terry(list(names[one]), list(names[other]), outcome, "a", prompts, seed=3)
        turned = bradley_terry(list(names[other]), list(names[one]), 1 - outcome, "a", prompts, seed=3)
        for row, again in zip(found.table, turned.table, strict=True):
            assert row.player == again.player
            assert row.rating.estimate == pytest.approx(again.rating.estimate, abs=1e-6)
            if row.rating.low is not None:
                assert row.rating.low == pytest.approx(again.rating.low, abs=1e-5)  # the same draws


class TestExtremes:
    def test_ten_of_ten(self) -> None:
        """Half a win and half a loss more: odds 10.5 : 0.5, and an interval that is not a point."""
        found = bradley_terry(*rows(("new", "base", 1, 10)), reference="base")
        rating = of(found, "new").rating
        assert rating.estimate == pytest.approx(elo(10.5, 0.5))
        assert rating.low is not None
        assert rating.high is not None
        # Jeffreys' interval of 10 of 10 begins at .783: 223 points (Brown, Cai and DasGupta 2001).
        assert rating.low == pytest.approx(elo(0.783, 0.217), rel=0.15)  # 1,000 draws
        assert rating.high > 1000

    def test_without_a_prior_it_is_infinite_and_said(self) -> None:
        with pytest.raises(ValueError, match=r"infinitely far above.*\(best"):
            bradley_terry(*rows(("best", "base", 1, 10)), reference="base", prior_ties=0)
        with pytest.raises(ValueError, match=r"infinitely far below.*\(worst"):
            bradley_terry(*rows(("worst", "base", 0, 10)), reference="base", prior_ties=0)

    def test_parts_that_never_met_are_named(self) -> None:
        games = rows(("a", "base", 1, 3), ("x", "y", 1, 3))
        with pytest.raises(ValueError, match=r"2 players have no chain .*\(x, y"):
            bradley_terry(*games, reference="base")

    def test_a_chain_of_a_hundred(self) -> None:
        """Every game tied, so everyone is level, however far from the reference."""
        players = [f"p{k:03d}" for k in range(100)]
        games = rows(*((a, b, 0.5, 4) for a, b in itertools.pairwise(players)))
        found = bradley_terry(*games, reference="p000", resamples=LEAST)
        assert max(abs(row.rating.estimate) for row in found.table) < 1e-4


class TestTable:
    def test_matrices_stand_in_the_tables_order(self) -> None:
        games = rows(("b", "a", 1, 8), ("b", "a", 0.5, 2), ("c", "a", 0, 10))
        found = bradley_terry(*games, reference="a", resamples=LEAST)
        assert [row.player for row in found.table] == ["b", "a", "c"]
        assert found.points.tolist() == [[0, 9, 0], [1, 0, 10], [0, 0, 0]]
        assert found.games.tolist() == [[0, 10, 0], [10, 0, 10], [0, 10, 0]]
        assert found.expected[0, 1] == pytest.approx(9.5 / 11)
        np.testing.assert_allclose(found.expected + found.expected.T, 1)

    def test_win_rate_counts_every_comparison(self) -> None:
        found = bradley_terry(*rows(("b", "a", 1, 8), ("c", "a", 0, 8), ("b", "c", 0.5, 4)), "a", resamples=LEAST)
        assert of(found, "a").win_rate.estimate == 0.5  # 8 of 16
        assert of(found, "b").win_rate.estimate == pytest.approx(10 / 12)
        assert of(found, "b").games == 12

    def test_ranks_say_what_is_sure(self) -> None:
        """b and c are level and far above a: ranks 1 to 2, 1 to 2 and 3."""
        games = rows(("b", "a", 1, 90), ("b", "a", 0, 10), ("c", "a", 1, 90), ("c", "a", 0, 10), ("b", "c", 0.5, 50))
        found = bradley_terry(*games, reference="a")
        ranks = {row.player: (row.rank_low, row.rank_high) for row in found.table}
        assert ranks == {"b": (1, 2), "c": (1, 2), "a": (3, 3)}

    def test_ranks_look_at_differences(self) -> None:
        """Few games against the reference leave b and c unsure, but their many games with each other do not."""
        games = rows(("b", "a", 1, 2), ("b", "a", 0, 2), ("b", "c", 1, 70), ("b", "c", 0, 30))
        found = bradley_terry(*games, reference="a")
        b, c = of(found, "b"), of(found, "c")
        assert c.rating.high is not None
        assert b.rating.low is not None
        assert b.rating.low < c.rating.estimate < b.rating.estimate < c.rating.high  # their intervals overlap by far
        assert (b.rank_high, c.rank_low) == (2, 2)

    def test_prompts_are_drawn_whole(self) -> None:
        """The same 10 outcomes under 20 copies each: 200 comparisons of 10 prompts know no more than 10."""
        first, second, outcome = rows(("b", "a", 1, 6), ("b", "a", 0, 4))
        prompts = list(range(10))
        many = bradley_terry(first * 20, second * 20, outcome * 20, "a", prompts * 20)
        alone = bradley_terry(first * 20, second * 20, outcome * 20, "a")
        few = bradley_terry(first, second, outcome, "a", prompts)

        def width(found: Ratings) -> float:
            rating = of(found, "b").rating
            assert rating.low is not None
            assert rating.high is not None
            return rating.high - rating.low

        assert of(many, "b").rating.n == 10
        assert width(many) > 0.8 * width(few)
        assert width(many) > 3 * width(alone)

    def test_same_seed_same_numbers(self) -> None:
        games = rows(("b", "a", 1, 6), ("b", "a", 0, 4))
        assert bradley_terry(*games, "a", seed=5).table == bradley_terry(*games, "a", seed=5).table
        assert bradley_terry(*games, "a", seed=5).table != bradley_terry(*games, "a", seed=6).table


class TestRefusals:
    @pytest.mark.parametrize(
        ("first", "second", "outcome", "message"),
        [
            ([], [], [], "empty"),
            (["a"], ["a"], [1], "comparison 0 sets 'a' against itself"),
            (["a"], ["b"], [2], "must lie in"),
            (["a"], ["b"], [math.nan], "not finite"),
            (["a", "a"], ["b"], [1, 1], "1 entries of second"),
            (["a"], ["c"], [1], "reference 'b' is not among"),
        ],
    )
    def test_what_cannot_be_rated(
        self, first: list[str], second: list[str], outcome: list[float], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            bradley_terry(first, second, outcome, reference="b")

    def test_options_out_of_range(self) -> None:
        with pytest.raises(ValueError, match="resamples"):
            bradley_terry(["a"], ["b"], [1], "b", resamples=10)
        with pytest.raises(ValueError, match="prior_ties"):
            bradley_terry(["a"], ["b"], [1], "b", prior_ties=-1)
        with pytest.raises(ValueError, match="2 entries of clusters"):
            bradley_terry(["a"], ["b"], [1], "b", clusters=[1, 2])
