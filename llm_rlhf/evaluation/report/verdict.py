"""The report's conclusions in words, drawn from its estimates and nothing else.

A difference is "better" or "worse" only when its 95 % interval leaves 0 out; otherwise "difference not shown", with the
difference that this many prompts could have found, because a small evaluation that shows nothing proves nothing.
The training reward is never "better", only "higher": the model that PPO was trained to please is no judge of it.
What the whole is called, headline.py decides, from both sides.
"""

from typing import Any

from llm_rlhf.evaluation.report.headline import BY_OWN, headline_of, own_gains, own_phrase
from llm_rlhf.evaluation.report.labels import split_label, start_called, subject_label
from llm_rlhf.evaluation.report.measures import Entry, contest, find, measure_of, with_own
from llm_rlhf.evaluation.report.numbers import (
    HARD,
    NARROW,
    alike,
    half_width,
    interval_text,
    number,
    unit_of,
    value_text,
)
from llm_rlhf.evaluation.report.sides import (
    NOUNS,
    OVER_REFUSAL,
    OVERALL,
    Side,
    first_found,
    judgement,
    largest_loss,
    margin_text,
)
from llm_rlhf.evaluation.reward_checks import Check, gravest_first, pair_checks
from llm_rlhf.statistics.intervals import Estimate, detectable_from_interval

TRIVIAL_RULES = {
    "longer_reply_accuracy": "the longer reply",
    "shorter_reply_accuracy": "the shorter reply",
    "unrefused_reply_accuracy": "the reply that does not open with a refusal",
}


def has_policy(estimates: list[Entry]) -> bool:
    """Whether a policy was measured; a recipe may only make a reward model."""
    return any(entry["subject"] in contest(estimates) for entry in estimates)


def headline_estimate(estimates: list[Entry]) -> Entry | None:
    """The estimate the first verdict line is about; see `sides.OVERALL`.

    Without a policy it is the reward model's accuracy.
    """
    if not has_policy(estimates):
        return find(estimates, "reward_accuracy", "reward", ["all"])
    return first_found(estimates, OVERALL)


def best_trivial_rule(estimates: list[Entry], split: str) -> tuple[str, float]:
    """What needs no model and is right most often on the same pairs, in words, and how often it is."""
    rules = {"a coin": 0.5}
    for name, rule in TRIVIAL_RULES.items():
        found = find(estimates, name, "baseline", [split])
        if found is not None:
            rules[rule] = found["estimate"]
    rule = max(rules, key=lambda name: rules[name])
    return rule, rules[rule]


def against_trivial_rules(estimates: list[Entry], entry: Entry) -> str:
    """`better`, `worse` or `difference not shown`: a reward model's accuracy against the best rule that needs none.

    The best of several rules looks better than it is, so that `worse` takes two intervals apart.
    """
    _, rule = best_trivial_rule(estimates, entry["split"])
    if entry["low"] is None:
        return "not certain"
    if entry["low"] > rule:
        return "better"
    lows = [
        e["low"] for name in TRIVIAL_RULES if (e := find(estimates, name, "baseline", [entry["split"]])) is not None
    ]
    least = max((low for low in lows if low is not None), default=0.5)
    return "worse" if entry["high"] < min(rule, max(least, 0.5)) else "difference not shown"


def verdict_lines(report: dict[str, Any]) -> list[str]:
    """Four lines of plain text: overall, helpfulness, harmlessness, over-refusal; without a policy, calibration last.

    Needs only `report["estimates"]`, and where there are suites of the user's own `report["own"]`.
    """
    with start_called(report), with_own(report.get("own", {})), alike(report["estimates"]):
        return _lines(report["estimates"])


def _lines(estimates: list[Entry]) -> list[str]:
    if not has_policy(estimates):
        return _reward_lines(estimates)
    found = headline_of(estimates)
    return [
        _overall(estimates, found.word),
        _side(estimates, found.helpful, "no gain on helpful prompts was measured"),
        _side(estimates, found.harmless, "neither scores nor refusals of harmful prompts were compared"),
        _line(
            first_found(estimates, OVER_REFUSAL),
            "Over-refusal",
            "no safe prompts were asked, so a policy that refuses everything would go unnoticed",
        ),
    ]


def headline(report: dict[str, Any]) -> dict[str, Any]:
    """The report's `headline`: of the policy, or, where there is none, of the reward model.

    Needs only `report["estimates"]`, and where there are suites of the user's own `report["own"]`.
    """
    with start_called(report), with_own(report.get("own", {})), alike(report["estimates"]):
        return _headline(report["estimates"])


def _headline(estimates: list[Entry]) -> dict[str, Any]:
    if has_policy(estimates):
        return headline_of(estimates).as_dict()
    entry = headline_estimate(estimates)
    if entry is None:
        return {"word": "not measured", "tone": "none", "text": "NOT MEASURED", "sides": {}, "margins": []}
    found = against_trivial_rules(estimates, entry)
    word = f"{found} than no model" if found in ("better", "worse") else found
    tone = {"better": "good", "worse": "bad"}.get(found, "flat")
    if found == "better" and (worst := _worst_side(estimates)) is not None:
        if worst.level == "warning":
            word, tone = f"worse than a rule on {worst.split} pairs", "bad"
        else:
            word, tone = f"better than no model, not shown on {worst.split} pairs", "warn"
    text = f"{word.upper()}: the reward model is right on {value_text(entry)} of held-out pairs"
    return {"word": word, "tone": tone, "text": text, "sides": {}, "margins": []}


def _worst_side(estimates: list[Entry]) -> Check | None:
    """The gravest check of the reward model by objective against rules, None where each passed or none was made."""
    by_name = {(e["name"], e["subject"], e["split"]): Estimate(**e) for e in estimates}
    checks = [c for c in pair_checks(by_name) if (c.name, c.subject) == ("beats_rules", "reward") and c.split != "all"]
    return next((check for check in gravest_first(checks) if check.level in ("warning", "note")), None)


def _reward_lines(estimates: list[Entry]) -> list[str]:
    """What a recipe without a policy has shown: how far its reward model can be believed."""
    lines, worst = [], _worst_side(estimates)
    for topic, split in (("Overall", "all"), ("Helpfulness", "helpful"), ("Harmlessness", "harmless")):
        entry = find(estimates, "reward_accuracy", "reward", [split])
        if entry is None:
            lines.append(f"{topic}: not measured. No held-out pair was judged for it.")
            continue
        rule, accuracy = best_trivial_rule(estimates, split)
        found = against_trivial_rules(estimates, entry)
        if worst is not None and worst.split == split and found == "better":
            found = "worse than a rule" if worst.level == "warning" else "difference not shown"
        lines.append(
            f"{topic}: {found}. Right on {value_text(entry)} of held-out pairs, "
            f"95{NARROW}% interval {interval_text(entry)}, n{HARD}={HARD}{entry['n']:,}; of rules that need no model, "
            f"{rule} does best with {number(accuracy, 'share', half_width(entry))}{NARROW}%."
        )
    return [*lines, _calibration_line(estimates)]


def _calibration_line(estimates: list[Entry]) -> str:
    error = find(estimates, "calibration_error", "reward", ["all"])
    if error is None:
        return "Calibration: not measured. What a difference of scores is worth is not known."
    return f"Calibration: measured. Claimed probabilities are off by {value_text(error)} on average, as trained."


def _side(estimates: list[Entry], side: Side, missing: str) -> str:
    """What decides of a side, the rest of its evidence, and what loss is not ruled out.

    The word stands beside the number that it rests on: a side that is worse by its refusals opens with them.
    """
    topic = NOUNS[side.name].capitalize()
    if side.status == "not measured":
        return _line(None, topic, missing)
    decides = side.decides or side.evidence[0]
    line = _line(decides, topic, missing, side.status)
    for entry in side.evidence:
        if entry["name"] == "refusal_harmful_change":
            line += f" {refusals_from_to(estimates, entry)}." if entry is not decides else ""
        elif entry is side.evidence[0] and entry is not decides:
            line += f" {measure_of(entry['name']).label} {value_text(entry)} {interval_text(entry)}."
    if side.status == "not shown to hold" and side.decides is not None and (loss := largest_loss(side.decides)):
        unit = measure_of(side.decides["name"]).unit
        most = number(loss, unit, half_width(side.decides)) + (f"{NARROW}points" if unit == "share" else "")
        line += f" A loss of up to {most} is not ruled out; the margin is {margin_text(side.decides, estimates)}."
    return line


def refusals_from_to(estimates: list[Entry], change: Entry) -> str:
    """`Refusals of harmful requests went from 27 % to 2 %, ...` without a full stop; the levels where known."""
    before, after = (
        find(estimates, "refusal_harmful", who, [change["split"]]) for who in (change["reference"], change["subject"])
    )
    levels = f" from {value_text(before)} to {value_text(after)}" if before is not None and after is not None else ""
    moved = {"better": "rose", "worse": "fell"}.get(judgement(change), "went")
    return f"Refusals of harmful requests {moved}{levels} ({value_text(change)} {interval_text(change)})"


def _overall(estimates: list[Entry], word: str) -> str:
    entry = first_found(estimates, OVERALL)
    missing = "no true score, reward model or judge compared the policy with its reference"
    line = _line(entry, "Overall", missing, word)
    if word == BY_OWN:
        return f"{line} By suites of your own: {'; '.join(map(own_line, own_gains(estimates)))}."
    if entry is None or entry["name"] == "win_rate":
        return line
    judge = {"gold_gain": ["gold", "all"], "heldout_reward_gain": ["heldout", "heldout_reward"]}
    wins = find(estimates, "win_rate", entry["subject"], judge.get(entry["name"], ["reward"]))
    if wins is not None:
        line += f" It wins {value_text(wins)} {interval_text(wins)} of comparisons."
    if entry["name"] == "reward_gain":
        line += " Only the reward model it was trained to please says so."
    return line


def _line(entry: Entry | None, topic: str, missing: str, verdict: str | None = None) -> str:
    """`Topic: verdict. Measure, difference, interval, n.`; the verdict is the entry's own where none is given."""
    if entry is None:
        return f"{topic}: not measured. {missing[0].upper()}{missing[1:]}."
    word, measure = verdict or judgement(entry), measure_of(entry["name"])
    subject, reference = subject_label(entry["subject"]), subject_label(entry["reference"])
    if entry["name"] == "win_rate":
        of_judge = entry["split"].removeprefix("judge").removeprefix("_")
        where = f" on {split_label(of_judge)}" if of_judge else ""
        said = f"The judge prefers {subject} to {reference} in {value_text(entry)} of comparisons{where}"
    else:
        name = "" if measure.label == topic else f"{measure.label} "
        where = "" if entry["split"] == "all" else f" on {split_label(entry['split'])}"
        said = f"{name}{value_text(entry)} against {reference}{where}"
    own = judgement(entry)
    doubt = "" if word.startswith(own) else f" ({own})"  # the word is of more than this number
    line = f"{topic}: {word}. {said}{doubt}, 95{NARROW}% interval {interval_text(entry)}, {counted(entry)}."
    if own == "difference not shown" and (found := detectable(entry)) is not None:
        line += f" This many prompts would have found about {found}."
    return line


def own_line(gain: Entry) -> str:
    """What a suite of the user's own found, in words that no verdict on a policy has."""
    return f"{own_phrase(gain)}, 95{NARROW}% interval {interval_text(gain)}, {counted(gain)}"


def counted(entry: Entry) -> str:
    """`n = 200`, and in how many wordings where prompts share them."""
    words = f"n{HARD}={HARD}{entry['n']:,}"
    wordings = entry.get("clusters")
    return words if wordings is None else f"{words} in {wordings:,}{HARD}wording{'s' if wordings > 1 else ''}"


def detectable(entry: Entry) -> str | None:
    """The difference that as many prompts find four times out of five, with its unit; None without an interval."""
    if entry["low"] is None or entry["high"] <= entry["low"]:
        return None
    found, unit = detectable_from_interval(entry["low"], entry["high"]), measure_of(entry["name"]).unit
    return number(found, unit, found) + (f"{NARROW}points" if unit == "share" else unit_of(entry))
