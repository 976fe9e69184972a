"""One process or two: the same rollout gives the same loss, gradients and statistics."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def torchrun(processes: int, script: Path, arguments: list[str]) -> subprocess.CompletedProcess:
    """`accelerate launch --cpu --num_processes 2` silently starts one process, so torchrun starts them here."""
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(HERE.parent), str(HERE.parents[1])]),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    done = subprocess.run(
        [*command, str(script), *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def launch(processes: int, arguments: list[str]) -> dict:
    torchrun(processes, HERE / "ddp_gradients.py", arguments)
    return torch.load(arguments[-1], weights_only=True)


@pytest.mark.parametrize("value", ["shared", "adapter"])
def test_invariant_12_two_processes_give_the_gradients_of_one(base_folder, reward_folder, tmp_path, value) -> None:
    one, two = (
        launch(n, [str(base_folder), str(reward_folder), str(tmp_path / str(n)), value, str(tmp_path / f"{n}.pt")])
        for n in (1, 2)
    )
    assert (one["world"], two["world"]) == (1, 2)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-6)
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, gradient in one["gradients"].items():
        # fp32 sums in another order; gradients here are of order 0.1.
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    for name, value_of_one in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value_of_one, abs=1e-5), name


def test_two_processes_do_not_wait_for_gradients_that_never_come(base_folder, tmp_path) -> None:
    done = torchrun(2, HERE / "ddp_without_gradient.py", [str(base_folder), str(tmp_path)])
    assert "note: 4 parameters get no gradient and stay as they are" in done.stdout
