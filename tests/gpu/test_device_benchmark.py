"""The GPU's benchmark, rehearsed with a tiny model."""

import json
import os
import subprocess
import sys

import gpu
import pytest

ROWS = ["0.5B/bf16/shared", "7B/bf16/merged"]
FAIL = ["0.5B/bf16/trl-full", "0.5B/bf16/liger"]  # without trl 1.12; without a GPU, or Liger's package


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("LLM_RLHF_TEST_DEVICE") == "cuda", reason="where it can be run itself")
def test_a_rehearsal_writes_its_rows(device, tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, gpu.__file__, "--tiny", device.type, "--out", str(tmp_path), "--only", *ROWS, *FAIL],
        env=os.environ | {"TRL112_PATH": str(tmp_path)}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    raw = json.loads((tmp_path / "gpu.json").read_text())
    ours, decoded, theirs, liger = raw["runs"]
    assert len(ours["timed"]) == 2
    assert ours["work"]["optimizer_steps"] == 3 * 2  # three iterations of two epochs
    assert ours["work"]["tokens_generated"] > 0.9 * 3 * 8 * 8
    assert ours["operations"]["score"]["all"] > ours["operations"]["score"]["moves"] > 0
    assert ours["operations"]["update"]["all"] > 0
    assert decoded["ms_per_step"] > 0
    assert "holds no folder trl" in theirs["failed"]
    assert ("take a GPU, and there is none" if device.type == "cpu" else "liger") in liger["failed"]
    assert (raw["provenance"]["accelerator"] is None) == (device.type == "cpu")
    page = (tmp_path / "GPU.md").read_text()
    assert "llm-rlhf, value: shared |" in page
    assert "failed: TRL112_PATH is" in page
