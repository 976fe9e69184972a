"""Options that several commands have: how models are loaded that are no run's, keys, and `--columns`."""

from typing import Annotated

import typer

Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", help="auto, float32 or bfloat16, of models that are no run's. auto: bfloat16 on a GPU that has it."
    ),
]
Quantization = Annotated[str, typer.Option("--quantization", help="none, nf4 or int8, likewise.")]
KeyVariable = Annotated[
    str | None, typer.Option("--key-variable", metavar="NAME", help="Environment variable with an API key.")
]
TrustRemoteCode = Annotated[
    list[str] | None,
    typer.Option("--trust-remote-code", metavar="MODEL", help="Run the Python that this model's repository ships."),
]


def columns_of(texts: list[str] | None) -> dict[str, str]:
    """A source's `columns`, by our name the file's, from OURS=THEIRS as the command line writes them.

    Raises:
        RecipeError: for text of another form, and for a name that is none of ours.
    """
    from llm_rlhf.errors import RecipeError
    from llm_rlhf.recipe.checks import COLUMNS
    from llm_rlhf.recipe.values import nearest

    columns = {}
    for text in texts or []:
        ours, sign, theirs = text.partition("=")
        if not (ours and sign and theirs):
            raise RecipeError(f"--columns is {text!r}; write our name and the file's: --columns prompt=goal.")
        if ours not in COLUMNS:
            raise RecipeError(
                f"--columns is {text!r}, and {ours!r} is no column of ours.{nearest(ours, list(COLUMNS))}"
            )
        columns[ours] = theirs
    return columns
