"""The command `llm-rlhf plan`."""

import json
from typing import Annotated

import typer

from llm_rlhf.cli.completion import recipes
from llm_rlhf.cli.exits import quiet_libraries, quiet_warnings, said_aside, told_in_one_message


def plan(
    recipe: Annotated[str, typer.Argument(help="YAML file, e.g. recipes/quickstart.yaml", autocompletion=recipes)],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, laid over the recipe")] = None,
    memory: Annotated[
        float | None,
        typer.Option("--memory", metavar="GIB", help="Memory that there is; default: that of this machine's device."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="cpu or cuda: where the run will compute; default: as on this machine."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """What a recipe would take: rows, steps, memory by stage and where it goes, disk. Loads no weights.

    Example: llm-rlhf plan recipes/hh.yaml --device cuda --memory 24

    Exit code 2 where a stage does not fit; the message names keys to lower, and what each would give.
    """
    if device not in (None, "cpu", "cuda"):
        raise typer.BadParameter(f"--device is {device!r}; it must be cpu or cuda.")
    if memory is not None and not memory > 0:
        raise typer.BadParameter(f"--memory is {memory:g}; it must be over 0, in GiB.")
    with told_in_one_message("interrupted."):
        quiet_warnings()
        from llm_rlhf.recipe.loading import load_recipe

        loaded = load_recipe(recipe, overrides or ())
        quiet_libraries()
        from llm_rlhf.errors import RecipeError
        from llm_rlhf.plan.forecast import Forecast, compute_device
        from llm_rlhf.plan.machine import memory_there, process_bytes
        from llm_rlhf.plan.remedies import remedies
        from llm_rlhf.plan.text import as_dict, lines, refusal

        where = device or compute_device()
        there = memory_there(where) if memory is None else int(memory * 2**30)
        with said_aside(as_json):
            forecast = Forecast(loaded, where)
            process = process_bytes() if where == "cpu" else 0
            plans = forecast.plan()
        if as_json:
            print(json.dumps(as_dict(plans, process, there, where), ensure_ascii=False))
        else:
            print("\n".join(lines(plans, process, there, where)))
        largest = max(plans, key=lambda each: each.bytes)
        if there is not None and largest.bytes + process > there:
            raise RecipeError(refusal(largest, process, there, remedies(forecast, largest)))
