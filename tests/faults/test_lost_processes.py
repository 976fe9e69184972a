"""Processes of one launch: one dies, one is late, one alone fails, and all fail alike."""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from chain_helpers import copy, write_recipe
from launching import Launch, start

from llm_rlhf.cli.exits import say_error, told_in_one_message
from llm_rlhf.errors import RunError
from llm_rlhf.launch import lost_others, processes
from llm_rlhf.pipeline import _alike
from llm_rlhf.run_folder import RunFolder


@contextlib.contextmanager
def command() -> Iterator[None]:
    """How typer ends a command."""
    try:
        with told_in_one_message():
            yield
    except typer.Exit as ended:
        sys.exit(ended.exit_code)


def _waits_for_the_others(late: float, waits: float) -> None:
    with command():
        state = processes(waits)
        print("there", flush=True)
        if state.process_index == 1:
            time.sleep(late)
        state.wait_for_everyone()
        state.wait_for_everyone()


def _until(launched: Launch, text: str) -> None:
    deadline = time.monotonic() + 120
    while launched.out.count(text) < 2:
        assert launched.runs, launched.errors
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_fault_08_when_one_of_two_processes_dies_the_other_ends_with_one_message(tmp_path) -> None:
    launched = Launch(_waits_for_the_others, (60.0, 60.0), 2, tmp_path)
    _until(launched, "there")
    launched.send(signal.SIGKILL, 1)
    began = time.monotonic()
    assert launched.codes(30) == [1, -signal.SIGKILL], launched.errors
    assert time.monotonic() - began < 20
    assert "error: a process of this launch waited for another, which has ended." in launched.errors
    assert "Traceback" not in launched.errors


@pytest.mark.slow
def test_fault_08_a_process_that_does_not_come_ends_the_others_after_the_timeout(tmp_path) -> None:
    launched = Launch(_waits_for_the_others, (20.0, 2.0), 2, tmp_path)
    assert 1 in launched.codes(60), launched.errors
    assert "which did not answer in time" in launched.errors
    assert "'ddp_timeout'" in launched.errors
    assert "Traceback" not in launched.errors


def test_fault_08_the_timeout_is_the_recipes(tmp_path, monkeypatch) -> None:
    """Of all its sections the longest: the processes meet once."""
    from llm_rlhf.recipe import loading

    seen: list[float] = []
    monkeypatch.setattr(loading, "processes", seen.append)
    loading.load_recipe(write_recipe(tmp_path), ["sft.ddp_timeout=60", "ppo.ddp_timeout=7200"])
    assert seen[0] == 7200
    seen.clear()
    loading.load_recipe(write_recipe(tmp_path))
    assert seen[0] == 1800


def test_an_error_that_only_looks_like_one_of_the_launch_stays_what_it_is(monkeypatch) -> None:
    gone = RuntimeError("[gloo/transport/tcp/pair.cc:525] Connection closed by peer [127.0.0.1]:1")
    assert lost_others(gone) == ""  # a single process has no others
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert lost_others(gone) == "has ended"
    assert lost_others(RuntimeError("[gloo] Timed out waiting 1800000ms for recv")) == "did not answer in time"
    assert lost_others(RuntimeError("shapes do not match")) == ""
    assert lost_others(ValueError("NCCL")) == ""


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (torch.distributed.DistBackendError("NCCL error in: a.cpp:1, invalid usage: Duplicate GPU detected"), ""),
        (torch.distributed.DistBackendError("NCCL error in: a.cpp:1, unhandled cuda error"), ""),
        (RuntimeError("ProcessGroupGloo::allgather: invalid tensor size at index 0 (expected (32, 1), got (32))"), ""),
        (torch.distributed.DistBackendError("NCCL error in: a.cpp:1, remote process exited or there was a network"),
         "has ended"),
        (torch.distributed.DistBackendError("NCCL communicator was aborted: ncclRemoteError: a remote process exiting"),
         "has ended"),
        (torch.distributed.DistNetworkError("failed to recv, got 0 bytes"), "has ended"),
        (torch.distributed.DistStoreError("wait timeout after 1800000ms, keys: /0"), "did not answer in time"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:9] writev [127.0.0.1]: Broken pipe"), "has ended"),
    ],
)  # fmt: skip
def test_what_the_libraries_refuse_is_not_taken_for_somebody_who_is_gone(monkeypatch, error, how) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert lost_others(error) == how


def _says(of_one_alone: bool) -> None:
    rank = int(os.environ["RANK"])
    if rank == 1 or not of_one_alone:
        say_error("the disk is full")


@pytest.mark.slow
def test_what_all_processes_say_is_said_once_and_what_one_alone_says_is_not_swallowed(tmp_path: Path) -> None:
    launched = Launch(_says, (False,), 2, tmp_path / "all")
    launched.finish(60)
    assert launched.errors.count("error: the disk is full") == 1
    assert "[process" not in launched.errors
    launched = Launch(_says, (True,), 2, tmp_path / "one")
    launched.finish(60)
    assert "[process 1 on " in launched.errors
    assert launched.errors.count("error: the disk is full") == 1


def _fails_alone() -> None:
    with command():
        state = processes(60)
        if state.process_index == 1:
            raise RunError("this one alone has no disk")
        state.wait_for_everyone()


@pytest.mark.slow
def test_fault_08_one_process_alone_that_raises_is_named_and_ends_the_other(tmp_path) -> None:
    launched = Launch(_fails_alone, (), 2, tmp_path)
    assert launched.codes(60) == [1, 1], launched.errors
    assert "[process 1 on " in launched.errors
    assert "error: this one alone has no disk" in launched.errors
    assert "which has ended" in launched.errors
    assert "Traceback" not in launched.errors


@pytest.mark.slow
def test_fault_08_a_process_of_a_real_run_dies(finished, tmp_path) -> None:
    run = copy(finished, tmp_path)
    for name in ("ppo", "evaluate"):
        shutil.rmtree(run / name)
    asked = ["run", tmp_path / "tiny.yaml", f"output_dir={run}", "ppo.total_episodes=960"]
    launched = start(*asked, processes=2, folder=tmp_path / "said")
    deadline = time.monotonic() + 240
    while not (run / "partial-ppo" / "metrics.jsonl").is_file():
        assert launched.runs, launched.errors
        assert time.monotonic() < deadline
        time.sleep(0.05)
    launched.send(signal.SIGKILL, 0)
    began = time.monotonic()
    assert launched.codes(60) == [-signal.SIGKILL, 1], launched.errors
    assert time.monotonic() - began < 30
    assert "which has ended" in launched.errors


def _sees_another_disk(folder: str) -> None:
    """As on a machine that has a folder of this name on a disk of its own."""
    os.chdir(Path(folder) / os.environ["RANK"])
    Path("run").mkdir()
    with command():
        RunFolder("run")


@pytest.mark.slow
def test_fault_09_a_run_folder_that_the_processes_do_not_share_is_refused_by_all(tmp_path) -> None:
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
    launched = Launch(_sees_another_disk, (str(tmp_path),), 2, tmp_path / "said")
    assert launched.codes(60) == [2, 2], launched.errors
    assert launched.errors.count("error: The run folder run is not the same for all processes: process 1 on") == 1
    assert "Set output_dir to a disk that all machines share." in launched.errors


def _finds(folder: str) -> None:
    with command():
        run = RunFolder(folder)
        alike = _alike(run, lambda: ["the same"])
        assert alike == ["the same"]
        _alike(run, lambda: [f"stage {run.state.process_index}"])


@pytest.mark.slow
def test_fault_09_processes_that_would_walk_different_ways_are_stopped_by_one_message(tmp_path) -> None:
    launched = Launch(_finds, (str(tmp_path / "run"),), 2, tmp_path / "said")
    assert launched.codes(60) == [2, 2], launched.errors
    assert launched.errors.count("error: The processes of this launch do not find the same in") == 1
    assert "['stage 0']" in launched.errors
    assert "['stage 1']" in launched.errors
