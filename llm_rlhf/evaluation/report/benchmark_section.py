"""The public suites on the page: a card for each, whole first, then by category."""

from typing import Any

from llm_rlhf.evaluation.report import charts
from llm_rlhf.evaluation.report.charts import Mark
from llm_rlhf.evaluation.report.labels import by_role, split_label, start_called
from llm_rlhf.evaluation.report.measures import Entry, find, is_difference, measure_of, own_names, with_own
from llm_rlhf.evaluation.report.numbers import alike
from llm_rlhf.evaluation.report.sections import difference_of, level_of, mark_of

ORDER = {"start": 0, "policy": 1, "reward": 2, "heldout": 3, "baseline": 5}


def benchmarks(estimates: list[Entry], known: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What each suite found, in the order in which they were asked.

    Args:
        known: the report's `benchmarks`.
    """
    cards = []
    for suite, about in known.items():
        found = [e for e in estimates if e["split"].partition("/")[0] == suite]
        rows = [_row(found, name, split) for name, split in _measured(found)]
        marks = [mark for row in rows for mark in row["marks"]]
        extent = charts.spread(marks, include=[0.0])
        for row in rows:
            row["strip"] = charts.strip(row["marks"], extent)
        together = any(e["clusters"] is not None for e in found)
        cards.append(
            {
                "title": split_label(suite),
                "about": f"{about['rows']:,} rows of {about['source']}"
                + (f", clustered by {about['families']}." if together else ", each by itself."),
                "meanings": list(dict.fromkeys(f"{row['label']}: {row['meaning']}" for row in rows if row["meaning"])),
                "rows": [row for row in rows if row["category"] is None],
                "parts": [row for row in rows if row["category"] is not None],
                "axis": charts.strip_axis(extent, 100),
            }
        )
    return cards


def suite_lines(report: dict[str, Any]) -> list[str]:
    """A line for each measure of each whole suite, public or of the user's own: the levels, then the paired change."""
    if not (report.get("benchmarks") or report.get("own")):
        return []
    estimates = report["estimates"]
    with start_called(report), with_own(report["own"]), by_role(estimates) as roles, alike(estimates):
        found = [{**e, "subject": roles.get(e["subject"], e["subject"])} for e in estimates]
        lines = []
        for suite in report.get("benchmarks", {}):
            of_suite = [e for e in found if e["split"] == suite]
            for name, split in _measured(of_suite):
                row = _row(of_suite, name, split)
                label = row["label"][0].lower() + row["label"][1:]
                lines.append(f"{split_label(suite)}, {label}: {_row_said(row)}.")
        for suite in own_names():
            row = _row([e for e in found if e["name"] in (suite, f"{suite}_gain")], suite, "all")
            lines.append(f"Suite of your own, {suite}: {_row_said(row)}.")
        return lines


def _row_said(row: dict[str, Any]) -> str:
    change = row["difference"]
    said = f"; {change['value']} {change['interval']}, {change['word']}" if change else ""
    return ", ".join(_said(level) for level in row["levels"]) + said


def _said(level: dict[str, Any]) -> str:
    interval = "" if level["interval"] == "no interval" else f" {level['interval']}"
    return f"{level['subject']} {level['value']}{interval}"


def _measured(found: list[Entry]) -> list[tuple[str, str]]:
    """The levels that there are, by name and split, those of the whole suite first."""
    levels = dict.fromkeys((e["name"], e["split"]) for e in found if not is_difference(e))
    return sorted(levels, key=lambda level: "/" in level[1])


def _row(found: list[Entry], name: str, split: str) -> dict[str, Any]:
    entries = [e for e in found if (e["name"], e["split"]) == (name, split)]
    entries.sort(key=lambda e: ORDER.get(e["subject"], 4))
    measure = measure_of(name)
    change = find(found, measure.difference, "policy", [split]) if measure.difference else None
    _, slash, category = split.partition("/")
    return {
        "label": measure.label,
        "meaning": measure.meaning,
        "category": category.replace("_", " ") if slash else None,
        "n": entries[0]["n"],
        "marks": [_chance_mark(e) if e["subject"] == "baseline" else mark_of(e) for e in entries],
        "levels": [_chance_level(e) if e["subject"] == "baseline" else level_of(e) for e in entries],
        "difference": difference_of(change) if change else None,
    }


def _chance_mark(entry: Entry) -> Mark:
    base = mark_of(entry, "Chance")
    return Mark("longer", base.label, base.value, base.low, base.high)


def _chance_level(entry: Entry) -> dict[str, Any]:
    return {**level_of(entry), "subject": "Chance", "kind": "longer"}
