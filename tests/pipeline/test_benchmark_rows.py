"""What the benchmarks read of a finished run: its row, and whether it is the recipe's own run."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def row_of(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("quickstart").run_quickstart
    sys.modules.pop("quickstart")


def test_a_finished_run_is_read_as_a_row(row_of, finished) -> None:
    row = row_of(finished, 0, [], recipe=finished.parent / "tiny.yaml")
    assert row["seed"] == 0
    assert row["true score"]["low"] is None  # so few steps: each reply scores as before
    assert row["true score"]["estimate"] == 0
    assert not row["holds"]
    refusals = row["refusals of harmful requests"]
    assert refusals["low"] <= refusals["estimate"] <= refusals["high"]
    assert row["seconds"] > 0


@pytest.mark.parametrize(("seed", "overrides"), [(1, []), (0, ["ppo.kl_coef=0.5"])])
def test_a_run_of_another_recipe_is_not(row_of, finished, seed, overrides) -> None:
    with pytest.raises(SystemExit, match="made by another recipe"):
        row_of(finished, seed, overrides, recipe=finished.parent / "tiny.yaml")
