"""How a command ends, and what it shows. Exit codes: 0 done, 1 it failed, 2 the request was wrong, 130 interrupted."""

import contextlib
import json
import logging
import os
import pickle
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from llm_rlhf.errors import DataError, RecipeError, RunError, RunFolderError
from llm_rlhf.launch import speaks_for_all


@contextlib.contextmanager
def told_in_one_message(
    interrupted: str = "interrupted. Run the same command again to go on after the last finished stage.",
) -> Iterator[None]:
    """What a person can mend becomes one message and an exit code; a fault of ours keeps its traceback.

    Args:
        interrupted: what is said where Ctrl-C ended the command.
    """
    try:
        yield
    except (RecipeError, DataError, RunFolderError) as error:
        say_error(str(error))
        raise typer.Exit(2) from None
    except RunError as error:
        say_error(str(error))
        raise typer.Exit(1) from None
    except pickle.UnpicklingError as error:
        say_error(
            f"{_file_of(error)} was refused: it is damaged, or holds more than numbers. Nothing of it was run. Take "
            "weights in safetensors; where it is part of a checkpoint, begin the stage again with --from STAGE."
        )
        raise typer.Exit(1) from None
    except SystemExit as ended:
        if ended.code not in (None, 0):
            raise
        say_error("something within the run ended the process (sys.exit); what it was making is not finished.")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        say_error(interrupted)
        raise typer.Exit(130) from None


def _file_of(error: pickle.UnpicklingError) -> str:
    """The file that torch was reading, which its error does not name."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "load" and isinstance(file := frame.f_locals.get("f"), str | os.PathLike):
            return os.fspath(file)
    return "A file in torch's format"


@contextlib.contextmanager
def said_aside(as_json: bool) -> Iterator[None]:
    """What is said on the way goes to stderr where a program reads what is printed."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def show(report: dict[str, Any], page: Path, as_json: bool) -> None:
    """The headline, the verdict, public suites, what a reader must be told before they believe it, and what to do."""
    if not speaks_for_all():
        return
    if as_json:
        told = {key: report[key] for key in ("headline", "verdict", "alarms", "next") if key in report}
        print(json.dumps(told | {"report": str(page)}, ensure_ascii=False))
        return
    from llm_rlhf.evaluation.report.benchmark_section import suite_lines

    suites = ["", *found] if (found := suite_lines(report)) else []
    warnings_told = [f"warning: {line}" for line in report["alarms"]]
    steps = [f"next: {step['finding']} {step['remedy']}" for step in report.get("next", [])]
    lines = ["", report["headline"]["text"], "", *report["verdict"], COVERS, *suites, *warnings_told, *steps]
    print("\n".join(lines) + f"\n\nReport: {page}")


COVERS = "(Intervals cover other prompts or pairs like these, not another training: that takes several seeds.)"


def say_error(message: str) -> None:
    if speaks_for_all():
        print(f"error: {message}", file=sys.stderr)


def quiet_warnings() -> None:
    """Keep the libraries' warnings to developers off a user's screen."""
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        for module in ("transformers", "trl", "peft", "torch", "accelerate", "datasets", "bitsandbytes"):
            warnings.filterwarnings("ignore", category=category, module=rf"{module}(\.|$)")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that it fetches for some CPUs alone


def quiet_libraries() -> None:
    """Keep the libraries' notes to developers off a user's screen; errors still show."""
    quiet_warnings()
    import datasets
    import transformers
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

    downloads_shown = not are_progress_bars_disabled() and speaks_for_all()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # of loading weights; the hub's of downloads with it
    datasets.disable_progress_bars()
    if downloads_shown:
        enable_progress_bars()
