"""Whether a log's replies have drifted from what their policy's report measured, or its prompts: numbers only.

Each measure of each period is held against the report's own number for the policy. With d the difference, s its
standard error (of both intervals the distance from the estimate to the end that faces the other, in standard errors,
squared, summed: MOVER, Zou and Donner 2008, Statistics in Medicine 27) and m a margin below which nobody need care,

    p = P(T > (|d| - m) / s) + P(T > (|d| + m) / s),

the probability of as large a difference where the true one is m, with T Student's of one degree of freedom fewer than
the period has conversations: how far few of them vary is hardly known, and with the normal distribution days of ten
alarm ten times as often as is said here. Periods of fewer than 10 conversations are held against nothing.

Many periods and measures make some p small by chance: Holm's procedure (Holm 1979, Scandinavian Journal of Statistics
6) over all of them holds the probability of any false alarm to 5 %, however they depend on each other.

Prompts are told apart from replies where the policy has answered some of the log's prompts anew: the logged reply less
the policy's own, of the same prompts, is what has changed in the replies; the policy's own less the report's number is
what other prompts make of it. The sum of both is the drift.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llm_rlhf.statistics.clustered import (
    clustered_change,
    clustered_difference,
    clustered_mean,
    clustered_proportion,
    student_quantile,
    student_tail,
)
from llm_rlhf.statistics.intervals import Interval, Labels, Values, Z

LEVEL = 0.05  # the probability of any false alarm
FEWEST = 10  # conversations of a period that are held against anything: fewer may all be alike by chance
SHARES = ("refusal", "eos_rate", "thumbs_up")  # measured in shares; the others in their own unit
MARGINS = {"score": 0.1, "share": 0.02, "length": 0.1}  # of a score's spread; absolute; of the report's length
NAMES = {
    "reward": "reward",
    "heldout_reward": "held-out reward",
    "refusal": "refusals",
    "response_length": "length in tokens",
    "eos_rate": "ended by themselves",
    "thumbs_up": "thumbs up of all thumbs",
}


@dataclass(frozen=True)
class Reference:
    """The report's own number for the policy, and the margin around it that is no drift."""

    value: float
    low: float | None
    high: float | None
    n: int
    margin: float
    source: str  # which file says so


@dataclass(frozen=True)
class Measured:
    """A measure of one period."""

    period: str
    measure: str
    estimate: float
    low: float | None
    high: float | None
    n: int
    method: str
    conversations: int


@dataclass(frozen=True)
class Test:
    """A number held against another."""

    period: str
    measure: str
    against: str  # "report", or "own answers": of the same prompts, given anew by the policy
    difference: float
    low: float
    high: float
    p: float  # by itself
    margin: float


@dataclass(frozen=True)
class Alarm:
    test: Test
    p_holm: float  # with all the others that were tested
    cause: str  # "replies", "prompts", "replies and prompts", or "" where they cannot be told apart
    words: str


def measured(period: str, measure: str, values: Values, conversations: Labels) -> Measured:
    """The mean or the share of some replies, those of one conversation taken together."""
    x, clusters = np.asarray(values, float), np.asarray(conversations)
    found = clustered_proportion(x, clusters) if measure in SHARES else clustered_mean(x, clusters)
    return Measured(period, measure, *_bounds(found), found.n, _words(found), len(np.unique(clusters)))


def held(found: Measured, reference: Reference) -> Test | None:
    """A period's number against the report's; None where either has no interval, or of too few conversations."""
    if found.low is None or found.high is None or reference.low is None or reference.high is None:
        return None
    if found.conversations < FEWEST:
        return None
    difference, freedom = found.estimate - reference.value, found.conversations - 1
    own, other = found.estimate - found.low, reference.high - reference.value
    if difference < 0:
        own, other = found.high - found.estimate, reference.value - reference.low
    error = math.hypot(own / _quantile(found.measure, freedom), other / Z)
    return _test(found.period, found.measure, "report", difference, error, reference.margin, freedom)


def paired(
    period: str,
    measure: str,
    logged: Values,
    own: Values,
    conversations: Labels,
    margin: float,
) -> Test | None:
    """Logged replies against the policy's own to the same prompts; None where there are too few for an interval."""
    change = clustered_change if measure in SHARES else clustered_difference
    found = change(np.asarray(logged, float), np.asarray(own, float), np.asarray(conversations))
    count = len(np.unique(np.asarray(conversations)))
    if count < FEWEST:
        return None
    error = 0.0  # where all differ by the same
    if found.low is not None and found.high is not None:
        error = (found.high - found.low) / 2 / _quantile(measure, count - 1)
    return _test(period, measure, "own answers", found.estimate, error, margin, count - 1)


def _quantile(measure: str, freedom: int) -> float:
    """How many standard errors a measure's interval goes to either side of it: of a mean by Student's t."""
    return Z if measure in SHARES else student_quantile(freedom)


def alarms(tests: Sequence[Test], others: dict[tuple[str, str], tuple[Test | None, Test | None]]) -> list[Alarm]:
    """Those that are beyond their margin by more than chance explains, in the order of the tests.

    Args:
        others: by period and measure, of the prompts that were answered anew: logged replies against own answers, and
            own answers against the report.
    """
    adjusted = holm([test.p for test in tests])
    found = []
    for test, p in zip(tests, adjusted, strict=True):
        if p <= LEVEL:
            cause = _cause(test, *others.get((test.period, test.measure), (None, None)))
            found.append(Alarm(test, p, cause, _told(test, p, cause)))
    return found


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted probabilities: the i-th smallest of n, from 1, times n - i + 1; at most 1, and never falling."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    found, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, p[i] * (len(p) - rank)))
        found[i] = highest
    return found


def as_dict(alarm: Alarm) -> dict[str, Any]:
    return {**asdict(alarm.test), "p_holm": alarm.p_holm, "cause": alarm.cause, "words": alarm.words}


def _test(
    period: str, measure: str, against: str, difference: float, error: float, margin: float, freedom: int
) -> Test:
    if error > 0:
        p = sum(student_tail((abs(difference) + of) / error, freedom) for of in (-margin, margin))
    else:
        p = 0.0 if abs(difference) > margin else 1.0
    return Test(
        period, measure, against, difference, difference - Z * error, difference + Z * error, min(1.0, p), margin
    )


def _cause(test: Test, replies: Test | None, prompts: Test | None) -> str:
    """What the policy's own answers say of a difference from the report, each by its 95 % interval."""
    if test.against == "own answers":
        return "replies"
    named = {"replies": replies, "prompts": prompts}
    same_way = [
        name for name, one in named.items()
        if one is not None and one.difference * test.difference > 0 and not one.low <= 0 <= one.high
    ]  # fmt: skip
    return " and ".join(same_way)


def _told(test: Test, p: float, cause: str) -> str:
    scale, unit, digits = (100, " points", 1) if test.measure in SHARES else (1, "", 2)
    way = "higher" if test.difference > 0 else "lower"
    than = "the report's" if test.against == "report" else "the policy's own answers to the same prompts"
    ends = sorted(scale * (end if test.difference > 0 else -end) for end in (test.low, test.high))
    numbers = f"{abs(test.difference) * scale:.{digits}f}{unit} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"
    why = {
        "": "" if test.against != "report" else "; prompts and replies could not be told apart",
        "prompts": "; the prompts have changed: the policy itself answers them so",
        "replies": "; the replies have changed: the policy itself would answer these prompts otherwise",
        "replies and prompts": "; both the prompts and the replies have changed",
    }[cause]
    chance = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return f"{test.period}: {NAMES[test.measure]} {way} than {than} by {numbers}, {chance}{why}."


def _bounds(found: Interval) -> tuple[float, float | None, float | None]:
    return found.estimate, found.low, found.high


def _words(found: Interval) -> str:
    """The method, where clusters are conversations and not wordings."""
    return found.method.replace("wordings", "conversations").replace("wording", "conversation")
