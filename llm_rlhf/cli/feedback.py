"""The commands `llm-rlhf feedback ...`: the page for people, what it asks, and what they said."""

import typer

from llm_rlhf.cli.selecting import select

feedback_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="People compare the policy's answers.")
feedback_app.command(short_help="Fill the queue: which of a policy's answers people are asked about.")(select)
