"""The processes of a launch, on accelerators or on plain CPUs."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState


def speaks_for_all() -> bool:
    """Whether this is the first process of its launch, or the only one; known before torch, which takes seconds."""
    return int(os.environ.get("RANK", "0")) == 0


def processes() -> "PartialState":
    """The state every process of this launch shares; a single process where none was launched.

    Without an accelerator the processes talk through gloo. accelerate must be told so: by itself it would take each
    CPU process of a launch for a run of its own.
    """
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())
