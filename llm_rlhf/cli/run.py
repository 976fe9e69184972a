"""The command `llm-rlhf run`."""

import json
import math
from dataclasses import asdict
from typing import Annotated, Any

import typer

from llm_rlhf.cli.completion import recipes
from llm_rlhf.cli.console import outlive
from llm_rlhf.cli.exits import quiet_libraries, said_aside, show, told_in_one_message
from llm_rlhf.cli.next_steps import after_rounds, after_run, tell


def run(
    recipe: Annotated[str, typer.Argument(help="YAML file, e.g. recipes/quickstart.yaml", autocompletion=recipes)],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, laid over the recipe")] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="STAGE", help="Run this stage alone.")] = None,
    from_stage: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Archive this stage and all later ones; redo them.")
    ] = None,
    allow_partial_resume: Annotated[
        bool,
        typer.Option(
            "--allow-partial-resume",
            help="Go on from a checkpoint that lost its optimizer's state, schedule or random numbers.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict and paths as JSON at the end.")] = False,
) -> None:
    """Run a recipe's stages. Running it again resumes after the last stage that was finished.

    Example: llm-rlhf run recipes/quickstart.yaml seed=1 output_dir=runs/seed-1

    On several GPUs: accelerate launch -m llm_rlhf run recipes/hh.yaml
    """
    if only is not None and from_stage is not None:
        raise typer.BadParameter("--only and --from exclude each other; --from redoes the stage and all later ones.")
    outlive()
    with told_in_one_message():
        from llm_rlhf.recipe.loading import load_recipe

        loaded = load_recipe(recipe, overrides or ())  # first: to import all that runs it takes seconds
        quiet_libraries()
        if loaded.rounds is not None:
            _rounds(loaded, [recipe, *(overrides or [])], only or from_stage, as_json)
            return
        from llm_rlhf.pipeline import STAGES, run_recipe

        with said_aside(as_json):
            folder = run_recipe(loaded, only, from_stage, allow_partial_resume)
        if not folder.state.is_main_process:
            return
        report = folder / "report.json"
        if report.is_file():
            show(json.loads(report.read_text(encoding="utf-8")), folder / "report.html", as_json)
        elif as_json:
            print(json.dumps({"report": None, "run": str(folder.path)}, ensure_ascii=False))
        stages = [stage for stage in STAGES if getattr(loaded, stage) is not None]
        tell(after_run(folder.path, [recipe, *(overrides or [])], stages), as_json)


def _rounds(recipe: Any, asked: list[str], stage: str | None, as_json: bool) -> None:
    """Go through a recipe's rounds, as far as it goes without people."""
    from llm_rlhf.errors import RecipeError
    from llm_rlhf.rounds.chain import run_rounds
    from llm_rlhf.rounds.page import PAGE, text_of

    if stage is not None:
        raise RecipeError(
            "--only and --from are for one run, and this recipe has rounds; name the recipe of a round: "
            f"{recipe.folder / 'round-1' / 'recipe.yaml'}."
        )
    with said_aside(as_json):
        table, waiting = run_rounds(recipe)
    if as_json:
        print(json.dumps(table | ({"waiting": asdict(waiting)} if waiting else {}), ensure_ascii=False))
        return
    print("\n" + text_of(table))
    if waiting is not None:
        print(
            f"\nWaiting for people: {waiting.said} of {waiting.wanted} labels about round {waiting.round} are there. "
            f"Once {recipe.rounds.enough:.0%} of them are (rounds.enough), the same command goes on; a question that "
            f"is skipped has no label.{_with_what_is_there(waiting.said, waiting.wanted)}"
        )
    store = None if waiting is None else str(recipe.rounds.store or recipe.folder)
    tell(after_rounds(recipe.folder, asked, recipe.folder / PAGE, table["promoted"], store), as_json)


def _with_what_is_there(said: int, wanted: int) -> str:
    """What lets rounds go on where nobody will say more, and the rest was skipped for one."""
    share = math.floor(100 * said / wanted) / 100
    return f" To go on with those that are there: rounds.enough={share:g}." if share else ""
