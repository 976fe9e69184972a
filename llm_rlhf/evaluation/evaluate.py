"""`llm-rlhf evaluate`: any policy against any reference, with any judges, on one page.

1. The policies answer the prompts, those of the user's own suites too, and read given replies (ask.py).
2. Reward models score the replies, and a judge, where one is named, compares them in both orders.
3. Functions of the user's give each reply to their prompts a number.
4. The estimates, alarms and samples are those of a run's own report.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_rlhf.data.big_bench import load_comparisons
from llm_rlhf.data.checks import prompt_share, write_quarantine
from llm_rlhf.data.rows import Prompt
from llm_rlhf.data.sources import load_prompts
from llm_rlhf.data.splits import seen_in_training
from llm_rlhf.data.storage import Rows
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.evaluation import refusal_detector
from llm_rlhf.evaluation.answers import Answers, of_a_world, write_replies
from llm_rlhf.evaluation.ask import OWN, REFUSALS, Evaluation, Found, Material, ask, same_tokens
from llm_rlhf.evaluation.judges import Comparisons
from llm_rlhf.evaluation.judges.naming import check_judge, judge_of, judge_record, judge_replies, judged_estimates
from llm_rlhf.evaluation.report.alarms import account_lines
from llm_rlhf.evaluation.report.assembly import assemble
from llm_rlhf.evaluation.report.samples import choose_samples
from llm_rlhf.evaluation.report.schema import write_report
from llm_rlhf.evaluation.reward_gates import report_lines
from llm_rlhf.evaluation.rewards import (
    ROLES,
    Rewards,
    archive_report,
    check_output,
    load_pairs,
    of_the_run,
    preferences,
    score,
)
from llm_rlhf.evaluation.suites import refusals as refusal_suite
from llm_rlhf.evaluation.suites.gains import compare
from llm_rlhf.evaluation.suites.hhh import hhh_estimates
from llm_rlhf.evaluation.suites.own import (
    Scored,
    score_replies,
    suite_estimates,
    suite_function,
    suite_prompts,
    suite_record,
    write_suite_replies,
)
from llm_rlhf.evaluation.suites.perplexity import demonstrations_of, perplexity_estimates
from llm_rlhf.launch import processes
from llm_rlhf.recipe.sections import OwnSuite, Recipe
from llm_rlhf.recipe.values import plain
from llm_rlhf.run_folder import RunFolder, write_json
from llm_rlhf.runs import splits
from llm_rlhf.statistics.intervals import Estimate


def evaluate(asked: Evaluation) -> dict[str, Any]:
    """Ask, judge, compare, and write report.html, report.md, report.json and replies.jsonl; returns the report.

    Raises:
        RecipeError, DataError: where it cannot be done as asked.
    """
    started = time.time()
    if asked.policy.name == asked.reference.name:
        raise RecipeError(
            f"The policy and its reference are both called {asked.policy.name!r}; name them: NAME={asked.policy.name}."
        )
    recipe = asked.recipe
    names = (asked.policy.name, asked.reference.name)
    rewards = Rewards.of({"reward": asked.rewards, "heldout": asked.heldout}, asked.policy.model, recipe, asked.run)
    _check(asked, rewards)
    material, found = ask(asked, _material(asked, recipe))
    prompts, answers = material.prompts[OWN], found.answers[OWN]
    pair_scores = score(rewards, prompts, answers, {"hhh": material.hhh, "pairs": material.pairs})
    for name, given in found.answers.items():
        for each in given.values():
            each.read_by_rule(material.prompts[name])
    after, before = (answers[name] for name in names)
    estimates = compare(prompts, after, before, asked.resamples, asked.seed, names)
    if REFUSALS in material.prompts:
        refusing = found.answers[REFUSALS]
        asked_of = material.prompts[REFUSALS]
        estimates += refusal_suite.estimates(asked_of, refusing[names[0]], refusing[names[1]], names)
    elif not of_a_world(prompts):
        estimates += refusal_suite.corrected(prompts, after, before, names)
    read, notes = _read(asked, material, found, pair_scores["hhh"])
    scored = {suite.name: _scored(suite, material, found) for suite in asked.own}
    estimates += read
    for suite in asked.own:
        own_prompts = material.prompts[suite.name]
        estimates += suite_estimates(suite, own_prompts, scored[suite.name], names, asked.resamples, asked.seed)
    judged = _judge(asked, prompts, after, before)
    if judged is not None:
        estimates += judged_estimates(judged, prompts, after, before, names, asked.resamples, asked.seed)
    if material.pairs:
        of_judges, of_rewards, fitted = preferences(
            rewards, material.pairs, pair_scores["pairs"], asked.resamples, asked.seed
        )
        material.counts["pairs"]["fitted"] = fitted
    else:
        of_judges, of_rewards = of_the_run(rewards, asked.run)
    instruments = {"refusal_detector": refusal_detector.VERSION, **rewards.identities}
    report = assemble(
        name=f"{names[0]} against {names[1]}",
        recipe=str(asked.run / "recipe.yaml") if asked.run else "none",
        base=asked.policy.url or asked.policy.base,
        seconds={"evaluate": round(time.time() - started, 3)},
        estimates=[estimate.as_dict() for estimate in estimates] + of_judges,
        reward_model=of_rewards,
        own={suite.name: suite_record(suite, scored[suite.name]) for suite in asked.own},
        samples=choose_samples(prompts, after, before, asked.samples, names),
        data={"prompts": len(prompts), **material.counts},
        provenance={
            "recipe": {**asked.identities, **_options(asked)},
            "seed": asked.seed,
            "decoding": asked.decoding,
            "instruments": instruments | ({"judge": judge_record(judged)} if judged is not None else {}),
            "hashes": material.digests(),
        },
    )
    if recipe is not None and asked.run is not None and rewards.trained is not None:
        report["alarms"] = report_lines(recipe, RunFolder(asked.run), report["alarms"])
    report["alarms"] += notes + found.notes
    report["alarms"] += account_lines(material.counts)
    if processes().is_main_process:
        _write(asked, report, material, found, scored)
        if judged is not None:
            write_json(asked.output / "judge.json", judged.as_dict())
    return report


def _check(asked: Evaluation, rewards: Rewards) -> None:
    """What cannot be done as asked, before anything is loaded."""
    check_output(asked.output)
    if asked.judge is not None:
        check_judge(asked.judge, asked.key_variable)
    scored = any(rewards.folders.values())
    if asked.pairs and not scored:
        raise RecipeError("--pairs test reward models, and there is none; name one: --reward MODEL.")
    if asked.hhh and not scored and all(subject.url is not None for subject in asked.subjects):
        raise RecipeError("--hhh: endpoints tell no log-probabilities of given replies; name a --reward model.")
    taken = {"baseline", *ROLES, *(name for role in ROLES for name in rewards.names(role))}
    for subject in asked.subjects:
        if subject.name in taken:
            raise RecipeError(
                f"A policy is called {subject.name!r}, as one of the report's judges is; name it otherwise: "
                f"NAME={subject.name}."
            )


# ---- what is asked -------------------------------------------------------------------------------------------------


def _material(asked: Evaluation, recipe: Recipe | None) -> Material:
    """All that the policies will be asked and given to read."""
    material = Material({}, [], [])
    own = material.prompts[OWN] = _prompts(asked, recipe, material)
    if asked.refusals and not any("kind" in prompt.facts for prompt in own):
        material.prompts[REFUSALS] = refusal_suite.shipped_prompts(asked.limit)
    for suite in asked.own:
        suite_function(suite)
        loaded = suite_prompts(suite)
        material.prompts[suite.name] = list(loaded.rows)
        material.counts[f"prompts of {suite.name}"] = loaded.counts()
        material.set_aside += loaded.set_aside
    if asked.hhh:
        comparisons = load_comparisons(asked.hhh)
        material.hhh = comparisons.pairs
        material.counts["hhh"] = comparisons.counts()
        material.set_aside += comparisons.set_aside
    if asked.pairs:
        pairs = load_pairs(asked.pairs)
        material.pairs = list(pairs.rows)
        material.counts["pairs"] = pairs.counts()
        material.set_aside += pairs.set_aside
    if recipe is not None and asked.run is not None:
        data = splits(recipe, RunFolder(asked.run))
        if all(subject.url is None for subject in asked.subjects):
            material.demonstrations = demonstrations_of(data.evaluation_pairs, asked.perplexity_rows)
        named: dict[str, Sequence[Any]] = {"hhh": material.hhh, "pairs": material.pairs, "prompts read": own}
        named |= {f"prompts of {suite.name}": material.prompts[suite.name] for suite in asked.own}
        for what, rows in named.items():
            if what in material.counts:
                material.counts[what]["seen_in_training"] = seen_in_training(data, rows)
    return material


def _prompts(asked: Evaluation, recipe: Recipe | None, material: Material) -> list[Prompt]:
    """The prompts of the sources named, else of the run's evaluation, else those that ship with the project.

    What was read of named sources and set aside goes into the material's account.
    """
    found: Sequence[Prompt]
    if asked.prompts:
        loaded = load_prompts(asked.prompts, Rows())
        found = loaded.rows
        material.counts["prompts read"] = loaded.counts()
        material.set_aside += loaded.set_aside
        if not len(found):
            raise DataError(f"--prompts: no prompt is left of {loaded.counts()['read']} rows; look at their format.")
    elif recipe is not None and asked.run is not None:
        found = splits(recipe, RunFolder(asked.run)).evaluation_prompts
    else:
        return refusal_suite.shipped_prompts(asked.limit)
    chosen = sorted(range(len(found)), key=lambda i: prompt_share(found[i].messages))[: asked.limit]
    return [found[i] for i in sorted(chosen)]


# ---- given replies, and the user's own suites ----------------------------------------------------------------------


def _read(
    asked: Evaluation, material: Material, found: Found, pair_scores: Mapping[str, np.ndarray]
) -> tuple[list[Estimate], list[str]]:
    """Estimates from replies that were given to the models, and sentences on what could not be measured."""
    names = (asked.policy.name, asked.reference.name)
    estimates: list[Estimate] = []
    notes = []
    if material.hhh:
        mute = [subject.name for subject in asked.subjects if subject.name not in found.hhh]
        if mute:
            notes.append(
                f"hhh was not asked of {' and '.join(mute)}: an endpoint tells no log-probabilities of replies."
            )
        estimates += hhh_estimates(material.hhh, found.hhh, pair_scores, names, asked.resamples, asked.seed)
    if len(found.losses) == len(names):
        if same_tokens(found.losses):
            rows = material.demonstrations
            estimates += perplexity_estimates(rows, found.losses, names, asked.resamples, asked.seed)
        else:
            notes.append("Perplexities were not compared: the two policies split text into different tokens.")
    return estimates, notes


def _scored(suite: OwnSuite, material: Material, found: Found) -> dict[str, Scored]:
    prompts = material.prompts[suite.name]
    return {name: score_replies(suite, prompts, given.texts) for name, given in found.answers[suite.name].items()}


# ---- the judge -----------------------------------------------------------------------------------------------------


def _judge(asked: Evaluation, prompts: Sequence[Prompt], after: Answers, before: Answers) -> Comparisons | None:
    if asked.judge is None:
        return None
    cache = asked.output / "cache" / "judge.jsonl"
    judge = judge_of(asked.judge, asked.policy.model, cache, asked.key_variable, asked.batch_size)
    return judge_replies(judge, prompts, after, before, list(asked.identities.values()))


# ---- records -------------------------------------------------------------------------------------------------------


def _write(
    asked: Evaluation,
    report: dict[str, Any],
    material: Material,
    found: Found,
    scored: Mapping[str, Mapping[str, Scored]],
) -> None:
    """The report and every reply behind it; what an earlier request left in the folder is set by."""
    archive_report(asked.output)
    write_report(report, asked.output)
    for list_name, file in ((OWN, "replies.jsonl"), (REFUSALS, f"replies_{REFUSALS}.jsonl")):
        if list_name in material.prompts:
            write_replies(asked.output / file, material.prompts[list_name], found.answers[list_name])
    for suite in asked.own:
        texts = {name: given.texts for name, given in found.answers[suite.name].items()}
        path = asked.output / f"replies_{suite.name}.jsonl"
        write_suite_replies(path, material.prompts[suite.name], texts, scored[suite.name])
    if material.set_aside:
        write_quarantine(material.set_aside, asked.output / "set_aside.jsonl")


def _options(asked: Evaluation) -> dict[str, Any]:
    sources = [source.source for source in asked.prompts]
    return {"prompts": sources, "rewards": asked.rewards, "heldout": asked.heldout, "judge": asked.judge,
            "limit": asked.limit, "own": [plain(suite) for suite in asked.own],
            "hhh": [s.source for s in asked.hhh], "pairs": [s.source for s in asked.pairs]}  # fmt: skip
