"""What every stage stands on: the processes of a launch, what training writes, and functions of the user's."""

import fcntl
import io
import json
import os
import re
import select
import struct
import sys
import termios
import time
from types import SimpleNamespace

import pytest

from llm_rlhf import launch, progress
from llm_rlhf.errors import RecipeError
from llm_rlhf.progress import bar
from llm_rlhf.training import METRICS, StageLog, read_metrics
from llm_rlhf.user_code import load_function, told


@pytest.mark.parametrize(("rank", "speaks"), [(None, True), ("0", True), ("1", False)])
def test_the_first_process_speaks_for_all(monkeypatch, rank, speaks) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert launch.speaks_for_all() is speaks


def test_a_bar_is_redrawn_on_a_terminal(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := _Terminal())
    assert list(bar(range(3), desc="scoring")) == [0, 1, 2]
    assert "\r" in terminal.getvalue()
    assert "scoring: 100%" in terminal.getvalue()


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 120), (40, 120)])
def test_a_bar_is_seen_on_a_terminal_of_any_size(monkeypatch, rows, columns) -> None:
    """Many a container's terminal does not know its size."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with os.fdopen(its, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert list(bar(range(3), desc="scoring")) == [0, 1, 2]
        said = b""
        while b"scoring: 100%" not in said and select.select([ours], [], [], 30)[0]:  # it comes in pieces
            said += os.read(ours, 10_000)
        assert b"scoring: 100%" in said
    os.close(ours)


def test_in_a_log_nobody_but_the_clock_asks_for_a_line(monkeypatch) -> None:
    """tqdm's watcher draws what it counts in larger steps than one, ten seconds after the last line."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "EVERY", 0.01)
    with bar(total=1000, desc="scoring") as shown:
        for _ in range(5):
            time.sleep(0.011)
            shown.update(100)
        assert shown.n == 500
        assert shown.miniters == 1


def test_a_log_file_gets_a_whole_line_now_and_then_and_nothing_of_short_work(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    assert list(bar(range(3), desc="scoring")) == [0, 1, 2]
    assert log.getvalue() == ""
    monkeypatch.setattr(progress, "EVERY", 1e-9)  # as if every step took a minute
    assert list(bar(range(3), desc="scoring")) == [0, 1, 2]
    lines = log.getvalue().split("\n")
    assert lines.pop() == ""
    assert re.fullmatch(r"  scoring: 100% 3/3 \[.*\]", lines[-1])
    assert all(line.startswith("  scoring:") and "\r" not in line for line in lines)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_stage_writes_every_metric_and_shows_the_newest_of_those_that_matter(tmp_path) -> None:
    log = StageLog("sft", tmp_path, {"loss": "loss", "eval_loss": "held out"})
    state = SimpleNamespace(is_world_process_zero=True, global_step=3)
    for logs in ({"loss": 0.12345, "lr": 1.0}, {}, {"eval_loss": 2.0}, {"loss": 0.1}):
        log.on_log(None, state, None, logs=logs)
    assert log.values == {"loss": "0.1", "held out": "2"}
    lines = read_metrics(tmp_path)
    assert [{k: v for k, v in line.items() if k != "time"} for line in lines] == [
        {"stage": "sft", "step": 3, **logs}
        for logs in ({"loss": 0.12345, "lr": 1.0}, {"eval_loss": 2.0}, {"loss": 0.1})
    ]
    state.is_world_process_zero = False
    log.on_log(None, state, None, logs={"loss": 9.0})
    assert len((tmp_path / METRICS).read_text().splitlines()) == 3
    assert json.loads((tmp_path / METRICS).read_text().splitlines()[0])["time"] > 1e9
    assert read_metrics(tmp_path / "nowhere") == []


def test_a_function_is_found_in_the_working_directory_after_all_that_is_installed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    (tmp_path / "json.py").write_text("dumps = None\n")
    (tmp_path / "beneath_here.py").write_text(
        "def double(x):\n    return 2 * x\n\ndef fails():\n    raise KeyError('k')\n"
    )
    assert load_function("beneath_here:double")(4) == 8
    assert sys.path[-1] == str(tmp_path)
    assert load_function("json:dumps")([1]) == "[1]"
    with pytest.raises(RecipeError, match=r"The reward function 'beneath_here:none' cannot be loaded: AttributeError"):
        load_function("beneath_here:none")
    with pytest.raises(KeyError) as failed:
        load_function("beneath_here:fails")()
    assert told(failed.value) == f"KeyError: 'k' ({tmp_path / 'beneath_here.py'}, line 5)"
