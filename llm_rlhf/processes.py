"""The processes of a launch, on accelerators or on plain CPUs."""

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """The state every process of this launch shares; a single process where none was launched.

    Without an accelerator the processes talk through gloo. accelerate must be told so: by itself it would take each
    CPU process of a launch for a run of its own.
    """
    return PartialState(cpu=not torch.accelerator.is_available())
