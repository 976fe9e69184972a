"""The command line and scripts in processes of their own, as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def command(*arguments: object, processes: int = 1) -> list[str]:
    """`llm-rlhf ARGUMENTS`; several processes through accelerate, on a port that no other test has."""
    accelerate = ["accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0", "--num_processes"]
    launcher = [*accelerate, str(processes), "-m"] if processes > 1 else []
    return [sys.executable, "-m", *launcher, "llm_rlhf", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Of such processes: CPUs alone, one thread each."""
    return os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def torchrun(processes: int, script: Path, arguments: list[str]) -> subprocess.CompletedProcess:
    """`accelerate launch --cpu --num_processes 2` silently starts one process, so torchrun starts them here."""
    paths = [os.environ.get("PYTHONPATH", ""), str(TESTS), str(TESTS.parent)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    done = subprocess.run(
        [*command, str(script), *arguments], env=environment() | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done
