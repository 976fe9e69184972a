"""The command `llm-rlhf run`."""

import json
from typing import Annotated

import typer

from llm_rlhf.cli.completion import recipes
from llm_rlhf.cli.console import outlive
from llm_rlhf.cli.exits import quiet_libraries, quiet_warnings, said_aside, show, told_in_one_message
from llm_rlhf.cli.next_steps import after_run, tell


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
        quiet_warnings()
        from llm_rlhf.recipe.loading import load_recipe

        loaded = load_recipe(recipe, overrides or ())  # first: to import all that runs it takes seconds
        quiet_libraries()
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
