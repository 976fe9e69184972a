"""The planted faults themselves: each still finds its line, and which package a process imported is noticed."""

import os
import subprocess
import sys

import pytest
from mutants import FAULTS, ROOT, WrongPackageError, check_imports, plant


def test_every_fault_has_its_one_line_and_a_test_that_carries_its_name() -> None:
    for fault in FAULTS:
        assert (ROOT / "llm_rlhf" / fault.file).read_text(encoding="utf-8").count(fault.old) == 1, fault
        tests = (ROOT / fault.tests.partition("::")[0]).read_text(encoding="utf-8")
        assert any("def test_" in line and fault.invariant in line for line in tests.splitlines()), fault
    assert (
        len({(fault.file, fault.old, fault.new) for fault in FAULTS}) >= len(FAULTS) - 1
    )  # one is judged by two tests


def test_a_process_that_imports_another_package_is_noticed(tmp_path) -> None:
    plant(None, tmp_path)
    with pytest.raises(WrongPackageError, match="no package at all"):
        check_imports(tmp_path)
    known = os.environ | {"PYTHONPATH": str(tmp_path)}
    ask = [sys.executable, "-c", "import llm_rlhf; print(llm_rlhf.__file__)"]  # `-c` looks into its own folder first
    planted = subprocess.run([sys.executable, "-P", *ask[1:]], cwd=ROOT, env=known, capture_output=True, text=True)
    assert planted.stdout.strip() == str(tmp_path / "llm_rlhf" / "__init__.py")
    check_imports(tmp_path)
    other = subprocess.run(ask, cwd=ROOT, env=known, capture_output=True, text=True)
    assert other.stdout.strip() == str(ROOT / "llm_rlhf" / "__init__.py")
    with pytest.raises(WrongPackageError, match=str(ROOT)):
        check_imports(tmp_path)
