"""The commands `llm-rlhf feedback ...`: people say which answers are better, and the next round learns from it."""

import contextlib
from typing import Annotated, Any

import typer

from llm_rlhf.cli.exits import told_in_one_message

feedback_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Ask people which answers are better, and use what they say."
)

Store = Annotated[
    str, typer.Argument(metavar="RUN|STORE", help="a run's folder, a store's file, or postgresql://user@host/name")
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
    with_chat: Annotated[bool, typer.Option("--chat/--no-chat", help="Live chat with the run's policy.")] = True,
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
        from llm_rlhf.cli.exits import quiet_libraries, quiet_warnings
        from llm_rlhf.feedback.database import Database
        from llm_rlhf.feedback.web import serving
        from llm_rlhf.feedback.web.app import create_app
        from llm_rlhf.feedback.web.security import Access
        from llm_rlhf.feedback.web.work import count
        from llm_rlhf.interruption import Terminated

        access = Access(host, _public(public_url))
        quiet_warnings()
        quiet_libraries()
        speaker = _speaker(store, against_start) if with_chat else None
        database = Database.of(store)
        listener = serving.bind(host, port)
        address = serving.address_of(access, listener.getsockname()[1])
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


def _speaker(store: str, against_start: bool) -> Any:
    """Who answers in live chats: the policy of the run that is served; nobody, where a store alone is.

    A run whose policy is not trained yet, or cannot be loaded here, has its page without chats, and it is said why.

    Raises:
        RecipeError, DataError: where a policy against its start was asked for, and cannot be had.
    """
    import sys
    from pathlib import Path

    from llm_rlhf.errors import DataError, RecipeError, RunError, RunFolderError
    from llm_rlhf.run_folder import MANIFEST

    if "://" in store or not (Path(store).expanduser() / MANIFEST).is_file():
        if against_start:
            raise RecipeError(f"--against-start needs a run, which has a policy to chat with; {store} is none.")
        return None
    from llm_rlhf.chat.speaking import speaker_of_run

    try:
        with contextlib.redirect_stdout(sys.stderr):  # notes of loading
            return speaker_of_run(Path(store).expanduser(), against_start)
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
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/") or parts.query:
        raise RecipeError(f"--public-url is {url!r}; it is an address without a path, such as https://ask.example.org.")
    return url.rstrip("/")
