"""The memory that there is, and what a process takes before a model is in it."""

import os
import platform

import psutil
import torch

from llm_rlhf.doctor.machine import container_limit

WORKING = 150 * 2**20  # what training's own libraries and threads add; measured on a CPU (docs/planning.md)


def memory_there(device: str) -> int | None:
    """Bytes of the GPU, or of this machine or its container; None for a GPU that is not here."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
    limit = container_limit()
    return psutil.virtual_memory().total if limit is None else limit


def process_bytes() -> int:
    """Bytes that a run's process holds beside its models: this one's, which has the same libraries and rows."""
    return psutil.Process().memory_info().rss + WORKING


def keeps_freed_memory() -> bool:
    """Whether this system's allocator keeps what freed tensors of a few megabytes took (docs/planning.md)."""
    return platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ
