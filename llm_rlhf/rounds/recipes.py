"""The recipe of each round: an ordinary recipe, with the labels of the rounds before among its pairs.

1. The first round is the recipe as it stands.
2. Every later one reads the same sources, each with the weight of initial data, and beside them the labels of each
   earlier round, each with its own; what else the store holds weighs as the newest of them. What evaluation reads
   stays what it is: prompts of labels never fall to it.
3. It starts where the first round's training started, from its SFT model (from scratch: Bai et al. 2022,
   arXiv:2204.05862, section 4.5), or from the promoted policy (warm). SFT is done again only where people wrote
   answers.
4. Where demonstrations are imitated, SFT alone is a run of its own before the first round, which is trained on pairs
   about it already.
"""

import copy
import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_rlhf.recipe.people_sections import RoundsSection
from llm_rlhf.recipe.sections import METHODS, DataSection, Recipe, Source
from llm_rlhf.rounds.labels import DEMONSTRATIONS, RATINGS, other_pairs, pairs_about
from llm_rlhf.run_folder import MANIFEST, RunFolder, read_json
from llm_rlhf.runs import data_section, starting_model

TABLE = "rounds.json"  # of the rounds in a folder, as far as they were made


def round_folder(folder: Path, number: int) -> Path:
    """The run's folder of a round, from 1."""
    return folder / f"round-{number}"


def newest_round(folder: Path) -> Path | None:
    """The run's folder of the last round that was made; None where none was, or the folder is not one of rounds."""
    made = (read_json(folder / TABLE) or {}).get("rounds")
    return round_folder(folder, made[-1]["round"]) if made else None


def sft_alone(recipe: Recipe) -> Recipe:
    """Where demonstrations are imitated: the recipe of what comes before the first round."""
    found = first_recipe(recipe)
    found.name, found.output_dir = f"{recipe.name}-sft-alone", str(recipe.folder / "sft-alone")
    for section in ("reward", "evaluate", *METHODS):
        setattr(found, section, None)
    return found


def first_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the first round, where nothing is imitated."""
    return dataclasses.replace(
        copy.deepcopy(recipe),
        name=f"{recipe.name}-round-1",
        output_dir=str(round_folder(recipe.folder, 1)),
        rounds=None,
    )


def later_recipe(
    recipe: Recipe, number: int, labels: Path, warm: Path | None = None, imitated: Sequence[Path] = ()
) -> Recipe:
    """The recipe of a round from the second on, or of the first where demonstrations are imitated.

    Args:
        labels: the folder of the labels that it is trained on (labels.py).
        warm: a policy as a whole model, where training starts from it.
        imitated: files of pairs of demonstrations (imitation.py).
    """
    assert recipe.rounds is not None
    first = first_recipe(recipe)
    run = RunFolder((sft_alone(recipe) if recipe.rounds.imitation else first).folder, written=False)
    data = mixed_data(data_section(first, run), recipe.rounds, labels, number)
    weight = recipe.rounds.imitation
    data.preferences += [Source(str(file), format="preference", weight=weight, leaks="remove") for file in imitated]
    written = _rows(labels / DEMONSTRATIONS)
    again = first.sft is not None and written and warm is None
    if again or (written and (first.ppo or {}).get("ptx_coef")):
        data.demonstrations.append(
            Source(source=str(labels / DEMONSTRATIONS), format="prompt_completion", leaks="remove")
        )
    newest = weight_of(recipe.rounds, number - 1) if number > 1 else 0.0
    if first.method == "kto" and newest and _rows(labels / RATINGS):
        data.ratings.append(Source(str(labels / RATINGS), format="feedback", weight=newest, leaks="remove"))
    base = warm or starting_model(first, run, before="sft" if again else "reward")
    model = dataclasses.replace(first.model) if str(base) == first.model.base else first.model.made_into(base)
    if (launched := read_json(run.path / MANIFEST)) and model.chat_template_date is None:
        model.chat_template_date = _date(launched.get("chat_template_date"))
    return dataclasses.replace(
        first,
        name=f"{recipe.name}-round-{number}",
        output_dir=str(round_folder(recipe.folder, number)),
        world=None,
        feedback=None,  # what the first round collected is among its data
        model=model,
        data=data,
        sft=first.sft if again else None,
    )


def mixed_data(data: DataSection, rounds: RoundsSection, labels: Path, number: int) -> DataSection:
    """The recipe's sources, and the labels about the rounds before this one, by their weights.

    With the weight 0 the recipe's own are still read: what is held out of them, and prompts that are theirs, stay.
    """
    data = copy.deepcopy(data)
    if not data.preferences and not rounds.imitation:
        data.evaluation_share = 0.0  # nothing is evaluated on, and of what is asked nothing falls to evaluation
    for source in data.preferences:
        source.weight *= rounds.initial_weight
    files = [(pairs_about(labels, about), weight_of(rounds, about)) for about in range(1, number)]
    files += [(other_pairs(labels), weight_of(rounds, number - 1))] if number > 1 else []
    for file, weight in files:
        if weight and _rows(file):
            data.preferences.append(Source(source=str(file), format="preference", weight=weight, leaks="remove"))
    return data


def weight_of(rounds: RoundsSection, number: int) -> float:
    """Of the labels on the answers of a round, from 1."""
    weights = rounds.label_weight if isinstance(rounds.label_weight, list) else [rounds.label_weight]
    return weights[min(number, len(weights)) - 1]


def mixture(recipe: Recipe) -> list[dict[str, Any]]:
    """The pairs of a round's recipe: each source with its weight, for its manifest."""
    assert recipe.data is not None
    return [{"source": source.source, "weight": source.weight} for source in recipe.data.preferences]


def _rows(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _date(text: Any) -> Any:
    return None if text is None else datetime.date.fromisoformat(text)
