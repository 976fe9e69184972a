"""What a run that asks nobody imports: a GPU machine may lack what only the store of labels needs."""

import subprocess
import sys

import pytest

IMPORTED = """
import importlib, sys
from llm_rlhf.pipeline import STAGES
stages = ("world", "sft", "reward", "ppo", "online", "offline", "best_of_n", "evaluate")
for name in ("cli.main", "plan.forecast", "plan.probe", *(f"stages.{stage}" for stage in stages)):
    importlib.import_module(f"llm_rlhf.{name}")
print(sorted({name.split(".")[0] for name in sys.modules} & {"sqlalchemy", "alembic"}))
"""


@pytest.mark.slow
def test_a_run_that_asks_nobody_needs_no_database() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
