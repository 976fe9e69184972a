"""What pays a method beside the run's own reward adapters: models with a base of their own, and Python functions."""

from typing import Any

from llm_rlhf.recipe.sections import Recipe, method_options
from llm_rlhf.reward.adapters import whole_rewards
from llm_rlhf.reward.loading import Loading, load_whole
from llm_rlhf.user_code import FUNCTION


def reward_functions(recipe: Recipe) -> tuple[list[Any], list[Any]]:
    """What scores beside adapters: functions by name and models of their own, and the tokenizer of each, if it has one.

    A model that stands in for trained adapters comes first, as the weights expect.
    """
    named = method_options(recipe).reward_funcs
    names = named if recipe.reward is None else [*whole_rewards(recipe), *named]
    loading = Loading(dtype=recipe.model.dtype, trust_remote_code=recipe.model.trust_remote_code)
    loaded = [None if FUNCTION.match(name) else load_whole(name, None, loading) for name in names]
    return (
        [name if found is None else found.model for name, found in zip(names, loaded, strict=True)],
        [None if found is None else found.tokenizer for found in loaded],
    )
