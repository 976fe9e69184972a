"""The sections of the report: which estimates each one shows, in what order, beside what.

Every function takes the estimates (or the curves) and returns what its part of the page prints, or None where this run
measured nothing for it. An estimate this file does not name is still in the page's full table.
"""

from collections.abc import Sequence
from typing import Any

from llm_rlhf.evaluation.report import charts
from llm_rlhf.evaluation.report.charts import Mark, Point
from llm_rlhf.evaluation.report.headline import BY_OWN, headline_of, own_gains
from llm_rlhf.evaluation.report.labels import SUBJECTS, split_label, subject_label
from llm_rlhf.evaluation.report.measures import MEASURES, Entry, find, measure_of, own_names
from llm_rlhf.evaluation.report.numbers import (
    interval_text,
    value_text,
)
from llm_rlhf.evaluation.report.sides import NOUNS, Side, judgement
from llm_rlhf.evaluation.report.verdict import detectable, has_policy, headline_estimate
from llm_rlhf.recipe.sections import METHODS

TONES = {
    "better": "good",
    "worse": "bad",
    "disputed": "warn",
    "holds": "flat",
    "not shown to hold": "warn",
    "difference not shown": "flat",
    "no difference shown": "flat",  # in reports of earlier versions
    "not certain": "flat",
}

# Where a policy stands on the plane: the first pair of measures that some policy has both of.
PLANES = [
    (("gold_helpful", ("helpful", "all")), ("gold_harmless", ("harmless", "all"))),
    (("gold_score", ("helpful",)), ("gold_score", ("harmless",))),
    (("heldout_reward", ("helpful",)), ("heldout_reward", ("harmless",))),
    (("reward", ("helpful",)), ("reward", ("harmless",))),
]

# Before and after: measures judged on one scale stand together. A row is (measure, splits in order of preference).
GROUPS: list[tuple[str, list[tuple[str, tuple[str, ...]]]]] = [
    (
        "gold_score",
        [
            ("gold_score", ("all",)),
            ("gold_helpful", ("helpful", "all")),
            ("gold_harmless", ("harmless", "all")),
            ("gold_score", ("helpful",)),
            ("gold_score", ("harmless",)),
        ],
    ),
    (
        "heldout_reward",
        [("heldout_reward", ("all",)), ("heldout_reward", ("helpful",)), ("heldout_reward", ("harmless",))],
    ),
    ("reward", [("reward", ("all",)), ("reward", ("helpful",)), ("reward", ("harmless",))]),
]

PARTS = {"gold_helpful": "helpful prompts", "gold_harmless": "harmful prompts"}  # the split is in the measure's name

PRICE = ("kl", "perplexity", "response_length", "response_words", "eos_rate")
# The change shown with a level where it is of another measure, and how it is called there.
PRICE_CHANGES = {"perplexity": ("token_logprob_change", "of a token's log-probability, in nats: ")}

REFUSALS = [
    ("refusal_harmful", ("all", "harmless", "harmful"), "Harmful requests", "should be refused"),
    ("over_refusal", ("scary",), "Safe but scary", "sound dangerous, are not: should be answered"),
    ("over_refusal", ("question", "helpful", "all"), "Ordinary questions", "should be answered"),
]


def hero(report: dict[str, Any]) -> dict[str, Any] | None:
    """The headline's word and both sides' numbers; without a policy, or either side, the one number there is.

    Of suites of the user's own alone: their word and what they found, without a large number.
    """
    entry, known = headline_estimate(report["estimates"]), report["headline"]
    measured = [side for side in _sides(report["estimates"]) if side.status != "not measured"]
    sides, decides = [_hero_side(side) for side in measured], [side.decides or side.evidence[0] for side in measured]
    own = own_gains(report["estimates"]) if known["word"] == BY_OWN else []
    if entry is None and not sides and not own:
        return None
    shown = {
        "word": known["word"],
        "tone": known["tone"],
        "sides": sides,
        "phrases": known["text"].partition(": ")[2],
        "margins": known["margins"],
        "value": value_text(entry) if entry is not None and not sides else None,
        "measure": None,
        "detectable": None,
        "covers": None,
    }
    if entry is None:
        return shown | {"covers": covers([*decides, *own][0])}
    shown["measure"] = measure_of(entry["name"])
    if entry["name"] == "reward_accuracy":
        return shown | {"covers": f"Intervals cover other pairs like these {entry['n']:,}, not another training."}
    return shown | {"detectable": detectable(entry), "covers": covers(entry)}


def _sides(estimates: list[Entry]) -> list[Side]:
    if not has_policy(estimates):
        return []
    found = headline_of(estimates)
    return [found.helpful, found.harmless]


def _hero_side(side: Side) -> dict[str, Any]:
    """One half of the headline: what decides its status, as a number with its interval."""
    entry = side.decides or side.evidence[0]
    measure = measure_of(entry["name"])
    return {
        "name": NOUNS[side.name].capitalize(),
        "status": side.status,
        "tone": TONES.get(side.status, "flat"),
        "value": value_text(entry),
        "interval": interval_text(entry),
        "by": measure.label[0].lower() + measure.label[1:],
    }


def covers(entry: Entry) -> str:
    """What the interval is about, and what it is not."""
    prompts = f"{entry['n']:,} prompts were asked"
    if entry["clusters"] is not None:
        prompts = (
            f"{entry['n']:,} prompts in {entry['clusters']:,} wordings were asked; those of one template, or nearly "
            "the same text, are one wording and count together"
        )
    return (
        f"Intervals cover other prompts like these ({prompts}), not another training: a second seed or another machine "
        "is another draw. Train some seeds and put them side by side with llm-rlhf compare."
    )


def plane(estimates: list[Entry]) -> dict[str, Any] | None:
    for (x_name, x_splits), (y_name, y_splits) in PLANES:
        xs = {e["subject"]: e for e in _levels(estimates, x_name, x_splits)}
        ys = {e["subject"]: e for e in _levels(estimates, y_name, y_splits)}
        points = [
            Point(kind_of(who), subject_label(who), mark_of(xs[who]), mark_of(ys[who])) for who in xs if who in ys
        ]
        if points:
            first_x, first_y = next(iter(xs.values())), next(iter(ys.values()))
            return {
                "svg": charts.plane(points, "more helpful", "more harmless"),
                "x": _axis_name(first_x),
                "y": _axis_name(first_y),
            }
    return None


def _axis_name(entry: Entry) -> str:
    label = measure_of(entry["name"]).label
    label = label[0].lower() + label[1:]
    return label if entry["name"] in PARTS else f"{label} on {split_label(entry['split'])}"


def outcomes(estimates: list[Entry]) -> list[dict[str, Any]]:
    """Before and after, one group per judge, and per suite of the user's, on a scale of its own."""
    groups = []
    own: list[tuple[str, list[tuple[str, tuple[str, ...]]]]] = [(n, [(n, ("all",))]) for n in own_names()]
    for name, wanted in [*GROUPS, *own]:
        rows: list[tuple[str, list[Entry]]] = []
        for measure, splits in wanted:
            levels = _levels(estimates, measure, splits)
            if levels and not _told_already(measure, rows):
                rows.append((measure, levels))
        if not rows:
            continue
        marks = [[mark_of(e) for e in levels] for _, levels in rows]
        extent = charts.spread([m for row in marks for m in row])
        groups.append(
            {
                "measure": measure_of(name),
                "axis": charts.strip_axis(extent, 100 if measure_of(name).unit == "share" else 1),
                "rows": [
                    _outcome_row(estimates, measure, levels, charts.strip(row, extent))
                    for (measure, levels), row in zip(rows, marks, strict=True)
                ],
            }
        )
    return groups


def _told_already(measure: str, rows: list[tuple[str, list[Entry]]]) -> bool:
    """The gold score by kind of prompt says little beside its helpful and harmless parts."""
    return measure == "gold_score" and any(name in ("gold_helpful", "gold_harmless") for name, _ in rows)


def _outcome_row(estimates: list[Entry], name: str, levels: list[Entry], strip: Any) -> dict[str, Any]:
    measure, split = measure_of(name), levels[0]["split"]
    difference = find(estimates, measure.difference, "policy", [split]) if measure.difference else None
    return {
        "label": measure.label,
        "where": PARTS.get(name, split_label(split)),
        "meaning": measure.meaning,
        "strip": strip,
        "levels": [level_of(e) for e in levels],
        "difference": difference_of(difference) if difference else None,
    }


def judge(known: dict[str, Any] | None) -> str | None:
    """Who judged, and with what habits; None where nobody was asked."""
    if known is None:
        return None
    counts, failed = known["counts"], sum(known["counts"]["failed"].values())
    if known["kind"] == "people":
        return (
            f"The judges are {known['people']:,} people, who judged {counts['judged']:,} of {counts['rows']:,} pairs."
        )
    words = (
        f"The judge is {known.get('model') or known['kind']}, asked about {counts['rows']:,} pairs in both orders: "
        f"{counts['flips']:,} turned round with the order and count as ties, {counts['identical']:,} were the same "
        f"twice, {failed:,} were not judged."
    )
    habits = [
        f"the reply shown first in {counts['prefers_first_shown']:.0%} of its readings"
        if counts["prefers_first_shown"] is not None
        else "",
        f"the longer reply in {counts['prefers_longer']:.0%} of its verdicts"
        if counts["prefers_longer"] is not None
        else "",
    ]
    return words + (f" It took {' and '.join(filter(None, habits))}." if any(habits) else "")


def wins(estimates: list[Entry]) -> dict[str, Any] | None:
    found = [e for e in estimates if e["name"] in ("win_rate", "length_controlled_win_rate")]
    if not found:
        return None
    extent = (0.0, 1.0)
    rows = []
    for entry in found:
        text = f"{value_text(entry)} {interval_text(entry)}"
        rows.append(
            {
                "label": f"{subject_label(entry['subject'])} against {subject_label(entry['reference'] or 'start')}",
                "where": split_label(entry["split"]) + (", at equal length" if entry["name"] != "win_rate" else ""),
                "strip": charts.strip([mark_of(entry)], extent, rules=[0.5]),
                "value": value_text(entry),
                "interval": interval_text(entry),
                "n": entry["n"],
                "text": text,
                "tone": TONES.get(judgement(entry), "flat"),
            }
        )
    return {"rows": rows, "axis": charts.strip_axis(extent, 100), "meaning": MEASURES["win_rate"].meaning}


def price(estimates: list[Entry]) -> list[dict[str, Any]]:
    """What the gain cost: one tile per measure, with every policy's value."""
    tiles = []
    for name in PRICE:
        levels = _levels(estimates, name, sorted({e["split"] for e in estimates}, key=lambda s: s != "all"))
        if levels:
            measure = MEASURES[name]
            difference, of = PRICE_CHANGES.get(name, (measure.difference, ""))
            change = find(estimates, difference, "policy", [levels[0]["split"]]) if difference else None
            tiles.append(
                {
                    "label": measure.label,
                    "meaning": measure.meaning,
                    "levels": [level_of(e) for e in levels],
                    "change": f"change {of}{value_text(change, unit=not of)} {interval_text(change)}" if change else "",
                }
            )
    return tiles


def hhh(estimates: list[Entry]) -> dict[str, Any] | None:
    """Who knows the better of two given replies, by objective, beside always taking the longer one."""
    found = [e for e in estimates if e["name"] == "hhh_accuracy"]
    if not found:
        return None
    rows = []
    for split in dict.fromkeys(e["split"] for e in found):
        order = {"start": 0, "policy": 1, "reward": 2}
        entries = sorted((e for e in found if e["split"] == split), key=lambda e: order.get(e["subject"], 3))
        longer = find(estimates, "hhh_longer_reply_accuracy", "baseline", [split])
        marks, levels = [mark_of(e) for e in entries], [level_of(e) for e in entries]
        if longer is not None:
            base = mark_of(longer, "Longer reply")
            marks.append(Mark("longer", base.label, base.value, base.low, base.high))
            levels.append({**level_of(longer), "subject": "Longer reply", "kind": "longer"})
        change = find(estimates, "hhh_accuracy_change", "policy", [split])
        rows.append(
            {
                "where": "all pairs" if split == "all" else split,
                "n": entries[0]["n"],
                "marks": marks,
                "levels": levels,
                "difference": difference_of(change) if change else None,
            }
        )
    extent = charts.spread([m for row in rows for m in row["marks"]], include=[0.5])
    for row in rows:
        row["strip"] = charts.strip(row["marks"], extent, rules=[0.5])
    return {"rows": rows, "axis": charts.strip_axis(extent, 100), "meaning": MEASURES["hhh_accuracy"].meaning}


def refusals(estimates: list[Entry]) -> dict[str, Any] | None:
    """Policies down, kinds of request across; below them the paired changes."""
    columns = [(name, _levels(estimates, name, splits), title, want) for name, splits, title, want in REFUSALS]
    subjects = list(dict.fromkeys(e["subject"] for _, levels, _, _ in columns for e in levels))
    if not subjects:
        return None
    subjects.sort(key=lambda s: {"start": 0, "policy": 2}.get(s, 1))
    rows: list[dict[str, Any]] = []
    for subject in subjects:
        own = [next((e for e in levels if e["subject"] == subject), None) for _, levels, _, _ in columns]
        cells = [level_of(e) | {"corrected": _corrected(estimates, e)} if e else None for e in own]
        rows.append({"subject": subject_label(subject), "kind": kind_of(subject), "cells": cells})
    changes = []
    for name, levels, _, _ in columns:
        difference = MEASURES[name].difference
        change = find(estimates, difference, "policy", [levels[0]["split"]]) if levels and difference else None
        changes.append(difference_of(change) if change else None)
    heads = [{"title": title, "want": want, "good": MEASURES[name].good} for name, _, title, want in columns]
    return {
        "columns": heads,
        "rows": rows,
        "changes": changes if any(changes) else None,
        "scary": bool(columns[1][1]),
        "corrected": any(cell["corrected"] for row in rows for cell in row["cells"] if cell),
    }


def _corrected(estimates: list[Entry], entry: Entry) -> str | None:
    """The rate without the detector's own errors, where those are known."""
    found = find(estimates, f"{entry['name']}_corrected", entry["subject"], [entry["split"]])
    return None if found is None else f"{value_text(found)} {interval_text(found)}"


def _levels(estimates: list[Entry], name: str, splits: Sequence[str]) -> list[Entry]:
    """One level per policy, all on the same split: the first of `splits` that any policy has; the start first."""
    for split in splits:
        levels = [e for e in estimates if (e["name"], e["split"]) == (name, split)]
        if levels:
            order = {"start": 0, "policy": 2}
            return sorted(levels, key=lambda e: order.get(e["subject"], 1))
    return []


def level_of(entry: Entry) -> dict[str, Any]:
    return {
        "subject": subject_label(entry["subject"]),
        "kind": kind_of(entry["subject"]),
        "value": value_text(entry),
        "interval": interval_text(entry),
        "n": entry["n"],
        "share": entry["estimate"],
    }


def difference_of(entry: Entry) -> dict[str, Any]:
    word = judgement(entry)
    return {
        "value": value_text(entry),
        "interval": interval_text(entry),
        "n": entry["n"],
        "word": word,
        "tone": TONES.get(word, "flat"),
        "against": subject_label(entry["reference"]),
    }


def mark_of(entry: Entry, label: str | None = None) -> Mark:
    label = label or subject_label(entry["subject"])
    text = f"{label} {value_text(entry)} {interval_text(entry)}, n = {entry['n']:,}"
    return Mark(kind_of(entry["subject"]), text, entry["estimate"], entry["low"], entry["high"])


def kind_of(subject: str) -> str:
    if subject in METHODS and subject != "ppo":
        return "policy"
    return subject if subject in SUBJECTS else "other"
