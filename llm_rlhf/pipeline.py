"""Runs a recipe's stages in order; skips what is done, and makes only what is missing."""

import datetime
import gc
import importlib
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from llm_rlhf import interruption
from llm_rlhf.ahead import Ahead, check_rows, look_ahead
from llm_rlhf.data.checks import write_quarantine
from llm_rlhf.data.splits import Splits
from llm_rlhf.errors import RecipeError, RunFolderError, shown
from llm_rlhf.evaluation.material import check_section
from llm_rlhf.evaluation.reward_gates import stop_at_gates
from llm_rlhf.evaluation.suites.own import TAKEN
from llm_rlhf.feedback.runs_of_labels import CARD
from llm_rlhf.launch import told_by_all
from llm_rlhf.models.adapter_folders import make_movable
from llm_rlhf.recipe.checks import check_own_suites
from llm_rlhf.recipe.sections import (
    METHODS,
    DataSection,
    EvaluateSection,
    ModelSection,
    Recipe,
    scored_method,
)
from llm_rlhf.recipe.values import plain, renamed
from llm_rlhf.run_folder import MANIFEST, RunFolder, file_digest, read_json, whole_manifest, write_json, write_text
from llm_rlhf.runs import read_data
from llm_rlhf.tracking import KEPT, tracked
from llm_rlhf.user_code import load_function

STAGES = ("world", "collect", "sft", "reward", *METHODS, "evaluate")  # of the methods, a recipe has one at most
MODULES = {"grpo": "online", "rloo": "online", "dpo": "offline", "kto": "offline"}  # of stages/; others: as the stage
BRING_DATA = ("world", "collect")  # stages that write what the others read
COLUMNS_TOLD = 12
# Trainers' keys that say when something is saved or told, to whom, and in what pieces the same gradient is computed: a
# finished stage with others is not another one, and an interrupted one goes on with others.
OF_NO_EFFECT = frozenset(
    {
        *("save_strategy", "save_steps", "save_rollouts", "save_total_limit", "save_on_each_node"),
        *("save_only_model", "ignore_data_skip", "enable_jit_checkpoint"),  # of a run that they were allowed in
        *("logging_strategy", "logging_steps", "logging_first_step", "log_level", "log_level_replica"),
        *("log_on_each_node", "log_completions", "num_completions_to_print", "log_unique_prompts", "disable_tqdm"),
        *("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
        *("micro_batch_tokens", "gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_empty_cache_steps"),
        *("ddp_timeout", "ddp_bucket_cap_mb", "skip_memory_metrics", "include_num_input_tokens_seen"),
    }
)
OF_THE_MODEL_NO_EFFECT = ("trust_remote_code", "compile")  # a permission; the same sums by other kernels
REPORTS = ("report.html", "report.md", "report.json")
WHAT = {
    "world": "making the gold world",
    "collect": "what people have said so far",
    "sft": "supervised fine-tuning",
    "reward": "the reward model and a held-out one",
    **METHODS,
    "evaluate": "the report",
}


def run_recipe(
    recipe: Recipe, only: str | None = None, from_stage: str | None = None, allow_partial_resume: bool = False
) -> RunFolder:
    """Run the recipe's stages that are not done yet.

    Args:
        only: run this stage alone; what it stands on must be there.
        from_stage: move this stage's artefact and all later ones to the archive first, and make them again.
        allow_partial_resume: go on from a checkpoint that lacks the optimizer's state, the schedule or random states.

    Raises:
        RecipeError, DataError, RunFolderError: where the request cannot be carried out as it stands.
    """
    stages = [stage for stage in STAGES if getattr(recipe, stage) is not None]
    for option, name in (("--only", only), ("--from", from_stage)):
        if name is not None and name not in stages:
            raise RecipeError(f"{option} {name}: this recipe has the stages {', '.join(stages)}.")
    if recipe.evaluate is not None:
        check_own_suites(recipe.evaluate.own, taken=TAKEN)
    run = RunFolder(recipe.folder, as_today=inputs_as_today)
    run.allow_partial_resume = allow_partial_resume
    if recipe.world is not None:
        torch.set_num_threads(1)  # as fast as many for a model this small, and the same bits whatever the cores
    with run.locked():
        _settle_day(recipe, run)
        leftovers, to_make = _alike(
            run,
            lambda: (_leftovers(run, stages, from_stage), _stages_to_make(recipe, run, stages, only, from_stage)),
        )
        ahead = look_ahead(recipe, run, to_make)  # errors come before anything is trained, or moved
        if "evaluate" in to_make:
            check_section(recipe)
        if from_stage is not None:
            _archive(run, [*stages[stages.index(from_stage) :], *leftovers])
        run.describe(recipe.as_dict())
        _note_people(run)
        if run.state.device.type == "cuda":
            run.state.print(f"On {torch.cuda.get_device_name()}, in {recipe.model.dtype} (model.dtype).")
        with tracked(recipe.report_to if to_make else [], run, recipe.name, recipe.as_dict()) as trackers:
            for number, stage in enumerate(stages, start=1):
                if only is None or stage == only:
                    _run_stage(recipe, run, stage, f"[{number}/{len(stages)}]", ahead)
            if "evaluate" in to_make and run.state.is_main_process:
                trackers.report(read_json(run / "report.json") or {}, [run / name for name in REPORTS])
    return run


def _alike(run: RunFolder, find: Callable[[], Any]) -> Any:
    """What every process finds in the run folder, or the error that every one raises.

    Raises:
        RunFolderError: where they do not find the same, and would walk different ways.
    """
    found, failed = None, None
    try:
        found = find()
    except (RecipeError, RunFolderError) as error:
        failed = error
    if run.state.num_processes > 1:
        told = told_by_all(str(failed) if failed is not None else f"{found}")
        if len({text.partition(": ")[2] for text in told}) > 1:
            raise RunFolderError(
                f"The processes of this launch do not find the same in {run.path}: {'; '.join(told)}. It must be on a "
                "disk that all machines share, and each must be started with the same recipe."
            )
    if failed is not None:
        raise failed
    return found


def _leftovers(run: RunFolder, stages: list[str], from_stage: str | None) -> list[str]:
    """Stages that the folder has and the recipe has not, to be moved away with what `from_stage` makes again.

    Left there they would be taken for this recipe's: the folder says what a policy is, and what it began from.

    Raises:
        RunFolderError: where one is there, and what stands on it is not made again.
    """
    depth = {stage: STAGES.index("ppo" if stage in METHODS else stage) for stage in STAGES}  # methods: side by side
    found = [stage for stage in STAGES if stage not in stages and (run / stage).is_dir()]
    for stage in found:
        above = next((name for name in stages if depth[name] >= depth[stage]), None)
        stays = above is not None and from_stage is not None and stages.index(above) < stages.index(from_stage)
        if stage != "evaluate" and (from_stage is None or stays):
            move = "Move it" if above is None else f"Run with --from {above}, which moves it"
            raise RunFolderError(
                f"{run / stage} was made by another recipe: this one has no {stage}. {move} to {run / 'archive'}, or "
                "set another output_dir."
            )
    return found if from_stage is not None else []


def _settle_day(recipe: Recipe, run: RunFolder) -> None:
    """What the chat template takes for today, where the recipe does not say: the day of the run's first launch."""
    if recipe.model.chat_template_date is None:
        launched = read_json(run / MANIFEST)
        day = launched.get("chat_template_date") if isinstance(launched, dict) else datetime.date.today().isoformat()
        (day,) = broadcast_object_list([day])  # it may be midnight
        try:
            recipe.model.chat_template_date = None if day is None else datetime.date.fromisoformat(day)
        except (TypeError, ValueError):
            raise RunFolderError(
                f"{run / MANIFEST} says chat_template_date: {shown(day)}, which is no date (as 2026-01-31). It has "
                "changed since the run was begun; put it right, or set model.chat_template_date in the recipe."
            ) from None


def _stages_to_make(
    recipe: Recipe, run: RunFolder, stages: list[str], only: str | None, from_stage: str | None
) -> list[str]:
    """Those that are asked for and not done.

    Raises:
        RunFolderError: where one is there but damaged, or made by another recipe, and is not to be made again.
        RecipeError: where one is missing that `only` stands on.
    """
    last = stages if only is None else stages[: stages.index(only) + 1]
    again = [] if from_stage is None else stages[stages.index(from_stage) :]
    missing = [stage for stage in last if stage in again or not run.finished(stage, stage_inputs(recipe, stage))]
    for stage in missing:
        if only is not None and stage != only:
            raise RecipeError(f"--only {only} needs {stage}, which is not done; run the recipe without --only.")
    return missing


def _run_stage(recipe: Recipe, run: RunFolder, stage: str, place: str, ahead: Ahead) -> None:
    interruption.raise_if_interrupted()
    if stage not in ahead.stages:
        say(run, f"{place} {stage}: done before ({run / stage})")
        if stage == "collect":
            _tell_newer(recipe, run)
    else:
        inputs = stage_inputs(recipe, stage)
        if stage == scored_method(recipe):
            stop_at_gates(recipe, run)
        if stage not in BRING_DATA:
            splits = _account_for_data(recipe, run)
            if stage == next(name for name in ahead.stages if name not in BRING_DATA):
                check_rows(ahead, splits)
        say(run, f"{place} {stage}: {WHAT[stage]}")
        started = time.monotonic()
        module = importlib.import_module(f"llm_rlhf.stages.{MODULES.get(stage, stage)}")
        with run.making(stage, inputs, resumes=getattr(module, "RESUMES", False)) as folder:
            module.run(recipe, run, folder)
            if run.state.is_main_process:
                make_movable(folder, run.path)
        if stage == "collect":
            say(run, f"      {_note_people(run)}")
        say(run, f"      done in {time.monotonic() - started:.0f} s")
        _free_memory()
    if stage == "evaluate":
        _show_report(run)


def stage_inputs(recipe: Recipe, stage: str) -> dict[str, Any]:
    """Everything that a stage's artefact depends on, as plain values: a change in it makes the artefact another."""
    resolved = recipe.as_dict()
    if stage == "collect":
        assert recipe.feedback is not None
        return {"feedback": {"store": recipe.feedback.store, "margins": recipe.feedback.margins}}
    upstream = STAGES[: STAGES.index(stage) + 1]
    inputs = {key: resolved[key] for key in ("seed", "model", "data", *upstream) if resolved.get(key) is not None}
    for name in (*METHODS, "sft", "reward"):
        if name in inputs:
            inputs[name] = _that_matter(inputs[name])
    if stage != "evaluate" and "reward" in inputs:  # gates make neither the reward model nor the policy another
        inputs["reward"] = {key: value for key, value in inputs["reward"].items() if key != "gates"}
    inputs["model"] = {key: value for key, value in inputs["model"].items() if key not in OF_THE_MODEL_NO_EFFECT}
    if recipe.feedback is not None and "collect" in upstream:
        inputs["feedback"] = {key: resolved["feedback"][key] for key in ("weight", "leaks")}
        inputs["collected"] = _collected(recipe.folder / "collect")
    files = _data_files(recipe.data)
    if stage == "evaluate" and recipe.evaluate is not None:
        files |= {name: file_digest(Path(name)) for name in recipe.evaluate.local_files()}
        files |= {suite.function: _source_digest(suite.function) for suite in recipe.evaluate.own}
    return inputs | {"data_files": files}


def _collected(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of labels; of the same labels taken again they are the same, whatever the card says."""
    known = whole_manifest(folder)
    return {} if known is None else {name: of["sha256"] for name, of in known["files"].items() if name != CARD}


def _note_people(run: RunFolder) -> str:
    """How many people and labels stand behind the run, in its manifest; and in words, "" where nobody does."""
    card = read_json(run / "collect" / CARD)
    if card is None:
        return ""
    from llm_rlhf.feedback.snapshot import in_words, summary  # and a database, which others do not need

    if run.state.is_main_process:
        write_json(run / MANIFEST, {**read_json(run / MANIFEST), "feedback": summary(card)})
    return in_words(card)


def _tell_newer(recipe: Recipe, run: RunFolder) -> None:
    """Whether people have said something since: a run keeps to the labels that it began with."""
    from llm_rlhf.feedback.snapshot import newer

    assert recipe.feedback is not None
    more = newer(recipe.feedback.store, read_json(run / "collect" / CARD) or {}) if run.state.is_main_process else 0
    if more:
        told = "1 label was" if more == 1 else f"{more:,} labels were"
        say(run, f"      {told} given since; --from collect takes what was said up to now, and trains again")


def _that_matter(section: dict[str, Any]) -> dict[str, Any]:
    """Those of a trainer's keys that decide what it learns."""
    return {key: value for key, value in section.items() if key not in OF_NO_EFFECT}


def inputs_as_today(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs that an older version recorded, with the recipe's keys as they are called now."""
    found = {key: _that_matter(of) if key in (*METHODS, "sft", "reward") else of for key, of in inputs.items()}
    if inputs.get("model") is not None:
        known = plain(ModelSection()) | inputs["model"]
        found["model"] = {key: value for key, value in known.items() if key not in OF_THE_MODEL_NO_EFFECT}
    if inputs.get("data") is not None:
        found["data"] = {"ratings": []} | renamed(DataSection, inputs["data"], "data.", quiet=True)
    if inputs.get("evaluate") is not None:  # what it had no key for, as `data.ratings`, it did as the default says
        found["evaluate"] = plain(EvaluateSection()) | inputs["evaluate"]
    return found


def _source_digest(function: str) -> str:
    """SHA-256 of the file a function of the user's stands in: a changed one makes the numbers others."""
    source = inspect.getsourcefile(inspect.unwrap(load_function(function)))
    return file_digest(Path(source)) if source else "unknown"


def _data_files(data: DataSection | None) -> dict[str, str]:
    """SHA-256 of every local file among the sources."""
    return {} if data is None else {name: file_digest(Path(name)) for name in data.local_files()}


def _account_for_data(recipe: Recipe, run: RunFolder) -> Splits:
    """Read every source before anything is trained: errors come early, and every row is accounted for.

    What is on the disk decides nothing here: a process that came late and saw the counts of a faster one would not
    wait where the others wait.
    """
    splits, set_aside = read_data(recipe, run)
    path = run / "data" / "counts.json"
    if run.state.is_main_process and read_json(path) != splits.counts:
        path.parent.mkdir(exist_ok=True)
        write_quarantine(set_aside, path.parent / "quarantine.jsonl")
        write_json(path, splits.counts)
        sizes = ", ".join(f"{name} {count}" for name, count in splits.counts["splits"].items())
        say(run, f"      data: {sizes}; {len(set_aside)} rows set aside ({path})")
        for line in unread_columns(splits.counts):
            say(run, f"      {line}")
    run.state.wait_for_everyone()
    return splits


def unread_columns(counts: dict[str, Any]) -> list[str]:
    """A line for each file with columns or keys that nothing reads; one that stands in several lists is told once."""
    files = {name: found for of_list in counts.values() for name, found in (of_list.get("unread") or {}).items()}
    lines = []
    for name, columns in files.items():
        told = [f"{column} ({rows:,} rows)" for column, rows in columns.items()]
        more = f" and {len(told) - COLUMNS_TOLD} more" if len(told) > COLUMNS_TOLD else ""
        lines.append(f"nothing reads, in {Path(name).name}: {', '.join(told[:COLUMNS_TOLD])}{more}")
    return lines


def _archive(run: RunFolder, stages: list[str]) -> None:
    first = "data" if stages[0] in (*BRING_DATA, "sft") else None
    trackers = KEPT if stages[0] != "evaluate" else ()  # what is trained again is another run to them
    moved = run.archive([*stages, *([first] if first else []), *(REPORTS if "evaluate" in stages else ()), *trackers])
    if moved:
        say(run, f"moved to {run / 'archive'}: {', '.join(moved)}")


def _show_report(run: RunFolder) -> None:
    """Copies the report to the run folder's top and says what it says."""
    if not run.state.is_main_process:
        return
    for name in REPORTS:
        write_text(run / name, (run / "evaluate" / name).read_text(encoding="utf-8"))


def say(run: RunFolder, message: str) -> None:
    if run.state.is_main_process:
        print(message, flush=True)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
