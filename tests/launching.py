"""The command line in processes of its own, as a user starts it."""

import os
import sys


def command(*arguments: object, processes: int = 1) -> list[str]:
    """`llm-rlhf ARGUMENTS`; several processes through accelerate, on a port that no other test has."""
    accelerate = ["accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0", "--num_processes"]
    launcher = [*accelerate, str(processes), "-m"] if processes > 1 else []
    return [sys.executable, "-m", *launcher, "llm_rlhf", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Of such processes: CPUs alone, one thread each."""
    return os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
