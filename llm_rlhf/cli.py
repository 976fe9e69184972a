"""The commands. Exit code 0: done; 1: it failed; 2: the request was wrong; 130: interrupted."""

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="From a base model to a measured, helpful and harmless chat model.",
)


@app.callback()
def _commands() -> None:
    """From a base model to a measured, helpful and harmless chat model."""


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="YAML file, e.g. recipes/quickstart.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, laid over the recipe")] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="STAGE", help="Run this stage alone.")] = None,
    from_stage: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Archive this stage and all later ones; redo them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict and paths as JSON at the end.")] = False,
) -> None:
    """Run a recipe's stages. Running it again resumes after the last stage that was finished.

    Example: llm-rlhf run recipes/quickstart.yaml seed=1 output_dir=runs/seed-1

    On several GPUs: accelerate launch -m llm_rlhf run recipes/hh.yaml
    """
    if only is not None and from_stage is not None:
        raise typer.BadParameter("--only and --from exclude each other; --from redoes the stage and all later ones.")
    with _told_in_one_message():
        _quiet_libraries()
        from llm_rlhf.pipeline import run_recipe
        from llm_rlhf.recipe import load_recipe

        folder = run_recipe(load_recipe(recipe, overrides or ()), only, from_stage)
        report = folder / "report.json"
        if not folder.state.is_main_process or not report.is_file():
            return
        verdict = json.loads(report.read_text(encoding="utf-8"))["verdict"]
        page = folder / "report.html"
        if as_json:
            print(json.dumps({"verdict": verdict, "report": str(page)}, ensure_ascii=False))
        else:
            print("\n" + "\n".join(verdict) + f"\n\nReport: {page}")


def main() -> None:
    """Run the command line."""
    app()


@contextlib.contextmanager
def _told_in_one_message() -> Iterator[None]:
    """What a person can mend becomes one message and an exit code; a fault of ours keeps its traceback."""
    from llm_rlhf.data.checks import DataError
    from llm_rlhf.ppo.guards import NonFiniteError
    from llm_rlhf.recipe_values import RecipeError
    from llm_rlhf.run_folder import RunFolderError

    try:
        yield
    except (RecipeError, DataError, RunFolderError) as error:
        _say_error(str(error))
        raise typer.Exit(2) from None
    except NonFiniteError as error:
        _say_error(str(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _say_error("interrupted. Run the same command again to go on after the last finished stage.")
        raise typer.Exit(130) from None


def _say_error(message: str) -> None:
    if int(os.environ.get("RANK", "0")) == 0:  # one process of a launch speaks for all
        print(f"error: {message}", file=sys.stderr)


def _quiet_libraries() -> None:
    """Keep the libraries' notes to developers off a user's screen; errors still show."""
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        for module in ("transformers", "trl", "peft", "torch", "accelerate", "datasets", "bitsandbytes"):
            warnings.filterwarnings("ignore", category=category, module=rf"{module}(\.|$)")
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
