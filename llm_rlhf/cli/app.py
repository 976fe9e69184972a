"""The command line itself, before main.py gives it its commands: what they lead on to must be among them."""

import typer

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def commands() -> set[str]:
    """Names of the commands and of the groups of commands that there are."""
    of_functions = {str(each.name or getattr(each.callback, "__name__", "")) for each in app.registered_commands}
    return of_functions | {str(group.name) for group in app.registered_groups}
