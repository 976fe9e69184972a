"""Functions of the user's that a recipe names as `module:function`."""

import importlib
import math
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

from llm_rlhf.errors import RecipeError

FUNCTION = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


def load_function(name: str, what: str = "reward function") -> Callable[..., Any]:
    """The function called `module:function`; a module may also lie in the working directory.

    Args:
        what: the function is for, in the error's words.

    Raises:
        RecipeError: where the module cannot be imported or has no such function.
    """
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):
        sys.path.append(here)  # last, so that nothing in it takes the place of an installed module
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a script of the user's may end its process when it is imported
        raise RecipeError(f"The {what} {name!r} cannot be loaded: {told(error)}.") from None
    if not callable(function):
        raise RecipeError(f"The {what} {name!r} is {type(function).__name__}, which cannot be called.")
    found: Callable[..., Any] = function
    return found


def told(error: BaseException) -> str:
    """An exception of the user's code in one line, with the place it came from."""
    words = f"{type(error).__name__}: {error}".rstrip(".: ")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__ and f.filename[:1] != "<"]
    own = frames[-1] if frames and "importlib" not in frames[-1].filename else None
    return f"{words} ({own.filename}, line {own.lineno})" if own else words


def as_list(returned: Any) -> list[Any] | None:
    """The values that a function returned, a generator's as it makes them; None where it is no list of any."""
    single = isinstance(returned, (str, bytes, Mapping, Set)) or getattr(returned, "ndim", 1) == 0
    return None if single or not hasattr(returned, "__iter__") else list(returned)


def as_number(value: Any) -> float:
    """As a float; NaN where it is none, as a string of digits: most likely it is a whole answer, cut into signs."""
    if isinstance(value, (str, bytes)):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several numbers
        return math.nan
