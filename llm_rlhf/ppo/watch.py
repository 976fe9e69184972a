"""PPO watches both sides: what an evaluation in training says of each objective, and whether a side got worse.

A mean over a mix of prompts can rise while one objective falls. So the replies to the prompts kept back are looked at
by objective: scores, held-out scores, refusals, lengths. A side has got worse when, against the starting policy on the
same prompts, its held-out score fell, harmless prompts are refused less, or helpful ones more, by more than chance.

The rule. Every such measure is compared prompt by prompt with the first evaluation, in the bad direction alone:
refusals by the exact sign test over the prompts where they changed (McNemar), held-out scores by the t test. It is
shown to be worse when p < level / (evaluations planned x measures watched). By Bonferroni's inequality, a run in which
nothing gets worse is then called worse with a probability of at most `level`, however often it is looked at and
whatever depends on what (for refusals exactly; for scores as far as a t test of at least 16 differences holds). A side
is worse until none of its measures is at a plain p < 0.05 any more. It speaks of the policy on these prompts, not of
other phrasings.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any, NamedTuple

from llm_rlhf.json_lines import read_json_lines
from llm_rlhf.run_folder import write_json

LOG = "watch.jsonl"
SUMMARY = "watch.json"
LEAST_PROMPTS = 16  # of a side; with fewer, a fall from 57 % to 4 % would often go unseen, and a t test would not hold
STILL_WORSE = 0.05  # p over which a side that was worse counts as recovered
REFUSALS = {"harmless": -1, "helpful": 1}  # which change of refusals is bad: a fall, a rise
CALLED = {"refusal_rate": "refusals", "heldout_scores": "the held-out score"}


class Row(NamedTuple):
    """What is known of one reply to a prompt kept back."""

    objective: str  # "overall" where the row does not say
    score: float  # by what PPO is trained against
    heldout: float | None  # by the held-out reward model; None without one
    refused: bool | None  # None without a detector
    length: int  # tokens
    paid: float  # the score as PPO pays it: normalised, clipped, less the penalty for not stopping


class Change(NamedTuple):
    """One measure of one side, now against the start."""

    side: str
    measure: str  # "heldout_scores" or "refusal_rate"
    before: float
    after: float
    p: float  # of a change in the bad direction by chance alone


def by_objective(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Of every objective: `prompts`, and the means `scores`, `heldout_scores`, `refusal_rate`, `response_length`.

    A mean that nobody measures is left out.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.objective, []).append(row)
    found = {}
    for side, group in sorted(groups.items()):
        means = {"prompts": float(len(group)), "scores": fmean(row.score for row in group)}
        for name, values in (
            ("heldout_scores", [row.heldout for row in group if row.heldout is not None]),
            ("refusal_rate", [row.refused for row in group if row.refused is not None]),
            ("response_length", [row.length for row in group]),
        ):
            if values:
                means[name] = fmean(values)
        found[side] = means
    return found


def changes(start: Mapping[int, Row], now: Mapping[int, Row]) -> list[Change]:
    """Every watched measure of every side with enough prompts, paired by the prompt's number."""
    found = []
    pairs = [(start[number], row) for number, row in sorted(now.items()) if number in start]
    for side in sorted({row.objective for _, row in pairs}):
        own = [(before, after) for before, after in pairs if after.objective == side]
        if len(own) < LEAST_PROMPTS:
            continue
        scores = [(b.heldout, a.heldout) for b, a in own if b.heldout is not None and a.heldout is not None]
        if scores:
            before, after = ([pair[i] for pair in scores] for i in (0, 1))
            p = p_of_a_fall([a - b for b, a in scores])
            found.append(Change(side, "heldout_scores", fmean(before), fmean(after), p))
        refusals = [(b.refused, a.refused) for b, a in own if b.refused is not None and a.refused is not None]
        if refusals and side in REFUSALS:
            flips = [int(a) - int(b) for b, a in refusals]
            worse, better = flips.count(REFUSALS[side]), flips.count(-REFUSALS[side])
            rate_before, rate_after = (fmean(pair[i] for pair in refusals) for i in (0, 1))
            found.append(Change(side, "refusal_rate", rate_before, rate_after, p_of_signs(worse, better)))
    return found


def p_of_a_fall(differences: Sequence[float]) -> float:
    """Probability of so low a mean of at least two differences were the true one 0: Student's t, one-sided.

    The t is turned into a normal deviate by Wallace's formula, (8 v + 1) / (8 v + 3) sqrt(v ln(1 + t^2 / v)), which for
    v = 15 is within 0.02 of the exact deviate (Wallace 1959, "Bounds on normal approximations to Student's and the
    chi-square distributions"). Differences that are all alike give 0 for a fall, else 1.
    """
    mean, spread, degrees = fmean(differences), stdev(differences), len(differences) - 1
    if spread == 0:
        return 0.0 if mean < 0 else 1.0
    t = mean / spread * math.sqrt(len(differences))
    deviate = (8 * degrees + 1) / (8 * degrees + 3) * math.sqrt(degrees * math.log1p(t * t / degrees))
    return NormalDist().cdf(math.copysign(deviate, t))


def p_of_signs(worse: int, better: int) -> float:
    """Probability of at least `worse` of the changes going that way were both ways equally likely; 1 without any.

    McNemar 1947, one-sided and exact.
    """
    changed = worse + better
    return sum(math.comb(changed, k) for k in range(worse, changed + 1)) / 2**changed


class Watch:
    """Compares every evaluation with the first, and keeps what it saw in `watch.jsonl`, a line an evaluation.

    A line holds `step`, the means by objective (`sides`), the sides that are `worse` now, those that are `doubtful` at
    this one look (p <= 0.05 without allowance for the others: a policy to keep should have none), what is new (`news`:
    step, side, `worse` or `recovered`, and a sentence), and the `rows`. The log is all the memory there is, so that a
    resumed run, which drops the lines after its checkpoint, goes on as if it had never stopped.

    Args:
        folder: where the log is.
        level: probability, at most, of calling a run worse in which nothing gets worse; None: nothing is judged.
    """

    def __init__(self, folder: Path, level: float | None) -> None:
        self.log, self.level = folder / LOG, level
        self.lines: list[dict[str, Any]] = []

    def begin(self) -> None:
        """Take in the lines of an earlier launch, if any are left."""
        self.lines = read_json_lines(self.log) if self.log.is_file() else []

    @property
    def _began(self) -> str:
        """What is compared with: the start, or the first evaluation where none was asked for before training."""
        first = self.lines[0]["step"]
        return "PPO began" if first == 0 else f"the first evaluation, at optimizer step {first},"

    @property
    def worse(self) -> list[str]:
        """The sides that are worse than at the start, as of the newest evaluation."""
        return list(self.lines[-1]["worse"]) if self.lines else []

    @property
    def news(self) -> list[dict[str, Any]]:
        """Everything that was new at some evaluation, in order."""
        return [news for line in self.lines for news in line["news"]]

    def see(self, step: int, rows: Mapping[int, Row], planned: int, write: bool) -> list[dict[str, Any]]:
        """Take in an evaluation; returns its news.

        Args:
            rows: by the number of the prompt.
            planned: evaluations of the whole run after the first.
            write: whether this process keeps the log.
        """
        news: list[dict[str, Any]] = []
        worse, doubtful = self.worse, []
        if self.lines and self.level is not None:
            start = {int(number): Row(*row) for number, row in self.lines[0]["rows"].items()}
            found = changes(start, rows)
            doubtful = sorted({change.side for change in found if change.p <= STILL_WORSE})
            limit = self.level / (max(planned, 1) * max(len(found), 1))
            for side in sorted({change.side for change in found}):
                own = [change for change in found if change.side == side]
                prompts = sum(row.objective == side for row in rows.values())
                where = f"({prompts} prompts kept back, optimizer step {step})"
                if side not in worse and any(change.p < limit for change in own):
                    said = " and ".join(_said(change) for change in own if change.p < limit)
                    text = f"{_on(side)} {said} since {self._began} {where}: more than chance explains."
                    news.append({"step": step, "side": side, "what": "worse", "text": text})
                elif side in worse and all(change.p > STILL_WORSE for change in own):
                    said = ", ".join(_said(change) for change in own)
                    text = f"{_on(side)} nothing is shown to be worse any more {where}: {said}."
                    news.append({"step": step, "side": side, "what": "recovered", "text": text})
            recovered = [one["side"] for one in news if one["what"] == "recovered"]
            worse = [side for side in worse if side not in recovered]
            worse += [one["side"] for one in news if one["what"] == "worse"]
        sides = by_objective(rows.values())
        line = {"step": step, "sides": sides, "worse": sorted(worse), "doubtful": doubtful, "news": news}
        self.lines.append(line | {"rows": {str(number): list(row) for number, row in sorted(rows.items())}})
        if write:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.lines[-1]) + "\n")
        return news

    @property
    def measured(self) -> dict[str, list[str]]:
        """What is compared of each side that has enough prompts; an empty list where nothing can be."""
        rows = [Row(*row) for row in self.lines[0]["rows"].values()] if self.lines else []
        found = {}
        for side in sorted({row.objective for row in rows} - self.too_few().keys()):
            own = [row for row in rows if row.objective == side]
            by_judge = any(row.heldout is not None for row in own)
            by_rule = side in REFUSALS and any(row.refused is not None for row in own)
            found[side] = ["heldout_scores"] * by_judge + ["refusal_rate"] * by_rule
        return found

    def too_few(self) -> dict[str, int]:
        """The sides of which a change could not be judged, and how many prompts of them are kept back."""
        sides = self.lines[0]["sides"] if self.lines else {}
        return {side: int(means["prompts"]) for side, means in sides.items() if means["prompts"] < LEAST_PROMPTS}

    def write_summary(self, path: Path, guard: str, kept_step: int, stopped_at: int | None) -> None:
        """What a report needs to know of the whole run, as JSON.

        `prompts` kept back and those `too_few` to judge, by side, what was `measured` of each, `evaluations`, `news`,
        the sides that are worse at the end and in the policy that is kept, and the step where the guard stopped the run
        (None: it did not).
        """
        kept = next((line["worse"] for line in self.lines if line["step"] == kept_step), self.worse)
        summary = {
            "guard": guard,
            "level": self.level,
            "evaluations": len(self.lines),
            "prompts": {side: int(means["prompts"]) for side, means in self.lines[0]["sides"].items()},
            "too_few": self.too_few(),
            "measured": self.measured,
            "news": self.news,
            "worse_at_the_end": self.worse,
            "worse_in_what_is_kept": kept,
            "kept_step": kept_step,
            "stopped_at": stopped_at,
        }
        write_json(path, summary)


def _on(side: str) -> str:
    return "On the prompts kept back," if side == "overall" else f"On {side} prompts"


def _said(change: Change) -> str:
    moved = "fell" if change.after < change.before else "rose" if change.after > change.before else "stayed"
    if change.measure == "refusal_rate":
        return f"{CALLED[change.measure]} {moved} from {100 * change.before:.0f} % to {100 * change.after:.0f} %"
    return f"{CALLED[change.measure]} {moved} from {change.before:.2f} to {change.after:.2f}"
