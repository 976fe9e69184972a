"""Commands that look at the device before anything is trained."""

import os
import subprocess

import pytest
from launching import command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("LLM_RLHF_TEST_DEVICE" not in os.environ, reason="tests/doctor is for CPUs"),
]


def test_the_doctor_finds_the_device_good(device) -> None:
    """Whatever it says of packages, which are not the pinned ones on every machine."""
    done = subprocess.run(command("doctor"), capture_output=True, text=True, timeout=300)
    assert f"✓ a step of PPO: finite loss and first ratio 1 on {device.type}" in done.stdout
    if device.type == "cuda":
        assert f"✓ bfloat16: computes on {device.type}" in done.stdout
        assert f"computes on {device.type}" in next(line for line in done.stdout.splitlines() if "NF4" in line)
        assert "GiB)" in next(line for line in done.stdout.splitlines() if "devices" in line)
