"""One dictionary in, one report out: report.json, report.md and report.html in the run's folder.

The page is self-contained: no request to the network, charts drawn as SVG here, readable from a file.

The dictionary, schema 2 (every key below is required, a list or dictionary may be empty unless it says otherwise):

    schema      2
    run         {"name": str, "recipe": str, "base": str, "device": str, "processes": int,
                 "seconds": {stage: float}}
    headline    {"word": str, "tone": "good" | "bad" | "warn" | "flat" | "none", "text": one line, "sides": {"helpful" |
                 "harmless": status}, "margins": [str, ...]}, made by `headline(report)` from the estimates
    verdict     four lines of plain text, made by `verdict_lines(report)` from the estimates
    estimates   [Estimate.as_dict(), ...], at least one, each (name, subject, reference, split) once. Levels have
                reference None; paired differences and win rates name it. `clusters` is None where no two prompts share
                a wording. Known names: see `measures.MEASURES`.
    reward_model  {"calibration": {"reward" | "heldout" | NAME of one of several adapters: what `calibrate` found},
                 "agreement": what `ensemble_agreement` found, None where there is no ensemble}
    own         {NAME: {"function": "module:function", "good": "higher" | "lower" | "neither",
                 "unit": "score" | "share", "prompts": int, "not_scored": {subject: int}}}, the user's own suites;
                 their measures are NAME and NAME_gain, on "all"
    overoptimization  what `snapshot_curve` found, None where the run has no snapshots; "best_of_n" in it is what
                 `best_of_n` found, absent where it was not asked for
    alarms      [str, ...], sentences, the gravest first
    watch       {"guard": what `Watch.write_summary` wrote, "preview": what PPO's `preview` found}, each where there is
                one; the key may be absent
    curves      {"sft" | "reward" | "reward/NAME" | "heldout" | "ppo": [{"step": int, metric: float | None, ...}, ...]},
                metrics under the names of metrics.jsonl (objective/scores, objective/kl, loss, accuracy, ...)
    samples     [{"prompt": [{"role": str, "content": str}, ...], "objective": str, "kind": str | None,
                  "chosen_by": str, "replies": {subject: {"text": str, "scores": {judge: float}}}}, ...]
    data        counts: nested dictionaries whose leaves are ints
    provenance  {"recipe": {...}, "versions": {...}, "seed": int, "decoding": {...},
                 "instruments": {what measured, and its version: "refusal_detector", "judge",
                 "scores_moved_with_the_batch"}, "hashes": {...}, "git": str}, and, where it was recorded,
                 "machine": {str: str or int}, the CPU and how it computes, and "elsewhere": {stage: machine}, the
                 stages that another machine made

Schema 1 had no headline, and its intervals took prompts of one wording for independent: `compare` refuses its reports
rather than put them beside newer ones.

Numbers must be finite: where a value is not known, write None. Anything else is refused before a file is touched.
"""

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from llm_rlhf.evaluation.report.headline import TONES
from llm_rlhf.evaluation.report.page import render_html, render_markdown
from llm_rlhf.evaluation.report.verdict import headline, verdict_lines

__all__ = ["check_report", "headline", "verdict_lines", "write_report"]

SCHEMA = 2
KEYS: dict[str, type] = {
    "schema": int,
    "run": dict,
    "headline": dict,
    "verdict": list,
    "estimates": list,
    "reward_model": dict,
    "own": dict,
    "overoptimization": dict,
    "alarms": list,
    "watch": dict,
    "curves": dict,
    "samples": list,
    "data": dict,
    "provenance": dict,
}
RUN_KEYS: dict[str, type] = {
    "name": str,
    "recipe": str,
    "base": str,
    "device": str,
    "processes": int,
    "seconds": dict,
}
PROVENANCE_KEYS: dict[str, type] = {
    "recipe": dict,
    "versions": dict,
    "seed": int,
    "decoding": dict,
    "instruments": dict,
    "hashes": dict,
    "git": str,
}
OWN_KEYS: dict[str, type] = {"function": str, "good": str, "unit": str, "prompts": int, "not_scored": dict}
ESTIMATE_KEYS = ("name", "subject", "reference", "split", "estimate", "low", "high", "n", "method", "clusters")
HEADLINE_KEYS: dict[str, type] = {"word": str, "tone": str, "text": str, "sides": dict, "margins": list}
CURVES = ("sft", "reward", "heldout", "ppo")


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Check `report`, then write report.json, report.md and report.html into `folder`.

    Each file appears whole or not at all, and the same dictionary gives the same bytes.
    """
    check_report(report)
    texts = {
        "report.json": json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False) + "\n",
        "report.md": render_markdown(report),
        "report.html": render_html(report),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        _write(folder / name, text)


def check_report(report: dict[str, Any]) -> None:
    """Raise ValueError, naming the place, when `report` does not follow the schema above."""
    _check_numbers(report, "report")
    absent: dict[str, Any] = {"overoptimization": {}} if report.get("overoptimization", {}) is None else {}
    _check_keys({"watch": {}, **report, **absent}, KEYS, "report")
    if report["schema"] != SCHEMA:
        raise ValueError(f"report.schema is {report['schema']}; this version writes schema {SCHEMA}.")
    _check_keys(report["run"], RUN_KEYS, "report.run")
    recorded = {key: dict for key in ("machine", "elsewhere") if key in report["provenance"]}
    _check_keys(report["provenance"], PROVENANCE_KEYS | recorded, "report.provenance")
    _check_keys(report["headline"], HEADLINE_KEYS, "report.headline")
    if report["headline"]["tone"] not in TONES:
        raise ValueError(f"report.headline.tone is {report['headline']['tone']!r}; it takes {', '.join(TONES)}.")
    if len(report["verdict"]) != 4:
        raise ValueError(
            f"report.verdict has {len(report['verdict'])} lines, not 4; make it with verdict_lines(report)."
        )
    for key in ("verdict", "alarms"):
        for i, line in enumerate(report[key]):
            _check_type(line, str, f"report.{key}[{i}]")
    _check_estimates(report["estimates"])
    _check_reward_model(report["reward_model"])
    for name, known in report["own"].items():
        _check_keys(known, OWN_KEYS, f"report.own.{name}")
    _check_curves(report["curves"])
    for i, sample in enumerate(report["samples"]):
        _check_sample(sample, f"report.samples[{i}]")
    _check_counts(report["data"], "report.data")
    for stage, seconds in report["run"]["seconds"].items():
        _check_type(seconds, float, f"report.run.seconds.{stage}")


def _check_type(value: Any, kind: type, where: str) -> None:
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is {value!r}, of type {type(value).__name__}; it must be {kind.__name__}.")


def _check_keys(value: Any, keys: dict[str, type], where: str) -> None:
    """A dictionary with exactly these keys, each of its type."""
    _check_type(value, dict, where)
    missing, unknown = [key for key in keys if key not in value], [key for key in value if key not in keys]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; it needs {', '.join(keys)}.")
    if unknown:
        raise ValueError(f"{where} has unknown keys {', '.join(unknown)}; it takes {', '.join(keys)}.")
    for key, kind in keys.items():
        _check_type(value[key], kind, f"{where}.{key}")


def _check_numbers(value: Any, where: str) -> None:
    """Only what JSON can hold: strings, finite numbers, booleans, None, lists and dictionaries with string keys."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}; keys must be strings.")
            _check_numbers(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            _check_numbers(inner, f"{where}[{i}]")
    elif isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(
                f"{where} holds half a surrogate pair, which UTF-8 cannot write; decode with errors='replace'."
            )
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; a number must be finite. Write None where it is not known.")
    elif not (value is None or isinstance(value, int | float)):
        raise ValueError(f"{where} is of type {type(value).__name__}, which JSON cannot hold; convert it first.")


def _check_estimates(estimates: list[Any]) -> None:
    if not estimates:
        raise ValueError("report.estimates is empty; an evaluation that measured nothing is an error, not a report.")
    seen: dict[tuple[Any, ...], int] = {}
    for i, entry in enumerate(estimates):
        where = f"report.estimates[{i}]"
        _check_type(entry, dict, where)
        if sorted(entry) != sorted(ESTIMATE_KEYS):
            raise ValueError(f"{where} has keys {', '.join(entry)}; it takes {', '.join(ESTIMATE_KEYS)}.")
        for key in ("name", "subject", "split", "method"):
            _check_type(entry[key], str, f"{where}.{key}")
        if entry["reference"] is not None:
            _check_type(entry["reference"], str, f"{where}.reference")
        _check_type(entry["estimate"], float, f"{where}.estimate")
        _check_type(entry["n"], int, f"{where}.n")
        if entry["clusters"] is not None:
            _check_type(entry["clusters"], int, f"{where}.clusters")
        if entry["n"] < 1:
            raise ValueError(f"{where}.n is {entry['n']}; an estimate from no observation is an error, not a number.")
        low, high = entry["low"], entry["high"]
        if (low is None) != (high is None) or (low is not None and low > high):
            raise ValueError(f"{where} has the interval [{low}, {high}]; give low <= high, or None for both.")
        what = (entry["name"], entry["subject"], entry["reference"], entry["split"])
        if what in seen:
            raise ValueError(f"{where} repeats report.estimates[{seen[what]}]: {what}; each may appear once.")
        seen[what] = i


def _check_reward_model(found: dict[str, Any]) -> None:
    if sorted(found) != ["agreement", "calibration"]:
        raise ValueError(f"report.reward_model has keys {', '.join(found)}; it takes calibration and agreement.")
    if found["agreement"] is not None:
        _check_type(found["agreement"], dict, "report.reward_model.agreement")
    for subject, known in found["calibration"].items():
        where = f"report.reward_model.calibration.{subject}"
        _check_type(known, dict, where)
        if known.get("temperature") is not None or not known.get("no_temperature"):
            _check_type(known.get("temperature"), float, f"{where}.temperature")
        _check_type(known.get("curve_before"), list, f"{where}.curve_before")


def _check_curves(curves: dict[str, Any]) -> None:
    for stage, points in curves.items():
        if stage not in CURVES and not stage.startswith("reward/"):
            raise ValueError(f"report.curves has {stage!r}; it takes {', '.join(CURVES)} and reward/NAME.")
        _check_type(points, list, f"report.curves.{stage}")
        for i, point in enumerate(points):
            where = f"report.curves.{stage}[{i}]"
            _check_type(point, dict, where)
            if "step" not in point:
                raise ValueError(f"{where} has no step.")
            for metric, value in point.items():
                if value is not None:
                    _check_type(value, float, f"{where}.{metric}")


def _check_sample(sample: Any, where: str) -> None:
    if isinstance(sample, dict) and "kind" not in sample:
        raise ValueError(f"{where} lacks kind; write None where the prompt is of no special kind.")
    _check_type(sample, dict, where)
    typed = {key: value for key, value in sample.items() if key != "kind"}
    _check_keys(typed, {"prompt": list, "objective": str, "chosen_by": str, "replies": dict}, where)
    if sample["kind"] is not None:
        _check_type(sample["kind"], str, f"{where}.kind")
    for i, message in enumerate(sample["prompt"]):
        _check_keys(message, {"role": str, "content": str}, f"{where}.prompt[{i}]")
    for subject, reply in sample["replies"].items():
        _check_keys(reply, {"text": str, "scores": dict}, f"{where}.replies.{subject}")
        for judge, score in reply["scores"].items():
            if score is not None:
                _check_type(score, float, f"{where}.replies.{subject}.scores.{judge}")


def _check_counts(counts: Any, where: str) -> None:
    if isinstance(counts, dict):
        for key, inner in counts.items():
            _check_counts(inner, f"{where}.{key}")
    else:
        _check_type(counts, int, where)


def _write(path: Path, text: str) -> None:
    """Write through a temporary file beside `path`, so that a reader never meets half a file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
