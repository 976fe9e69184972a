"""Memory that tensors gave back stays with a process that computes on a CPU, unless its user has settled that."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from llm_rlhf.models import adapter_training
from llm_rlhf.models.freed_memory import keep_freed_memory

TENSORS = 200  # of a megabyte
SCRIPT = f"""
import sys, psutil, torch
from llm_rlhf.models.freed_memory import keep_freed_memory

kept = keep_freed_memory(sys.argv[1])
before = psutil.Process().memory_info().rss
held = [torch.ones(2**18) for _ in range({TENSORS})]
del held
print(kept, (psutil.Process().memory_info().rss - before) / 2**20)
"""
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")


def after_all_is_freed(device: str, **variables: str) -> tuple[bool, float]:
    """Whether freed memory is to be kept, and how much there is more than before, in MiB."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SCRIPT, device]
    said = subprocess.run(command, env=own | variables, capture_output=True, text=True, check=True).stdout
    kept, more = said.split()
    return kept == "True", float(more)


@pytest.mark.slow
def test_on_a_cpu_it_stays_with_the_process() -> None:
    kept, more = after_all_is_freed("cpu")
    assert kept
    assert more > 0.9 * TENSORS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "variables"),
    [("cuda", {}), ("cpu", {"MALLOC_MMAP_THRESHOLD_": "65536"}), ("cpu", {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"})],
    ids=["gpu", "variable", "tunables"],
)
def test_elsewhere_and_where_the_user_has_settled_it_nothing_changes(device, variables) -> None:
    kept, more = after_all_is_freed(device, **variables)
    assert not kept
    assert more < 0.1 * TENSORS


def test_stages_that_train_an_adapter_ask_for_it(monkeypatch) -> None:
    class AskedError(Exception):
        pass

    def keep(device: str) -> None:
        raise AskedError(device)

    monkeypatch.setattr(adapter_training, "keep_freed_memory", keep)
    for earlier in ("adapters_in_float32", "compute_in_own_types"):
        monkeypatch.setattr(adapter_training, earlier, lambda _: None)
    trainer = SimpleNamespace(model=None, accelerator=SimpleNamespace(device=torch.device("cpu")))
    with pytest.raises(AskedError, match="cpu"):
        adapter_training.train_adapter(trainer, None, "sft", {})


def test_another_c_library_has_no_such_thing(monkeypatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory("cpu")
