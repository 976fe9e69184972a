"""A run killed inside PPO and started again ends with the very bits of one that was never interrupted."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from chain_helpers import copy, write_recipe
from datasets import Dataset
from launching import ENVIRONMENT, Launch, command, start
from ppo_helpers import make_trainer

from llm_rlhf.ppo.trainer import PPOTrainer

OVERRIDES = (
    "ppo.total_episodes=96", "ppo.save_rollouts=1", "ppo.save_total_limit=2", "ppo.eval_rollouts=2",
    "ppo.adaptive_kl_target=0.05", "ppo.adaptive_kl_horizon=100", "ppo.score_normalization=whiten", "ppo.ptx_coef=0.1",
)  # fmt: skip
STEPS = 4  # optimizer steps a rollout
ROLLOUTS = 6


def launch(run: Path, processes: int = 1) -> Launch:
    asked = ["run", run.parent / "tiny.yaml", f"output_dir={run}", *OVERRIDES]
    return start(*asked, processes=processes, folder=run.parent / "said")


def without_ppo(finished: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    run = copy(finished, folder)
    for name in ("ppo", "evaluate"):
        shutil.rmtree(run / name)
    return run


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


@pytest.fixture(scope="module")
def killed(finished: Path, tmp_path_factory) -> Path:
    """The folder of a run that had three of its checkpoints when it was killed."""
    run = without_ppo(finished, tmp_path_factory.mktemp("killed"))
    launch(run).kill_when(run / "partial-ppo" / f"checkpoint-{3 * STEPS}" / "complete.json")
    return run.parent


@pytest.fixture(scope="module")
def uninterrupted(finished: Path, tmp_path_factory) -> Path:
    run = without_ppo(finished, tmp_path_factory.mktemp("uninterrupted"))
    launch(run).finish()
    return run


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
def test_killed_after_a_checkpoint(damaged, killed: Path, uninterrupted: Path, tmp_path) -> None:
    """The last checkpoint, where it is damaged, is passed over."""
    run = Path(shutil.copytree(killed, tmp_path / "again")) / "run"
    there = sorted(int(path.parent.name[11:]) for path in run.glob("partial-ppo/checkpoint-*/complete.json"))
    if damaged:
        last = run / "partial-ppo" / f"checkpoint-{there.pop()}" / "optimizer.pt"
        last.write_bytes(last.read_bytes()[:-1])
    assert f"goes on from optimizer step {there[-1]}" in launch(run).finish()
    assert_same_end(run, uninterrupted)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory) -> Path:
    """The whole chain by two processes, from the command that a user would give."""
    folder = tmp_path_factory.mktemp("two")
    asked = command("run", write_recipe(folder), f"output_dir={folder / 'run'}", *OVERRIDES, processes=2)
    done = subprocess.run(asked, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


@pytest.mark.slow
def test_two_processes_walk_the_whole_chain(by_two: Path) -> None:
    assert json.loads((by_two / "ppo" / "manifest.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_two_processes_killed_twice_once_before_any_checkpoint_and_once_while_one_is_written(
    by_two: Path, tmp_path
) -> None:
    run = without_ppo(by_two, tmp_path)
    partial = run / "partial-ppo"
    launch(run, 2).kill_when(partial / "samples.jsonl")
    launch(run, 2).kill_when(partial / f"checkpoint-{3 * STEPS}" / "trainer_state.json")
    (partial / f"checkpoint-{3 * STEPS}" / "complete.json").unlink(missing_ok=True)
    out = launch(run, 2).finish()
    assert f"goes on from optimizer step {2 * STEPS}" in out
    assert_same_end(run, by_two)


DEMONSTRATIONS = Dataset.from_list([{"input_ids": [20 + i, 30, 40, 50 + i]} for i in range(40)])


def train(base: Path, reward: Path, folder: Path, resume: bool = False) -> PPOTrainer:
    """Four rollouts of four steps and two passes over the prompts, everything on that has a state."""
    trainer = make_trainer(
        base, folder, reward, per_device_train_batch_size=2, num_mini_batches=2, num_ppo_epochs=2, total_episodes=16,
        save_strategy="steps", save_rollouts=1, adaptive_kl_target=0.05, adaptive_kl_horizon=100,
        score_normalization="whiten", ptx_coef=0.1, ptx_dataset=DEMONSTRATIONS, logging_steps=100,
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
    logged = [
        [{name: of for name, of in line.items() if "time" not in name} for line in trainer.state.log_history]
        for trainer in (whole, resumed)
    ]
    assert [line["step"] for line in logged[0]] == [4, 8, 12, 16, 16]  # at checkpoints, long before `logging_steps`
    assert logged[1][:4] == logged[0][:4]
    assert resumed.kl_controller.value == whole.kl_controller.value != whole.args.kl_coef
    assert resumed.score_moments.state_dict() == whole.score_moments.state_dict()
    expected = dict(whole.model.named_parameters())
    assert all(torch.equal(p, expected[n]) for n, p in resumed.model.named_parameters())
