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


REPORTED = """
import sys
from llm_rlhf.cli.main import app
from llm_rlhf.feedback.database import Database
Database.of(sys.argv[1]).close()
app(["feedback", "report", sys.argv[1]], standalone_mode=False)
print(sorted({"torch", "transformers", "trl", "peft"} & sys.modules.keys()))
"""


@pytest.mark.slow
def test_a_report_on_labels_waits_for_no_library_of_models(tmp_path) -> None:
    """They take seconds to import, and it half a one."""
    command = [sys.executable, "-c", REPORTED, str(tmp_path / "store.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout
