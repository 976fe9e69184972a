"""The command `llm-rlhf init`."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from llm_rlhf.cli.exits import say_error, told_in_one_message
from llm_rlhf.cli.next_steps import after_init, after_recipes, tell

T = TypeVar("T")


def init(
    base: Annotated[str | None, typer.Option("--base", metavar="MODEL", help="Hub id or folder of the model.")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="SOURCE", help="File, or hub id of a data set.")] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="cpu|24|80", help="Memory of the GPU in GB, or cpu.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="FILE.yaml", help="Else the name of model and data.")
    ] = None,
    recipes: Annotated[
        bool, typer.Option("--recipes", help="Copy the recipes that ship instead, to ./recipes or the folder of --to.")
    ] = False,
) -> None:
    """Write a recipe for your model, data and machine, with a comment at every key; what is not said is asked.

    Example: llm-rlhf init --base Qwen/Qwen2.5-0.5B --data pairs.jsonl --gpu 24 --to mine.yaml
    """
    if recipes:
        if any((base, data, gpu)):
            raise typer.BadParameter("--recipes copies recipes as they are; leave out --base, --data and --gpu.")
        _copy_recipes(Path(to or "recipes"))
        return
    with told_in_one_message("interrupted; nothing is written."):
        from llm_rlhf.errors import RecipeError
        from llm_rlhf.starter import HARDWARE, check_base, look_at, recipe_name, recipe_text

        def of_hardware(text: str) -> str:
            name = text.lower().removesuffix("gb").strip()
            if name not in HARDWARE:
                raise RecipeError(f"--gpu is {text!r}; it is one of {', '.join(HARDWARE)}.")
            return name

        base, _ = _settled("--base", base, "Base model (hub id or folder)", "Qwen/Qwen2.5-0.5B", check_base)
        data, seen = _settled("--data", data, "Data (file, or hub id of a data set)", None, look_at)
        guess = "24" if shutil.which("nvidia-smi") else "cpu"
        _, hardware = _settled("--gpu", gpu, f"Hardware ({', '.join(HARDWARE)} GB of one GPU)", guess, of_hardware)
        path = Path(to or f"{recipe_name(base, data)}.yaml")
        text = recipe_text(path, base, data, hardware, seen)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise RecipeError(f"{path} is there already, and nothing is written over it; name another: --to.") from None
        except OSError as error:
            raise RecipeError(f"{path} cannot be written: {error}; name another: --to.") from None
        print(f"{path} written. {data}: {seen.told}")
        tell(after_init(path))


def _copy_recipes(folder: Path) -> None:
    with told_in_one_message("interrupted; some recipes may be missing."):
        from llm_rlhf.starter import copy_recipes

        print("\n".join(f"{path} written." for path in copy_recipes(folder)))
        tell(after_recipes(folder / "quickstart.yaml"))


def _settled(
    option: str, value: str | None, question: str, default: str | None, check: Callable[[str], T]
) -> tuple[str, T]:
    """The option's value and what checking it gave; asked for, until it is right, where somebody can answer."""
    from llm_rlhf.errors import DataError, RecipeError

    if value is not None:
        return value, check(value)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise RecipeError(
            f"{option} is missing, and there is no terminal to ask at; name all of --base, --data, --gpu."
        )
    while True:
        answer = str(typer.prompt(question, default=default)).strip()
        try:
            return answer, check(answer)
        except (RecipeError, DataError) as error:
            say_error(str(error))
