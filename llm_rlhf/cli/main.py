"""`llm-rlhf`: the commands, each in a module of its own, which imports what it needs when it is called."""

import contextlib
import faulthandler
import platform
from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Any

import typer

from llm_rlhf.cli.app import app
from llm_rlhf.cli.chat import chat
from llm_rlhf.cli.completion import colons_whole
from llm_rlhf.cli.console import guard
from llm_rlhf.cli.data import data_app
from llm_rlhf.cli.doctor import doctor
from llm_rlhf.cli.evaluate import compare, evaluate
from llm_rlhf.cli.export import export, serve
from llm_rlhf.cli.feedback import feedback_app
from llm_rlhf.cli.gate import gate
from llm_rlhf.cli.init import init
from llm_rlhf.cli.monitor import monitor
from llm_rlhf.cli.plan import plan
from llm_rlhf.cli.run import run

LISTED: dict[Callable[..., Any], str] = {  # what the list of commands says of each, on one line of a terminal
    init: "Write a commented recipe for your model, data and machine.",
    plan: "Tell what a recipe would take: steps, memory, disk.",
    run: "Run a recipe's stages, or go on after the last that was finished.",
    evaluate: "Compare any policy with any other, or test reward models.",
    compare: "Put several runs on one page.",
    gate: "Hold an evaluated policy to thresholds: exit code 0 or 1.",
    chat: "Talk to one policy, or to two beside each other.",
    export: "Make a folder that others load, with a model card.",
    monitor: "Hold a log of conversations against the report of its policy.",
    serve: "Serve a policy with an API as OpenAI's.",
    doctor: "Look at this machine: is it fit for a run?",
}
for command, listed in LISTED.items():
    app.command(short_help=listed)(command)
app.add_typer(data_app, name="data")
app.add_typer(feedback_app, name="feedback")


def _versions(asked: bool) -> None:
    """Print our version and those of what a result depends on most, and end."""
    if asked:
        others = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "trl", "peft"))
        print(f"llm-rlhf {_version('llm-rlhf')} ({others}; Python {platform.python_version()})")
        raise typer.Exit


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


@app.callback()
def _commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_versions, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """From a base model to a measured, helpful and harmless chat model.

    Begin: llm-rlhf init (a recipe for your data), llm-rlhf run recipes/quickstart.yaml (six minutes, no download)
    """


def main() -> None:
    """Run the command line."""
    guard()
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads what is said
        faulthandler.enable()  # where a library in C brings the process down, it says where that was
    with colons_whole():
        app(prog_name="llm-rlhf")  # also as `python -m llm_rlhf`: completion is installed for this name
