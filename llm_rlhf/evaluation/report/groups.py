"""Which of several runs repeat one another: the same recipe up to its seed. Only those are pooled.

Runs of one recipe differ by what was drawn, so that their spread says how sure its mean is. Runs that differ by a
method or a key are not repetitions; they stand side by side, each group with its mean, its time and its budget.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from llm_rlhf.evaluation.report.cautions import policy_weights
from llm_rlhf.methods.prompts import number_kept_back
from llm_rlhf.recipe.sections import METHODS, BestOfNOptions, Source

# What repetitions may differ by: names, the draw, and what decides no number.
NAMES_AND_DRAWS = ("name", "output_dir", "seed", "model.chat_template_date", "report_to", "gate")
NAMED_KEYS = 3  # differing keys in a group's name; all of them are listed beside
USUAL = {name: value for name, value in dataclasses.asdict(Source()).items() if value is not None}


def groups_of(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups in order of their first runs.

    Returns:
        {"name", "method": its section or None, "runs": numbers of its runs, "seconds": mean of the stage that made the
        policy, or None where that is not recorded, "budget": what it learned from, in words, "differs": {KEY: value as
        text}, "by_hand": whether `llm-rlhf evaluate` made the report, which knows options and no recipe} each.
    """
    recipes = [flat(report["provenance"]["recipe"]) for report in reports]
    distinct: list[dict[str, Any]] = []
    members: list[list[int]] = []
    for number, recipe in enumerate(recipes):
        if recipe not in distinct:
            distinct.append(recipe)
            members.append([])
        members[distinct.index(recipe)].append(number)
    by_hand = [isinstance(reports[runs[0]]["provenance"]["recipe"].get("policy"), dict) for runs in members]
    keys: dict[bool, list[str]] = {}  # options of an evaluation are no keys of a recipe
    for kind in set(by_hand):
        comparable = [recipe for recipe, of in zip(distinct, by_hand, strict=True) if of == kind]
        named = dict.fromkeys(key for recipe in comparable for key in recipe)
        keys[kind] = [key for key in named if _differs(key, comparable)]
    methods = [_method(recipe) for recipe in distinct]
    groups = []
    for recipe, runs, method, kind in zip(distinct, members, methods, by_hand, strict=True):
        own = [key for key in keys[kind] if key in recipe and not key.startswith(("policy.", "reference."))]
        like = zip(distinct, methods, by_hand, strict=True)
        alike = [other for other, *of in like if of == [method, kind]]
        telling = [f"{key}={_said(recipe[key])}" for key in own if _differs(key, alike)]
        run = str(reports[runs[0]]["run"]["name"])
        if len(telling) > NAMED_KEYS and run not in [reports[of[0]]["run"]["name"] for of in members if of != runs]:
            telling = [run]  # the first three of many keys would say less
        called = METHODS.get(method or "", run)
        seconds = [known for i in runs if (known := reports[i]["run"]["seconds"].get(method)) is not None]
        groups.append(
            {
                "name": ", ".join([called, *telling[:NAMED_KEYS]]),
                "method": method,
                "runs": runs,
                "seconds": sum(seconds) / len(seconds) if seconds else None,
                "budget": budget(recipe, method, reports[runs[0]]),
                "differs": {key: _said(recipe[key]) for key in own},
                "by_hand": kind,
            }
        )
    return groups


def repetitions(runs: Sequence[int], reports: Sequence[dict[str, Any]]) -> list[int]:
    """Those of a group's runs that are pooled: of several reports of one and the same policy, the first."""
    weights = [policy_weights(report) for report in reports]
    return [i for n, i in enumerate(runs) if not weights[i] or weights[i] not in [weights[j] for j in runs[:n]]]


def same_seeds(one: Sequence[int], other: Sequence[int], reports: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """Pairs of a run of one group and a run of another with the same seed, where each group has it once."""

    def by_seed(runs: Sequence[int]) -> dict[Any, int]:
        seeds = [reports[i]["provenance"]["recipe"].get("seed") for i in runs]
        return {seed: i for seed, i in zip(seeds, runs, strict=True) if seed is not None and seeds.count(seed) == 1}

    first, second = by_seed(one), by_seed(other)
    return [(first[seed], second[seed]) for seed in first if seed in second]


def differing(groups: Sequence[dict[str, Any]]) -> list[str]:
    """Where the groups' recipes differ: a line for each key with its values, then one for each method's section."""
    lines: list[str] = []
    sections: dict[str, list[str]] = {}
    for key, by_hand in dict.fromkeys((key, group["by_hand"]) for group in groups for key in group["differs"]):
        section, dot, name = key.partition(".")
        of_method = bool(dot) and section in METHODS
        of = [group for group in groups if group["by_hand"] == by_hand]
        of = [group for group in of if group["method"] == section] if of_method else of
        values = [group["differs"].get(key, "not set") for group in of]
        if of_method and len(set(values)) == 1:
            sections.setdefault(section, []).append(f"{name}={values[0]}")
        else:
            lines.append(f"{key}: {' | '.join(values)}")
    lines += [f"{section}: {', '.join(known)}" for section, known in sections.items()]
    hands = [group["name"] for group in groups if group["by_hand"]]
    if hands and len(hands) < len(groups):
        lines.append(f"evaluated by hand, so that no recipe is known: {'; '.join(hands)}")
    return lines


def flat(recipe: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Its keys in full, less those of the name and the draw; a key without a value is not there."""
    found: dict[str, Any] = {}
    for name, value in recipe.items():
        key = f"{prefix}{name}"
        if key in NAMES_AND_DRAWS:
            continue
        if isinstance(value, dict):
            found |= flat(value, f"{key}.") or ({key: {}} if not prefix else {})
        elif value is not None:
            found[key] = value
    return found


def _said(value: Any) -> str:
    """A key's value as text; of sources what is not the default."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return str(value)
    own = [
        {key: known for key, known in item.items() if known is not None and USUAL.get(key) != known} for item in value
    ]
    return ", ".join(" ".join(f"{key}={known}" for key, known in item.items()) for item in own) or "none"


def budget(recipe: dict[str, Any], method: str | None, report: dict[str, Any]) -> str:
    """What the policy learned from, in words, as far as the recipe and the report say it."""
    if (episodes := recipe.get(f"{method}.total_episodes")) is not None:
        return f"{episodes:,} replies sampled"
    lengths = report["data"].get(f"lengths in {method}") or {}
    kept = {name: counts["kept"] for name, counts in lengths.items()}
    learnt = {"pairs": kept.get("pairs", 0), "ratings": kept.get("good ratings", 0) + kept.get("bad ratings", 0)}
    if any(learnt.values()):
        epochs = recipe.get(f"{method}.num_train_epochs", 3)  # as transformers has it
        steps = recipe.get(f"{method}.max_steps", -1)
        return " and ".join(f"{count:,} {what}" for what, count in learnt.items() if count) + (
            f", {steps:,} steps" if steps > 0 else ", once each" if epochs == 1 else f", {epochs:g} times each"
        )
    if method == "best_of_n" and (prompts := lengths.get("prompts")):
        known = {name: recipe.get(f"best_of_n.{name}") for name in ("n", "prompts", "eval_prompts")}
        options = BestOfNOptions(**{name: value for name, value in known.items() if value is not None})
        there = prompts["kept"] - number_kept_back(prompts["kept"], options.eval_prompts)
        count = min(there, options.prompts or there)
        return f"{count * options.n:,} replies sampled, {options.n} to a prompt"
    return "not recorded"


def _method(recipe: dict[str, Any]) -> str | None:
    sections = (name for name in METHODS if recipe.get(name) == {} or any(key.startswith(f"{name}.") for key in recipe))
    return next(sections, None)


def _differs(key: str, recipes: Sequence[dict[str, Any]]) -> bool:
    return any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)
