"""`llm-rlhf doctor`: every check by itself, what breaks in it, and the command."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.doctor import examine, machine, outside, packages
from llm_rlhf.doctor.findings import Finding

ROOT = Path(__file__).parents[2]


def test_versions_are_those_of_the_constraints(monkeypatch) -> None:
    assert packages.python().mark == "good"
    pins = packages.tested_versions()
    assert pins["trl"] in (ROOT / "constraints.txt").read_text()
    real = packages.metadata.version
    monkeypatch.setattr(packages.metadata, "version", lambda name: "0.0.1" if name == "trl" else real(name))
    found = packages.versions()
    assert (found.mark, found.found.split(";")[0]) == ("broken", "trl 0.0.1 is not <1.17,>=1.16")
    monkeypatch.setattr(packages.metadata, "version", lambda name: "1.16.9" if name == "trl" else real(name))
    found = packages.versions()
    assert found.mark == "note"
    assert f"trl 1.16.9 (tested: {pins['trl']})" in found.found

    def missing(name: str) -> str:
        raise packages.metadata.PackageNotFoundError

    monkeypatch.setattr(packages.metadata, "version", missing)
    assert "peft is missing" in packages.versions().found


@pytest.mark.parametrize("name", ["devices", "bfloat16", "attention", "compiler", "memory", "disk", "threads"])
def test_a_machine_that_works_is_found_to(name) -> None:
    found = getattr(machine, name)()
    assert found.mark in ("good", "note")
    assert found.found
    assert (found.mark == "good") == (not found.remedy)


@pytest.mark.slow
def test_a_torch_for_gpus_on_a_machine_without_one_computes_on_the_cpu(monkeypatch) -> None:
    """pip brings it on most machines; it names the accelerator that it was built for, whether one is there or not."""

    def built_for_cuda(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", built_for_cuda)
    assert machine.device() == torch.device("cpu")
    assert machine.bfloat16().found == "computes on cpu"


def test_four_bits_compute() -> None:
    pytest.importorskip("bitsandbytes")
    assert machine.nf4() == Finding("NF4", "good", machine.nf4().found)


def test_numbers_that_are_wrong_are_seen(monkeypatch) -> None:
    own = torch.Tensor.bfloat16
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: own(self) * 1.1)
    assert machine.bfloat16().mark == "broken"  # 1.1 x 1.1 is 21 % off
    assert machine.bfloat16().found.startswith("a product is 2")


def test_want_of_room_is_a_note_and_a_folder_of_others_is_broken(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(machine.SCARCE, "disk", 2**60)
    found = machine.disk()
    assert found.mark == "note"
    assert "runs and the hub's cache may fill up" in found.remedy
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    assert machine.disk().mark == "broken"
    monkeypatch.setattr(machine, "LIMITS", (str(tmp_path / "max"),))
    (tmp_path / "max").write_text(str(2**30))
    assert machine.memory().mark == "note"
    assert "this container may take 1.0" in machine.memory().found
    (tmp_path / "max").write_text("max\n")
    assert "container" not in machine.memory().found


def test_the_hub_is_not_asked_where_that_is_wanted(monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert outside.hub().found.startswith("not asked: offline")


@pytest.mark.parametrize(
    ("code", "mark", "told"),
    [
        ('print(\'{"loss": 1.5, "ratio": 1.0, "device": "cpu"}\')', "good", "finite loss and first ratio 1 on cpu"),
        ('print(\'note\\n{"loss": NaN, "ratio": 1.0, "device": "cpu"}\')', "broken", "loss nan"),
        ('print(\'{"loss": 1.5, "ratio": 1.01, "device": "cpu"}\')', "broken", "first ratio 1.01"),
        ("raise OSError('no such library')", "broken", "OSError: no such library"),
        ("import os; os._exit(9)", "broken", "exit code 9"),
        ("import time; time.sleep(60)", "note", "not done in time"),
    ],
)
def test_what_comes_of_the_step(code, mark, told) -> None:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True)
    found = outside.smoke(process, 20 if "sleep" not in code else 0.2)
    assert (found.mark, process.poll() is not None) == (mark, True)
    assert told in found.found


def test_a_check_that_raises_or_hangs_is_a_finding() -> None:
    def hangs() -> Finding:
        time.sleep(30)
        raise AssertionError

    began = time.monotonic()
    assert examine._within("x", hangs, 0.1).mark == "note"
    assert time.monotonic() - began < 5
    found = examine._within("x", lambda: 1 / 0, 5)  # type: ignore[arg-type, return-value]
    assert (found.mark, found.found) == ("broken", "ZeroDivisionError: division by zero")


def findings(monkeypatch, *found: Finding) -> None:
    monkeypatch.setattr(examine, "examine", lambda: iter(found))


def test_the_command_tells_each_in_a_line_and_ends_with_1_where_one_is_broken(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    good, bad = Finding("Python", "good", "3.11"), Finding("disk", "broken", "full", "Delete something.")
    findings(monkeypatch, good)
    done = CliRunner().invoke(app, ["doctor"])
    assert (done.exit_code, done.stdout) == (
        0,
        "✓ Python: 3.11\n\nNothing is broken.\n\nWrite a recipe for your data: llm-rlhf init\n",
    )
    findings(monkeypatch, good, bad)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert done.stdout.splitlines()[1:] == ["✗ disk: full", "  → Delete something.", "", "Broken: disk"]
    findings(monkeypatch, good, bad)
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["broken"] == ["disk"]


@pytest.mark.slow
def test_a_step_of_ppo_by_itself(tmp_path) -> None:
    found = outside.smoke(outside.start_smoke(), 300)
    assert found == Finding("a step of PPO", "good", found.found)
