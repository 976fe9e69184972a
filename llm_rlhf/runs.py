"""What a stage starts from: the files earlier stages left, and the rows the recipe names."""

from pathlib import Path

from llm_rlhf.data.checks import SetAside
from llm_rlhf.data.splits import Splits, load_splits
from llm_rlhf.recipe.sections import OFFLINE, DataSection, Recipe, Source, trains_reward
from llm_rlhf.run_folder import RunFolder

BASES = (("sft", "model"), ("world", "base"))  # folders of a run on which its adapters stand


def starting_model(recipe: Recipe, run: RunFolder, before: str) -> str | Path:
    """The base of the stage called `before`: the merged SFT model where there is one, else the recipe's base."""
    if recipe.sft is not None and before != "sft":
        return run / "sft" / "model"
    if recipe.world is not None:
        return run / "world" / "base"
    assert recipe.model.base is not None  # the recipe was checked
    return recipe.model.base


def data_section(recipe: Recipe, run: RunFolder | Path) -> DataSection:
    """The recipe's sources; a gold world's are the files its stage wrote."""
    if recipe.data is not None:
        return recipe.data
    world = run / "world"

    def file(name: str) -> list[Source]:
        return [Source(source=str(world / f"{name}.jsonl"))]

    return DataSection(
        preferences=file("preferences"),
        demonstrations=file("demonstrations"),
        prompts=file("prompts"),
        evaluation_prompts=file("evaluation_prompts"),
        # What trains PPO's reward model decides more than what judges beside the truth.
        heldout_share=0.0 if recipe.method in OFFLINE and not trains_reward(recipe) else 1 / 3,
        near_duplicates=None,  # its evaluation asks in phrasings of its own, about the same few animals
    )


def read_data(recipe: Recipe, run: RunFolder) -> tuple[Splits, list[SetAside]]:
    """The splits of the recipe's data and the rows set aside. Every stage asks anew; parsed rows are kept on disk."""
    return load_splits(data_section(recipe, run))


def splits(recipe: Recipe, run: RunFolder) -> Splits:
    return read_data(recipe, run)[0]
