"""What pays a method beside the run's own reward adapters: models with a base of their own, and Python functions."""

from typing import Any

from llm_rlhf.recipe.sections import Recipe, method_options
from llm_rlhf.reward.adapters import whole_rewards
from llm_rlhf.reward.loading import Loading, load_whole
from llm_rlhf.user_code import FUNCTION


def paying_beside_adapters(recipe: Recipe) -> list[str]:
    """Names of functions and of models: one that stands in for trained adapters first, as the weights expect."""
    named: list[str] = method_options(recipe).reward_funcs
    return named if recipe.reward is None else [*whole_rewards(recipe), *named]


def reward_functions(recipe: Recipe) -> tuple[list[Any], list[Any]]:
    """`paying_beside_adapters` as TRL takes it, functions by name and models loaded, and the tokenizers of these."""
    names = paying_beside_adapters(recipe)
    loading = Loading(dtype=recipe.model.dtype, trust_remote_code=tuple(recipe.model.trusted))
    loaded = [None if FUNCTION.match(name) else load_whole(name, None, loading) for name in names]
    return (
        [name if found is None else found.model for name, found in zip(names, loaded, strict=True)],
        [None if found is None else found.tokenizer for found in loaded],
    )
