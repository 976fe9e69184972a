"""A comparison in words and on a page: what `compare_runs` found, for a terminal and as one self-contained file.

Where recipes ran several times each, their means come first, on the page and in words, and the runs behind them.
"""

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from llm_rlhf.evaluation.report import charts
from llm_rlhf.evaluation.report.charts import Mark, Point
from llm_rlhf.evaluation.report.groups import differing
from llm_rlhf.evaluation.report.labels import split_label
from llm_rlhf.evaluation.report.measures import Entry, is_difference, measure_of, with_own
from llm_rlhf.evaluation.report.numbers import NARROW, alike, interval_text, value_text
from llm_rlhf.evaluation.report.page import templates
from llm_rlhf.run_folder import writable

TOLD = 6  # measures in words, each in a line; of several recipes' means, each in a block, half as many


def write_comparison(found: dict[str, Any], folder: Path) -> Path:
    """Write comparison.html and comparison.json; returns the page's path."""
    writable(folder)
    (folder / "comparison.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    page = folder / "comparison.html"
    page.write_text(render_comparison(found), encoding="utf-8")
    return page


def render_comparison(found: dict[str, Any]) -> str:
    """The page: one self-contained HTML file."""
    measures = []
    with with_own(found["own"]):
        for row in found["rows"]:
            with alike(entries_of(row)):
                measures.append(_measure(row, found))
    return (
        templates(escape=True)
        .get_template("comparison.html.jinja")
        .render(
            found=found,
            measures=measures,
            repeated=repeated(found),
            differing=differing(found["groups"]),
            plane=_plane(found),
            ratings=_rating_rows(found["ratings"]),
        )
    )


def repeated(found: dict[str, Any]) -> bool:
    """Whether several recipes ran several times each, so that their means are what there is to see."""
    return len(found["groups"]) > 1 and all(len(group["runs"]) > 1 for group in found["groups"])


def summary(found: dict[str, Any]) -> list[str]:
    """Every run's headline, then the table in words, a line for each of the first measures.

    Of recipes that ran several times each, the headlines and means of these in the place of the runs'.
    """
    lines = [f"{run}: {head['text']}" for run, head in zip(found["runs"], found["headlines"], strict=True)]
    if repeated(found):
        lines = _group_lines(found)
        for row in found["rows"][: TOLD // 2]:
            with alike(entries_of(row)):
                lines += _block(row, found["groups"])
        return lines
    if found["headline"] is not None:
        lines.append(f"all runs together: {found['headline']['text']}")
    elif len(found["groups"]) > 1:
        lines += _group_lines(found)
    for row in found["rows"][:TOLD]:
        with alike(entries_of(row)):
            lines.append(_row_line(row, found["groups"]))
    return lines


def _row_line(row: dict[str, Any], groups: list[dict[str, Any]]) -> str:
    each = ", ".join("-" if entry is None else value_text(entry) for entry in row["each"])
    line = f"{_named(row)}: {each}"
    if row["together"] is not None:
        together = row["together"]
        return f"{line}; together {value_text(together)} {interval_text(together)} (95{NARROW}%, over runs)"
    for group, mean in zip(groups, row["groups"], strict=True):
        if mean is not None:
            line += f"; {group['name']} {value_text(mean)} {interval_text(mean)} (95{NARROW}%, over runs)"
    return line


def _block(row: dict[str, Any], groups: list[dict[str, Any]]) -> list[str]:
    """A measure of repeated recipes: a line for each one's mean, with what it is less the first one's."""
    width = max(len(group["name"]) for group in groups)
    lines = [f"{_named(row)}, means with 95{NARROW}% intervals over runs:"]
    for group, mean, less in zip(groups, row["groups"], row["less_first"], strict=True):
        said = "not measured" if mean is None else f"{value_text(mean)} {interval_text(mean)}"
        more = "" if less is None else f"   {_less(groups[0])}: {value_text(less)} {interval_text(less)}"
        lines.append(f"  {group['name']:{width}}  {said}{more}")
    return lines


def _less(first: dict[str, Any]) -> str:
    """What a paired difference is called."""
    return f"less {first['name']}, seed by seed"


def _named(row: dict[str, Any]) -> str:
    where = "" if row["split"] == "all" else f" ({split_label(row['split'])})"
    return f"{measure_of(row['name']).label}{where}"


def _group_lines(found: dict[str, Any]) -> list[str]:
    """Where recipes differ, so that their runs are not pooled: a line for each group, then one for each key."""
    lines = [f"{len(found['groups'])} recipes, pooled apart:"]
    for group in found["groups"]:
        named = ", ".join(found["runs"][i] for i in group["runs"])
        took = "" if group["seconds"] is None else f", {group['seconds']:.0f} s"
        said = "" if group["headline"] is None else f": {group['headline']['text']}"
        lines.append(f"  {group['name']} ({named}; {group['budget']}{took}){said}")
    return lines + [f"  differs: {line}" for line in differing(found["groups"])]


# ---- the page ------------------------------------------------------------------------------------------------------


def _measure(row: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """One measure: a strip for every run and one for all of a group together, on one scale."""
    measure, groups = measure_of(row["name"]), found["groups"]
    middle = 0.5 if row["name"].endswith("win_rate") else 0.0
    marks = [_mark("other", entry) for entry in (*row["each"], *row["groups"]) if entry is not None]
    extent = charts.spread(marks, include=[middle])
    means = [_strip("all runs", row["together"], "policy", extent, middle)] if row["together"] else []
    if len(groups) > 1:
        for group, mean, less in zip(groups, row["groups"], row["less_first"], strict=True):
            name = group["name"] if repeated(found) else f"mean: {group['name']}"
            told = "" if less is None else f"{_less(groups[0])}: {value_text(less)} {interval_text(less)}"
            means += [] if mean is None else [_strip(name, mean, "policy", extent, middle) | {"less": told}]
    change = " change" if is_difference({"name": row["name"]}) else ""
    where = "" if row["split"] == "all" else f", {split_label(row['split'])}"
    return {
        "title": f"{measure.label}{change}{where}",
        "meaning": measure.meaning,
        "runs": [
            _strip(name, entry, "other", extent, middle) | {"moved": " to ".join(map(value_text, levels or []))}
            for name, entry, levels in zip(found["runs"], row["each"], row["moved"], strict=True)
        ],
        "means": means,
        "axis": charts.strip_axis(extent, 100 if measure.unit == "share" else 1),
    }


def _strip(name: str, entry: Entry | None, kind: str, extent: charts.Range, middle: float) -> dict[str, Any]:
    """A row of a chart: a run, or the mean of several."""
    shown = {"name": name, "strip": Markup(""), "text": "not measured", "interval": "", "n": None}
    shown |= {"less": "", "moved": ""}
    if entry is None:
        return shown
    text, interval = value_text(entry), interval_text(entry)
    strip = charts.strip([_mark(kind, entry, f"{name}: {text} {interval}")], extent, rules=[middle])
    return shown | {"strip": strip, "text": text, "interval": interval, "n": entry["n"]}


def _mark(kind: str, entry: Entry, label: str | None = None) -> Mark:
    return Mark(kind, label or value_text(entry), entry["estimate"], entry["low"], entry["high"])


def entries_of(row: dict[str, Any]) -> list[Entry]:
    """All that stands in a row of the table: of every run, the mean of every group, and its difference."""
    return [entry for entry in (*row["each"], *row["groups"], *row["less_first"]) if entry is not None]


def _plane(found: dict[str, Any]) -> dict[str, Any] | None:
    """Where every run began and ended, or every repeated recipe in the mean: grey dots and coloured ones."""
    levels = [group["level"] for group in found["groups"]] if repeated(found) else found["levels"]
    if any(level is None for level in levels):
        return None
    moves = [
        (
            Point("start", "", *(_mark("other", one) for one in level["reference"])),
            Point("policy", str(number), *(_mark("other", one) for one in level["policy"])),
        )
        for number, level in enumerate(levels, 1)
    ]
    points = [start for start, _ in moves] + [end for _, end in moves]
    x_name, y_name = levels[0]["measures"]
    svg = charts.plane(points, "more helpful", "more harmless", moves=moves)
    return {"svg": svg, "x": measure_of(x_name).label.lower(), "y": measure_of(y_name).label.lower()}


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
