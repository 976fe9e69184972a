"""What a report's numbers say against the reward model, each fault with the recipe key that answers it."""

from llm_rlhf.evaluation.report.findings import Known, Step, said
from llm_rlhf.evaluation.reward_checks import OVER, RULES, Check, pair_checks
from llm_rlhf.ppo.preview import worsened
from llm_rlhf.statistics.intervals import Estimate


def pays_against(known: Known) -> list[Step]:
    """Before training, the replies that the training reward likes best were bad for a side."""
    foreseen = known.report.get("watch", {}).get("preview")
    return [
        Step(
            "pays_against",
            f"The training reward pays against the {side} side: of {foreseen['n']} replies of the start it likes the "
            "worse ones best.",
            f"Give it more {side} pairs ({known.rows('preferences')}), or {known.hold}.",
        )
        for side in (worsened(foreseen) if foreseen else [])
    ]


def _checks(known: Known, name: str) -> list[Check]:
    found = {(e["name"], e["subject"], e["split"]): Estimate(**e) for e in known.estimates}
    return [check for check in pair_checks(found) if (check.name, check.subject) == (name, "reward")]


def weak_reward(known: Known) -> list[Step]:
    told = _worst(known, "warning", by="high")
    if told is None:
        return []
    where, rule, over, remedy = told
    return [Step("weak_reward", f"On {where} the reward model is right less often than {rule} ({over}).", remedy)]


def unproven_reward(known: Known) -> list[Step]:
    told = _worst(known, "note", by="low")
    if told is None:
        return []
    where, rule, over, remedy = told
    return [Step("unproven_reward", f"On {where} the reward model is not shown to beat {rule} ({over}).", remedy)]


def _worst(known: Known, level: str, by: str) -> tuple[str, str, str, str] | None:
    """Of the gravest check of this level: on which pairs, against which rule, by how much, and what answers it.

    Args:
        by: the end of the interval by which the rule that is least beaten is found.
    """
    check = next((check for check in _checks(known, "beats_rules") if check.level == level), None)
    if check is None:
        return None
    bounded = {rule: over for rule, over in check.numbers.items() if over[by] is not None}
    rule = min(bounded, key=lambda rule: float(bounded[rule][by]))
    kind = "" if check.split == "all" else f"{check.split} "
    remedy = f"Give it more {kind}pairs ({known.rows('preferences')}), or train it longer (reward.num_train_epochs)."
    if (known.recipe.get("reward") or {}).get("model"):
        remedy = "Name another reward.model, or train one of your own on such pairs."
    over = said({**bounded[rule], "name": f"{OVER}{rule}"})
    return f"{kind or 'held-out '}pairs", RULES[rule], over, remedy


def follows_length(known: Known) -> list[Step]:
    steps = []
    for check in _checks(known, "sees_past_length"):
        if check.level in ("warning", "note"):
            found = check.numbers[check.about]
            favoured, other = ("longer", "shorter") if found["estimate"] > 0 else ("shorter", "longer")
            by = said({**found, "name": f"{check.about.removesuffix('s')}_length_correlation"})
            steps.append(
                Step(
                    "follows_length",
                    f"The reward model likes {favoured} replies: its {check.about} and lengths correlate by {by}.",
                    f"Set reward.length_control: residual, or add pairs whose better reply is the {other} one.",
                )
            )
    return steps
