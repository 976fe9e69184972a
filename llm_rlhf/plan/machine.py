"""The memory that there is, and what a process takes before a model is in it."""

import os
import platform

import psutil
import torch

from llm_rlhf.doctor.machine import container_limit


def memory_there(device: str) -> int | None:
    """Bytes of the GPU, or of this machine or its container; None for a GPU that is not here."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
    limit = container_limit()
    return psutil.virtual_memory().total if limit is None else limit


def process_bytes() -> int:
    """Bytes that a run's process holds beside its models, as predicted: what this one does.

    It has the same libraries and rows. A run's stages on a model of 40,000 numbers held 0.60 to 0.62 GiB in all, and
    planning them 0.58 (docs/planning.md).
    """
    return psutil.Process().memory_info().rss


def keeps_freed_memory() -> bool:
    """Whether this system's allocator keeps what freed tensors of a few megabytes took (docs/planning.md)."""
    return platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ
