"""Several reports on one page: what each run gained over its own start, and what they gained together.

Runs of one recipe that differ by seed are repetitions: their mean gain has an interval from the spread between them
(Student's t), which is wider than that of any one run's prompts, and is the honest one for a method. Runs of other
recipes or methods are pooled apart, and stand side by side (groups.py). Where runs answered the same prompts and know
the same true score, or were scored by the same reward models, they are also rated against each other (Bradley-Terry).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.report import charts
from llm_rlhf.evaluation.report.cautions import cautions, judge_identity
from llm_rlhf.evaluation.report.charts import Mark, Point
from llm_rlhf.evaluation.report.groups import differing, groups_of, repetitions
from llm_rlhf.evaluation.report.headline import headline_of
from llm_rlhf.evaluation.report.measures import (
    MEASURES,
    SPREADS,
    Entry,
    contest,
    find,
    is_difference,
    measure_of,
    split_label,
    with_own,
)
from llm_rlhf.evaluation.report.numbers import (
    NARROW,
    alike,
    interval_text,
    value_text,
)
from llm_rlhf.evaluation.report.page import templates
from llm_rlhf.evaluation.report.schema import check_report
from llm_rlhf.evaluation.report.sides import HARMLESS, HELPFUL, OVER_REFUSAL, OVERALL
from llm_rlhf.evaluation.report.verdict import has_policy, own_verdict
from llm_rlhf.recipe.values import neighbour
from llm_rlhf.run_folder import writable
from llm_rlhf.statistics.clustered import student_quantile
from llm_rlhf.statistics.intervals import Estimate, outcomes
from llm_rlhf.statistics.ratings import bradley_terry

# What a comparison shows, in this order, where it was measured; suites of the user's own between the two.
BY_TRUTH = (
    ("gold_gain", "all"),
    ("gold_helpful_gain", "all"),
    ("gold_harmless_gain", "all"),
)
BY_OTHERS = (
    ("heldout_reward_gain", "all"),
    ("heldout_reward_gain", "helpful"),
    ("heldout_reward_gain", "harmless"),
    ("reward_gain", "all"),
    ("win_rate", "gold"),
    ("win_rate", "heldout_reward"),
    ("length_controlled_win_rate", "heldout_reward"),
    ("win_rate", "judge"),
    ("over_refusal_change", "scary"),
    ("over_refusal_change", "question"),
    ("refusal_harmful_change", "all"),
    ("hhh_accuracy_change", "all"),
    ("token_logprob_change", "all"),
    ("response_length_change", "all"),
    ("response_words_change", "all"),
    ("kl", "all"),
)
SHOWN = (*BY_TRUTH, *BY_OTHERS)
PLANE = (("gold_helpful", "gold_harmless", "all", "all"), ("heldout_reward", "heldout_reward", "helpful", "harmless"))


def compare_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """The table of several runs, as plain values.

    Returns:
        {"runs": [NAME ...], "folders": [...], "headlines": [as in a report ...], "headline": that of the means, None
        where there are several groups, "verdicts": [line ...], "groups": as `groups_of` says, with the "headline" of
        each one's means, "rows": [{"name", "split", "each": [estimate or None ...], "together": the mean of all where
        they are one group, "groups": [mean of each group, None where one run measured it]}],
        "own": {SUITE: as in a report}, "own_verdicts": for each run [{"tone", "text"} of each of its suites],
        "cautions": [sentence ...], "ratings": [...] or None, "summary": [line ...]}.

    Raises:
        RecipeError: where a folder holds no report, or there are fewer than two.
    """
    if len(folders) < 2:
        raise RecipeError(f"compare takes at least two runs; it got {len(folders)}.")
    resolved = [folder.resolve() for folder in folders]
    for folder in folders:
        if resolved.count(folder.resolve()) > 1:
            raise RecipeError(f"{folder} is named twice; a run beside itself is no second one.")
    reports = [read_policy_report(folder) for folder in folders]
    names = _distinct([str(report["run"]["name"]) for report in reports], folders)
    rows: list[dict[str, Any]] = []
    groups = groups_of(reports)
    repeated = [repetitions(group["runs"], reports) for group in groups]
    own = {name: known for report in reports for name, known in report.get("own", {}).items()}
    asked = [(f"{name}_gain", "all") for name in own]
    for name, split in (*BY_TRUTH, *asked, *BY_OTHERS):
        each = [_of_policy(report["estimates"], name, split) for report in reports]
        if any(each):
            of_groups = [_together(name, split, [e for i in runs if (e := each[i])]) for runs in repeated]
            together = of_groups[0] if len(groups) == 1 else None
            levels = [_moved(report["estimates"], name, split) for report in reports]
            row = {"name": name, "split": split, "each": each, "levels": levels}
            rows.append(row | {"together": together, "groups": of_groups})
    if not rows:
        raise RecipeError("The reports have no measure of a policy in common; nothing can be compared.")
    for number, group in enumerate(groups):
        means = [mean for row in rows if (mean := row["groups"][number]) is not None]
        of_group = [reports[i] for i in repeated[number]]
        means += _means_beside(of_group) + _spreads(of_group)
        with alike([entry for row in rows for entry in _entries(row)]):  # as many decimals as in the table below it
            group["headline"] = headline_of(means).as_dict() if len(of_group) > 1 else None
    found: dict[str, Any] = {
        "runs": names,
        "folders": [str(folder) for folder in folders],
        "headlines": [report["headline"] for report in reports],
        "headline": groups[0]["headline"] if len(groups) == 1 else None,
        "groups": groups,
        "verdicts": [report["verdict"][0] for report in reports],
        "alarms": [len(report["alarms"]) for report in reports],
        "rows": rows,
        "own": own,
        "cautions": cautions(reports, names),
        "levels": [_levels(report["estimates"]) for report in reports],
        "ratings": _ratings(folders, reports, names),
    }
    with with_own(own):
        own_gains = [[e for name, split in asked if (e := _of_policy(r["estimates"], name, split))] for r in reports]
        found["own_verdicts"] = [[own_verdict(entry) for entry in of_run] for of_run in own_gains]
        return found | {"summary": _summary(found)}


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
            with alike(_entries(row)):
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


def read_policy_report(folder: Path) -> dict[str, Any]:
    """The report in a run's folder, or in one that `llm-rlhf evaluate` wrote.

    Raises:
        RecipeError: where there is none, or it is none of a policy.
    """
    path = folder / "report.json"
    if not folder.is_dir():
        raise RecipeError(f"There is no folder {folder}.{neighbour(folder)}")
    if not path.is_file():
        raise RecipeError(f"{folder} holds no report.json; run the recipe's evaluation first, or `llm-rlhf evaluate`.")
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        check_report(report)
    except ValueError as error:
        raise RecipeError(f"{path} is no report of this version ({error}); evaluate again.") from None
    if not has_policy(report["estimates"]):
        raise RecipeError(f"The report in {folder} has no policy; what it measured is a reward model alone.")
    return report


def _distinct(names: list[str], folders: Sequence[Path]) -> list[str]:
    """The runs' names; their folders' where those are more telling."""
    if len(set(names)) == len(names):
        return names
    by_folder = [folder.resolve().name for folder in folders]
    return by_folder if len(set(by_folder)) == len(by_folder) else [str(folder) for folder in folders]


def _of_policy(estimates: list[Entry], name: str, split: str) -> Entry | None:
    return find(estimates, name, contest(estimates)[0], [split])


def _moved(estimates: list[Entry], name: str, split: str) -> list[Entry] | None:
    """The levels of the reference and of the policy that a difference is of, where the report has both."""
    level = next((n for n, m in MEASURES.items() if m.difference == name), name.removesuffix("_gain"))
    policy, reference = contest(estimates)
    found = [entry for who in (reference, policy) if (entry := find(estimates, level, who, [split])) is not None]
    return found if len(found) == 2 and level != name else None


def _together(name: str, split: str, entries: list[Entry]) -> Entry | None:
    """The mean of the runs' estimates with Student's interval over runs; None for a single one."""
    values = np.array([entry["estimate"] for entry in entries])
    n = len(values)
    if n < 2:
        return None
    half = student_quantile(n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    mean = float(values.mean())
    method = f"mean of {n} runs, Student's t over runs"
    return Estimate(name, "runs", entries[0]["reference"], split, mean, mean - half, mean + half, n, method).as_dict()


def _means_beside(reports: list[dict[str, Any]]) -> list[Entry]:
    """The means over runs of what a headline goes by and the table does not show."""
    wanted = dict.fromkeys((*OVERALL, *HELPFUL, *HARMLESS, *OVER_REFUSAL))
    found = []
    for name, split in [one for one in wanted if one not in SHOWN]:
        known = [e for report in reports if (e := _of_policy(report["estimates"], name, split)) is not None]
        if (mean := _together(name, split, known)) is not None:
            found.append(mean)
    return found


def _spreads(reports: list[dict[str, Any]]) -> list[Entry]:
    """The mean spread of the starts' scores, the unit of the margins, where every run knows it."""
    found = []
    for name in SPREADS.values():
        for split in ("helpful", "harmless"):
            each = [find(report["estimates"], name, splits=[split]) for report in reports]
            known = [entry for entry in each if entry is not None]
            if len(known) == len(reports):
                mean = float(np.mean([entry["estimate"] for entry in known]))
                found.append({**known[0], "estimate": mean})
    return found


def _levels(estimates: list[Entry]) -> dict[str, Any] | None:
    """Where the policy and its reference stand on the helpful-harmless plane."""
    policy, reference = contest(estimates)
    for x_name, y_name, x_split, y_split in PLANE:
        found = {
            who: (find(estimates, x_name, subject, [x_split]), find(estimates, y_name, subject, [y_split]))
            for who, subject in (("reference", reference), ("policy", policy))
        }
        if all(entry is not None for pair in found.values() for entry in pair):
            return {"measures": [x_name, y_name], **found}
    return None


# ---- ratings -------------------------------------------------------------------------------------------------------


def _ratings(folders: Sequence[Path], reports: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]] | None:
    """Elo of the runs' policies and the first one's reference, where one judge scored replies to the same prompts."""
    replies = [_replies(folder) for folder in folders]
    prompts = [[json.dumps(row["prompt"]) for row in rows] for rows in replies]
    if not prompts[0] or any(other != prompts[0] for other in prompts):
        return None
    contests = [contest(report["estimates"]) for report in reports]
    judge = _common_judge(reports, replies, [who for who, _ in contests])
    if judge is None:
        return None
    start = contests[0][1] + (" (reference)" if contests[0][1] in names else "")
    answers = {start: [row[contests[0][1]] for row in replies[0]]}
    answers |= {name: [row[who] for row in rows] for name, rows, (who, _) in zip(names, replies, contests, strict=True)}
    first, second, won, clusters = [], [], [], []
    players = list(answers)
    for i, one in enumerate(players):
        for other in players[i + 1 :]:
            first += [one] * len(prompts[0])
            second += [other] * len(prompts[0])
            both = list(zip(answers[one], answers[other], strict=True))
            a, b = ([given[judge] for given in answers[who]] for who in (one, other))
            won += outcomes(a, b, [mine["reply"] == its["reply"] for mine, its in both]).tolist()
            clusters += prompts[0]
    table = bradley_terry(first, second, won, players[0], clusters).table
    return [
        {
            "player": rated.player, "judge": judge, "rating": rated.rating._asdict(), "rank": rated.rank,
            "rank_low": rated.rank_low, "rank_high": rated.rank_high, "win_rate": rated.win_rate._asdict(),
        }
        for rated in table
    ]  # fmt: skip


def _replies(folder: Path) -> list[dict[str, Any]]:
    for path in (folder / "replies.jsonl", folder / "evaluate" / "replies.jsonl"):
        if path.is_file():
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return []


def _common_judge(
    reports: list[dict[str, Any]], replies: list[list[dict[str, Any]]], policies: Sequence[str]
) -> str | None:
    """The surest of "gold", "heldout" and "reward" that scored every reply in all reports and is one and the same."""
    for name in ("gold", "heldout", "reward"):
        there = all(name in row[who] for rows, who in zip(replies, policies, strict=True) for row in rows)
        which = [judge_identity(report, name) for report in reports]
        if there and (name == "gold" or (which[0] is not None and which.count(which[0]) == len(which))):
            return name
    return None


# ---- the page ------------------------------------------------------------------------------------------------------


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
    moved = dict(zip(runs, row["levels"], strict=True))
    for run, entry in entries:
        if entry is None:
            shown.append({"run": run, "mark": None, "text": "not measured", "interval": "", "n": None, "levels": ""})
            continue
        kind = "policy" if run == "all runs" or run.startswith("mean: ") else "other"
        label = f"{run}: {value_text(entry)} {interval_text(entry)}"
        mark = Mark(kind, label, entry["estimate"], entry["low"], entry["high"])
        levels = " to ".join(value_text(level) for level in moved.get(run) or [])
        numbers = {"text": value_text(entry), "interval": interval_text(entry), "n": entry["n"], "levels": levels}
        shown.append({"run": run, "mark": mark, **numbers})
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


def _entries(row: dict[str, Any]) -> list[Entry]:
    """All that stands in a row of the table: of every run, and the mean of every group."""
    return [entry for entry in (*row["each"], *row["groups"]) if entry is not None]


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


def _summary(found: dict[str, Any]) -> list[str]:
    """Every run's headline, then the table in words, a line for each of the first measures."""
    lines = [f"{run}: {head['text']}" for run, head in zip(found["runs"], found["headlines"], strict=True)]
    if found["headline"] is not None:
        lines.append(f"all runs together: {found['headline']['text']}")
    elif len(found["groups"]) > 1:
        lines += _group_lines(found)
    for row in found["rows"][:6]:
        with alike(_entries(row)):
            lines.append(_row_line(row, found["groups"]))
    return lines


def _row_line(row: dict[str, Any], groups: list[dict[str, Any]]) -> str:
    each = ", ".join("-" if entry is None else value_text(entry) for entry in row["each"])
    where = "" if row["split"] == "all" else f" ({split_label(row['split'])})"
    line = f"{measure_of(row['name']).label}{where}: {each}"
    if row["together"] is not None:
        together = row["together"]
        return f"{line}; together {value_text(together)} {interval_text(together)} (95{NARROW}%, over runs)"
    for group, mean in zip(groups, row["groups"], strict=True):
        if mean is not None:
            line += f"; {group['name']} {value_text(mean)} {interval_text(mean)} (95{NARROW}%, over runs)"
    return line


def _group_lines(found: dict[str, Any]) -> list[str]:
    """Where recipes differ, so that their runs are not pooled: a line for each group, then one for each key."""
    lines = [f"{len(found['groups'])} recipes, pooled apart:"]
    for group in found["groups"]:
        named = ", ".join(found["runs"][i] for i in group["runs"])
        took = "" if group["seconds"] is None else f", {group['seconds']:.0f} s"
        said = "" if group["headline"] is None else f": {group['headline']['text']}"
        lines.append(f"  {group['name']} ({named}; {group['budget']}{took}){said}")
    return lines + [f"  differs: {line}" for line in differing(found["groups"])]
