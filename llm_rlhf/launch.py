"""The processes of a launch, on accelerators or on plain CPUs."""

import os
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import PartialState


# Seconds, as transformers' ddp_timeout. By itself NCCL gives up after 600, and one process may work alone for longer.
WAITS = 1800.0
SEEN_WITHIN = 5.0  # seconds that a shared disk may take to show one machine what another wrote


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
    """Whether an environment variable of accelerate's is set to what it takes for true."""
    return os.environ.get(variable, "").lower() in ("y", "yes", "t", "true", "on", "1")


def has_accelerator() -> bool:
    """Whether there is one to compute on: `accelerate launch --cpu` is told by the environment, and asks for CPUs."""
    import torch

    return torch.accelerator.is_available() and not is_true("ACCELERATE_USE_CPU")


def processes(waits: float = WAITS) -> "PartialState":
    """The state every process of this launch shares; a single process where none was launched.

    Without an accelerator the processes talk through gloo. accelerate must be told so: by itself it would take each
    CPU process of a launch for a run of its own.

    Args:
        waits: seconds that a process waits for the others before it gives up; of the first call alone.
    """
    from datetime import timedelta

    from accelerate import PartialState

    return PartialState(cpu=not has_accelerator(), timeout=timedelta(seconds=waits))


def on_one_gpu(config: Any) -> None:
    """Keep a trainer's configuration to the GPU of this process, where it sees several.

    transformers would copy the model to all of them at every step (`DataParallel`) and multiply the batch by their
    number. Adapters, heads and sampling here are not made for that; a process for each GPU is what `accelerate launch`
    starts. `_n_gpu` is private, and set so by transformers' own trainer too (tests/pipeline/test_several_gpus.py).
    """
    if config.n_gpu > 1:
        config._n_gpu = 1


def gpus_of_one() -> int:
    """How many GPUs the only process of this launch sees; 0 where there are more processes, and on CPUs."""
    import torch

    state = processes()
    return torch.cuda.device_count() if state.num_processes == 1 and state.device.type == "cuda" else 0


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


def told_by_all(text: str) -> list[str]:
    """What each process of the launch tells, by which it is: "process 1 on node-b: ...". Called on every process."""
    import platform

    from accelerate.utils import gather_object

    here: list[str] = gather_object([f"process {processes().process_index} on {platform.node()}: {text}"])
    return here


def blind_processes(folder: Path) -> list[str]:
    """The processes that do not see what the main process writes into a folder, each by number and machine.

    Called on every process. A folder that is there under the same name on each machine's own disk is not the same.
    """
    from accelerate.utils import broadcast_object_list

    state = processes()
    if state.num_processes == 1:
        return []
    (token,) = broadcast_object_list([uuid.uuid4().hex])
    file = folder / f".seen-{token}"
    if state.is_main_process:
        file.touch()
    state.wait_for_everyone()
    end = time.monotonic() + SEEN_WITHIN
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.1)
    found = told_by_all("" if file.exists() else "blind")
    if state.is_main_process:
        file.unlink(missing_ok=True)
    return [told.removesuffix(": blind") for told in found if told.endswith(": blind")]


# Words of gloo, NCCL and torch's stores, in small letters. Other errors of theirs (a tensor of the wrong size, two
# processes on one GPU) are not that somebody is gone.
_SPEAKS, _LATE = re.compile("gloo|nccl|by peer"), re.compile("timed out|timeout")
_GONE = re.compile("by peer|broken pipe|socket closed|remote process|remote peer")


def lost_others(error: Exception) -> str:
    """Why a process could not wait for the others of its launch any more, as an error tells it; empty for any other."""
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not isinstance(error, RuntimeError):
        return ""
    text = str(error).lower()
    ways = torch.distributed.DistNetworkError, torch.distributed.DistStoreError
    if not isinstance(error, (*ways, torch.distributed.DistBackendError)) and not _SPEAKS.search(text):
        return ""
    if _LATE.search(text):
        return "did not answer in time"
    return "has ended" if isinstance(error, ways) or _GONE.search(text) else ""
