"""The commands `llm-rlhf feedback ...`: people say which answers are better, and the next round learns from it."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_rlhf.cli.exits import told_in_one_message
from llm_rlhf.cli.selecting import select

feedback_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Ask people which answers are better, and use what they say."
)

feedback_app.command(short_help="Fill the queue: which of a policy's answers people are asked about.")(select)

Store = Annotated[
    str, typer.Argument(metavar="RUN|STORE", help="a run's folder, a store's file, or postgresql://user@host/name")
]


Columns = Annotated[
    list[str] | None, typer.Option("--columns", metavar="OURS=THEIRS", help="prompt=goal: columns of other names")
]


@feedback_app.command(short_help="Open the page on which people say which answers are better.")
def serve(
    store: Store,
    host: Annotated[
        str, typer.Option("--host", help="Where it listens; 0.0.0.0: on every network of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port there; 0: any that is free.")] = 8080,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="NAME", help="Somebody to invite: a link is printed for each. Kept apart."),
    ] = None,
    public_url: Annotated[
        str | None, typer.Option("--public-url", metavar="URL", help="Where people find it, if behind a proxy.")
    ] = None,
    with_chat: Annotated[
        bool, typer.Option("--chat/--no-chat", help="Live chat with the run's policy; of rounds, the newest's.")
    ] = True,
    against_start: Annotated[
        bool, typer.Option("--against-start", help="In chats, the policy against its start; else against itself.")
    ] = False,
) -> None:
    """Open the page on which people compare, rate, rank, write and correct answers.

    Example: llm-rlhf feedback serve runs/hh

    For others than you, behind a proxy with https: llm-rlhf feedback serve runs/hh --public-url https://ask.example.org

    Two people, with a link each: llm-rlhf feedback serve runs/hh --name Ada --name Grace
    """
    with told_in_one_message("interrupted before anybody came."):
        from llm_rlhf.feedback.database import Database
        from llm_rlhf.feedback.web import serving
        from llm_rlhf.feedback.web.app import create_app
        from llm_rlhf.feedback.web.security import Access
        from llm_rlhf.feedback.web.work import count
        from llm_rlhf.interruption import Terminated

        access = Access(host, _public(public_url))
        database = Database.of(store)
        listener = serving.bind(host, port)  # a port that is taken is told before a model is loaded
        address = serving.address_of(access, listener.getsockname()[1])
        speaker = _speaker(store, against_start) if with_chat else None
        with database.write() as session:
            lead, lead_token = serving.lead_link(session)
            invited = serving.annotator_links(session, name or [])
            questions = count(session)
        print(f"The page is at {address}, over {database.name}, until you press Ctrl+C.\n")
        print(f"  lead {lead.pseudonym}: {address}/i/{lead_token}")
        for person, token, known_as in invited:
            who = f"{known_as} ({person.pseudonym})" if known_as else f"annotator {person.pseudonym}"
            print(f"  {who}: {address}/i/{token}")
        print("\nWhoever has a link comes in as that person, until it runs out.", flush=True)
        if speaker is not None:
            answers = " against ".join(dict.fromkeys(speaker.sources))
            print(f"In live chats, {answers} answers{'' if against_start else ' twice'}.", flush=True)
        if not questions:
            print(
                "The store has no question yet. Fill it from a run's policy (llm-rlhf feedback select RUN) or from a "
                "file (llm-rlhf feedback import FILE); the page may stay open meanwhile.",
                flush=True,
            )
        if not access.is_local and not access.public_url:
            print(
                f"warning: --host is {host}, so that others reach this page, and what they say is not encrypted on its "
                "way. Let a proxy with https stand before it, and name it with --public-url.",
                flush=True,
            )
        with contextlib.closing(database), contextlib.suppress(KeyboardInterrupt, Terminated):
            serving.serve(create_app(database, access, speaker), listener)
        print(f"\nStopped. All that was said is in {database.name}.")


@feedback_app.command(short_help="Tell how good the labels are, and which runs a withdrawal affects.")
def report(
    store: Store,
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
    runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--runs", metavar="FOLDER", help="Where runs lie that may have used the labels; runs, if not said."
        ),
    ] = None,
) -> None:
    """Tell how far people agree, which habits they have, what is shown of whom, and what withdrawals affect.

    Example: llm-rlhf feedback report runs/hh

    Runs that lie elsewhere too: llm-rlhf feedback report runs/hh --runs runs --runs /shared/runs
    """
    with told_in_one_message():
        from llm_rlhf.chat.printable import printable
        from llm_rlhf.feedback.database import Database
        from llm_rlhf.feedback.quality import quality_of
        from llm_rlhf.feedback.report_text import report_text
        from llm_rlhf.feedback.withdrawals import withdrawals

        folders = _folders(runs)
        with contextlib.closing(Database.of(store, create=False)) as database:
            with database.read() as session:
                quality, gone = quality_of(session), withdrawals(session, folders)
            if as_json:
                told = {"store": database.name} | quality.as_json() | {"withdrawals": [one.as_json() for one in gone]}
                print(json.dumps(told, ensure_ascii=False))
            else:
                print(printable(report_text(database.name, quality, gone)))  # people write what is in it


def _folders(named: list[Path] | None) -> list[Path]:
    """Where to look for runs.

    Raises:
        RecipeError: where one that was named is no folder.
    """
    from llm_rlhf.errors import RecipeError

    for folder in named or ():
        if not folder.is_dir():
            raise RecipeError(f"--runs is {folder}, and there is no such folder; name one that runs lie in.")
    return named or [Path("runs")]


@feedback_app.command(name="export", short_help="Write questions and labels to files, for training or other tools.")
def export_labels(
    store: Store,
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="An empty folder, or one that is made.")],
    format: Annotated[
        str, typer.Option("--format", help="jsonl, potato, argilla or label-studio.", case_sensitive=False)
    ] = "jsonl",
    as_json: Annotated[bool, typer.Option("--json", help="Print the card of what was exported as JSON.")] = False,
) -> None:
    """Write a store's questions, with every label that counts, into a folder.

    Example: llm-rlhf feedback export runs/hh --to labels

    jsonl is the files that a run trains on, verdicts for a judge people:FILE, and labels.jsonl, everybody's label of
    each question, which `feedback import` reads. The others are projects of those tools, with what was said so far.

    Labels of people who withdrew, and items with personal data, are in no export. The store notes what each export
    holds, so that whoever withdraws later can be told where their labels are.
    """
    with told_in_one_message():
        from llm_rlhf.feedback.database import Database
        from llm_rlhf.feedback.exchange.exporting import export
        from llm_rlhf.feedback.snapshot import in_words

        with contextlib.closing(Database.of(store, create=False)) as database:
            card = export(database, Path(to), format)
        if as_json:
            print(json.dumps(card, ensure_ascii=False))
            return
        print(f"{card['questions']:,} questions, {in_words(card)}\n")
        for reason, count in card["left_out"]["labels"].items():
            print(f"  left out: {count:,} labels {reason}")
        print(f"Written to {to}, export {card['export']}.")


@feedback_app.command(name="import", short_help="Put questions and labels from files into a store.")
def import_labels(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a file, or the folder of another tool's project")],
    store: Store,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            help="compare, rate, rank, demonstrate, correct or annotate: how rows are asked.",
        ),
    ] = None,
    format: Annotated[
        str, typer.Option("--format", help="data (what `data check` reads), jsonl, potato, argilla or label-studio.")
    ] = "auto",
    columns: Columns = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what came of it as JSON.")] = False,
) -> None:
    """Put the questions of a file into the queue, and the labels that it has beside them.

    Example: llm-rlhf feedback import pairs.jsonl runs/hh

    Pairs ask which is better, prompts ask for answers, replies ask how good they are. Files of other tools, and
    labels.jsonl of `feedback export`, bring their labels along; who gave them becomes a pseudonym, and whether they
    agreed to be trained on is for you to know. What is there already is not put in twice.
    """
    with told_in_one_message():
        from llm_rlhf.chat.printable import printable
        from llm_rlhf.cli.options import columns_of
        from llm_rlhf.feedback.database import Database
        from llm_rlhf.feedback.exchange.importing import bring_in

        source = {"columns": columns_of(columns)} if columns else None
        with contextlib.closing(Database.of(store)) as database:
            found = bring_in(database, Path(file), format, kind, source)
        if as_json:
            print(json.dumps({**dataclasses.asdict(found), "set_aside": dict(found.set_aside)}, ensure_ascii=False))
            return
        known = f", {found.known:,} known before" if found.known else ""
        print(f"Read as {found.format}: {found.questions:,} new questions{known}.")
        if found.labels or found.known_labels:
            again = f", {found.known_labels:,} known before" if found.known_labels else ""
            print(f"{found.labels:,} new labels by {found.people:,} new people{again}; they count as imported.")
        if found.held:
            print(f"{found.held:,} look like personal data, and are held until a lead has looked.")
        for reason, count in found.set_aside.most_common(5):
            print(printable(f"  set aside: {count:,} x {reason}"))
        if len(found.set_aside) > 5:
            print(f"  and for {len(found.set_aside) - 5} more reasons; --json has all")


def _speaker(store: str, against_start: bool) -> Any:
    """Who answers in live chats: the policy of the run, or of the newest of the rounds, that is served; nobody, where a
    store alone is.

    A run whose policy is not trained yet, or cannot be loaded here, has its page without chats, and it is said why.

    Raises:
        RecipeError, DataError: where a policy against its start was asked for, and cannot be had.
    """
    import sys
    from pathlib import Path

    from llm_rlhf.errors import DataError, RecipeError, RunError, RunFolderError
    from llm_rlhf.run_folder import MANIFEST

    folder = None if "://" in store else Path(store).expanduser()
    if folder is not None and not (folder / MANIFEST).is_file():
        from llm_rlhf.rounds.recipes import newest_round

        folder = newest_round(folder)
    if folder is None:
        if against_start:
            raise RecipeError(f"--against-start needs a run, which has a policy to chat with; {store} is none.")
        return None
    from llm_rlhf.cli.exits import quiet_libraries

    quiet_libraries()
    from llm_rlhf.chat.speaking import speaker_of_run

    try:
        with contextlib.redirect_stdout(sys.stderr):  # notes of loading
            return speaker_of_run(folder, against_start)
    except (RecipeError, DataError, RunError, RunFolderError) as error:
        if against_start:
            raise
        print(f"There are no live chats (--no-chat does not look for a policy): {error}\n", flush=True)
        return None


def _public(url: str | None) -> str | None:
    """The address as people's browsers name it.

    Raises:
        RecipeError: where it is none, or has a path: the page stands at the top of its host.
    """
    from urllib.parse import urlsplit

    from llm_rlhf.errors import RecipeError

    if url is None:
        return None
    wrong = f"--public-url is {url!r}; it is an address without a path, such as https://ask.example.org."
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").encode("idna" if "%" not in url else "ascii").decode(), parts.port
    except ValueError:  # of a port or an address that is none
        raise RecipeError(wrong) from None
    plain = parts.path in ("", "/") and not (parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme not in ("http", "https") or not host or not plain:
        raise RecipeError(wrong)
    if port in (None, 443 if parts.scheme == "https" else 80):  # as browsers name it where they say whence they come
        port = None
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}"
