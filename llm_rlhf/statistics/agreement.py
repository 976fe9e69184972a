"""How far judges agree: raw agreement, Cohen's kappa for two, Krippendorff's alpha for any number with gaps.

Raw agreement alone misleads: two judges who both say yes nine times in ten agree on 82 % by chance. Kappa and alpha
are 1 where all agree, 0 where agreement is what chance would give, negative below. Labels may be anything for
"nominal"; "ordinal" and "interval" need numbers. None and NaN mean that this judge gave no label there.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llm_rlhf.statistics.intervals import LEVEL, RESAMPLES, Array, Interval, Labels, Z, wilson_bounds

Level: TypeAlias = Literal["nominal", "ordinal", "interval"]
Index: TypeAlias = NDArray[np.intp]
UNDEFINED = 0.01  # share of resamples in which all labels are equal, from which no interval is given


class Pair(NamedTuple):
    """Two judges on the items that both have labelled."""

    first: str
    second: str
    agreement: Interval
    kappa: Interval | None  # None where both gave one and the same label to every item


class _Labels(NamedTuple):
    """All labels that can be paired with another of the same unit, in one flat list."""

    unit: Index  # (n,) 0 .. units - 1
    code: Index  # (n,) index into `values`
    values: NDArray[Any]  # distinct labels, ascending
    units: int
    left_out: int  # units with one label or none


def raw_agreement(a: Labels, b: Labels) -> Interval:
    """Share of items on which two judges give the same label, in [0, 1]; Wilson's interval."""
    first, second = _both("raw_agreement", a, b)
    same = float((first == second).mean())
    low, high = wilson_bounds(same, len(first))
    return Interval(same, low, high, len(first), "raw agreement; Wilson score interval")


def cohen_kappa(a: Labels, b: Labels) -> Interval:
    """Cohen's kappa of two judges, (p_o - p_e) / (1 - p_e), in [-1, 1]; items that either left blank do not count.

    p_o is the share of equal labels, p_e what their two label frequencies would give by chance. The interval is
    kappa +- 1.96 of the large-sample error, and where all labels agree, Wilson's lower bound for p_o at the same p_e;
    none where one judge gave all items one label.
    Sources: Cohen 1960; Fleiss, Cohen and Everitt 1969, Psychological Bulletin 72, eq. 13.

    Raises:
        ValueError: both judges gave one and the same label throughout: nothing says what chance would give.
    """
    first, second = _both("cohen_kappa", a, b)
    n = len(first)
    _, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
    size = int(codes.max()) + 1
    table = np.bincount(codes[:n] * size + codes[n:], minlength=size * size).reshape(size, size) / n
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    same, chance = float(np.trace(table)), float(rows @ columns)
    if chance == 1:
        raise ValueError(f"cohen_kappa: both judges gave the one label {first[0]!r} to all {n} items; undefined.")
    kappa = (same - chance) / (1 - chance)
    if max(rows.max(), columns.max()) == 1:  # 0 however many labels differ, so that the error is 0, too
        return Interval(kappa, None, None, n, "Cohen's kappa; one of the judges gave one label to all items")
    if same == 1:
        low = (wilson_bounds(1.0, n)[0] - chance) / (1 - chance)
        return Interval(1.0, low, 1.0, n, "Cohen's kappa; all labels agree, Wilson's bound")
    diagonal = np.diag(table) * ((1 - chance) - (rows + columns) * (1 - same)) ** 2
    other = table * (columns[:, None] + rows[None, :]) ** 2
    np.fill_diagonal(other, 0)
    spread = diagonal.sum() + (1 - same) ** 2 * other.sum() - (same * chance - 2 * chance + same) ** 2
    half = Z * math.sqrt(max(float(spread), 0.0) / n) / (1 - chance) ** 2
    method = "Cohen's kappa, large-sample interval of Fleiss, Cohen and Everitt"
    return Interval(kappa, max(-1.0, kappa - half), min(1.0, kappa + half), n, method)


def inter_judge(labels: Mapping[str, Sequence[Any]]) -> list[Pair]:
    """Agreement and kappa of every two judges, in the order given; each sequence has one entry an item."""
    if len(labels) < 2:
        raise ValueError(f"inter_judge: {len(labels)} judges; agreement needs two.")
    pairs = []
    for (first, a), (second, b) in itertools.combinations(labels.items(), 2):
        one, other = _both(f"inter_judge, {first} and {second}", a, b)
        constant = len(np.unique(np.concatenate([one, other]))) == 1
        pairs.append(Pair(first, second, raw_agreement(one, other), None if constant else cohen_kappa(one, other)))
    return pairs


def krippendorff_alpha(
    judges: Sequence[Sequence[Any]], level: Level = "nominal", resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Krippendorff's alpha, 1 - D_o / D_e: a row per judge, an entry per unit, blank where a judge gave none.

    D_o is the mean disagreement within units, D_e that of all labels with one another. Disagreement is 1 for unlike
    labels (nominal), the squared difference (interval), or the squared difference of their ranks among all labels
    (ordinal). Units with fewer than two labels cannot agree or disagree; n counts the others. Percentile bootstrap
    over units. Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".

    Raises:
        ValueError: no unit with two labels, or the same label everywhere: alpha is undefined.
    """
    if level not in ("nominal", "ordinal", "interval"):
        raise ValueError(f"krippendorff_alpha: level is {level!r}; it must be nominal, ordinal or interval.")
    if resamples < 100:
        raise ValueError(f"krippendorff_alpha: resamples is {resamples}; fewer than 100 cannot place a 2.5 % point.")
    labels = _pairable(judges, level)
    alpha = _alpha(labels, np.ones(labels.units), level)
    if math.isnan(alpha):
        raise ValueError(
            f"krippendorff_alpha: all {len(labels.unit)} labels are {labels.values[0]!r}; with no variation nothing "
            "says what chance would give."
        )
    method = f"Krippendorff's alpha, {level}"
    if labels.left_out:
        method += f"; {labels.left_out} units with fewer than two labels left out"
    if labels.units == 1:
        return Interval(alpha, None, None, 1, f"{method}; one unit alone has no interval")
    rng = np.random.default_rng(seed)
    share = np.full(labels.units, 1 / labels.units)
    within = _within(labels, np.bincount(labels.code).astype(np.float64), level)
    times = (rng.multinomial(labels.units, share).astype(np.float64) for _ in range(resamples))
    draws = np.array([_alpha(labels, drawn, level, within) for drawn in times])
    undefined = float(np.isnan(draws).mean())
    if undefined > UNDEFINED:
        why = f"no interval: in {undefined:.0%} of the resamples all labels are equal"
        return Interval(alpha, None, None, labels.units, f"{method}; {why}")
    low, high = np.nanquantile(draws, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    method += f"; percentile bootstrap over units, {resamples} resamples, seed {seed}"
    return Interval(alpha, float(low), float(high), labels.units, method)


def _alpha(labels: _Labels, times: Array, level: Level, within: Array | None = None) -> float:
    """Alpha where unit u occurs times[u] times; NaN where all labels are equal.

    `within` spares the disagreement within units where it does not depend on `times`. For numbers v, the squared
    differences of all ordered pairs of m labels sum to 2 (m sum v^2 - (sum v)^2): no pair is formed.
    """
    counts = np.bincount(labels.code, weights=times[labels.unit], minlength=len(labels.values)).astype(np.float64)
    if np.count_nonzero(counts) < 2:
        return math.nan
    total = float(counts.sum())
    if level == "nominal":
        everywhere = total**2 - float(counts @ counts)
    else:
        scale = _scale(labels, counts, level)
        everywhere = 2 * (total * float(counts @ scale**2) - float(counts @ scale) ** 2)
    if within is None or level == "ordinal":
        within = _within(labels, counts, level)
    return 1 - (total - 1) * float(times @ within) / everywhere


def _within(labels: _Labels, counts: Array, level: Level) -> Array:
    """(units,) disagreement of all ordered pairs of labels of a unit, over its number of labels less one."""
    size = np.bincount(labels.unit, minlength=labels.units)
    if level == "nominal":
        cells, repeats = np.unique(labels.unit * len(labels.values) + labels.code, return_counts=True)
        apart = size**2 - np.bincount(cells // len(labels.values), weights=repeats.astype(np.float64) ** 2)
    else:
        v = _scale(labels, counts, level)[labels.code]
        apart = 2 * (size * np.bincount(labels.unit, weights=v * v) - np.bincount(labels.unit, weights=v) ** 2)
    disagreement: Array = apart / (size - 1)
    return disagreement


def _scale(labels: _Labels, counts: Array, level: Level) -> Array:
    """Each value's number, about the mean. An ordinal label's is its mean rank among all labels: two labels then
    differ by the labels that stand between them."""
    scale = np.cumsum(counts) - counts / 2 if level == "ordinal" else labels.values.astype(np.float64)
    centred: Array = scale - (counts @ scale) / counts.sum()
    return centred


def _pairable(judges: Sequence[Sequence[Any]], level: Level) -> _Labels:
    if len({len(row) for row in judges}) > 1:
        raise ValueError(
            f"krippendorff_alpha: judges labelled {[len(row) for row in judges]} units; give every judge an entry for "
            "every unit, None where there is no label."
        )
    flat = [(u, label) for row in judges for u, label in enumerate(row) if not _blank(label)]
    if not flat:
        raise ValueError("krippendorff_alpha: no labels; there is nothing to measure.")
    unit = np.array([u for u, _ in flat])
    given = np.array([label for _, label in flat])
    if level != "nominal":
        try:
            given = given.astype(np.float64)
        except ValueError as error:
            raise ValueError(f"krippendorff_alpha: level {level} needs numbers ({error}).") from None
    kept = np.bincount(unit)[unit] > 1
    if not kept.any():
        raise ValueError("krippendorff_alpha: no unit has two labels; there is no agreement to measure.")
    values, code = np.unique(given[kept], return_inverse=True)
    used, index = np.unique(unit[kept], return_inverse=True)
    return _Labels(index, code, values, len(used), len(judges[0]) - len(used))


def _both(caller: str, a: Labels, b: Labels) -> tuple[NDArray[Any], NDArray[Any]]:
    """The labels of the items that both judges labelled."""
    if len(a) != len(b):
        raise ValueError(f"{caller}: {len(a)} and {len(b)} labels; give one an item on each side, None for none.")
    kept = [(x, y) for x, y in zip(a, b, strict=True) if not (_blank(x) or _blank(y))]
    if not kept:
        raise ValueError(f"{caller}: no item has a label from both judges; there is nothing to measure.")
    return np.array([x for x, _ in kept]), np.array([y for _, y in kept])


def _blank(label: Any) -> bool:
    return label is None or (isinstance(label, float | np.floating) and math.isnan(label))
