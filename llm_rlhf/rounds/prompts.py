"""The prompts that people may be asked about: those of the run's training, or a file's, and none of evaluation's."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from llm_rlhf.data.checks import key_of, normalised_prompt, opening, prompt_of, prompt_share
from llm_rlhf.data.rows import Preference, Prompt
from llm_rlhf.data.sources import load_prompts
from llm_rlhf.data.splits import Splits, near_openings
from llm_rlhf.data.storage import Rows
from llm_rlhf.errors import DataError
from llm_rlhf.methods.prompts import keep_back
from llm_rlhf.recipe.sections import DataSection, Recipe, Source, method_options


@dataclass
class Askable:
    """Prompts in the order in which they are taken, and how many were left out, by reason."""

    prompts: list[Prompt]
    left_out: Counter[str] = field(default_factory=Counter)

    def leave_out(self, reason: str, away: Sequence[bool]) -> None:
        if count := sum(away):
            self.left_out[reason] += count
            self.prompts = [prompt for prompt, gone in zip(self.prompts, away, strict=True) if not gone]


def askable_prompts(
    recipe: Recipe, splits: Splits, data: DataSection, file: str | None = None, seed: int = 0
) -> Askable:
    """What a label may be asked of, so that it can be trained on and nothing is measured on what it has taught.

    Left out are prompts that are kept back to evaluate on in training; whose opening (the first user turn) is one of
    evaluation's, or nearly one, where the recipe looks for such; and those whose pair would fall to evaluation by the
    hash that divides pairs: a label there would teach nothing, and change what every round is measured on.

    Args:
        data: the recipe's sources, those of a world too.
        file: prompts of a file, in any format that has some; None: those that the run trained on.
        seed: of the order.

    Raises:
        DataError: where none is left.
    """
    own = list(splits.prompts)
    found = Askable(own if file is None else list(load_prompts([Source(source=file)], Rows()).rows))
    kept_back = {normalised_prompt(p.messages) for p in keep_back(own, method_options(recipe).eval_prompts)[1]}
    evaluated: list[Prompt | Preference] = [*splits.evaluation_prompts, *splits.evaluation_pairs]
    held = set(_keys(evaluated))
    found.leave_out(
        "kept back to evaluate on in training", [normalised_prompt(p.messages) in kept_back for p in found.prompts]
    )
    found.leave_out("opens as a row of evaluation does", [key in held for key in _keys(found.prompts)])
    if data.near_duplicates is not None:
        near = near_openings(_texts(found.prompts), sorted(set(_texts(evaluated))), data.near_duplicates)
        found.leave_out("opens nearly as a row of evaluation does", near.tolist())
    share = data.share_for_evaluation
    by_hash = [prompt_share(opening(p.messages), "split") < share for p in found.prompts]
    found.leave_out("falls to evaluation by its hash", by_hash)
    if not found.prompts:
        told = "; ".join(f"{count}: {reason}" for reason, count in found.left_out.items())
        raise DataError(f"No prompt is left to ask people about ({told}); name others with --prompts.")
    order = np.random.default_rng(seed).permutation(len(found.prompts))
    return Askable([found.prompts[place] for place in order], found.left_out)


def _keys(rows: Sequence[Prompt | Preference]) -> list[int]:
    return [key_of(normalised_prompt(opening(prompt_of(row))), "split") for row in rows]


def _texts(rows: Sequence[Prompt | Preference]) -> list[str]:
    return [opening(prompt_of(row))[0]["content"] for row in rows]
