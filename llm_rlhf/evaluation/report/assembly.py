"""The parts of a report that every evaluation has, put together in one way."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.report.alarms import alarm_lines
from llm_rlhf.evaluation.report.labels import start_called
from llm_rlhf.evaluation.report.next_steps import next_steps
from llm_rlhf.evaluation.report.schema import SCHEMA
from llm_rlhf.evaluation.report.verdict import headline, verdict_lines
from llm_rlhf.launch import processes
from llm_rlhf.provenance import git_state, machine, versions
from llm_rlhf.run_folder import move_to_archive, writable
from llm_rlhf.statistics.intervals import Estimate

WRITTEN = ("report.*", "replies*.jsonl", "judge.json", "set_aside.jsonl", "lengths.json", "too_long.jsonl",
           "refused_by_template.jsonl")  # fmt: skip


def assemble(
    *,
    name: str,
    recipe: str,
    base: str,
    seconds: dict[str, float],
    estimates: Sequence[dict[str, Any]],
    reward_model: dict[str, Any],
    data: dict[str, Any],
    provenance: dict[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """A report as `schema.Report` describes it, with its headline, verdict and the alarms that its estimates raise.

    Args:
        name, recipe, base, seconds: of `schema.Run`.
        provenance: without what this process knows by itself: versions, machine, the code's commit.
        more: `own`, `benchmarks`, `overoptimization`, `watch`, `curves`, `samples`; those left out are empty.
    """
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "run": {
            "name": name,
            "recipe": recipe,
            "base": base,
            "device": str(processes().device),
            "processes": processes().num_processes,
            "seconds": seconds,
        },
        "estimates": list(estimates),
        "reward_model": reward_model,
        "own": {},
        "benchmarks": {},
        "overoptimization": None,
        "curves": {},
        "samples": [],
        "data": data,
        "provenance": {
            "versions": versions(),
            "machine": machine(),
            "git": git_state() or "not in a repository",
            **provenance,
        },
        **more,
    }
    report["headline"], report["verdict"] = headline(report), verdict_lines(report)
    with start_called(report):
        report["alarms"] = alarm_lines([Estimate(**entry) for entry in report["estimates"]])
    report["next"] = next_steps(report) if report["estimates"] else []
    return report


def check_output(folder: Path) -> None:
    """RecipeError, RunFolderError where no report may, or can, be written into the folder."""
    if (folder / "recipe.yaml").is_file() or (folder / "manifest.json").is_file():
        raise RecipeError(f"--output {folder} is a run or a part of one, whose own files stand there; name another.")
    writable(folder)


def archive_report(folder: Path) -> None:
    """Make room for a report: an earlier one, and the replies behind it, go to the folder's archive."""
    move_to_archive(folder, sorted({path.name for pattern in WRITTEN for path in folder.glob(pattern)}))
