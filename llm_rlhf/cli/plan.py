"""The command `llm-rlhf plan`."""

import json
import re
import sys
from typing import Annotated

import typer

from llm_rlhf.cli.completion import recipes
from llm_rlhf.cli.exits import check_alone, quiet_libraries, said_aside, told_in_one_message


def plan(
    recipe: Annotated[str, typer.Argument(help="YAML file, e.g. recipes/quickstart.yaml", autocompletion=recipes)],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, laid over the recipe")] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", help="Memory that there is, as 24GiB; default: that of this machine's device."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="cpu or cuda: where the run will compute; default: as on this machine."),
    ] = None,
    time: Annotated[
        bool,
        typer.Option(
            "--time", help="Try a few steps of each stage here, on random weights, and say how long it takes."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """What a recipe would take: rows, steps, memory by stage and where it goes, disk. Loads no weights.

    Example: llm-rlhf plan recipes/hh.yaml --device cuda --memory 24GiB    (does it fit a GPU of 24 GB?)

    Exit code 2 where a stage does not fit; keys to lower are then named, with what each would give.
    """
    if device not in (None, "cpu", "cuda"):
        raise typer.BadParameter(f"--device is {device!r}; it must be cpu or cuda.")
    given = None if memory is None else memory_bytes(memory)
    with told_in_one_message("interrupted."):
        check_alone("plan")
        from llm_rlhf.recipe.loading import load_recipe
        from llm_rlhf.recipe.sections import meant_for

        with meant_for(device):
            loaded = load_recipe(recipe, overrides or ())
        quiet_libraries()
        from llm_rlhf.errors import RecipeError
        from llm_rlhf.plan.forecast import Forecast, compute_device
        from llm_rlhf.plan.machine import memory_there, process_bytes
        from llm_rlhf.plan.remedies import remedies
        from llm_rlhf.plan.text import advice, as_dict, lines, refusal

        where = device or compute_device()
        there = memory_there(where) if given is None else given
        with said_aside(as_json):
            forecast = Forecast(loaded, where, there)
            process = process_bytes() if where == "cpu" else 0
            plans = forecast.plan()
            if time:
                from llm_rlhf.plan.probe import seconds_of

                if where != compute_device():
                    raise RecipeError(
                        f"--time tries the recipe where this machine computes ({compute_device()}), and --device is "
                        f"{where}; leave one of the two out."
                    )
                took = seconds_of(loaded, forecast, plans, lambda told: print(told, file=sys.stderr, flush=True))
                for plan in plans:
                    plan.seconds = took.get(plan.stage)
        too_large = [plan for plan in plans if there is not None and plan.memory and plan.bytes + process > there]
        if not as_json:
            print("\n".join(lines(plans, process, there, where)), flush=True)
            if loaded.rounds is not None and loaded.rounds.count > 1:
                more = [f"up to {loaded.rounds.budget}"] if loaded.rounds.budget else []
                more += ["one for each demonstration"] if loaded.rounds.imitation else []
                print(
                    f"\nThis is the first of {loaded.rounds.count} rounds. A later one takes about as much again, with "
                    f"more pairs for every round before it: {', and '.join(more)}.",
                    flush=True,
                )
        advised = {}
        for each in too_large:
            assert there is not None
            print(f"trying what would make {each.stage} smaller ...", file=sys.stderr, flush=True)
            advised[each.stage] = remedies(forecast, each, there - process)
            if not as_json:
                print("\n".join(["", *advice(each, process, there, advised[each.stage])]), flush=True)
        if as_json:
            print(json.dumps(as_dict(plans, process, there, where, advised), ensure_ascii=False))
        if there is not None and too_large:
            raise RecipeError(refusal(too_large, process, there))


def memory_bytes(told: str) -> int:
    """Of `24GiB`, `24GB` (a GPU's are GiB, whatever is on its box), `24` or `800MiB`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+) ?(?:(G|M)(?:i?B)?)?", told.strip(), re.IGNORECASE)
    count = 0 if found is None else float(found[1]) * 2 ** (20 if (found[2] or "G").upper() == "M" else 30)
    if count < 1:
        raise typer.BadParameter(f"--memory is {told!r}; it must be a number over 0 of GiB or MiB, as 24GiB.")
    return int(count)
