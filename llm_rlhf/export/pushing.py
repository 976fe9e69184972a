"""Putting an export on the hub, and whatever may speak against it, asked before anything is written."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from llm_rlhf.errors import RecipeError, RunError
from llm_rlhf.export.source import Source
from llm_rlhf.models.finding import check_logged_in


def check(source: Source, repo: str) -> None:
    """Whether this policy may go to this place on the hub; the one place that can refuse it.

    Raises:
        RecipeError: where it may not, or the hub does not know who asks.
    """
    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise RecipeError(f"--push {repo!r} is no id of the hub, which is OWNER/NAME: {error}") from None
    if "/" not in repo:
        raise RecipeError(f"--push {repo!r} does not say whose it is; write OWNER/{repo}.")
    check_logged_in(f"--push {repo}:", "leave --push out, and upload the folder afterwards (hf upload)")


def push(folder: Path, repo: str) -> str:
    """Upload a folder; its address. A repository that is made for it is private: making it public is a decision.

    Raises:
        RunError: where the hub refuses it; the folder is there all the same.
    """
    api = HfApi()
    try:
        address = str(api.create_repo(repo, private=True, exist_ok=True))
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export of llm-rlhf")
    except Exception as error:  # of the HTTP library that the hub's client uses, which has changed before
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise RunError(
            f"The export is at {folder}, but the hub did not take it ({reason}). Try again: hf upload {repo} {folder}"
        ) from None
    return address
