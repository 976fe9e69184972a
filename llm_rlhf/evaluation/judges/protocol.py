"""The rules that every judge is held to, in one place.

A backend only reads pairs in the order they are shown and says how probable it is that the first is better. Here:

1. Every pair is asked in both orders. Large models prefer a position: GPT-4 turned around in 12.9 % of MT-Bench's
   comparisons when the answers were swapped.
2. The two probabilities are averaged. Where they name different winners the pair is a tie, 0.5, and counted as a flip.
   A tie in one order and a winner in the other is their mean: three quarters.
3. Identical texts are a tie, unasked.
4. A pair that was not judged in both orders has no probability. It is counted and listed with its reason, and too many
   of them are an error: what is left is not a sample of what was asked.
5. Who judged, what it was asked and what it cost are part of the result. A judge is not the policy that it judges.

Source: Zheng et al. 2023 (2306.05685), position bias and the conservative call of a tie; FastChat #3911 for the share.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from llm_rlhf.data.rows import Conversation
from llm_rlhf.errors import RecipeError, RunError

FAILURE_LIMIT = 0.05  # share of rows that may go unjudged


class JudgeError(RunError):
    """The judge could not be asked, or left too much unjudged; the message says why and what to do."""


class Pair(NamedTuple):
    """Two responses to one prompt, as they are shown: `a` first."""

    prompt: Conversation  # ends with the user's turn
    a: str
    b: str
    rubric: str = "overall"  # "helpful", "harmless" or "overall"


class Response(NamedTuple):
    """One response to be graded."""

    prompt: Conversation
    response: str
    rubric: str = "overall"


@dataclass(frozen=True)
class Cost:
    """What judging took."""

    requests: int = 0  # questions that were answered, or failed
    cached: int = 0  # of these, answered by an earlier request
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0  # answers whose tokens the judge did not report
    seconds: float = 0.0  # wall clock of the whole

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(mine + its for mine, its in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass(frozen=True)
class Reading:
    """What a judge said of one question: a value, or why there is none."""

    value: float | None  # probability that the response shown first is better; or a grade
    failure: str | None = None  # a kind, to be counted by: "timeout", "refused", "unparsable", "too long", ...
    detail: str = ""  # what was said, or what went wrong
    cost: Cost = Cost(requests=1)


class Judge(Protocol):
    """A backend. Both readers return one reading a row, in order, and never raise for the sake of a row."""

    def read_pairs(self, pairs: Sequence[Pair], progress: str | None, most_failures: int) -> list[Reading]:
        """Probability that `a` is better, each pair read as it stands.

        Args:
            progress: what to call the work on a progress bar; None shows none.
            most_failures: with more failed readings than this the result is thrown away, so a judge may give up.
        """

    def read_responses(self, rows: Sequence[Response], progress: str | None, most_failures: int) -> list[Reading]:
        """A grade of each response; its scale is the judge's own."""

    def identity(self) -> dict[str, Any]:
        """Who judged and how, to be recorded; asked after the work, as some is only known then."""


@dataclass(frozen=True)
class Judged:
    """One pair and what came of it."""

    probability: float | None  # that `a` is better; 0.5 is a tie; None where it was not judged
    a_first: float | None = None  # the same, as read when `a` was shown first
    b_first: float | None = None  # and when `b` was
    identical: bool = False
    failure: str | None = None
    detail: str = ""

    @property
    def flipped(self) -> bool:
        """Whether the judge changed its mind with the order."""
        if self.a_first is None or self.b_first is None:
            return False
        return (self.a_first - 0.5) * (self.b_first - 0.5) < 0


@dataclass(frozen=True)
class Comparisons:
    """Every pair's verdict, in the pairs' order, and the account of them."""

    pairs: Sequence[Pair]
    rows: list[Judged]
    judge: dict[str, Any]
    cost: Cost

    @property
    def probabilities(self) -> list[float | None]:
        """Probability that `a` is better, row by row; None where a row was not judged."""
        return [row.probability for row in self.rows]

    def counts(self) -> dict[str, Any]:
        """Rows by what came of them, and two habits to watch for: the share of decided readings that preferred the
        response shown first (0.5 where position does not count), and of decided rows that preferred the longer.
        """
        asked = [(row.a_first, row.b_first) for row in self.rows]
        shown = [p for a, b in asked if a is not None and b is not None for p in (a, 1 - b)]
        first = [p > 0.5 for p in shown if p != 0.5]
        longer = [
            (row.probability > 0.5) == (len(pair.a) > len(pair.b))
            for pair, row in zip(self.pairs, self.rows, strict=True)
            if row.probability is not None and row.probability != 0.5 and len(pair.a) != len(pair.b)
        ]
        return {
            "rows": len(self.rows),
            "judged": sum(row.probability is not None for row in self.rows),
            "identical": sum(row.identical for row in self.rows),
            "ties": sum(row.probability == 0.5 for row in self.rows),  # identical and flipped ones among them
            "flips": sum(row.flipped for row in self.rows),
            "failed": _by_kind(self.rows),
            "prefers_first_shown": sum(first) / len(first) if first else None,
            "prefers_longer": sum(longer) / len(longer) if longer else None,
        }

    def as_dict(self) -> dict[str, Any]:
        """Judge, counts, cost and every row that was not judged, ready for JSON."""
        return {
            "judge": self.judge,
            "counts": self.counts(),
            "cost": asdict(self.cost),
            "not_judged": _listed(self.rows),
        }


@dataclass(frozen=True)
class Grades:
    """A grade for every response, in order; None where there is none, with its reason in `readings`."""

    readings: list[Reading]
    judge: dict[str, Any]
    cost: Cost

    @property
    def values(self) -> list[float | None]:
        return [reading.value for reading in self.readings]

    def as_dict(self) -> dict[str, Any]:
        """Judge, counts, cost and every response that was not graded, ready for JSON."""
        graded = sum(reading.value is not None for reading in self.readings)
        return {
            "judge": self.judge,
            "counts": {"rows": len(self.readings), "graded": graded, "failed": _by_kind(self.readings)},
            "cost": asdict(self.cost),
            "not_graded": _listed(self.readings),
        }


def compare_all(
    judge: Judge,
    pairs: Sequence[Pair],
    progress: str | None = None,
    failure_limit: float = FAILURE_LIMIT,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparisons:
    """Judge every pair by the rules above.

    Args:
        failure_limit: share of the rows that may go unjudged.

    Raises:
        ValueError: where there is no pair.
        JudgeError: where more rows than that went unjudged.
    """
    if not pairs:
        raise ValueError("There are no pairs to judge.")
    start = clock()
    asked = [i for i, pair in enumerate(pairs) if pair.a.strip() != pair.b.strip()]
    # Both orders of a pair side by side: what a killed run leaves in a cache is whole pairs.
    shown = [order for i in asked for order in (pairs[i], pairs[i]._replace(a=pairs[i].b, b=pairs[i].a))]
    most = _most_failures(failure_limit, len(pairs))
    readings = judge.read_pairs(shown, progress, 2 * most) if shown else []
    assert len(readings) == len(shown)
    rows = [Judged(0.5, identical=True) for _ in pairs]
    for place, i in enumerate(asked):
        rows[i] = _combined(readings[2 * place], readings[2 * place + 1])
    cost = sum((reading.cost for reading in readings), Cost()) + Cost(seconds=clock() - start)
    _check_failures(rows, most, failure_limit)
    return Comparisons(pairs, rows, judge.identity(), cost)


def compare(judge: Judge, prompt: Conversation, a: str, b: str, rubric: str = "overall") -> Judged:
    """One pair, by the same rules; a failure is in the result and no error."""
    return compare_all(judge, [Pair(prompt, a, b, rubric)], failure_limit=1.0).rows[0]


def grade_all(
    judge: Judge,
    rows: Sequence[Response],
    progress: str | None = None,
    failure_limit: float = FAILURE_LIMIT,
    clock: Callable[[], float] = time.perf_counter,
) -> Grades:
    """Grade every response; errors as in `compare_all`."""
    if not rows:
        raise ValueError("There are no responses to grade.")
    start = clock()
    most = _most_failures(failure_limit, len(rows))
    readings = judge.read_responses(rows, progress, most)
    cost = sum((reading.cost for reading in readings), Cost()) + Cost(seconds=clock() - start)
    _check_failures(readings, most, failure_limit)
    return Grades(readings, judge.identity(), cost)


def grade(judge: Judge, prompt: Conversation, response: str, rubric: str = "overall") -> Reading:
    """One response's grade."""
    return grade_all(judge, [Response(prompt, response, rubric)], failure_limit=1.0).readings[0]


def check_not_itself(judge: dict[str, Any], policy: dict[str, Any], allowed: str | None = None) -> None:
    """Refuse a judge that is the policy it judges, by their identities.

    They are the same where their weights are (by hash) or, without hashes on both sides, where they go by the same
    name, on their own or behind an endpoint. A policy with an adapter is another model than its base.

    Args:
        allowed: the judge's model by name, where it is meant to judge itself.

    Raises:
        RecipeError: where they are the same and it was not allowed.
    """
    if not _same(judge, policy) or (allowed is not None and allowed == judge.get("model")):
        return
    raise RecipeError(
        f"The judge {judge.get('model')!r} is the policy that it would judge, and models prefer their own replies. "
        "Name another judge, or allow this one by its name."
    )


def _combined(a_first: Reading, b_first: Reading) -> Judged:
    """Rules 2 and 4."""
    a = a_first.value
    b = None if b_first.value is None else 1 - b_first.value
    if a is None or b is None:
        failed = a_first if a is None else b_first
        return Judged(None, a, b, failure=failed.failure or "unknown", detail=failed.detail)
    both = Judged((a + b) / 2, a, b)
    return Judged(0.5, a, b) if both.flipped else both


def _most_failures(limit: float, rows: int) -> int:
    return math.floor(limit * rows + 1e-9)  # 0.29 * 100 is a little under 29


def _by_kind(rows: Sequence[Judged | Reading]) -> dict[str, int]:
    return dict(sorted(Counter(row.failure for row in rows if row.failure).items()))


def _listed(rows: Sequence[Judged | Reading]) -> list[dict[str, Any]]:
    return [{"row": i, "failure": row.failure, "detail": row.detail} for i, row in enumerate(rows, 1) if row.failure]


def _check_failures(rows: Sequence[Judged | Reading], most: int, limit: float) -> None:
    failed = _listed(rows)
    if len(failed) <= most:
        return
    counted = ", ".join(f"{kind} {n}" for kind, n in _by_kind(rows).items())
    raise JudgeError(
        f"The judge left {len(failed)} of {len(rows)} rows unjudged ({counted}), more than the {limit:.0%} "
        f"allowed. The first, row {failed[0]['row']}: {failed[0]['detail'][:300]}. Mend what failed and run "
        "again; for questions that are too long, let replies be shorter or name a judge that reads more."
    )


def _same(judge: dict[str, Any], policy: dict[str, Any]) -> bool:
    if judge.get("adapter") != policy.get("adapter"):
        return False
    weights = [sorted((side.get("weights") or {}).values()) for side in (judge, policy)]
    if all(weights):
        return weights[0] == weights[1]
    names = [{side.get("model"), *side.get("served_as", [])} - {None, ""} for side in (judge, policy)]
    urls = {side["url"] for side in (judge, policy) if side.get("url")}
    return len(urls) < 2 and bool(names[0] & names[1])
