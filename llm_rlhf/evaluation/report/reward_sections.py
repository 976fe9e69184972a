"""The report's section on the reward models: accuracy beside baselines, calibration, the matrix, the ensemble's doubt.

As in sections.py, every function returns what its part of the page prints, or None where this run did not measure it.
"""

from typing import Any

from llm_rlhf.evaluation.report import charts
from llm_rlhf.evaluation.report.charts import Mark
from llm_rlhf.evaluation.report.labels import split_label, subject_label
from llm_rlhf.evaluation.report.measures import MEASURES, Entry, find
from llm_rlhf.evaluation.report.numbers import (
    NARROW,
    number,
)
from llm_rlhf.evaluation.report.sections import kind_of, level_of, mark_of

BASELINES = ("longer_reply_accuracy", "unrefused_reply_accuracy")  # drawn beside accuracies
ERRORS = {"ece": "calibration_error", "brier": "brier", "log_loss": "log_loss"}
AREAS = {"auroc_doubt": "doubt_auroc", "auroc_margin": "margin_auroc"}
METHODS = {
    "before": "of scores as trained, on held-out pairs",
    "after": "with a temperature fitted on the other half of the prompts",
}
JUDGES = ("reward", "heldout")  # whole reward models; other subjects of an accuracy are adapters of the first


def judge_estimates(found: dict[str, Any]) -> list[Entry]:
    """What `reward_report` found, as entries of the report.

    A rule without a model is the same whichever model it is measured beside: it stands there once, as "baseline". The
    errors of calibration are on "all" as trained and on "calibrated" with the fitted temperature.
    """
    entries = [e for e in found["estimates"] if e["name"] == "reward_accuracy"]
    entries += found["breakdown"] + found["baselines"] + found.get("over_rules", []) + found["length"]
    for subject, known in found["calibration"].items():
        for error, name in ERRORS.items():
            for when, split in (("before", "all"), ("after", "calibrated")):
                if known is not None and known[f"{error}_{when}"] is not None:
                    values = {bound: known[f"{error}_{when}_{bound}"] for bound in ("low", "high")}
                    values |= {"estimate": known[f"{error}_{when}"], "n": known["n"], "method": METHODS[when]}
                    entries.append({"name": name, "subject": subject, "reference": None, "split": split, **values})
    for subject, agreement in found["ensembles"].items():
        for key, name in AREAS.items():
            if agreement[key] is not None:
                entries.append({"name": name, "subject": subject, "reference": None, "split": "all", **agreement[key]})
    return [{**entry, "clusters": entry.get("clusters")} for entry in entries]


def accuracy(estimates: list[Entry]) -> dict[str, Any] | None:
    """Reward models against a coin, a ruler and a reader of first words: by objective, then by turns and by length."""
    models = [e for e in estimates if e["name"] == "reward_accuracy" and e["subject"] in JUDGES]
    if not models:
        return None
    first = [s for s in ("all", "helpful", "harmless") if any(e["split"] == s for e in models)]
    others = list(dict.fromkeys(e["split"] for e in models if e["split"] not in first))
    rows = [_accuracy_row(estimates, models, split) for split in (*first, *others)]
    extent = charts.spread([m for row in rows for m in row["marks"]], include=[0.5])
    for row in rows:
        row["strip"] = charts.strip(row["marks"], extent, rules=[0.5])
    return {
        "rows": rows[: len(first)],
        "more": rows[len(first) :],
        "axis": charts.strip_axis(extent, 100),
        "meaning": MEASURES["reward_accuracy"].meaning,
    }


def _accuracy_row(estimates: list[Entry], models: list[Entry], split: str) -> dict[str, Any]:
    entries = [e for e in models if e["split"] == split]
    rules = [rule for name in BASELINES if (rule := find(estimates, name, "baseline", [split]))]
    marks = [mark_of(e) for e in entries]
    for rule in rules:
        base = mark_of(rule, MEASURES[rule["name"]].label)
        marks.append(Mark("longer", base.label, base.value, base.low, base.high))
    levels = [level_of(e) for e in entries]
    levels += [{**level_of(rule), "subject": MEASURES[rule["name"]].label, "kind": "longer"} for rule in rules]
    return {"where": _pairs(split), "n": entries[0]["n"], "marks": marks, "levels": levels}


def length(estimates: list[Entry]) -> dict[str, Any] | None:
    """How far scores follow the length of replies, beside how far people's choices do."""
    rows = []
    for name in ("margin_length_correlation", "score_length_correlation"):
        levels = [level_of(e) for e in estimates if e["name"] == name and e["subject"] in JUDGES]
        if levels:
            rows.append({"label": MEASURES[name].label, "meaning": MEASURES[name].meaning, "levels": levels})
    longer = find(estimates, "longer_reply_accuracy", "baseline", ["all"])
    return {"rows": rows, "people": level_of(longer) if longer else None} if rows else None


def matrix(estimates: list[Entry]) -> dict[str, Any] | None:
    """Every adapter on every objective, where the reward model has several: is one good at what another learnt?"""
    found = [e for e in estimates if e["name"] == "reward_accuracy"]
    subjects = list(dict.fromkeys(e["subject"] for e in found))
    if not any(subject not in JUDGES for subject in subjects):
        return None
    splits = [s for s in ("helpful", "harmless", "overall") if any(e["split"] == s for e in found)] or ["all"]
    rows = []
    for subject in subjects:
        cells = [find(found, "reward_accuracy", subject, [split]) for split in splits]
        rows.append(
            {
                "subject": subject_label(subject),
                "kind": kind_of(subject),
                "cells": [level_of(cell) if cell else None for cell in cells],
            }
        )
    return {"columns": [_pairs(split) for split in splits], "rows": rows}


def calibration(known: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The reliability curves of both reward models, and what is left of the error with a temperature."""
    series = [
        (kind_of(subject), subject_label(subject), [_bin(entry) for entry in known[subject]["curve_before"]])
        for subject in JUDGES
        if subject in known
    ]
    if not series:
        return None
    rows = [
        {
            "subject": subject_label(subject),
            "kind": kind_of(subject),
            "temperature": "none" if found["temperature"] is None else number(found["temperature"], "score"),
            "why_none": found.get("no_temperature"),  # not in runs of earlier versions
            "floor": _share_text(found["ece_floor"]),
            "n": found["n"],
            **{
                f"{error}_{when}": text(found[f"{error}_{when}"])
                for error, text in (("ece", _share_text), ("brier", _score_text))
                for when in ("before", "after")
            },
        }
        for subject, found in known.items()
    ]
    return {"svg": charts.reliability(series), "named": [(kind, label) for kind, label, _ in series], "rows": rows}


def _bin(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "confidence": entry["certainty"],
        "accuracy": entry["accuracy"],
        "low": entry["accuracy_low"],
        "high": entry["accuracy_high"],
        "n": entry["n"],
    }


def _share_text(value: float | None) -> str:
    return "not measured" if value is None else f"{number(value, 'share', 0.01)}{NARROW}%"


def _score_text(value: float | None) -> str:
    return "not measured" if value is None else number(value, "score", 0.01)


def doubt(agreement: dict[str, Any] | None) -> dict[str, Any] | None:
    """Does the ensemble's disagreement single out its errors? Accuracy from the least doubt to the most."""
    if agreement is None:
        return None
    bins = [entry for entry in agreement["by_doubt"] if entry["accuracy"] is not None]
    marks = []
    for place, entry in enumerate(bins, start=1):
        found = entry["accuracy"]
        label = f"part {place} of {len(bins)} by doubt: {_share_text(found['estimate'])} right, n = {entry['n']}"
        marks.append(Mark("reward", label, found["estimate"], found["low"], found["high"]))
    extent = charts.spread(marks, include=[0.5])
    rows = [
        {
            "where": "least doubt" if place == 0 else "most doubt" if place == len(bins) - 1 else "",
            "strip": charts.strip([mark], extent, rules=[0.5]),
            "value": _share_text(mark.value),
            "n": entry["n"],
        }
        for place, (mark, entry) in enumerate(zip(marks, bins, strict=True))
    ]
    areas = {name: agreement[name] for name in ("auroc_doubt", "auroc_margin")}
    return {
        "rows": rows,
        "axis": charts.strip_axis(extent, 100),
        "members": agreement["members"],
        "unanimous": _share_text(agreement["unanimous"]),
        "areas": {name: None if area is None else _area(area) for name, area in areas.items()},
    }


def _area(area: dict[str, Any]) -> str:
    interval = "" if area["low"] is None else f" [{area['low']:.2f}, {area['high']:.2f}]"
    return f"{area['estimate']:.2f}{interval}"


def _pairs(split: str) -> str:
    return split_label(split).replace("prompts", "pairs")
