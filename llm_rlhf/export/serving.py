"""An OpenAI-compatible server of a policy: `transformers serve`, pinned to its export."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from transformers.utils.import_utils import is_serve_available

from llm_rlhf.errors import RecipeError
from llm_rlhf.export.folder import made_from, make
from llm_rlhf.export.source import source_of

CACHED = "serve"  # in the run's cache


def check_can_serve(host: str, port: int) -> None:
    """RecipeError where packages are missing or the port is taken, before anything is loaded."""
    if not is_serve_available():
        raise RecipeError(
            "Serving takes openai beside fastapi and uvicorn, which are not all there: pip install 'llm-rlhf[serve]'."
        )
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise RecipeError(f"--host {host} --port {port}: nothing can listen there ({reason}).") from None


def folder_to_serve(text: str, trust_remote_code: Sequence[str] = ()) -> tuple[Path, bool]:
    """Whole weights of the policy: the model's own folder, or an export in its run's cache, made where there is none.

    And whether Python that lies there may run, as its run's recipe or `trust_remote_code` says.

    Raises:
        RecipeError: where it is an adapter of no run, or a model that is not on this machine.
    """
    source = source_of(text, trust_remote_code)
    if source.subject.run is None:
        folder = Path(source.subject.base)
        if source.adapters or not folder.is_dir():
            raise RecipeError(
                f"{text} is {'an adapter' if source.adapters else 'not on this machine'}; make whole weights first: "
                f"llm-rlhf export {text} --merge."
            )
        return folder, source.section.trusts_base
    folder = source.subject.run / "cache" / CACHED / source.name
    if not made_from(folder, source):
        folder.parent.mkdir(parents=True, exist_ok=True)
        print(f"writing whole weights of {text} to {folder}", flush=True)
        make(source, "model", folder, source.name)
    return folder, source.section.trusts_base


def serve(folder: Path, host: str, port: int, trust_remote_code: bool = False) -> None:
    """Answer until interrupted. The model is called as its folder; a request for another one is refused."""
    from transformers.cli.serve import Serve

    os.chdir(folder.resolve().parent)  # what it is called is how it is found
    Serve(force_model=folder.resolve().name, host=host, port=port, trust_remote_code=trust_remote_code)
