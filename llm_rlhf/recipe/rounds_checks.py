"""What a recipe's rounds may hold, and what they need beside them; a RecipeError names the key and the remedy."""

from llm_rlhf.errors import RecipeError
from llm_rlhf.recipe.limits import at_least, check_share, check_weight
from llm_rlhf.recipe.sections import OFFLINE, Recipe, RoundsSection, trains_reward


def check_rounds(recipe: Recipe, rounds: RoundsSection) -> None:
    """RecipeError where a key of `rounds` holds nothing that it can be, or a section that it needs is missing."""
    for name, low in (("count", 1), ("budget", 0), ("people_per_item", 1), ("reward_drop", 0)):
        at_least(f"rounds.{name}", getattr(rounds, name), low)
    if imitates(recipe) and recipe.sft is None:
        raise RecipeError(
            f"Recipe key 'rounds.imitation' is {rounds.imitation}, but there is no 'sft': the pairs are of its "
            "demonstrations, against what the model says that was tuned on them. Add 'sft', or set it to 0."
        )
    at_least("rounds.simulated.people", rounds.simulated.people, rounds.people_per_item)
    if not rounds.simulated.noise > 0:
        raise RecipeError(f"Recipe key 'rounds.simulated.noise' is {rounds.simulated.noise}; it must be over 0.")
    for name, value in (("enough", rounds.enough), ("simulated.inattention", rounds.simulated.inattention)):
        check_share(f"rounds.{name}", value, most=1)
    if rounds.budget < rounds.people_per_item and (rounds.budget or not rounds.imitation):
        raise RecipeError(
            f"Recipe key 'rounds.budget' is {rounds.budget}, and 'rounds.people_per_item' {rounds.people_per_item}: "
            "not one comparison could be asked; raise the budget."
        )
    weights = rounds.label_weight if isinstance(rounds.label_weight, list) else [rounds.label_weight]
    named = [("initial_weight", rounds.initial_weight), ("imitation", rounds.imitation)]
    for name, value in [*named, *(("label_weight", value) for value in weights)]:
        check_weight(f"rounds.{name}", value, least=True)
    if not weights:
        raise RecipeError("Recipe key 'rounds.label_weight' is empty; give a number, or one for each round.")
    if recipe.method is None or recipe.evaluate is None:
        missing = "a method such as 'ppo'" if recipe.method is None else "'evaluate'"
        raise RecipeError(f"Recipe section 'rounds' makes a policy of each round and measures it; add {missing}.")
    if not trains_reward(recipe) and recipe.method not in OFFLINE:
        raise RecipeError(
            f"Recipe section 'rounds' has nothing that learns from what people say: no reward model is trained, and "
            f"'{recipe.method}' learns from no pairs. Train one ('reward' without 'model'), or remove 'rounds'."
        )
    if rounds.annotators == "simulated" and recipe.world is None:
        raise RecipeError(
            "Recipe key 'rounds.annotators' is 'simulated', but only a 'world' has a true score to label by; set it to "
            "'people'."
        )


def imitates(recipe: Recipe) -> bool:
    """Whether there are pairs of demonstrations against what policies say."""
    return recipe.rounds is not None and recipe.rounds.imitation > 0
