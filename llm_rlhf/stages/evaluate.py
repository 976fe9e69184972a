"""Evaluation: is the trained policy better than the one it started from, and by how much?

The recipe's `evaluate` section becomes an `Evaluation`, as the options of `llm-rlhf evaluate` do, and is carried out by
the same driver (evaluation/evaluate.py). The report is the run's own: it has the curves of all stages, too.

Replies are kept in the run's `cache/`, so that an interrupted evaluation goes on where it stopped.

Writes: report.html report.md report.json replies.jsonl replies_SUITE.jsonl judge.json set_aside.jsonl
        lengths.json too_long.jsonl refused_by_template.jsonl people/ (where the judge is a feedback store)
"""

import time
from pathlib import Path

from llm_rlhf.evaluation.evaluate import SAMPLING, Measured, measure, write
from llm_rlhf.evaluation.material import reference_of
from llm_rlhf.evaluation.report.schema import write_report
from llm_rlhf.evaluation.request import Evaluation
from llm_rlhf.evaluation.reward_evaluation import as_sections
from llm_rlhf.evaluation.run_report import build_report
from llm_rlhf.evaluation.subjects import Subject
from llm_rlhf.recipe.sections import Recipe
from llm_rlhf.reward.adapters import reward_folders, whole_rewards
from llm_rlhf.run_folder import RunFolder, read_json
from llm_rlhf.runs import starting_model


def run(recipe: Recipe, run_folder: RunFolder, folder: Path) -> None:
    """Sample, score, compare and write the report. `folder` becomes `evaluate/`."""
    started = time.monotonic()
    if recipe.method is None:
        found = Measured()
        found.of_judges, found.reward_model = as_sections(read_json(run_folder / "reward" / "accuracy.json"))
        if run_folder.state.is_main_process:
            write_report(build_report(recipe, run_folder, found, {}, started), folder)
        return
    asked = request(recipe, run_folder, folder)
    if asked.judge is not None:
        from llm_rlhf.feedback.judging import with_verdicts  # and a database, which others do not need

        is_main = run_folder.state.is_main_process
        made_for, place = str(run_folder.path.absolute()), run_folder / "evaluate" / "people"
        asked.judge = with_verdicts(asked.judge, folder / "people", made_for, writes=is_main, becomes=place)
        run_folder.state.wait_for_everyone()
    found = measure(asked)
    run_folder.computed = found.computed
    if run_folder.state.is_main_process:
        write(asked, found, build_report(recipe, run_folder, found, asked.decoding | SAMPLING, started))


def request(recipe: Recipe, run_folder: RunFolder, folder: Path) -> Evaluation:
    """What the recipe's `evaluate` section asks for; its report goes into `folder`."""
    section, method = recipe.evaluate, recipe.method
    assert section is not None
    assert method is not None
    scored = bool(reward_folders(recipe, run_folder) or whole_rewards(recipe))  # without, there is no curve of rewards
    base = starting_model(recipe, run_folder, before="evaluate")
    how = recipe.model.made_into(base, run_folder / method / "policy")
    start = Subject("base" if recipe.sft is None else "sft", how, run=run_folder.path)
    return Evaluation(
        policy=Subject(method, how, adapter=run_folder / method / "policy", run=run_folder.path),
        start=reference_of(recipe) or start,
        output=folder,
        judge=section.judge,
        key_variable=section.reference_key_variable,
        judge_key_variable=section.judge_key_variable,
        own=section.own,
        hhh=section.hhh,
        benchmarks=section.benchmarks,
        pairs=section.pairs,
        refusals="refusals" in section.suites,
        snapshot_prompts=section.snapshot_prompts if scored and "overoptimization" in section.suites else 0,
        best_of_n=section.best_of_n,
        recipe=recipe,
        in_recipe=True,
        cache=run_folder / "cache",
    ).as_the_recipe()
