"""`llm-rlhf`: the commands, each in a module of its own, which imports what it needs when it is called."""

import typer

from llm_rlhf.cli.chat import chat
from llm_rlhf.cli.data import data_app
from llm_rlhf.cli.evaluate import compare, evaluate
from llm_rlhf.cli.run import run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="From a base model to a measured, helpful and harmless chat model.",
)
for command in (run, evaluate, compare, chat):
    app.command()(command)
app.add_typer(data_app, name="data")


@app.callback()
def _commands() -> None:
    """From a base model to a measured, helpful and harmless chat model."""


def main() -> None:
    """Run the command line."""
    app()
