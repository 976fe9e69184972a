"""What a number in a recipe may be; a RecipeError names its key."""

from llm_rlhf.errors import RecipeError


def at_least(key: str, value: float | None, low: int) -> None:
    if value is not None and value < low:
        raise RecipeError(f"Recipe key {key!r} is {value}; it must be at least {low}.")


def check_share(key: str, value: float, most: int | None = None) -> None:
    """RecipeError where a value is no share: from 0, under 1, or, where `most` is 1, that itself."""
    if not (0 <= value < 1 or value == most):
        top = "under 1" if most is None else f"at most {most}"
        raise RecipeError(f"Recipe key {key!r} is {value}; it is a share and must be at least 0 and {top}.")


def check_weight(key: str, weight: float, least: bool = False) -> None:
    """RecipeError where a weight is none.

    Args:
        least: 0 is one: rows are held out to evaluate on, and not trained on.
    """
    if not (0 < weight <= 100 or (least and weight == 0)):
        raise RecipeError(
            f"Recipe key {key!r} is {weight}; it must be {'at least' if least else 'over'} 0 and at most 100."
        )
