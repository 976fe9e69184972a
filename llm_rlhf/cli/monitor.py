"""The command `llm-rlhf monitor`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from llm_rlhf.cli.completion import policies
from llm_rlhf.cli.exits import quiet_libraries, told_in_one_message


def monitor(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="JSON lines of conversations, as OpenAI's API has them")],
    policy: Annotated[
        str, typer.Option("--policy", metavar="RUN", help="The run it came from, evaluated.", autocompletion=policies)
    ],
    by: Annotated[str, typer.Option("--by", metavar="day|week", help="What is taken together; UTC.")] = "day",
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FOLDER", help="For page and rows; else monitor/ in the run.")
    ] = None,
    reward: Annotated[
        list[str] | None, typer.Option("--reward", metavar="MODEL", help="A reward model; else the run's own.")
    ] = None,
    heldout: Annotated[
        list[str] | None, typer.Option("--heldout", metavar="MODEL", help="A held-out one; else the run's own.")
    ] = None,
    ask_anew: Annotated[
        int,
        typer.Option("--ask-anew", min=0, help="Prompts of each period that the policy answers anew; 0: none."),
    ] = 50,
    most: Annotated[
        int, typer.Option("--most", min=0, help="Replies of each period that are read, by a draw; 0: all.")
    ] = 0,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Replies to look at, for each reason.")] = 20,
    ask: Annotated[
        str, typer.Option("--ask", metavar="KIND", help="What people are asked: rate, annotate, correct or compare.")
    ] = "rate",
    to_queue: Annotated[
        str | None, typer.Option("--to-queue", metavar="STORE", help="Put these replies into a feedback store.")
    ] = None,
    fail_on_alarm: Annotated[
        bool, typer.Option("--fail-on-alarm", help="Exit code 1 where something drifted.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Hold a log of conversations against the report of the run that answers in it.

    Example: llm-rlhf monitor log.jsonl --policy runs/hh

    Weekly, in a job that is to fail: llm-rlhf monitor log.jsonl --policy runs/hh --by week --fail-on-alarm

    What people should look at, on the feedback page: llm-rlhf monitor log.jsonl --policy runs/hh --to-queue runs/hh
    """
    with told_in_one_message("interrupted before anything was written."):
        quiet_libraries()
        from rich.console import Console

        from llm_rlhf.errors import RecipeError
        from llm_rlhf.feedback.database import Database
        from llm_rlhf.monitor.log import read_log
        from llm_rlhf.monitor.page import html, lines, table
        from llm_rlhf.monitor.reading import Instruments
        from llm_rlhf.monitor.report import PERIODS
        from llm_rlhf.monitor.report import monitor as monitored
        from llm_rlhf.monitor.rows import ASKS, counted, questions, thumbs, to_look_at, write_rows
        from llm_rlhf.monitor.rows import to_queue as put

        for option, value, known in (("--by", by, PERIODS), ("--ask", ask, ASKS)):
            if value not in known:
                raise RecipeError(f"{option} is {value!r}; it is {', '.join(known[:-1])} or {known[-1]}.")
        read = read_log(log)
        if to_queue is not None:
            Database.of(to_queue).close()  # before the work of hours: a store that cannot be opened
        instruments = Instruments(policy, reward or (), heldout or ())
        found = monitored(read, instruments, by, ask_anew, most)
        chosen = to_look_at(found, rows)
        asked, rated = questions(found, chosen, ask), thumbs(read.replies)
        folder = output or instruments.run / "monitor"
        folder.mkdir(parents=True, exist_ok=True)
        told = found.told() | {"to_look_at": counted(chosen), "files": {}}
        (folder / "monitor.html").write_text(html(found, chosen), encoding="utf-8")
        for name, made in (("look.jsonl", asked), ("thumbs.jsonl", rated)):
            told["files"][str(folder / name)] = write_rows(folder / name, made)
        added = None
        if to_queue is not None:
            details = {"log": str(log), "policy": str(instruments.run), "by": by, "lines": read.lines}
            added = put(to_queue, asked, details)
            told["queue"] = {"new": len(added.items), "known": added.known, "held": added.held}
        (folder / "monitor.json").write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        if as_json:
            print(json.dumps(told, ensure_ascii=False))
        else:
            Console().print(table(found))
            print("\n" + "\n".join(lines(found, chosen)))
            if added is not None:
                print(
                    f"In {to_queue}: {len(added.items)} new questions, {added.known} that were there already; "
                    f"{added.held} wait for a lead, as they look like personal data."
                )
            print(f"\nThe page: {folder / 'monitor.html'}")
            print(f"Rows to look at: {folder / 'look.jsonl'} ({len(asked)}, with people's words in them)")
            print(f"Thumbs, for data.ratings: {folder / 'thumbs.jsonl'} ({len(rated)})")
    if fail_on_alarm and found.alarms:
        raise typer.Exit(1)
