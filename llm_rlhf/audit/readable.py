"""A recipe whose data can be read before its run: a gold world's is made for the while, as its run will make it."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llm_rlhf.recipe.sections import DataSection, ModelSection, Recipe


@contextlib.contextmanager
def readable(recipe: Recipe, collected: Path | None = None) -> Iterator[Recipe]:
    """The recipe with a data section and a base.

    A world's files lie in a folder that is gone afterwards, and that is the working directory meanwhile, so that they
    are named `world/preferences.jsonl`, as in a run. The recipe and its seed alone say what is in them.

    Args:
        collected: a folder with the labels that its run would collect, as feedback/snapshot.py writes them.
    """
    from llm_rlhf.runs import data_section, with_collected

    def joined(section: DataSection) -> DataSection:
        return section if collected is None else with_collected(section, recipe, collected)

    if recipe.world is None:
        assert recipe.data is not None, "a recipe without data section was refused"
        yield dataclasses.replace(recipe, data=joined(recipe.data))
        return
    from llm_rlhf.world.files import write_files
    from llm_rlhf.world.gold import GoldWorld

    section = joined(data_section(dataclasses.replace(recipe, feedback=None), Path()))
    whole = dataclasses.replace(recipe, data=section, model=model_of(recipe))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("world").mkdir()
        write_files(GoldWorld(recipe.world, recipe.seed), Path("world"))
        yield whole


def model_of(recipe: Recipe) -> ModelSection:
    """The recipe's model, whose tokenizer reads its data: a world's is the one that ships."""
    if recipe.world is None:
        return recipe.model
    from llm_rlhf.world.base_model import shipped_base

    template = recipe.model.chat_template and str(Path(recipe.model.chat_template).absolute())
    return dataclasses.replace(recipe.model, base=str(shipped_base()), chat_template=template)
