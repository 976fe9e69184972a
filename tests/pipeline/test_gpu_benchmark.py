"""The GPU's benchmark: what a time-out leaves, where trl 1.12 comes from, and the floor."""

import sys
import time
from pathlib import Path

import gpu
import pytest
import workers


def script(folder: Path, text: str) -> str:
    path = folder / "measured.py"
    path.write_text(text)
    return str(path)


@pytest.mark.slow
def test_a_process_that_is_cut_leaves_what_it_had_reported(tmp_path) -> None:
    path = script(tmp_path, """
import json, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("noise")
print(json.dumps({"child": child.pid}), flush=True)
print("more noise", flush=True)
time.sleep(600)
""")  # fmt: skip
    started = time.monotonic()
    found = workers.run(path, seconds=3)
    assert time.monotonic() - started < 60
    assert found["cut"] == "after 3 s"
    stat = Path(f"/proc/{found['child']}/stat")  # what it had started was killed, too, and ends when its turn comes
    while time.monotonic() - started < 60 and stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        time.sleep(0.1)
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_a_process_that_reported_nothing_or_failed_says_why(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="nothing was measured within 1 s"):
        workers.run(script(tmp_path, "import time; time.sleep(600)"), seconds=1)
    with pytest.raises(RuntimeError, match="no such shape"):
        workers.run(script(tmp_path, "print('{}'); raise SystemExit('no such shape')"), seconds=60)
    assert workers.run(script(tmp_path, "print('{\"ms\": 1}')"), seconds=60) == {"ms": 1}


def test_trl_1_12_is_a_folder_or_an_interpreter(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("TRL112_PATH", raising=False)
    monkeypatch.setenv("TRL112_PYTHON", "/of/its/own/python")
    assert workers.trl112_environment() == ("/of/its/own/python", [])
    monkeypatch.setenv("TRL112_PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="holds no folder trl"):
        workers.trl112_environment()
    (tmp_path / "trl").mkdir()
    assert workers.trl112_environment() == ("/of/its/own/python", [str(tmp_path)])
    monkeypatch.delenv("TRL112_PYTHON")
    assert workers.trl112_environment() == (sys.executable, [str(tmp_path)])


def test_the_floor_of_a_shape_by_hand(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "FLOPS", 1.0)
    monkeypatch.setattr(gpu, "BYTES", 1e9)  # of no account: products are all
    shape = gpu.qwen(4, 8, layers=1, heads=2, kv_heads=1, vocabulary=10, tied=True)
    # Queries and output 2 x 4 x 4, keys and values 2 x 4 x 2, the MLP 3 x 4 x 8: 144. The head: 40.
    found = gpu.floor(shape, {"prompts": 3, "prompt_tokens": 5, "new_tokens": 2})
    rollout, logits = 2 * 144 * 3 * 7, 2 * 40 * 3 * 2
    assert found["score"] == 3 * rollout + 2 * logits
    assert found["update"] == 4 * (rollout + logits)
    assert found["generate"] == 2 * 144 * 3 * 5 + 2 * (2 * 184 * 3)


def test_the_floor_of_decoding_reads_weights_and_cache(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "FLOPS", 1e12)
    monkeypatch.setattr(gpu, "BYTES", 1.0)
    shape = gpu.qwen(4, 8, layers=1, heads=2, kv_heads=1, vocabulary=10, tied=True)
    found = gpu.floor(shape, {"prompts": 3, "prompt_tokens": 5, "new_tokens": 2})
    assert found["generate"] == pytest.approx(2 * (2 * 184 + 2 * 4 * 3 * (5 + 1)), rel=1e-6)


def test_work_that_differs_is_seen() -> None:
    def record(tokens: int, steps: int = 2) -> dict:
        return {"column": "shared", "work": {"tokens_generated": tokens, "optimizer_steps": steps}}

    workers.check_same_work([record(1000), record(980), {"column": "adapter", "failed": "out of memory"}])
    for other in (record(960), record(1000, steps=4)):
        with pytest.raises(RuntimeError, match="different work"):
            workers.check_same_work([record(1000), other])
