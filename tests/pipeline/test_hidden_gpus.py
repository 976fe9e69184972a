"""Tests see no GPU, and neither do the processes that they start, unless LLM_RLHF_TEST_DEVICE asks for one. Nor does a
run that is launched for CPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ASKED = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
import conftest
asked = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ.get('ACCELERATE_USE_CPU'))"
subprocess.run([sys.executable, "-c", asked], check=True)
"""


@pytest.mark.parametrize(("device", "seen"), [(None, " true"), ("cpu", " true"), ("cuda", "3 None")])
def test_who_sees_a_gpu(device, seen) -> None:
    told = {n: v for n, v in os.environ.items() if n not in ("LLM_RLHF_TEST_DEVICE", "ACCELERATE_USE_CPU")}
    told["CUDA_VISIBLE_DEVICES"] = "3"
    if device:
        told["LLM_RLHF_TEST_DEVICE"] = device
    done = subprocess.run([sys.executable, "-c", ASKED, str(TESTS)], env=told, capture_output=True, text=True)
    assert done.stdout.strip("\n") == seen, done.stderr


@pytest.mark.parametrize(
    ("asked", "seen"),
    [("true", ""), ("True", ""), ("on", ""), ("t", ""), ("y", ""), ("1", ""), ("False", "3"), (None, "3")],
)
def test_a_run_for_cpus_sees_no_gpu(asked, seen) -> None:
    """`accelerate launch --cpu` says so by a variable that accelerate reads, and torch and PEFT do not."""
    told = {n: v for n, v in os.environ.items() if n != "ACCELERATE_USE_CPU"} | {"CUDA_VISIBLE_DEVICES": "3"}
    look = "import os, llm_rlhf; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    told |= {"ACCELERATE_USE_CPU": asked} if asked else {}
    done = subprocess.run([sys.executable, "-c", look], env=told, capture_output=True, text=True, cwd=TESTS.parent)
    assert done.stdout.strip("\n") == seen, done.stderr
