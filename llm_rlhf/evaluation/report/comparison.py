"""Several reports on one page: what each run gained over its own start, and what they gained together.

Runs of one recipe that differ by seed are repetitions: their mean gain has an interval from the spread between them
(Student's t). Where they answered the same prompts, what these prompts make of a gain is in all of them and not in that
spread: the interval is then at least as wide as that of a run's own prompts, on the average of the runs. Runs of other
recipes or methods are pooled apart, and stand side by side (groups.py). Where runs answered the same prompts and know
the same true score, or were scored by the same reward models, they are also rated against each other (Bradley-Terry).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.report.cautions import cautions, judge_identity
from llm_rlhf.evaluation.report.groups import groups_of, repetitions, same_seeds
from llm_rlhf.evaluation.report.headline import BY_OWN, headline_of, own_gains
from llm_rlhf.evaluation.report.measures import MEASURES, SPREADS, Entry, contest, find, is_difference, with_own
from llm_rlhf.evaluation.report.numbers import alike
from llm_rlhf.evaluation.report.schema import check_report
from llm_rlhf.evaluation.report.side_by_side import entries_of, summary
from llm_rlhf.evaluation.report.sides import HARMLESS, HELPFUL, OVER_REFUSAL, OVERALL
from llm_rlhf.evaluation.report.verdict import has_policy, own_line
from llm_rlhf.json_lines import parse_json, read_json_lines
from llm_rlhf.recipe.values import neighbour
from llm_rlhf.statistics.clustered import student_quantile
from llm_rlhf.statistics.intervals import Estimate, all_equal, outcomes
from llm_rlhf.statistics.ratings import bradley_terry
from llm_rlhf.unchanged import check_report_unchanged

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
        each one's means, how many of its runs have "alarms", and the mean "level" of starts and policies, "rows":
        [{"name", "split", "each": [estimate or None ...], "moved": of each run what the reference and the policy had,
        or None, "together": the mean of all where they are one group, "groups": [mean of each group, None where one
        run measured it], "less_first": [each group's gain less the first one's, of runs of one seed, or None]}],
        "own": {SUITE: as in a report}, "own_lines": for each run what its own suites found, as far as its headline
        does not say it, "cautions": [sentence ...], "ratings": [...] or None, "summary": [line ...]}.

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
    paired = [[], *(same_seeds(repeated[0], runs, reports) for runs in repeated[1:])]
    replies = [_replies(folder) for folder in folders]
    prompts = [[json.dumps(row["prompt"]) for row in rows] for rows in replies]
    shared = [len(runs) > 1 and all(prompts[i] and prompts[i] == prompts[runs[0]] for i in runs) for runs in repeated]
    own = {name: known for report in reports for name, known in report.get("own", {}).items()}
    asked = [(f"{name}_gain", "all") for name in own]
    for name, split in (*BY_TRUTH, *asked, *BY_OTHERS):
        each = [_of_policy(report["estimates"], name, split) for report in reports]
        if any(each):
            of_groups = [
                _together(name, split, [e for i in runs if (e := each[i])], alike_asked)
                for runs, alike_asked in zip(repeated, shared, strict=True)
            ]
            rows.append(
                {
                    "name": name,
                    "split": split,
                    "each": each,
                    "moved": [_moved(report["estimates"], name, split) for report in reports],
                    "together": of_groups[0] if len(groups) == 1 else None,
                    "groups": of_groups,
                    "less_first": [_less_first(name, split, each, pairs) for pairs in paired],
                }
            )
    if not rows:
        raise RecipeError("The reports have no measure of a policy in common; nothing can be compared.")
    for number, group in enumerate(groups):
        means = [mean for row in rows if (mean := row["groups"][number]) is not None]
        of_group = [reports[i] for i in repeated[number]]
        means += _means_beside(of_group, shared[number]) + _spreads(of_group)
        # As many decimals as in the table below it.
        with with_own(own), alike([entry for row in rows for entry in entries_of(row)]):
            group["headline"] = headline_of(means).as_dict() if len(of_group) > 1 else None
        group["alarms"] = sum(bool(reports[i]["alarms"]) for i in group["runs"])
        group["level"] = _mean_level([_levels(report["estimates"]) for report in of_group], shared[number])
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
        "ratings": _ratings(replies, prompts, reports, names),
    }
    with with_own(own):
        found["own_lines"] = [
            [] if report["headline"]["word"] == BY_OWN else list(map(own_line, own_gains(report["estimates"])))
            for report in reports
        ]
        return found | {"summary": summary(found)}


def read_policy_report(folder: Path) -> dict[str, Any]:
    """The report in a run's folder, or in one that `llm-rlhf evaluate` wrote.

    Raises:
        RecipeError: where there is none, or it is none of a policy.
        RunFolderError: where it is not what the run's evaluation wrote.
    """
    path = folder / "report.json"
    if not folder.is_dir():
        raise RecipeError(f"There is no folder {folder}.{neighbour(folder)}")
    if not path.is_file():
        raise RecipeError(f"{folder} holds no report.json; run the recipe's evaluation first, or `llm-rlhf evaluate`.")
    check_report_unchanged(folder)
    try:
        report: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
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


def _together(name: str, split: str, entries: list[Entry], same_prompts: bool) -> Entry | None:
    """The mean of the runs' estimates with Student's interval over runs; None for a single one.

    Equal numbers, as of one refusal of fifty in every run, do not show how far others lie: their interval, too, is
    what a run's own is on average, and none where no run has one.

    Args:
        same_prompts: whether all were asked the same, so that a mean over runs knows no more of other prompts than one.
    """
    if len(entries) < 2:
        return None
    values = [float(entry["estimate"]) for entry in entries]
    method = f"mean of {len(values)} runs, Student's t over runs"
    found = _over_runs(name, split, entries[0]["reference"], values, method)
    known = [entry for entry in entries if entry["low"] is not None]
    if not known or (not same_prompts and found["low"] is not None):
        return found
    below, above = (float(np.mean([abs(e[end] - e["estimate"]) for e in known])) for end in ("low", "high"))
    mean = found["estimate"]
    low, high = (mean if found[end] is None else found[end] for end in ("low", "high"))
    low, high = min(low, mean - below), max(high, mean + above)
    return found | {"low": low, "high": high, "method": f"{method}, at least as wide as a run's own"}


def _less_first(name: str, split: str, each: Sequence[Entry | None], pairs: Sequence[tuple[int, int]]) -> Entry | None:
    """A group's gain less the first one's: the mean over pairs of runs of one seed, which share what the seed drew.

    Args:
        pairs: numbers of a run of the first group and of one of the other.
    """
    known = [(first, other) for i, j in pairs if (first := each[i]) is not None and (other := each[j]) is not None]
    if len(known) < 2 or not is_difference({"name": name}):
        return None
    values = [float(other["estimate"] - first["estimate"]) for first, other in known]
    method = f"mean difference of {len(values)} pairs of runs of one seed, Student's t over pairs"
    return _over_runs(name, split, "the first recipe's runs", values, method)


def _over_runs(name: str, split: str, reference: str | None, values: list[float], method: str) -> Entry:
    n, mean = len(values), float(np.mean(values))
    half = student_quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    if all_equal(np.array(values), of=np.abs(values).max()):
        return Estimate(name, "runs", reference, split, mean, None, None, n, f"{method}; all are equal").as_dict()
    return Estimate(name, "runs", reference, split, mean, mean - half, mean + half, n, method).as_dict()


def _means_beside(reports: list[dict[str, Any]], same_prompts: bool) -> list[Entry]:
    """The means over runs of what a headline goes by and the table does not show."""
    wanted = dict.fromkeys((*OVERALL, *HELPFUL, *HARMLESS, *OVER_REFUSAL))
    found = []
    for name, split in [one for one in wanted if one not in SHOWN]:
        known = [e for report in reports if (e := _of_policy(report["estimates"], name, split)) is not None]
        if (mean := _together(name, split, known, same_prompts)) is not None:
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


def _mean_level(levels: Sequence[dict[str, Any] | None], same_prompts: bool) -> dict[str, Any] | None:
    """The mean over runs of where policies and references stand; None where a run does not know, or there is one."""
    known = [level for level in levels if level is not None]
    if len(known) < max(len(levels), 2):
        return None
    return {
        "measures": known[0]["measures"],
        **{
            who: tuple(
                _together(str(entry["name"]), str(entry["split"]), [level[who][axis] for level in known], same_prompts)
                for axis, entry in enumerate(known[0][who])
            )
            for who in ("reference", "policy")
        },
    }


# ---- ratings -------------------------------------------------------------------------------------------------------


def _ratings(
    replies: list[list[dict[str, Any]]], prompts: list[list[str]], reports: list[dict[str, Any]], names: list[str]
) -> list[dict[str, Any]] | None:
    """Elo of the runs' policies and the first one's reference, where one judge scored replies to the same prompts."""
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
            return read_json_lines(path)
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
