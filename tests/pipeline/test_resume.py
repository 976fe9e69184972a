"""A run killed inside PPO and started again ends with the very bits of one that was never interrupted."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from chain_helpers import copy
from datasets import Dataset
from launching import command, environment
from ppo_helpers import make_trainer

from llm_rlhf.ppo.trainer import PPOTrainer

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


ONE, TWO = pytest.param(1, id="one process"), pytest.param(2, id="two processes")


def by(*processes: object) -> pytest.MarkDecorator:
    """The launches that a test is about; the run to compare with is made once for each."""
    return pytest.mark.parametrize("uninterrupted", processes, indirect=True, scope="module")


@pytest.fixture(scope="module")
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
@by(ONE, TWO)
def test_killed_after_a_checkpoint(uninterrupted, finished: Path, tmp_path) -> None:
    expected, processes = uninterrupted
    run = without_ppo(finished, tmp_path)
    kill_when(launch(run, processes), run / "partial-ppo" / f"checkpoint-{2 * STEPS}" / "complete.json")
    out = finish(launch(run, processes))
    assert "goes on from optimizer step" in out
    assert_same_end(run, expected)


@pytest.mark.slow
@by(TWO)
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
@by(ONE)
def test_a_damaged_checkpoint_is_passed_over(uninterrupted, finished: Path, tmp_path) -> None:
    expected, processes = uninterrupted
    run = without_ppo(finished, tmp_path)
    partial = run / "partial-ppo"
    kill_when(launch(run, processes), partial / f"checkpoint-{3 * STEPS}" / "complete.json")
    damaged = sorted(partial.glob("checkpoint-*"), key=lambda p: int(p.name[11:]))[-1] / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    finish(launch(run, processes))
    assert_same_end(run, expected)


DEMONSTRATIONS = Dataset.from_list([{"input_ids": [20 + i, 30, 40, 50 + i]} for i in range(40)])


def train(base: Path, reward: Path, folder: Path, resume: bool = False) -> PPOTrainer:
    """Four rollouts of four steps and two passes over the prompts, everything on that has a state."""
    trainer = make_trainer(
        base, folder, reward, per_device_train_batch_size=2, num_mini_batches=2, num_ppo_epochs=2, total_episodes=16,
        save_strategy="steps", save_rollouts=1, adaptive_kl_target=0.05, adaptive_kl_horizon=100,
        score_normalization="whiten", ptx_coef=0.1, ptx_dataset=DEMONSTRATIONS,
    )  # fmt: skip
    trainer.samples_file = folder / "samples.jsonl"
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_resumed_trainer_ends_with_the_same_bits(base_folder, reward_folder, tmp_path) -> None:
    """Resumed in the middle of the second pass: after three rollouts of half the prompts each."""
    whole = train(base_folder, reward_folder, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-16")
    resumed = train(base_folder, reward_folder, tmp_path / "resumed", resume=True)
    samples = [(tmp_path / run / "samples.jsonl").read_text() for run in ("whole", "resumed")]
    assert samples[0] == samples[1]
    assert resumed.kl_controller.value == whole.kl_controller.value != whole.args.kl_coef
    assert resumed.score_moments.state_dict() == whole.score_moments.state_dict()
    expected = dict(whole.model.named_parameters())
    assert all(torch.equal(p, expected[n]) for n, p in resumed.model.named_parameters())
