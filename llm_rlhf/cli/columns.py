"""The option `--columns`: a source's `columns` as the command line writes them."""


def columns_of(texts: list[str] | None) -> dict[str, str]:
    """Our name of each column: the file's, from OURS=THEIRS.

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
