"""How a number is written down: with the digits that its interval deserves, alike within a table.

A word such as "better" goes by the interval as it is written: where a bound would be rounded to what equal policies
have (0, of a win rate one half), it gets up to FINER digits more; one that still comes out so counts as lying there.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

from llm_rlhf.evaluation.report.measures import Entry, is_difference, level_name, measure_of

MINUS = "\u2212"  # the true minus sign
NARROW, HARD = "\u202f", "\u00a0"  # spaces that do not break, narrow and full
FINER = 2  # digits more than the half-width deserves, to tell a bound from that of equal policies

# Decimals of each measure while a page is printed, by the name of its level.
_alike: ContextVar[dict[str, int]] = ContextVar("alike", default={})  # noqa: B039 - never changed in place


@contextlib.contextmanager
def alike(estimates: Iterable[Entry]) -> Iterator[None]:
    """While a page is printed, all of one measure have as many decimals as the finest of its differences.

    A measure without differences has as many as its finest level.
    """
    known: dict[tuple[str, bool], int] = {}
    for entry in estimates:
        if entry["low"] is not None:
            key = level_name(entry["name"]), is_difference(entry)
            known[key] = max(known.get(key, 0), _decimals(entry))
    token = _alike.set({name: known.get((name, True), digits) for (name, _), digits in known.items()})
    try:
        yield
    finally:
        _alike.reset(token)


def number(value: float, unit: str, half: float | None = None, signed: bool = False) -> str:
    """`value` with the digits its half-width deserves: two of the half-width's or so, one of counts and shares."""
    return _written(value, unit, _deserved(unit, half), signed)


def half_width(entry: Entry) -> float | None:
    return None if entry["low"] is None else float(entry["high"] - entry["low"]) / 2


def unit_of(entry: Entry) -> str:
    """The unit as written after a number."""
    unit = measure_of(entry["name"]).unit
    if unit == "share":
        return f"{NARROW}points" if is_difference(entry) else f"{NARROW}%"
    return {"nats": f"{NARROW}nats", "tokens": f"{NARROW}tokens", "words": f"{NARROW}words"}.get(unit, "")


def value_text(entry: Entry, unit: bool = True) -> str:
    """The estimate alone, such as `+0.62` or `63 %`."""
    text = _written(entry["estimate"], measure_of(entry["name"]).unit, _shown(entry), is_difference(entry))
    return text + (unit_of(entry) if unit else "")


def interval_text(entry: Entry) -> str:
    """The interval alone, such as `[+0.41, +0.83]`; `no interval` where there is none."""
    if entry["low"] is None:
        return "no interval"
    unit, digits, signed = measure_of(entry["name"]).unit, _shown(entry), is_difference(entry)
    return f"[{', '.join(_written(bound, unit, digits, signed) for bound in bounds(entry))}]"


def equal(name: str) -> float:
    """What the measure is where both policies are alike: 0 of a difference, one half of a win rate."""
    return 0.5 if name.endswith("win_rate") else 0.0


def bounds(entry: Entry) -> tuple[float, float]:
    """Both ends of the interval, as words go by them: one that is as good as `equal` is exactly that."""
    finest = _deserved(measure_of(entry["name"]).unit, half_width(entry)) + FINER
    return tuple(equal(entry["name"]) if _meets(entry, bound, finest) else float(bound)
                 for bound in (entry["low"], entry["high"]))  # type: ignore[return-value]  # fmt: skip


def _decimals(entry: Entry) -> int:
    """Those that the half-width deserves, and as many more as tell the bounds from those of equal policies."""
    digits = _deserved(measure_of(entry["name"]).unit, half_width(entry))
    if entry["low"] is None or not compares(entry):
        return digits
    for more in range(FINER):
        ends = [bound for bound in bounds(entry) if bound != equal(entry["name"])]
        if not any(_meets(entry, bound, digits + more) for bound in ends):
            return digits + more
    return digits + FINER


def compares(entry: Entry) -> bool:
    """Whether the entry puts one policy against another: a paired difference or a win rate."""
    return is_difference(entry) or str(entry["name"]).endswith("win_rate")


def _meets(entry: Entry, bound: float, digits: int) -> bool:
    """Whether the bound is written like the value of equal policies; a level is compared with nothing."""
    scale = _scale(measure_of(entry["name"]).unit)
    return compares(entry) and round(bound * scale, digits) == round(equal(entry["name"]) * scale, digits)


def _shown(entry: Entry) -> int:
    return _alike.get().get(level_name(entry["name"]), _decimals(entry))


def _deserved(unit: str, half: float | None) -> int:
    width = abs(half or 0.0) * _scale(unit)
    if width <= 0:
        return {"share": 0, "tokens": 1, "words": 1}.get(unit, 2)
    digits = (0 if unit in ("share", "tokens", "words") else 1) - math.floor(math.log10(1.5 * width))
    return max(0, min(1 if unit == "share" else 4, digits))


def _written(value: float, unit: str, digits: int, signed: bool) -> str:
    rounded = round(value * _scale(unit), digits)
    sign = MINUS if rounded < 0 else "+" if signed and rounded > 0 else ""
    return sign + f"{abs(rounded):,.{digits}f}"


def _scale(unit: str) -> float:
    return 100.0 if unit == "share" else 1.0
