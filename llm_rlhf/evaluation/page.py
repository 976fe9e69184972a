"""The report as its reader meets it: picks, orders and words what the two templates print.

`view(report)` walks the sections in reading order. A section that this run cannot fill becomes a sentence that says
what was not measured and why it matters; it never disappears without a word.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llm_rlhf.evaluation import charts
from llm_rlhf.evaluation.charts import Mark, Point
from llm_rlhf.evaluation.measures import (
    MEASURES,
    NARROW,
    SUBJECTS,
    Entry,
    find,
    half_width,
    interval_text,
    is_difference,
    measure_of,
    number,
    split_label,
    subject_label,
    unit_of,
    value_text,
)
from llm_rlhf.evaluation.statistics import detectable_from_interval
from llm_rlhf.evaluation.verdict import headline, judgement

TONES = {"better": "good", "worse": "bad", "no difference shown": "flat", "not certain": "flat"}

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

PRICE = ("kl", "response_length", "eos_rate")

REFUSALS = [
    ("refusal_harmful", ("all", "harmless", "harmful"), "Harmful requests", "should be refused"),
    ("over_refusal", ("scary",), "Safe but scary", "sound dangerous, are not: should be answered"),
    ("over_refusal", ("question", "helpful", "all"), "Ordinary questions", "should be answered"),
]

CURVES: list[tuple[str, str, str, str]] = [
    ("ppo", "objective/scores", "Reward-model score", "Mean score of the sampled replies; what PPO tries to raise."),
    ("ppo", "objective/kl", "KL from the SFT model", "Nats per reply; how far the policy has moved to get there."),
    ("ppo", "response_length", "Reply length", "Tokens. Watch for a score that rises only because replies grow."),
    ("ppo", "policy/entropy", "Entropy", "Nats per token. A collapse towards 0 means the same reply to everything."),
    ("ppo", "val/explained_variance", "Explained variance", "How well the value model predicts returns; 1 is perfect."),
    ("sft", "loss", "SFT loss", "Nats per token on the demonstrations."),
    (
        "reward",
        "accuracy",
        "Reward-model accuracy in training",
        "Share of training pairs ranked as people ranked them.",
    ),
    ("reward", "loss", "Reward-model loss", "Nats per pair; a coin scores 0.693."),
    ("heldout", "accuracy", "Held-out model accuracy in training", "The same for the second reward model."),
]
FIRST_CURVES = 2  # shown large; the rest wait in a fold

UNNAMED = {"step", "episode", "epoch", "time"}  # places on the x axis, not curves

MISSING = {
    "plane": "no policy was scored on helpful and on harmful prompts apart, so a gain on one that costs the other "
    "would not show",
    "outcomes": "no policy was scored, so there is nothing to compare",
    "win_rate": "no win rate: a mean can rise through a few prompts alone",
    "training": "no curve of the PPO stage was recorded, so nobody can see whether it had settled",
    "accuracy": "no accuracy of the reward model on held-out pairs, so its scores are worth nobody knows what",
    "heldout": "no second reward model, so the one PPO was trained to please is also its judge",
    "scary": "no safe-but-scary prompts in this recipe, so a policy that refuses whatever sounds dangerous would go "
    "unnoticed",
    "refusals": "no refusals were counted",
    "samples": "no replies were kept, so the numbers cannot be checked by reading",
}


def render_html(report: dict[str, Any]) -> str:
    """The page: one self-contained HTML file."""
    return _environment(True).get_template("report.html.jinja").render(view(report))


def render_markdown(report: dict[str, Any]) -> str:
    """The same in Markdown, for a model card."""
    return _environment(False).get_template("report.md.jinja").render(view(report))


def view(report: dict[str, Any]) -> dict[str, Any]:
    """Everything the templates print, section by section."""
    estimates: list[Entry] = report["estimates"]
    found = {
        "hero": _hero(report),
        "verdict": [_verdict_line(line) for line in report["verdict"]],
        "plane": _plane(estimates),
        "outcomes": _outcomes(estimates),
        "wins": _wins(estimates),
        "price": _price(estimates),
        "curves": _curves(report["curves"]),
        "accuracy": _accuracy(estimates),
        "refusals": _refusals(estimates),
        "table": [_table_row(e) for e in estimates],
    }
    return {
        **found,
        "report": report,
        "run": report["run"],
        "seconds": [(stage, duration(s)) for stage, s in report["run"]["seconds"].items()],
        "total": duration(sum(report["run"]["seconds"].values())),
        "samples": [_sample(sample) for sample in report["samples"]],
        "missing": MISSING,
        "unmeasured": _unmeasured(report, found),
        "provenance": report["provenance"],
    }


def duration(seconds: float) -> str:
    """Seconds as a person says them: `20 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f}{NARROW}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NARROW}s"
    if whole < 3600:
        return f"{whole // 60}{NARROW}min {whole % 60}{NARROW}s"
    return f"{whole // 3600}{NARROW}h {whole % 3600 // 60}{NARROW}min"


def _environment(escape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(fence=fence, cell=cell, yaml=as_yaml)
    return environment


def fence(text: str) -> str:
    """`text` as a Markdown code block that its own backticks cannot close."""
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}text\n{text}\n{ticks}"


def cell(text: str) -> str:
    """`text` on one line of a Markdown table, with what Markdown or HTML would act on made plain."""
    for mark in "\\`*_[]|":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.replace("<", "&lt;").split())


def as_yaml(value: Any, indent: int = 0) -> str:
    """Nested dictionaries as indented `key: value` lines, for reading; report.json holds the exact values."""
    pad = "  " * indent
    lines = []
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            lines.append(f"{pad}{key}:\n{as_yaml(inner, indent + 1)}")
        elif isinstance(inner, list | tuple) and any(isinstance(item, dict) for item in inner):
            items = (as_yaml(item, indent + 2) if isinstance(item, dict) else f"{pad}    {item}" for item in inner)
            lines.append(f"{pad}{key}:\n" + "\n".join(f"{pad}  - {item.lstrip()}" for item in items))
        else:
            lines.append(f"{pad}{key}: {'null' if inner is None else inner}")
    return "\n".join(lines)


def _verdict_line(line: str) -> dict[str, str]:
    """`Topic: judgement. Rest` taken apart, so that the page can colour the judgement; other text stays whole."""
    topic, colon, rest = line.partition(": ")
    word, _, text = rest.partition(". ")
    known = {**TONES, "higher": "flat", "lower": "flat", "not measured": "none"}
    if not colon or word not in known:
        return {"topic": "", "word": "", "text": line, "tone": "none"}
    return {"topic": topic, "word": word, "text": text, "tone": known[word]}


def _hero(report: dict[str, Any]) -> dict[str, Any] | None:
    entry = headline(report)
    if entry is None:
        return None
    own = entry["name"] == "reward_gain" and judgement(entry) == "better"
    found = None
    if entry["low"] is not None and entry["high"] > entry["low"]:
        needed = detectable_from_interval(entry["low"], entry["high"])
        found = number(needed, measure_of(entry["name"]).unit, needed) + unit_of(entry)
    return {
        "entry": entry,
        "value": value_text(entry),
        "interval": interval_text(entry),
        "measure": measure_of(entry["name"]),
        "subject": subject_label(entry["subject"]),
        "reference": subject_label(entry["reference"]),
        "word": judgement(entry) + (", says its own judge" if own else ""),
        "tone": "own" if own else TONES.get(judgement(entry), "flat"),
        "detectable": found,
    }


def _levels(estimates: list[Entry], name: str, splits: Sequence[str]) -> list[Entry]:
    """One level per policy, all on the same split: the first of `splits` that any policy has; SFT first, PPO last."""
    for split in splits:
        levels = [e for e in estimates if (e["name"], e["split"]) == (name, split)]
        if levels:
            order = {"sft": 0, "ppo": 2}
            return sorted(levels, key=lambda e: order.get(e["subject"], 1))
    return []


def _kind(subject: str) -> str:
    return subject if subject in SUBJECTS else "other"


def _mark(entry: Entry, label: str | None = None) -> Mark:
    label = label or subject_label(entry["subject"])
    text = f"{label} {value_text(entry)} {interval_text(entry)}, n = {entry['n']:,}"
    return Mark(_kind(entry["subject"]), text, entry["estimate"], entry["low"], entry["high"])


def _plane(estimates: list[Entry]) -> dict[str, Any] | None:
    for (x_name, x_splits), (y_name, y_splits) in PLANES:
        xs = {e["subject"]: e for e in _levels(estimates, x_name, x_splits)}
        ys = {e["subject"]: e for e in _levels(estimates, y_name, y_splits)}
        points = [Point(_kind(who), subject_label(who), _mark(xs[who]), _mark(ys[who])) for who in xs if who in ys]
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


def _outcomes(estimates: list[Entry]) -> list[dict[str, Any]]:
    """Before and after, one group per judge on a scale of its own."""
    groups = []
    for name, wanted in GROUPS:
        rows: list[tuple[str, list[Entry]]] = []
        for measure, splits in wanted:
            levels = _levels(estimates, measure, splits)
            if levels and not _told_already(measure, rows):
                rows.append((measure, levels))
        if not rows:
            continue
        marks = [[_mark(e) for e in levels] for _, levels in rows]
        extent = charts.spread([m for row in marks for m in row])
        groups.append(
            {
                "measure": MEASURES[name],
                "axis": charts.strip_axis(extent),
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
    measure, split = MEASURES[name], levels[0]["split"]
    difference = find(estimates, measure.difference, "ppo", [split]) if measure.difference else None
    return {
        "label": measure.label,
        "where": PARTS.get(name, split_label(split)),
        "meaning": measure.meaning,
        "strip": strip,
        "levels": [_level(e) for e in levels],
        "difference": _difference(difference) if difference else None,
    }


def _level(entry: Entry) -> dict[str, Any]:
    return {
        "subject": subject_label(entry["subject"]),
        "kind": _kind(entry["subject"]),
        "value": value_text(entry),
        "interval": interval_text(entry),
        "n": entry["n"],
        "share": entry["estimate"],
    }


def _difference(entry: Entry) -> dict[str, Any]:
    word = judgement(entry)
    return {
        "value": value_text(entry),
        "interval": interval_text(entry),
        "n": entry["n"],
        "word": word,
        "tone": TONES.get(word, "flat"),
        "against": subject_label(entry["reference"]),
    }


def _wins(estimates: list[Entry]) -> dict[str, Any] | None:
    found = [e for e in estimates if e["name"] == "win_rate"]
    if not found:
        return None
    extent = (0.0, 1.0)
    rows = []
    for entry in found:
        text = f"{value_text(entry)} {interval_text(entry)}"
        sure = entry["low"] is not None and (entry["low"] > 0.5 or entry["high"] < 0.5)
        rows.append(
            {
                "label": f"{subject_label(entry['subject'])} against {subject_label(entry['reference'] or 'sft')}",
                "where": split_label(entry["split"]),
                "strip": charts.strip([_mark(entry)], extent, rules=[0.5]),
                "value": value_text(entry),
                "interval": interval_text(entry),
                "n": entry["n"],
                "text": text,
                "tone": ("good" if entry["estimate"] > 0.5 else "bad") if sure else "flat",
            }
        )
    return {"rows": rows, "axis": charts.strip_axis(extent, 100), "meaning": MEASURES["win_rate"].meaning}


def _price(estimates: list[Entry]) -> list[dict[str, Any]]:
    """What the gain cost: one tile per measure, with every policy's value."""
    tiles = []
    for name in PRICE:
        levels = _levels(estimates, name, sorted({e["split"] for e in estimates}, key=lambda s: s != "all"))
        if levels:
            measure = MEASURES[name]
            tiles.append({"label": measure.label, "meaning": measure.meaning, "levels": [_level(e) for e in levels]})
    return tiles


def _curves(curves: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The charts shown first, the others, and every further metric under its own name."""
    charts_made, told = [], set()
    for stage, metric, label, meaning in CURVES:
        points = curves.get(stage, [])
        drawn = _chart(points, stage, metric, label)
        told.add((stage, metric))
        if drawn is not None:
            charts_made.append({"label": label, "meaning": meaning, "svg": drawn, "stage": stage, "x": _x_of(points)})
    more = []
    for stage, points in curves.items():
        for metric in dict.fromkeys(key for point in points for key in point):
            if (stage, metric) not in told and metric not in UNNAMED:
                drawn = _chart(points, stage, metric, metric)
                if drawn is not None:
                    more.append(
                        {"label": f"{stage}: {metric}", "meaning": "", "svg": drawn, "stage": stage, "x": _x_of(points)}
                    )
    first = [c for c in charts_made if c["stage"] == "ppo"][:FIRST_CURVES]
    return {"first": first, "others": [c for c in charts_made if c not in first], "more": more}


def _chart(points: list[dict[str, Any]], stage: str, metric: str, label: str) -> Any:
    share = metric.endswith("accuracy")
    return charts.line_chart(points, metric, _x_of(points), _kind(stage), label, 100 if share else 1)


def _x_of(points: list[dict[str, Any]]) -> str:
    return "episode" if points and all(p.get("episode") is not None for p in points) else "step"


def _accuracy(estimates: list[Entry]) -> dict[str, Any] | None:
    """Reward models against a coin and a ruler, split by split."""
    models = [e for e in estimates if e["name"] == "reward_accuracy"]
    if not models:
        return None
    splits = [s for s in ("all", "helpful", "harmless") if any(e["split"] == s for e in models)]
    splits += list(dict.fromkeys(e["split"] for e in models if e["split"] not in splits))
    rows: list[dict[str, Any]] = []
    for split in splits:
        entries = [e for e in models if e["split"] == split]
        longer = find(estimates, "longer_reply_accuracy", None, [split])
        marks: list[Mark] = [_mark(e) for e in entries]
        if longer:
            base = _mark(longer, MEASURES["longer_reply_accuracy"].label)
            marks.append(Mark("longer", base.label, base.value, base.low, base.high))
        named = [{**_level(e)} for e in entries]
        if longer:
            named.append({**_level(longer), "subject": "Longer reply", "kind": "longer"})
        rows.append({"where": split_label(split).replace("prompts", "pairs"), "marks": marks, "levels": named})
    extent = charts.spread([m for row in rows for m in row["marks"]], include=[0.5])
    for row in rows:
        row["strip"] = charts.strip(row["marks"], extent, rules=[0.5])
    return {"rows": rows, "axis": charts.strip_axis(extent, 100), "meaning": MEASURES["reward_accuracy"].meaning}


def _refusals(estimates: list[Entry]) -> dict[str, Any] | None:
    """Policies down, kinds of request across; below them the paired changes."""
    columns = [(name, _levels(estimates, name, splits), title, want) for name, splits, title, want in REFUSALS]
    subjects = list(dict.fromkeys(e["subject"] for _, levels, _, _ in columns for e in levels))
    if not subjects:
        return None
    subjects.sort(key=lambda s: {"sft": 0, "ppo": 2}.get(s, 1))
    rows = []
    for subject in subjects:
        cells = [next((_level(e) for e in levels if e["subject"] == subject), None) for _, levels, _, _ in columns]
        rows.append({"subject": subject_label(subject), "kind": _kind(subject), "cells": cells})
    changes = []
    for name, levels, _, _ in columns:
        difference = MEASURES[name].difference
        change = find(estimates, difference, "ppo", [levels[0]["split"]]) if levels and difference else None
        changes.append(_difference(change) if change else None)
    heads = [{"title": title, "want": want, "good": MEASURES[name].good} for name, _, title, want in columns]
    return {
        "columns": heads,
        "rows": rows,
        "changes": changes if any(changes) else None,
        "scary": bool(columns[1][1]),
    }


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    replies = [
        {
            "subject": subject_label(subject),
            "kind": _kind(subject),
            "text": reply["text"],
            "scores": [
                (judge, "not scored" if score is None else number(score, "score"))
                for judge, score in reply["scores"].items()
            ],
        }
        for subject, reply in sample["replies"].items()
    ]
    return {**sample, "replies": replies}


def _table_row(entry: Entry) -> dict[str, Any]:
    return {
        **entry,
        "label": measure_of(entry["name"]).label + (" change" if is_difference(entry) else ""),
        "value": value_text(entry),
        "interval": interval_text(entry),
        "half": half_width(entry),
    }


def _unmeasured(report: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What this run did not measure, each with why that matters."""
    names = {e["name"] for e in report["estimates"]}
    absent = {
        "plane": found["plane"] is None,
        "outcomes": not found["outcomes"],
        "win_rate": found["wins"] is None,
        "heldout": "heldout_reward" not in names,
        "accuracy": found["accuracy"] is None,
        "refusals": found["refusals"] is None,
        "scary": found["refusals"] is not None and not found["refusals"]["scary"],
        "training": not found["curves"]["first"],
        "samples": not report["samples"],
    }
    return [MISSING[key] for key, is_absent in absent.items() if is_absent]
