"""What a result depends on besides its recipe and its data: versions, the machine, the code."""

import contextlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "llm-rlhf")


def versions() -> dict[str, str]:
    """Python and the packages a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def machine() -> dict[str, str | int]:
    """What a result's last bits depend on beside versions and seed: the processor, its kernels, the threads, the GPU.

    On the same ones a run ends in the same bits. Other kernels (AVX-512, AVX2, none) add up in another order, and the
    runs part after some steps: another draw of the same distribution.
    """
    import torch  # takes two seconds, which a server of pages need not wait for

    found: dict[str, str | int] = {
        "cpu": _cpu_model(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
        found["float32_products"] = torch.get_float32_matmul_precision()  # "highest" is float32, "high" TF32
    return found


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({platform.machine()})"
    return platform.processor() or platform.machine()


def git_state() -> str | None:
    """Commit of the code that ran, with "+changes" where files differ from it; None outside a repository."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--", "."], cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")
