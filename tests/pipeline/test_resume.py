"""A run killed inside PPO and started again ends with the very bits of one that was never interrupted."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from chain_helpers import copy
from launching import command, environment

OVERRIDES = (
    "ppo.total_episodes=96", "ppo.save_rollouts=1", "ppo.save_total_limit=2", "ppo.eval_rollouts=2",
    "ppo.adaptive_kl_target=0.05", "ppo.adaptive_kl_horizon=100", "ppo.score_normalization=whiten", "ppo.ptx_coef=0.1",
)  # fmt: skip
STEPS = 4  # optimizer steps a rollout
ROLLOUTS = 6


def launch(run: Path, processes: int = 1) -> subprocess.Popen:
    """The command a user would give; two processes through accelerate."""
    asked = command("run", run.parent / "tiny.yaml", f"output_dir={run}", *OVERRIDES, processes=processes)
    return subprocess.Popen(asked, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return out


def kill_when(process: subprocess.Popen, path: Path) -> None:
    """SIGKILL to the whole launch as soon as the file is there."""
    deadline = time.time() + 240
    while not path.exists():
        assert process.poll() is None, f"the run ended before {path.name} was there"
        assert time.time() < deadline, f"{path.name} did not come"
        time.sleep(0.005)
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.kill()
    process.communicate()


def without_ppo(finished: Path, folder: Path) -> Path:
    run = copy(finished, folder)
    for name in ("ppo", "evaluate"):
        shutil.rmtree(run / name)
    return run


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def uninterrupted(request, finished: Path, tmp_path_factory) -> tuple[Path, int]:
    run = without_ppo(finished, tmp_path_factory.mktemp("uninterrupted"))
    finish(launch(run, request.param))
    return run, request.param


def assert_same_end(run: Path, expected: Path) -> None:
    for name in ("policy/adapter_model.safetensors", "value/value_head.safetensors"):
        assert (run / "ppo" / name).read_bytes() == (expected / "ppo" / name).read_bytes(), name
    for log in ("metrics.jsonl", "samples.jsonl", "snapshots.jsonl", "watch.jsonl"):
        old, new = ([json.loads(line) for line in (r / "ppo" / log).read_text().splitlines()] for r in (expected, run))
        for line in (*old, *new):
            for clock in [k for k in line if "time" in k or k.endswith("per_second") or k == "train_loss"]:
                del line[clock]  # what a clock says; and a mean over this launch's steps only
        assert old == new, log
    one, two = (json.loads((r / "report.json").read_text())["estimates"] for r in (expected, run))
    assert one == two
    assert not list((run / "ppo").glob("checkpoint-*"))


@pytest.mark.slow
def test_killed_after_a_checkpoint(uninterrupted, finished: Path, tmp_path) -> None:
    expected, processes = uninterrupted
    run = without_ppo(finished, tmp_path)
    kill_when(launch(run, processes), run / "partial-ppo" / f"checkpoint-{2 * STEPS}" / "complete.json")
    out = finish(launch(run, processes))
    assert "goes on from optimizer step" in out
    assert_same_end(run, expected)


@pytest.mark.slow
def test_killed_twice_once_before_any_checkpoint_and_once_while_one_is_written(
    uninterrupted, finished: Path, tmp_path
) -> None:
    expected, processes = uninterrupted
    run = without_ppo(finished, tmp_path)
    partial = run / "partial-ppo"
    kill_when(launch(run, processes), partial / "samples.jsonl")
    kill_when(launch(run, processes), partial / f"checkpoint-{3 * STEPS}" / "trainer_state.json")
    (partial / f"checkpoint-{3 * STEPS}" / "complete.json").unlink(missing_ok=True)
    out = finish(launch(run, processes))
    assert f"goes on from optimizer step {2 * STEPS}" in out
    assert_same_end(run, expected)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(uninterrupted, finished: Path, tmp_path) -> None:
    expected, processes = uninterrupted
    run = without_ppo(finished, tmp_path)
    partial = run / "partial-ppo"
    kill_when(launch(run, processes), partial / f"checkpoint-{3 * STEPS}" / "complete.json")
    damaged = sorted(partial.glob("checkpoint-*"), key=lambda p: int(p.name[11:]))[-1] / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    finish(launch(run, processes))
    assert_same_end(run, expected)
