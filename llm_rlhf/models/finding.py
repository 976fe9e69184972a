"""Whether a model that somebody names is there, told at once: the hub is asked once, and not waited for."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers import AutoConfig

from llm_rlhf.errors import RecipeError
from llm_rlhf.recipe.values import neighbour

SECONDS = 10  # for the hub to answer; its own downloads try again and again, for half a minute each


def check_there(path: str | Path, named: str) -> None:
    """RecipeError, which begins with `named`, where `path` is no folder here, not in the hub's cache and not on it."""
    if Path(path).is_dir() or _cached(path):
        return
    try:
        _ask_the_hub(path, named)
    except RecipeError as error:
        raise RecipeError(f"{error}{neighbour(path)}") from None


def _ask_the_hub(path: str | Path, named: str) -> None:
    nowhere = f"{named} {str(path)!r} is no folder here"
    if Path(path).exists():
        raise RecipeError(f"{nowhere} but a file; name the folder, or a hub id.")
    try:
        HfApi().model_info(str(path), timeout=SECONDS)
    except HFValidationError:
        raise RecipeError(f"{nowhere}, and no hub id, which is OWNER/NAME; mend the name.") from None
    except GatedRepoError:
        raise RecipeError(
            f"{nowhere}, and as a hub id it is one of a gated model; ask for access there, and log in: hf auth login."
        ) from None
    except RepositoryNotFoundError:
        raise RecipeError(
            f"{nowhere}, and the hub has no such model, or does not show it to you; mend the name, or log in: hf auth "
            "login."
        ) from None
    except OfflineModeIsEnabled:
        offline = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else "the hub's client is offline"
        raise RecipeError(
            f"{nowhere} and not in the hub's cache, and {offline}, so that it cannot be fetched; mend the name, or "
            "fetch it first (hf download)."
        ) from None
    except Exception as error:  # of the HTTP library that the hub's client uses, which has changed before
        raise RecipeError(
            f"{nowhere} and not in the hub's cache, and the hub cannot be reached ({_reason(error)}); mend the name or "
            "the connection."
        ) from None


def find_config(path: str | Path, trust_remote_code: bool, named: str) -> Any:
    """The configuration of a model that is there; RecipeError, which begins with `named`, where it has none."""
    check_there(path, named)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=_cached(path))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{named} {str(path)!r} is no model that can be loaded: {_reason(error)}.") from None


def check_logged_in(named: str, otherwise: str) -> None:
    """RecipeError, which begins with `named` and ends with what to do `otherwise`, where the hub knows nobody here."""
    try:
        HfApi().whoami()
    except Exception as error:  # of the HTTP library that the hub's client uses, which has changed before
        reason = "nobody is logged in" if isinstance(error, LocalTokenNotFoundError) else _reason(error)
        raise RecipeError(
            f"{named} the hub cannot be asked who you are ({reason}); log in (hf auth login), or {otherwise}."
        ) from None


def _cached(path: str | Path) -> bool:
    """Whether the hub's cache on this machine holds the configuration of a model, or of an adapter."""
    try:
        found = [try_to_load_from_cache(str(path), name) for name in ("config.json", "adapter_config.json")]
    except HFValidationError:
        return False
    return any(isinstance(file, str) for file in found)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
