"""What the machine can compute and hold: devices, number formats by trying them, attention, memory, disk, threads."""

import os
import shutil
from pathlib import Path

import psutil
import torch

from llm_rlhf.doctor.findings import Finding

GIB = 2**30
SCARCE = {"disk": 10 * GIB, "memory": 4 * GIB}  # bytes under which a run of a small model may end for want of them
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def device() -> torch.device:
    """Where a run would compute, in this process."""
    there = torch.accelerator.current_accelerator(check_available=True)  # else that which torch was built for
    return there or torch.device("cpu")


def devices() -> Finding:
    """Accelerators, or the CPU's vector instructions."""
    if not torch.accelerator.is_available():
        kernels = torch.backends.cpu.get_cpu_capability()
        built = "" if torch.version.cuda or torch.version.hip else "; this torch is built for CPUs alone"
        return Finding(
            "devices", "note", f"no accelerator{built}; {os.cpu_count()} CPU cores ({kernels})",
            "Tiny models train on CPUs. Is a GPU here: nvidia-smi shows it, and pytorch.org has the torch for it.",
        )  # fmt: skip
    kind = device().type
    if kind == "cuda":
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        told = ", ".join(f"{each.name} ({each.total_memory / GIB:.0f} GiB)" for each in found)
        busy = [i for i, each in enumerate(found) if torch.cuda.mem_get_info(i)[0] < each.total_memory / 2]
        if busy:
            numbers = ", ".join(map(str, busy))
            return Finding(
                "devices", "note", f"{told}; more than half taken: {numbers}", "Something else computes there."
            )
        return Finding("devices", "good", told)
    return Finding(
        "devices", "note", f"{torch.accelerator.device_count()} x {kind}", "Runs were tried on CPU and CUDA."
    )


def bfloat16() -> Finding:
    """A small product in bfloat16 against float32."""
    where = device()
    torch.manual_seed(0)
    left, right = torch.rand(64, 64, device=where), torch.rand(64, 64, device=where)
    off = ((left.bfloat16() @ right.bfloat16()).float() / (left @ right) - 1).abs().max().item()
    if off > 0.05:
        return Finding("bfloat16", "broken", f"a product is {off:.0%} off on {where}", "Set model.dtype: float32.")
    if where.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Finding("bfloat16", "note", f"emulated on {where}, slow", "Set model.dtype: float32.")
    return Finding("bfloat16", "good", f"computes on {where}")


def nf4() -> Finding:
    """A small product with 4-bit weights by bitsandbytes against float32."""
    where = device()
    try:
        import bitsandbytes
    except Exception as error:  # its import loads a library of the driver's
        said = (str(error).splitlines() or [type(error).__name__])[0]
        return Finding(
            "NF4", "note", f"bitsandbytes cannot be imported: {said}", "Needed for model.quantization alone."
        )
    torch.manual_seed(0)
    plain = torch.nn.Linear(256, 64, bias=False)
    packed = bitsandbytes.nn.Linear4bit(256, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    packed.load_state_dict(plain.state_dict())
    packed = packed.to(where)
    rows = torch.randn(8, 256)
    with torch.no_grad():
        wanted, found = plain(rows), packed(rows.to(where)).cpu()
    off = ((found - wanted).norm() / wanted.norm()).item()
    if not off < 0.25:  # about 0.1 is what four bits lose
        return Finding("NF4", "note", f"a product is {off:.0%} off on {where}", "Leave model.quantization at none.")
    return Finding("NF4", "good", f"bitsandbytes {bitsandbytes.__version__} computes on {where}")


def attention() -> Finding:
    """Which implementations of attention can be asked for."""
    from transformers.utils import is_flash_attn_2_available

    flash = is_flash_attn_2_available()
    return Finding("attention", "good", "eager, sdpa" + (", flash_attention_2" if flash else ""))


def compiler() -> Finding:
    """The compiler that torch.compile and Triton's kernels call while they run."""
    from llm_rlhf.launch import processes
    from llm_rlhf.models.compiler import compiler, missing

    device = processes().device.type
    if reason := missing(device):
        return Finding("compiler", "note", "none", f"{reason}.")
    return Finding("compiler", "good", str(compiler(device)))


def memory() -> Finding:
    """What is free of the machine's memory, or of what its container may take."""
    free, limit = psutil.virtual_memory().available, container_limit()
    if limit is not None:
        free = min(free, limit)
    told = f"{free / GIB:.1f} GiB free of {psutil.virtual_memory().total / GIB:.1f}"
    told += f"; this container may take {limit / GIB:.1f}" if limit is not None else ""
    if free < SCARCE["memory"]:
        return Finding("memory", "note", told, "A base model is loaded into it first; the quickstart takes 2 GiB.")
    return Finding("memory", "good", told)


def disk() -> Finding:
    """Room and the right to write, where runs go and where the hub's files lie."""
    from huggingface_hub import constants

    places = {"runs": Path("runs").absolute(), "the hub's cache": Path(constants.HF_HUB_CACHE)}
    told, scarce = [], []
    for name, path in places.items():
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        told.append(f"{name} {free / GIB:.0f} GiB free")
        if not os.access(there, os.W_OK):
            remedy = "Set the recipe's output_dir." if name == "runs" else "Set HF_HOME to a folder of yours."
            return Finding("disk", "broken", f"{there} cannot be written ({name})", remedy)
        if free < SCARCE["disk"]:
            scarce.append(name)
    remedy = f"A run of a 0.5B model takes a few GiB: {' and '.join(scarce)} may fill up." if scarce else ""
    return Finding("disk", "note" if scarce else "good", ", ".join(told), remedy)


def threads() -> Finding:
    """Threads of torch against the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = f"{torch.get_num_threads()} of torch, {cores} cores"
    if torch.get_num_threads() > cores:
        return Finding(
            "threads", "note", told, f"More threads than cores wait for each other: OMP_NUM_THREADS={cores}."
        )
    return Finding("threads", "good", told)


def container_limit() -> int | None:
    """Bytes of memory that this container may take; None where there is no limit under the machine's own."""
    for name in LIMITS:
        try:
            limit = int(Path(name).read_text())
        except (OSError, ValueError):  # "max"
            continue
        if limit < psutil.virtual_memory().total:
            return limit
    return None
