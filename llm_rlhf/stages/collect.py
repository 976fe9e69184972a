"""From click to training: the labels of a feedback store, as they stand when the stage runs.

What people say afterwards does not change a run that has begun: `--from collect` takes the labels of that day, and
trains again on them.

Writes: preferences.jsonl demonstrations.jsonl ratings.jsonl annotations.jsonl verdicts.jsonl card.json
"""

from pathlib import Path

from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.snapshot import write
from llm_rlhf.recipe.sections import Recipe
from llm_rlhf.run_folder import RunFolder


def run(recipe: Recipe, run_folder: RunFolder, folder: Path) -> None:
    """Write the labels that count, and note in the store that this run has them. `folder` becomes `collect/`."""
    assert recipe.feedback is not None
    if run_folder.state.is_main_process:
        database = Database.of(recipe.feedback.store, create=False)
        try:
            made_for = str(run_folder.path.absolute())
            write(database, folder, made_for, margins=recipe.feedback.margins, becomes=run_folder / "collect")
        finally:
            database.close()
