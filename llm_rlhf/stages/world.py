"""The gold world: the base model and the data of a recipe that has no others.

Everything is written as the files a user would bring, so that the later stages read them by the same paths.

Writes: base/ demonstrations.jsonl preferences.jsonl prompts.jsonl evaluation_prompts.jsonl
"""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_rlhf.recipe.sections import Recipe
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.world.base_model import shipped_base
from llm_rlhf.world.files import write_files
from llm_rlhf.world.gold import GoldWorld


def run(recipe: Recipe, run_folder: RunFolder, folder: Path) -> None:
    """Write the world's data and its base model, in float32. `folder` becomes `world/`."""
    assert recipe.world is not None
    world = GoldWorld(recipe.world, recipe.seed)
    if run_folder.state.is_main_process:
        write_files(world, folder)
        AutoModelForCausalLM.from_pretrained(shipped_base(), dtype="float32").save_pretrained(folder / "base")
        AutoTokenizer.from_pretrained(shipped_base()).save_pretrained(folder / "base")
