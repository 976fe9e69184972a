"""Whether a model that somebody names is there, told at once: the hub is asked once, and not waited for."""

import os
from collections.abc import Iterator, Sequence
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
from transformers.utils import cached_file

from llm_rlhf.errors import RecipeError, first_line
from llm_rlhf.recipe.sections import ModelSection, is_among
from llm_rlhf.recipe.values import neighbour
from llm_rlhf.run_folder import read_json
from llm_rlhf.user_code import told

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
        if isinstance(error, OSError) and error.filename is not None:  # of its token or its cache
            raise RecipeError(
                f"{nowhere}, and the hub's client cannot use its folder ({reason_of(error)}); set HF_HOME to one that "
                "can be written."
            ) from None
        raise RecipeError(
            f"{nowhere} and not in the hub's cache, and the hub cannot be reached ({reason_of(error)}); mend the name "
            "or the connection."
        ) from None


def find_config(path: str | Path, section: ModelSection, named: str, trusted: bool | None = None) -> Any:
    """The configuration of a model that is there; RecipeError, which begins with `named`, where it has none.

    Args:
        section: whose code may run; where the model is not its base, `trusted` says whether this one's may.
    """
    check_there(path, named)
    trust_remote_code = section.trusts_base if trusted is None else trusted
    if trust_remote_code:
        check_upstream(path, section.trusted, named)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=_cached(path))
    except loading_raises(trust_remote_code) as error:
        if of_code := needs_code(path, error):
            raise RecipeError(f"{named} {of_code}") from None
        raise RecipeError(f"{named} {str(path)!r} is no model that can be loaded: {reason_of(error)}.") from None


def check_upstream(path: str | Path, trusted: Sequence[str], named: str = "The model") -> None:
    """RecipeError where a model that is trusted takes its code from another repository, which is not.

    `auto_map` names the class, with another repository before it where it is there (`owner/other--modeling.Model`).
    """
    for file in ("config.json", "tokenizer_config.json"):
        place = cached_file(
            path,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_connection_errors=False,
        )
        known = None if place is None else read_json(Path(place))
        classes = known.get("auto_map") if isinstance(known, dict) else None
        for named_class in _flat(list(classes.values()) if isinstance(classes, dict) else classes):
            repository, dashes, _ = named_class.partition("--")
            if dashes and repository != str(path) and not is_among(repository, trusted):
                raise RecipeError(
                    f"{named} {str(path)!r} takes its code from another repository, {repository} ({file}), which is "
                    f"not trusted with it; where you trust that one too, name both: [{path}, {repository}]."
                )


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, str):
        yield value


def loading_raises(runs_code: bool) -> tuple[type[Exception], ...]:
    """What loading a model may raise where it cannot be loaded: more, where code of its own runs.

    No RuntimeError, which is also what an accelerator without memory raises.
    """
    of_code = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, SyntaxError, TypeError)
    return (OSError, ValueError, ImportError, *(of_code if runs_code else ()))


def needs_code(path: str | Path, error: Exception) -> str | None:
    """What to say where a model could not be loaded as it comes with code that nobody has allowed; None: it was else.

    transformers refuses before it fetches or imports any of it.
    """
    if "trust_remote_code" not in str(error):
        return None
    return (
        f"{str(path)!r} comes with Python code of its own, which would run here with your rights. Look at it; where "
        f"you trust it, say so of this model by its name: model.trust_remote_code: [{path}] in a recipe, or "
        f"--trust-remote-code {path} for a command."
    )


def check_logged_in(named: str, otherwise: str) -> None:
    """RecipeError, which begins with `named` and ends with what to do `otherwise`, where the hub knows nobody here."""
    try:
        HfApi().whoami()
    except Exception as error:  # of the HTTP library that the hub's client uses, which has changed before
        reason = "nobody is logged in" if isinstance(error, LocalTokenNotFoundError) else reason_of(error)
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


def reason_of(error: Exception) -> str:
    if not isinstance(error, (OSError, ValueError)):  # of a package that is missing, or of the model's own code
        return told(error)
    return first_line(error)
