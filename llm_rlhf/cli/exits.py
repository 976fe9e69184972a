"""How a command ends, and what it shows.

Exit codes: 0 done, 1 it failed, 2 the request was wrong, 130 ended by Ctrl-C, 143 by SIGTERM.
"""

import contextlib
import hashlib
import json
import logging
import os
import pickle
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from llm_rlhf import interruption
from llm_rlhf.errors import DataError, RecipeError, RunError, RunFolderError
from llm_rlhf.launch import lost_others, speaks_for_all


@contextlib.contextmanager
def told_in_one_message(
    interrupted: str = "interrupted. Run the same command again to go on after the last finished stage.",
) -> Iterator[None]:
    """What a person can mend becomes one message and an exit code; a fault of ours keeps its traceback.

    Args:
        interrupted: what is said where Ctrl-C or SIGTERM ended the command.
    """
    quiet_warnings()
    try:
        with interruption.listening():
            try:
                yield
            except Exception:
                if interruption.asked():  # such as the connection to a process that has ended by it already
                    raise interruption.Terminated from None
                raise
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
    except interruption.Terminated as ended:
        stopped = interrupted.replace("interrupted", "stopped by SIGTERM", 1)
        say_error(f"stopped by SIGTERM: {ended.told}. {AGAIN}" if ended.told else stopped)
        raise typer.Exit(interruption.CODE) from None
    except SystemExit as ended:  # of code that the run calls
        if ended.code not in (None, 0):
            raise
        say_error("something within the run ended the process (sys.exit); what it was making is not finished.")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        say_error(interrupted)
        raise typer.Exit(130) from None
    except RuntimeError as error:
        if not (how := lost_others(error)):
            _leave_bars()
            raise
        say_error(LOST.format(how))
        raise typer.Exit(1) from None
    except Exception:
        _leave_bars()  # before the traceback
        raise


def check_alone(command: str) -> None:
    """Raises RecipeError in a launch of several processes, for a command that takes one."""
    many = int(os.environ.get("WORLD_SIZE", "1"))
    if many > 1:
        raise RecipeError(f"`llm-rlhf {command}` takes one process, and this launch has {many}; run it by itself.")


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


AGAIN = "Run the same command again to go on."
LOST = (
    "a process of this launch waited for another, which {}. If that one said nothing itself, see how its machine ended "
    "it (memory?), or give it more time by the key 'ddp_timeout' of the stage's section, in seconds. "
    f"{AGAIN}"
)
SAID, A_DAY = "llm-rlhf-said-", 86_400
FIRST_SPEAKS = 1.0  # seconds that the other processes leave to the first to say what all of them have to say


def say_error(message: str) -> None:
    """Say it once: what all processes of a launch have to say, the first; what one alone has, that one, by its number.

    Of processes that are told apart by nothing but their machines, each machine's first speaks.
    """
    rank, many = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")) > 1
    if rank:
        time.sleep(FIRST_SPEAKS)
    _leave_bars()
    if not many or _is_first_to_say(message) or not rank:
        of = f"[process {rank} on {platform.node()}] " if rank else ""
        print(f"{of}error: {message}", file=sys.stderr, flush=True)


def _leave_bars() -> None:
    """So that what is said begins a line of its own; without tqdm there are no bars."""
    if "tqdm.std" in sys.modules:
        from llm_rlhf.progress import leave_bars

        leave_bars()


def _is_first_to_say(message: str) -> bool:
    """Whether no other process of this launch on this machine has said it; a file that only one can make tells."""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    launch = [str(os.getppid()), *(os.environ.get(name, "") for name in names)]
    key = hashlib.sha256("\n".join([*launch, message]).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir())
    try:
        for old in folder.glob(f"{SAID}*"):  # nobody knows when the last process of a launch has spoken
            if old.stat().st_mtime < time.time() - A_DAY:
                old.unlink()
        with (folder / f"{SAID}{key}").open("x"):
            return True
    except FileExistsError:
        return False
    except OSError:  # no place for a file: rather twice than never
        return True


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
