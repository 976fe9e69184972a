"""Agreement between judges, against published worked examples."""

import math
from typing import Any

import numpy as np
import pytest

from llm_rlhf.statistics.agreement import Level, cohen_kappa, inter_judge, krippendorff_alpha, raw_agreement

# Krippendorff 2011, section C: four observers, twelve units, gaps.
NO = None
FOUR_OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NO, NO, NO],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NO, 3],
    [NO, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NO],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NO],
]


class TestAlpha:
    def test_two_observers_binary(self) -> None:
        """Krippendorff 2011, section A. Coincidences: 10 of 0 with 0, 2 of 1 with 1, 8 mixed; 14 zeros, 6 ones.
        1 - 19 * 8 / (2 * 14 * 6) = 1 - 152 / 168 = .095."""
        a, b = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
        assert krippendorff_alpha([a, b]).estimate == pytest.approx(1 - 152 / 168, abs=1e-12)

    def test_four_observers_with_gaps_nominal(self) -> None:
        """40 labels that have a partner: 9, 13, 10, 5, 3 of 1 to 5; 7, 10, 8, 4, 3 = 32 coincidences of like labels.
        (39 * 32 - 344) / (40 * 39 - 344) = 904 / 1216, where 344 = 9*8 + 13*12 + 10*9 + 5*4 + 3*2."""
        found = krippendorff_alpha(FOUR_OBSERVERS)
        assert found.estimate == pytest.approx(904 / 1216, abs=1e-12)
        assert found.n == 11
        assert "1 units with fewer than two labels left out" in found.method

    @pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
    def test_published_values(self, level: Any, published: float) -> None:
        assert krippendorff_alpha(FOUR_OBSERVERS, level).estimate == pytest.approx(
            published, abs=5e-4
        )  # 3 digits given

    def test_words_are_nominal_labels(self) -> None:
        words = [[{0: "no", 1: "yes"}[x] for x in row] for row in ([0, 1, 1, 0], [0, 1, 0, 0])]
        assert krippendorff_alpha(words).estimate == krippendorff_alpha([[0, 1, 1, 0], [0, 1, 0, 0]]).estimate
        with pytest.raises(ValueError, match="needs numbers"):
            krippendorff_alpha(words, "ordinal")

    def test_ordinal_asks_only_for_the_order(self) -> None:
        stretched = [[None if x is None else 10.0**x for x in row] for row in FOUR_OBSERVERS]
        ordinal = krippendorff_alpha(stretched, "ordinal")
        assert ordinal[:3] == pytest.approx(krippendorff_alpha(FOUR_OBSERVERS, "ordinal")[:3])
        moved = krippendorff_alpha(stretched, "interval").estimate
        assert abs(moved - krippendorff_alpha(FOUR_OBSERVERS, "interval").estimate) > 0.05

    def test_of_two_values_every_level_is_the_same(self) -> None:
        """Also in every resample, where ordinal ranks are counted anew: with gaps their number changes, too."""
        judges = [
            [0, 1, 0, 0, 1, 0, 0, 0, 1, 0],
            [1, 1, 1, 0, 0, 1, 0, 0, 1, 0],
            [0, 1, NO, 0, NO, NO, 0, 1, NO, NO],
        ]
        nominal = krippendorff_alpha(judges)
        levels: tuple[Level, ...] = ("ordinal", "interval")
        for level in levels:
            assert krippendorff_alpha(judges, level)[:3] == pytest.approx(nominal[:3], abs=1e-12)

    def test_two_judges_and_many_units_give_kappas_interval(self) -> None:
        """Alpha and kappa differ by terms of 1 / n; their intervals come by different ways."""
        rng = np.random.default_rng(0)
        truth = rng.integers(2, size=400)
        one, other = (np.where(rng.random(400) < 0.75, truth, rng.integers(2, size=400)) for _ in range(2))
        alpha, kappa = krippendorff_alpha([list(one), list(other)]), cohen_kappa(one, other)
        assert alpha.estimate == pytest.approx(kappa.estimate, abs=0.005)
        assert alpha[1:3] == pytest.approx(kappa[1:3], abs=0.015)  # a tenth of the interval's width of .17

    def test_all_alike_is_undefined(self) -> None:
        with pytest.raises(ValueError, match="no variation"):
            krippendorff_alpha([[1, 1, 1], [1, 1, 1]])

    def test_a_single_odd_unit_gives_no_interval(self) -> None:
        """37 % of the resamples miss the one unit that is not all 0: their alpha is undefined."""
        found = krippendorff_alpha([[0] * 30 + [1], [0] * 30 + [0]])
        assert found.low is None
        assert "resamples all labels are equal" in found.method

    @pytest.mark.parametrize(
        ("judges", "message"),
        [
            ([[], []], "no labels"),
            ([[1, None], [None, 2]], "no unit has two labels"),
            ([[1, 2], [1]], "an entry for"),
            ([[math.nan], [None]], "no labels"),
        ],
    )
    def test_refusals(self, judges: list[list[Any]], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            krippendorff_alpha(judges)
        with pytest.raises(ValueError, match="level"):
            krippendorff_alpha([[1, 2], [1, 2]], "ratio")  # type: ignore[arg-type]


class TestKappa:
    def test_fifty_grants(self) -> None:
        """20 yes/yes, 15 no/no of 50: .7 agree; chance .5 * .6 + .5 * .4 = .5; (.7 - .5) / .5 = .4."""
        a, b = [1] * 25 + [0] * 25, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
        assert cohen_kappa(a, b).estimate == pytest.approx(0.4)
        assert raw_agreement(a, b).estimate == 0.7

    def test_a_published_interval(self) -> None:
        """Fleiss, Levin and Paik 2003, table 18.1: three diagnoses of 100 patients; kappa .68, interval (.51, .85)."""
        table = [[75, 1, 4], [5, 4, 1], [0, 0, 10]]
        pairs = [(i, j) for i in range(3) for j in range(3) for _ in range(table[i][j])]
        found = cohen_kappa([i for i, _ in pairs], [j for _, j in pairs])
        assert found.estimate == pytest.approx(0.68, abs=0.005)
        assert (found.low, found.high) == pytest.approx(
            (0.51, 0.85), abs=0.01
        )  # the book rounds kappa before its error

    def test_perfect_agreement_is_not_certainty(self) -> None:
        one_sided = cohen_kappa([0] * 20, [0, 1] * 10)
        assert (one_sided.estimate, one_sided.low) == (0.0, None)  # it is 0 whatever the other said
        found = cohen_kappa([0, 1] * 10, [0, 1] * 10)
        assert found.estimate == found.high == 1.0
        assert found.low is not None
        assert found.low == pytest.approx((0.8389 - 0.5) / 0.5, abs=1e-3)  # Wilson's bound of 20 of 20

    def test_one_label_throughout_is_undefined(self) -> None:
        with pytest.raises(ValueError, match="one label"):
            cohen_kappa([1, 1], [1, 1])

    def test_blanks_do_not_count(self) -> None:
        assert cohen_kappa([1, 0, None, 1, 0], [1, 0, 1, None, 1]).n == 3
        with pytest.raises(ValueError, match="no item has a label from both"):
            raw_agreement([None, 1], [1, None])
        with pytest.raises(ValueError, match="2 and 1 labels"):
            raw_agreement([1, 1], [1])


def test_every_two_judges() -> None:
    found = inter_judge({"ann": [1, 0, 1, 0], "bob": [1, 0, 1, 1], "all yes": [1, 1, 1, None], "yes": [None, 1, 1, 1]})
    assert [(pair.first, pair.second) for pair in found] == [
        ("ann", "bob"), ("ann", "all yes"), ("ann", "yes"), ("bob", "all yes"), ("bob", "yes"), ("all yes", "yes")
    ]  # fmt: skip
    assert found[0].agreement.estimate == 0.75
    assert found[0].kappa is not None
    assert found[0].kappa.estimate == pytest.approx(0.5)  # chance: .5 * .75 + .5 * .25
    assert found[-1].kappa is None
    assert found[-1].agreement.n == 2
    with pytest.raises(ValueError, match="agreement needs two"):
        inter_judge({"ann": [1]})


def brute_alpha(judges: list[list[float]], ordinal: bool) -> float:
    """Every pair of labels formed and weighed, as the definition reads."""
    units = [[row[u] for row in judges if not math.isnan(row[u])] for u in range(len(judges[0]))]
    units = [unit for unit in units if len(unit) > 1]
    everything = [label for unit in units for label in unit]

    def apart(c: float, k: float) -> float:
        if not ordinal:
            return (c - k) ** 2
        low, high = min(c, k), max(c, k)
        between = sum(low <= label <= high for label in everything)
        ends = (everything.count(c) + everything.count(k)) / 2
        return 0.0 if c == k else (between - ends) ** 2

    n = len(everything)
    observed = sum(
        apart(x, y) / (len(unit) - 1)
        for unit in units
        for i, x in enumerate(unit)
        for j, y in enumerate(unit)
        if i != j
    )
    expected = sum(apart(x, y) for i, x in enumerate(everything) for j, y in enumerate(everything) if i != j)
    return 1 - (observed / n) / (expected / (n * (n - 1)))


@pytest.mark.parametrize("level", ["ordinal", "interval"])
@pytest.mark.parametrize("seed", range(5))
def test_alpha_equals_the_definition(level: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(5, size=15)
    judges = np.clip(truth + rng.integers(-1, 2, size=(3, 15)), 0, 4).astype(float)
    judges[rng.random(judges.shape) < 0.2] = math.nan
    rows = [[float(x) for x in row] for row in judges]
    assert krippendorff_alpha(rows, level, resamples=100).estimate == pytest.approx(
        brute_alpha(rows, level == "ordinal"), abs=1e-12
    )


@pytest.mark.parametrize("seed", range(3))
def test_kappas_error_equals_the_delta_method(seed: int) -> None:
    """The variance of a smooth function of multinomial shares, its gradient by finite differences."""
    rng = np.random.default_rng(seed)
    a = rng.integers(3, size=150)
    b = np.where(rng.random(150) < 0.6, a, rng.integers(3, size=150))
    shares = np.bincount(a * 3 + b, minlength=9) / 150

    def kappa(p: np.ndarray) -> float:
        table = p.reshape(3, 3)
        chance = table.sum(1) @ table.sum(0)
        return float((np.trace(table) - chance) / (1 - chance))

    steps = 1e-6 * np.eye(9)
    gradient = np.array([(kappa(shares + h) - kappa(shares - h)) / 2e-6 for h in steps])
    error = math.sqrt((shares @ gradient**2 - (shares @ gradient) ** 2) / 150)
    found = cohen_kappa(a, b)
    assert found.high is not None
    assert found.high - found.estimate == pytest.approx(1.959964 * error, rel=1e-5)  # finite differences
