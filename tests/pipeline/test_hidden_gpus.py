"""Tests see no GPU, and neither do the processes that they start, unless LLM_RLHF_TEST_DEVICE asks for one."""

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
