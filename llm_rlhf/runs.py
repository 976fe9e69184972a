"""What a stage starts from: the files earlier stages left, and the rows the recipe names."""

from copy import copy
from dataclasses import replace
from pathlib import Path

from llm_rlhf.data.checks import SetAside
from llm_rlhf.data.splits import Splits, load_splits
from llm_rlhf.recipe.sections import OFFLINE, SOURCE_LISTS, DataSection, Recipe, Source, trains_reward
from llm_rlhf.recipe.values import read_section
from llm_rlhf.run_folder import RunFolder, read_json

BASES = (("sft", "model"), ("world", "base"))  # folders of a run on which its adapters stand


def starting_model(recipe: Recipe, run: RunFolder, before: str) -> str | Path:
    """The base of the stage called `before`: the merged SFT model where there is one, else the recipe's base."""
    if recipe.sft is not None and before not in ("collect", "sft"):
        return run / "sft" / "model"
    if recipe.world is not None:
        return run / "world" / "base"
    assert recipe.model.base is not None  # the recipe was checked
    return recipe.model.base


COLLECTED = {  # lists of sources: the file of RUN/collect whose rows are for them, and its format
    "preferences": ("preferences.jsonl", "preference"),
    "demonstrations": ("demonstrations.jsonl", "prompt_completion"),
    "ratings": ("ratings.jsonl", "feedback"),
}


def data_section(recipe: Recipe, run: RunFolder | Path) -> DataSection:
    """The recipe's sources; a gold world's are the files its stage wrote. What was collected from people joins them."""
    section = recipe.data if recipe.data is not None else _of_world(recipe, run)
    return to_imitate(with_collected(section, recipe, run / "collect"), recipe)


def takes_demonstrations(recipe: Recipe) -> bool:
    """Whether a stage learns from demonstrations."""
    return recipe.sft is not None or bool((recipe.ppo or {}).get("ptx_coef"))


def to_imitate(section: DataSection, recipe: Recipe) -> DataSection:
    """Without demonstrations `from: preferences`, where no pair is to be imitated, unless that leaves none."""
    own = [source for source in section.demonstrations if source.from_ is None]
    if not section.preferences or any(source.imitate is not False for source in section.preferences):
        return section
    return replace(section, demonstrations=own) if own or not takes_demonstrations(recipe) else section


def with_collected(section: DataSection, recipe: Recipe, folder: Path) -> DataSection:
    """The sources, and after them the files of labels in `folder` that have rows for what the recipe trains.

    Pairs are for what learns from pairs, thumbs for KTO. Before anything is collected, the section as it is.
    """
    card = read_json(folder / "card.json")
    if recipe.feedback is None or card is None:
        return section
    wanted = {
        "preferences": bool(section.preferences) or trains_reward(recipe) or recipe.method in OFFLINE,
        "demonstrations": takes_demonstrations(recipe),
        "ratings": recipe.method == "kto",
    }
    section, how = copy(section), {"weight": recipe.feedback.weight, "leaks": recipe.feedback.leaks}
    for name, (file, form) in COLLECTED.items():
        if wanted[name] and card["files"][file]["rows"]:
            more = {"imitate": False} if name == "preferences" else {}  # a policy's own replies, cut ones among them
            source = read_section(Source, {"source": str(folder / file), "format": form, **how, **more}, "")
            setattr(section, name, [*getattr(section, name), source])
    if not section.preferences:  # nothing for a list to take `from: preferences`
        for name in SOURCE_LISTS:
            setattr(section, name, [source for source in getattr(section, name) if source.from_ is None])
    return section


def _of_world(recipe: Recipe, run: RunFolder | Path) -> DataSection:
    world = run / "world"

    def file(name: str) -> list[Source]:
        return [Source(source=str(world / f"{name}.jsonl"))]

    return DataSection(
        preferences=file("preferences") if recipe.world is None or recipe.world.preferences else [],
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
