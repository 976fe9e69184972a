"""The command `llm-rlhf feedback select`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from llm_rlhf.cli.completion import policies as known_policies
from llm_rlhf.cli.exits import quiet_libraries, said_aside, told_in_one_message
from llm_rlhf.cli.next_steps import after_select, tell


def select(
    run: Annotated[str, typer.Argument(help="run folder: its policy answers, its reward models score")],
    store: Annotated[
        str | None, typer.Option("--store", metavar="STORE", help="File or URL of the store; else the run's own.")
    ] = None,
    budget: Annotated[
        int, typer.Option("--budget", min=1, help="Comparisons asked for: questions, times people asked of each.")
    ] = 100,
    strategy: Annotated[
        str, typer.Option("--strategy", help="random, disagreement, margin, diverse or mixed (20 % random kept apart)")
    ] = "mixed",
    prompts: Annotated[
        str | None, typer.Option("--prompts", metavar="SOURCE", help="File or hub id; else what the run trained on.")
    ] = None,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="POLICY",
            help="Who answers; several: against each other. start: before training. Else the run's policy.",
            autocompletion=known_policies,
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="compare, rank, rate, correct, annotate or demonstrate")
    ] = "compare",
    answers: Annotated[
        int | None,
        typer.Option("--answers", min=1, help="Of each policy to a prompt; else 2, or 1 of each of several."),
    ] = None,
    people_per_item: Annotated[
        int | None, typer.Option("--people-per-item", min=1, help="Else as the store says: 1 at first.")
    ] = None,
    pool: Annotated[
        int | None, typer.Option("--pool", min=1, help="Prompts that are answered, to choose from; else 4 a question.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, help="Of the answers; else as in training.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Else another one each time.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was asked as JSON.")] = False,
) -> None:
    """Sample a run's policy on prompts that nothing is evaluated on, and ask people about pairs of its replies.

    Example: llm-rlhf feedback select runs/quickstart --budget 50

    Against what it was before training: llm-rlhf feedback select runs/hh --policy runs/hh --policy start
    """
    with told_in_one_message():
        quiet_libraries()
        from llm_rlhf.feedback.database import STORE, Database
        from llm_rlhf.rounds.select import Selection
        from llm_rlhf.rounds.select import select as fill

        asked = Selection(
            Path(run),
            budget,
            strategy,
            kind,
            policies or [],
            answers,
            prompts,
            pool,
            people_per_item,
            temperature,
            seed,
        )
        asked.check()
        database = Database.of(store or Path(run) / STORE)
        try:
            with said_aside(as_json):
                found = fill(asked, database)
        finally:
            database.close()
        if as_json:
            print(json.dumps(found.as_dict() | {"store": database.name}, ensure_ascii=False))
            return
        print(found.text(database.name))
        tell(after_select(store or run), as_json)
