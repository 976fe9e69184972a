"""The commands `llm-rlhf export` and `llm-rlhf serve`."""

import json
from functools import partial
from typing import Annotated, Any

import typer

from llm_rlhf.cli.completion import policies
from llm_rlhf.cli.exits import check_alone, quiet_libraries, said_aside, told_in_one_message
from llm_rlhf.cli.next_steps import after_export, tell, while_serving
from llm_rlhf.cli.options import TrustRemoteCode
from llm_rlhf.launch import speaks_for_all

Policy = Annotated[
    str, typer.Argument(help="run, RUN:STAGE (sft, step-40), adapter or model folder", autocompletion=policies)
]


def export(
    policy: Policy,
    merge: Annotated[bool, typer.Option("--merge", help="Whole weights, also where an adapter would do.")] = False,
    to: Annotated[str | None, typer.Option("--to", metavar="FOLDER", help="Else exports/NAME.")] = None,
    push: Annotated[
        str | None,
        typer.Option(
            "--push", metavar="ID", help="Upload it to the hub as OWNER/NAME, which is made private where it is new."
        ),
    ] = None,
    despite_gate: Annotated[
        bool, typer.Option("--despite-gate", help="Push it also where it does not pass the gate of its run.")
    ] = False,
    trust_remote_code: TrustRemoteCode = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON at the end.")] = False,
) -> None:
    """Make a folder that others load, with a model card that says what was measured.

    Example: llm-rlhf export runs/hh --merge --to exports/hh
    """
    with told_in_one_message():
        check_alone("export")
        quiet_libraries()
        from llm_rlhf.export.folder import export as make_export

        with said_aside(as_json):
            made = make_export(
                policy, merge, to, push, despite_gate, partial(print, flush=True), trust_remote_code or ()
            )
        if not speaks_for_all():
            return
        if as_json:
            found: dict[str, Any] = {"folder": str(made.folder), "kind": made.kind, "notes": made.notes}
            found |= {"url": made.url, "private": made.private}
            difference = None if made.difference is None else made.difference._asdict()
            print(json.dumps(found | {"difference": difference}, ensure_ascii=False))
            return
        compared = made.difference or "not compared, as no replies of an evaluation are there"
        print(f"as trained and as exported: {compared}")
        print(f"\n{made.kind.capitalize()}: {made.folder} (its README.md says how to load it)")
        if made.url is not None:
            print(f"On the hub, {'private' if made.private else 'PUBLIC, as it was'}: {made.url}")
        tell(after_export(made.folder))


def serve(
    policy: Policy,
    host: Annotated[str, typer.Option("--host", help="Where it listens; 0.0.0.0: on every network.")] = "localhost",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The port there.")] = 8000,
    trust_remote_code: TrustRemoteCode = None,
) -> None:
    """Serve a policy with an API as OpenAI's, by `transformers serve`.

    Example: llm-rlhf serve runs/hh --port 8000
    """
    with told_in_one_message():
        quiet_libraries()
        from llm_rlhf.export.serving import check_can_serve, folder_to_serve
        from llm_rlhf.export.serving import serve as answer

        check_can_serve(host, port)
        folder, trusted = folder_to_serve(policy, trust_remote_code or ())
        name, address = folder.resolve().name, f"http://{host}:{port}/v1"
        ask = json.dumps({"model": name, "messages": [{"role": "user", "content": "Hello!"}]})
        print(
            f"{name} answers at {address} until you press Ctrl+C; nobody is asked for a key.\n\n"
            f"  curl {address}/chat/completions -H 'Content-Type: application/json' -d '{ask}'\n"
            f"  llm-rlhf evaluate RUN --reference {address}#{name}",
            flush=True,
        )
        tell(while_serving(address, name))
        answer(folder, host, port, trusted)
