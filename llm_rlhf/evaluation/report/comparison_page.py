"""The comparison of several runs as its reader meets it: comparison.html, and the same as plain values beside it."""

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from llm_rlhf.evaluation.report import charts
from llm_rlhf.evaluation.report.called import split_label
from llm_rlhf.evaluation.report.charts import Mark, Point
from llm_rlhf.evaluation.report.comparison import entries_of
from llm_rlhf.evaluation.report.groups import differing
from llm_rlhf.evaluation.report.measures import Entry, is_difference, measure_of, with_own
from llm_rlhf.evaluation.report.numbers import alike, interval_text, value_text
from llm_rlhf.evaluation.report.page import templates
from llm_rlhf.run_folder import writable


def write_comparison(found: dict[str, Any], folder: Path) -> Path:
    """Write comparison.html and comparison.json; returns the page's path."""
    writable(folder)
    (folder / "comparison.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    page = folder / "comparison.html"
    page.write_text(render_comparison(found), encoding="utf-8")
    return page


def render_comparison(found: dict[str, Any]) -> str:
    """The page: one self-contained HTML file."""
    with with_own(found["own"]):
        pooled = [group["name"] for group in found["groups"]]
        groups = []
        for row in found["rows"]:
            with alike(entries_of(row)):
                groups.append(_group(row, found["runs"], pooled))
    return (
        templates(escape=True)
        .get_template("comparison.html.jinja")
        .render(
            found=found,
            groups=groups,
            differing=differing(found["groups"]),
            plane=_plane(found),
            ratings=_rating_rows(found["ratings"]),
        )
    )


def _group(row: dict[str, Any], runs: list[str], pooled: list[str]) -> dict[str, Any]:
    """One measure: a strip for every run and one for all of a group together, on one scale.

    Args:
        pooled: names of the groups.
    """
    measure = measure_of(row["name"])
    entries = [*zip(runs, row["each"], strict=True)] + ([("all runs", row["together"])] if row["together"] else [])
    if len(pooled) > 1:
        entries += [(f"mean: {name}", mean) for name, mean in zip(pooled, row["groups"], strict=True) if mean]
    shown: list[dict[str, Any]] = []
    for run, entry in entries:
        if entry is None:
            shown.append({"run": run, "mark": None, "text": "not measured", "interval": "", "n": None})
            continue
        kind = "policy" if run == "all runs" or run.startswith("mean: ") else "other"
        label = f"{run}: {value_text(entry)} {interval_text(entry)}"
        mark = Mark(kind, label, entry["estimate"], entry["low"], entry["high"])
        shown.append(
            {"run": run, "mark": mark, "text": value_text(entry), "interval": interval_text(entry), "n": entry["n"]}
        )
    middle = 0.5 if row["name"].endswith("win_rate") else 0.0
    extent = charts.spread([item["mark"] for item in shown if item["mark"]], include=[middle])
    for item in shown:
        item["strip"] = charts.strip([item["mark"]], extent, rules=[middle]) if item["mark"] else Markup("")
    scale = 100 if measure.unit == "share" else 1
    change = " change" if is_difference({"name": row["name"]}) else ""
    where = "" if row["split"] == "all" else f", {split_label(row['split'])}"
    return {
        "title": f"{measure.label}{change}{where}",
        "meaning": measure.meaning,
        "rows": shown,
        "axis": charts.strip_axis(extent, scale),
    }


def _plane(found: dict[str, Any]) -> dict[str, Any] | None:
    """Where every run began and ended: grey dots and coloured ones."""
    known = [(run, level) for run, level in zip(found["runs"], found["levels"], strict=True) if level is not None]
    if len(known) < len(found["runs"]):
        return None
    moves = [
        (
            Point("start", "", _mark(level["reference"][0]), _mark(level["reference"][1])),
            Point("policy", str(number), _mark(level["policy"][0]), _mark(level["policy"][1])),
        )
        for number, (_, level) in enumerate(known, 1)
    ]
    points = [start for start, _ in moves] + [end for _, end in moves]
    x_name, y_name = known[0][1]["measures"]
    svg = charts.plane(points, "more helpful", "more harmless", moves=moves)
    return {"svg": svg, "x": _axis(x_name), "y": _axis(y_name)}


def _axis(name: str) -> str:
    return measure_of(name).label.lower()


def _mark(entry: Entry) -> Mark:
    return Mark("other", value_text(entry), entry["estimate"], entry["low"], entry["high"])


def _rating_rows(ratings: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    if ratings is None:
        return None
    marks: list[Mark] = [
        Mark("other", f"{row['player']}: {row['rating']['estimate']:.0f}", row["rating"]["estimate"],
             row["rating"]["low"], row["rating"]["high"])
        for row in ratings
    ]  # fmt: skip
    extent = charts.spread(marks, include=[0.0])
    return [
        {**row, "strip": charts.strip([mark], extent, rules=[0.0])} for row, mark in zip(ratings, marks, strict=True)
    ]
