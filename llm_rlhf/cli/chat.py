"""The command `llm-rlhf chat`."""

import contextlib
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from llm_rlhf.cli.completion import policies
from llm_rlhf.cli.exits import quiet_libraries, say_error, told_in_one_message
from llm_rlhf.cli.next_steps import after_chat, tell
from llm_rlhf.cli.options import Dtype, KeyVariable, Quantization, TrustRemoteCode


def chat(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="one or two: run, RUN:STAGE, adapter, model, hub id, URL#MODEL",
            autocompletion=policies,
        ),
    ],
    only: Annotated[
        str | None, typer.Option("--only", metavar="policy|start", help="One side of a trained run, not both.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="A system message.")] = None,
    reward: Annotated[
        list[str] | None, typer.Option("--reward", metavar="MODEL", help="Scores every answer; else the run's own.")
    ] = None,
    heldout: Annotated[
        list[str] | None, typer.Option("--heldout", metavar="MODEL", help="A second one; else the run's own.")
    ] = None,
    no_reward: Annotated[bool, typer.Option("--no-reward", help="Load no reward model.")] = False,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0: the likeliest token.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Of the likeliest tokens, with this share.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Of so many of the likeliest tokens; 0: all.")] = None,
    response_length: Annotated[
        int | None, typer.Option("--response-length", help="Tokens of an answer; else as the run, or 128.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Else 0; the same gives the same answers.")] = None,
    dtype: Dtype = "auto",
    quantization: Quantization = "none",
    key_variable: KeyVariable = None,
    trust_remote_code: TrustRemoteCode = None,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each answer.")] = False,
) -> None:
    """Talk to a policy: beside what its training started from, or to any two models beside each other.

    Example: llm-rlhf chat runs/quickstart

    Two of your choice: llm-rlhf chat runs/hh Qwen/Qwen2.5-0.5B-Instruct --system "Answer in one sentence."

    From a pipe, a question a line: echo "Hello" | llm-rlhf chat runs/hh --json
    """
    options = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "response_length": response_length,
               "seed": seed}  # fmt: skip
    with told_in_one_message("interrupted before the first question."):
        from llm_rlhf.errors import RecipeError

        if only not in (None, "policy", "start"):
            raise RecipeError(f"--only is {only!r}; it is policy or start.")
        if no_reward and (reward or heldout):
            raise RecipeError("--no-reward loads no reward model, and one is named; leave out either.")
        quiet_libraries()
        from llm_rlhf.chat.printable import printable
        from llm_rlhf.chat.screen import Json, Lines, Screen, Terminal
        from llm_rlhf.chat.session import Session
        from llm_rlhf.chat.voices import load, sides_of
        from llm_rlhf.launch import processes
        from llm_rlhf.models.streaming import Sampling
        from llm_rlhf.recipe.loading import recipe_of
        from llm_rlhf.recipe.sections import ModelSection
        from llm_rlhf.recipe.values import read_section

        if processes().num_processes > 1:
            raise RecipeError("A chat is one process; start it without accelerate launch.")
        for name, value in options.items():
            if value is not None:
                Sampling().changed(name, value)  # before anything is loaded
        how = {"dtype": dtype, "quantization": quantization, "trust_remote_code": trust_remote_code or False}
        subjects = sides_of(models, only, read_section(ModelSection, how, "--"))
        run = next((subject.run for subject in reversed(subjects) if subject.run is not None), None)
        recipe = recipe_of(run) if run is not None else None
        screen: Screen = Json() if as_json else Terminal() if _somebody_is_there() else Lines()
        with contextlib.redirect_stdout(sys.stderr):  # notes of loading are no part of what is said
            voices, scores, sampling = load(
                subjects, None if no_reward else reward or [], heldout or [], key_variable, recipe
            )
        for name, value in options.items():
            if value is not None:
                sampling = sampling.changed(name, value)

        def fail(message: str) -> None:  # which may quote a server, or a template
            say_error(printable(message))

        session = Session(voices, scores, sampling, screen, _reading(screen.asks), fail, system)
        session.run()
        if screen.asks:
            tell(after_chat(subjects))
        if session.failed and not screen.asks:
            raise typer.Exit(1)


def _somebody_is_there() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _reading(asks: bool) -> Callable[[str], str]:
    """What reads a line: with a prompt, editing and the lines before where somebody types, plainly from a pipe."""
    with contextlib.suppress(AttributeError):  # of an input that is none of Python's own
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    if asks:
        with contextlib.suppress(ImportError):  # not on every system
            import readline  # noqa: F401 - `input` uses it once it is there
        return input
    return lambda prompt: input()
