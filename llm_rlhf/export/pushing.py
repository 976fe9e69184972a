"""Putting an export on the hub, and whatever may speak against it, asked before anything is written."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from llm_rlhf.errors import RecipeError, RunError, first_line
from llm_rlhf.evaluation.gate import check_gate, gate_of, stage_checks
from llm_rlhf.export.source import Source
from llm_rlhf.models.finding import check_logged_in


def check(source: Source, repo: str, despite_gate: bool = False) -> None:
    """Whether this policy may go to this place on the hub; the one place that can refuse it.

    Args:
        despite_gate: whatever the gate of its run says.

    Raises:
        RecipeError: where the place is none, or the hub does not know who asks.
        RunError: where the policy does not pass the gate of its run.
    """
    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise RecipeError(f"--push {repo!r} is no id of the hub, which is OWNER/NAME: {error}") from None
    if "/" not in repo:
        raise RecipeError(f"--push {repo!r} does not say whose it is; write OWNER/{repo}.")
    if source.is_policy and not despite_gate:
        _check_gate(source)
    check_logged_in(f"--push {repo}:", "leave --push out, and upload the folder afterwards (hf upload)")


def _check_gate(source: Source) -> None:
    """The thresholds of the run's recipe, as `llm-rlhf gate` reads them."""
    run, otherwise = source.subject.run, "push it all the same with --despite-gate"
    assert run is not None  # a policy of a run
    if source.report is None:
        raise RunError(f"Nothing was measured of {source.text}; evaluate it before it is pushed, or {otherwise}.")
    lines = check_gate(source.report, gate_of(run, source.report), stage_checks(run))
    failed = [f"  {line.result:<13}{line.text}" for line in lines if not line.passed]
    if failed:
        raise RunError("\n".join([f"{source.text} does not pass its gate (llm-rlhf gate {run}):", *failed,
                                  f"Mend it, or {otherwise}."]))  # fmt: skip


def push(folder: Path, repo: str) -> tuple[str, bool]:
    """Upload a folder; its address, and whether it is private.

    A repository that is made for it is: making it public is a decision. One that is there already stays as it is.

    Raises:
        RunError: where the hub refuses it; the folder is there all the same.
    """
    api = HfApi()
    try:
        address = str(api.create_repo(repo, private=True, exist_ok=True))
        private = bool(api.model_info(repo).private)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export of llm-rlhf")
    except Exception as error:  # of the HTTP library that the hub's client uses, which has changed before
        raise RunError(
            f"The export is at {folder}, but the hub did not take it ({first_line(error)}). Try again: "
            f"hf upload {repo} {folder}"
        ) from None
    return address, private
