"""The processes of a launch, on accelerators or on plain CPUs."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import PartialState


def speaks_for_all() -> bool:
    """Whether this is the first process of its launch, or the only one; known before torch, which takes seconds."""
    return int(os.environ.get("RANK", "0")) == 0


def uses_fsdp() -> bool:
    """Whether the launch's configuration asks accelerate for FSDP, which it tells by the environment."""
    return is_true("ACCELERATE_USE_FSDP")


def uses_deepspeed() -> bool:
    """Whether the launch's configuration asks accelerate for DeepSpeed."""
    return is_true("ACCELERATE_USE_DEEPSPEED")


def is_true(variable: str) -> bool:
    """Whether an environment variable of accelerate's is set, and to no kind of false."""
    return os.environ.get(variable, "").lower() in ("true", "1", "yes")


def has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()


def processes() -> "PartialState":
    """The state every process of this launch shares; a single process where none was launched.

    Without an accelerator the processes talk through gloo. accelerate must be told so: by itself it would take each
    CPU process of a launch for a run of its own.
    """
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def agreed(find: Callable[[], Any]) -> Any:
    """What the main process finds, or the error that it raises, on every process; the others do not look themselves."""
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [None, None]
    if processes().is_main_process:
        try:
            found[0] = find()
        except Exception as error:  # raised below, by all
            found[1] = error
    value, failed = broadcast_object_list(found)
    if failed is not None:
        raise failed
    return value
