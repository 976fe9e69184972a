"""Which reward adapters a recipe asks for, and the pairs each of them learns from."""

from dataclasses import dataclass
from pathlib import Path

from llm_rlhf.data.checks import opening, prompt_share
from llm_rlhf.data.rows import Preference
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import Recipe, RewardOptions, method_options, stage_options
from llm_rlhf.reward.loading import local_adapter
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.user_code import FUNCTION


@dataclass(frozen=True)
class AdapterPlan:
    """One adapter to be trained: its folder under `reward/`, its pairs and its seed (head, order of the pairs)."""

    name: str
    pairs: list[Preference]
    seed: int


def plan_adapters(options: RewardOptions, pairs: list[Preference], seed: int) -> list[AdapterPlan]:
    """The adapters of the reward model, without the held-out one, which has pairs of its own and `seed + 1`.

    - An ensemble's members differ by seed, and member i leaves out fold i of the prompts: fine-tuned from one base on
      the same pairs, by seed alone, members share most of their errors (Eisenstein et al. 2024, arXiv:2312.09244).
    - `separate` and the objectives by name select pairs. Pairs of objective "overall" (the source does not say what was
      judged) belong to both adapters of `separate`.

    Raises:
        DataError: where an adapter would have no pairs.
    """
    plans = []
    for number, name in enumerate(options.adapters):
        chosen = _of_objective(pairs, options.objectives, name)
        if options.ensemble > 1:
            chosen = [pair for pair in chosen if fold_of(pair, options.ensemble) != number]
        if not chosen:
            raise DataError(_nothing_to_learn(options, pairs, name))
        plans.append(AdapterPlan(name, chosen, seed + number + (number > 0)))  # seed + 1 is the held-out model's
    return plans


def fold_of(pair: Preference, folds: int) -> int:
    """The fold of a pair, 0 to folds - 1, by a hash of its first user turn: one prompt is never in two folds."""
    return int(prompt_share(opening(pair.prompt), "fold") * folds)


def _of_objective(pairs: list[Preference], objectives: str, name: str) -> list[Preference]:
    if objectives == "joint":
        return list(pairs)
    wanted = {name, "overall"} if objectives == "separate" else {objectives}
    return [pair for pair in pairs if pair.objective in wanted]


def _nothing_to_learn(options: RewardOptions, pairs: list[Preference], name: str) -> str:
    if options.ensemble > 1:
        return (
            f"The reward adapter {name!r} has no pairs left after its fold is left out ('reward.ensemble' is "
            f"{options.ensemble}, pairs of this objective are few); lower reward.ensemble or add pairs."
        )
    found = ", ".join(sorted({pair.objective for pair in pairs})) or "none"
    return (
        f"Recipe key 'reward.objectives' is {options.objectives!r}, but no training pair of the recipe is {name}; the "
        f"objectives that occur: {found}. Say which each source is with 'objective' in data.preferences, or train "
        "'joint'."
    )


def reward_folders(recipe: Recipe, run_folder: RunFolder) -> dict[str, Path]:
    """The folder of every adapter that PPO is trained against, by its name; the held-out one's is not among them.

    None where the reward model has a base of its own (`whole_rewards`), or functions alone reward.
    """
    if recipe.reward is None:
        return {}
    options = stage_options(recipe, "reward")
    if options.model is None:
        return {name: run_folder / "reward" / name for name in options.adapters}
    folder = local_adapter(options.model, None)
    return {} if folder is None else dict.fromkeys(options.adapters, folder)


def whole_rewards(recipe: Recipe) -> list[str]:
    """The reward models with a base of their own that PPO is trained against in place of adapters.

    It is what `reward.model` names; without a `reward` section, what of the method's `reward_funcs` is no function.
    """
    if recipe.reward is None:
        return [name for name in method_options(recipe).reward_funcs if not FUNCTION.match(name)]
    named = stage_options(recipe, "reward").model
    return [] if named is None or local_adapter(named, None) is not None else [named]
