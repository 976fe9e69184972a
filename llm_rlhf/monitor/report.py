"""A log against the report of the run that its policy came from, period by period."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from llm_rlhf.evaluation.refusal_detector import detect_all
from llm_rlhf.evaluation.report.comparison import read_policy_report
from llm_rlhf.evaluation.report.measures import contest, find
from llm_rlhf.json_lines import read_json_lines
from llm_rlhf.monitor.drift import (
    FEWEST,
    MARGINS,
    NAMES,
    SHARES,
    Alarm,
    Measured,
    Reference,
    Test,
    alarms,
    as_dict,
    held,
    measured,
    paired,
)
from llm_rlhf.monitor.log import Log, Logged
from llm_rlhf.monitor.reading import Instruments, Read, Row
from llm_rlhf.statistics.clustered import clustered_mean, clustered_proportion

PERIODS = ("day", "week")
COMPARED = ("reward", "heldout_reward", "refusal", "response_length", "eos_rate")
PAIRED = ("reward", "heldout_reward", "refusal")  # logged replies against the policy's own, of the same prompts
ASKED_ANEW = 50  # prompts of each period


@dataclass
class Monitored:
    """A log, and what was found in it. Entries of `read` and `own` are by reply."""

    log: Log
    by: str
    policy: str
    models: dict[str, list[str]]
    periods: list[str]  # of each reply
    read: Read
    references: dict[str, Reference]
    measured: list[Measured]
    tests: list[Test]
    alarms: list[Alarm]
    own: dict[int, tuple[str, dict[str, float]]]  # by reply: what the policy itself answers, and its numbers
    notes: list[str] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """Plain values for JSON."""
        thumbs = Counter({True: "up", False: "down"}[r.thumb] for r in self.log.replies if r.thumb is not None)
        return {
            "policy": self.policy,
            "reward_models": self.models,
            "by": self.by,
            "log": {
                "lines": self.log.lines,
                "replies": len(self.log.replies),
                "conversations": len({reply.conversation for reply in self.log.replies}),
                "left_out": dict(self.log.left_out),
                "empty": sum(not reply.text.strip() for reply in self.log.replies),
                "thumbs": {"up": thumbs["up"], "down": thumbs["down"]},
                "models": dict(Counter(str(reply.model) for reply in self.log.replies)),
            },
            "report": {name: asdict(reference) for name, reference in self.references.items()},
            "periods": [asdict(found) for found in self.measured],
            "tests": len(self.tests),
            "asked_anew": len(self.own),
            "alarms": [as_dict(alarm) for alarm in self.alarms],
            "notes": self.notes,
        }


def monitor(
    log: Log, instruments: Instruments, by: str = "day", ask_anew: int = ASKED_ANEW, most: int = 0
) -> Monitored:
    """Score a log and hold it against the report.

    Args:
        by: day or week. ask_anew: how many prompts of each period the policy answers anew; 0: none.
        most: replies of each period that are read, by a draw; 0: all.

    Raises:
        RecipeError: where the run has no report of a policy.
    """
    references, notes = references_of(instruments.run, instruments.lengths)
    if most:
        log, before = _thinned(log, by, most), len(log.replies)
        notes.append(f"Of {before:,} replies {len(log.replies):,} were drawn, at most {most:,} of each {by}.")
    rows: list[Row] = [(reply.prompt, reply.text, reply.ended) for reply in log.replies]
    periods = [period_of(reply, by) for reply in log.replies]
    read = instruments.read(rows)
    own: dict[int, tuple[str, dict[str, float]]] = {}
    if ask_anew:
        chosen = drawn(log.replies, periods, ask_anew)
        answers = instruments.answer([log.replies[i].prompt for i in chosen])
        there = [(i, answer) for i, answer in zip(chosen, answers, strict=True) if answer is not None]
        again = instruments.read([answer for _, answer in there])
        for k, (i, (_, text, _)) in enumerate(there):
            own[i] = text, {name: float(values[k]) for name, values in again.values.items()}
        if len(there) < len(chosen):
            notes.append(f"{len(chosen) - len(there)} prompts do not fit the policy and were not answered anew.")
    found, tests, others = _measure(log.replies, periods, read, own, references)
    return Monitored(
        log, by, str(instruments.run), instruments.models, periods, read, references, found, tests,
        alarms(tests, others), own, notes + _told_of(log, found, tests),
    )  # fmt: skip


def _thinned(log: Log, by: str, most: int) -> Log:
    """With as many replies of each period at most, every one as likely: their mean is that of all without bias."""
    lots, taken = lots_of(log.replies), Counter[str]()
    kept = []
    for i in sorted(range(len(lots)), key=lots.__getitem__):
        period = period_of(log.replies[i], by)
        if taken[period] < most:
            taken[period] += 1
            kept.append(i)
    return replace(log, replies=[log.replies[i] for i in sorted(kept)])


def period_of(reply: Logged, by: str) -> str:
    """2026-11-29, or 2026-W48 by ISO 8601, UTC."""
    if by == "day":
        return reply.when.date().isoformat()
    year, week, _ = reply.when.isocalendar()
    return f"{year}-W{week:02}"


def drawn(replies: Sequence[Logged], periods: Sequence[str], most: int) -> list[int]:
    """At most so many replies of each period, one a conversation first, by a draw that the same log repeats."""
    lots = lots_of(replies)
    by_period: dict[str, list[int]] = {}
    for i, period in enumerate(periods):
        by_period.setdefault(period, []).append(i)
    found: list[int] = []
    for period in sorted(by_period):
        met: Counter[str] = Counter()
        ranked = []
        for i in sorted(by_period[period], key=lots.__getitem__):
            ranked.append((met[replies[i].conversation], lots[i], i))
            met[replies[i].conversation] += 1
        found += [i for _, _, i in sorted(ranked)[:most]]
    return found


def lots_of(replies: Sequence[Logged]) -> list[str]:
    """What each draws: the same in the same log, and otherwise as good as by chance."""
    told = (json.dumps([reply.conversation, reply.line, reply.prompt, reply.text]) for reply in replies)
    return [hashlib.sha256(one.encode()).hexdigest() for one in told]


def references_of(run: Path, lengths: Callable[[Sequence[str]], np.ndarray]) -> tuple[dict[str, Reference], list[str]]:
    """The report's own numbers for the policy, by measure.

    Refusals and lengths are read anew, as the log's are, of the replies behind the report: it counts refusals by kind
    of prompt, and lengths in tokens as they were sampled, which a text does not show.

    Raises:
        RecipeError: where the run has no report of a policy.
    """
    estimates = read_policy_report(run)["estimates"]
    policy, start = contest(estimates)
    found: dict[str, Reference] = {}
    for name in ("reward", "heldout_reward", "eos_rate"):
        level = find(estimates, name, policy, ["all"])
        if level is None:
            continue
        spread = find(estimates, f"{name}_spread", start, ["all"])
        of_scores = MARGINS["score"] * (spread["estimate"] if spread is not None else 0.0)
        margin = MARGINS["share"] if name in SHARES else of_scores
        found[name] = Reference(level["estimate"], level["low"], level["high"], level["n"], margin, "report.json")
    replies = run / "evaluate" / "replies.jsonl"
    rows = [row for row in read_json_lines(replies) if policy in row] if replies.is_file() else []
    if rows:
        texts = [row[policy]["reply"] for row in rows]
        refused = [float(one.refused) for one in detect_all([row["prompt"][-1]["content"] for row in rows], texts)]
        wordings = np.array([str(row.get("phrasing", i)) for i, row in enumerate(rows)])
        share = clustered_proportion(np.array(refused), wordings)
        length = clustered_mean(lengths(texts), wordings)
        for name, of, margin in (
            ("refusal", share, MARGINS["share"]),
            ("response_length", length, MARGINS["length"] * length.estimate),
        ):
            found[name] = Reference(of.estimate, of.low, of.high, of.n, margin, "evaluate/replies.jsonl")
    missing = [NAMES[name] for name in COMPARED if name not in found]
    notes = [f"The report has no number for {', '.join(missing)}: none is held against it."] if missing else []
    return found, notes


def _measure(
    replies: Sequence[Logged],
    periods: Sequence[str],
    read: Read,
    own: dict[int, tuple[str, dict[str, float]]],
    references: dict[str, Reference],
) -> tuple[list[Measured], list[Test], dict[tuple[str, str], tuple[Test | None, Test | None]]]:
    """Numbers of each period, those that are held against others, and what tells prompts from replies."""
    values = read.values | {"thumbs_up": np.array([np.nan if r.thumb is None else float(r.thumb) for r in replies])}
    conversations, when = np.array([reply.conversation for reply in replies]), np.array(periods)
    found: list[Measured] = []
    tests: list[Test] = []
    others: dict[tuple[str, str], tuple[Test | None, Test | None]] = {}
    for period in sorted(set(periods)):
        for name in (*COMPARED, "thumbs_up"):
            if name not in values:
                continue
            known = np.flatnonzero((when == period) & np.isfinite(values[name]))
            if not len(known):
                continue
            here = measured(period, name, values[name][known], conversations[known])
            found.append(here)
            reference = references.get(name)
            if reference is None:
                continue
            if (test := held(here, reference)) is not None:
                tests.append(test)
            anew = [int(i) for i in known if int(i) in own and np.isfinite(own[int(i)][1].get(name, np.nan))]
            if name not in PAIRED or len(anew) < 2:
                continue
            mine, theirs = [own[i][1][name] for i in anew], values[name][anew]
            change = paired(period, name, theirs, mine, conversations[anew], reference.margin)
            others[period, name] = change, held(measured(period, name, mine, conversations[anew]), reference)
            if change is not None:
                tests.append(change)
    return found, tests, others


def _told_of(log: Log, found: Sequence[Measured], tests: Sequence[Test]) -> list[str]:
    notes = []
    models = {reply.model for reply in log.replies if reply.model is not None}
    if len(models) > 1:
        notes.append(f"The log has replies of {len(models)} models; they are taken together.")
    few = {one.period for one in found} - {one.period for one in found if one.conversations >= FEWEST}
    if few:
        notes.append(
            f"Too few conversations in {', '.join(sorted(few))} (fewer than {FEWEST}): nothing there can alarm."
        )
    if log.repeated:
        notes.append(
            f"{log.repeated:,} lines are the same as an earlier one to the byte. They name no conversation and no "
            "response, so that nobody knows whether that happened twice or was written twice; each counts."
        )
    if not tests:
        notes.append("Nothing could be held against the report.")
    return notes
