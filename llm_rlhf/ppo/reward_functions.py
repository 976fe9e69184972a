"""Python functions that score responses, kept from spoiling a run: what they return, raise or change.

A function returns a number for each completion, or None for one that it does not speak of. None adds nothing; a NaN or
an infinity is a mistake in the function and stops the run by its first row, as nobody can tell what it was to mean.
"""

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from llm_rlhf.errors import RunError, shown
from llm_rlhf.user_code import as_list, as_number, told

LARGEST = torch.finfo(torch.float32).max  # scores are float32
GIVEN_COPIES = ("prompts", "completions", "completion_ids")  # what a function does to them must not reach the training
SHOWN = 160  # signs of a completion in an error
LONGEST = 80  # and of what a function returned


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its answers checked; asynchronous where it is.

    Raises:
        RunError: where it fails, ends the process, or returns anything but a finite number or None for each completion;
            names the function, the row and what was returned.
    """
    module = getattr(function, "__module__", type(function).__module__)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    who = f"The reward function {module}:{name}"

    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004

        async def asynchronous(*, completions: list[Any], **kwargs: Any) -> list[float | None]:
            given = _copies(completions=completions, **kwargs)
            with _named(who):
                returned = await function(**given)
                found = _listed(returned, who)
            return _numbers(found, completions, who)

        return _called_as(function, asynchronous)

    def synchronous(*, completions: list[Any], **kwargs: Any) -> list[float | None]:
        given = _copies(completions=completions, **kwargs)
        with _named(who):
            found = _listed(function(**given), who)
        return _numbers(found, completions, who)

    return _called_as(function, synchronous)


def _called_as(function: Callable[..., Any], made: Callable[..., Any]) -> Callable[..., Any]:
    """With the name and the signature of the function; an object has the name of its class."""
    wrapped = functools.wraps(function)(made)
    wrapped.__name__ = getattr(function, "__name__", type(function).__name__)
    return wrapped


def _copies(**given: Any) -> dict[str, Any]:
    return {name: copy.deepcopy(value) if name in GIVEN_COPIES else value for name, value in given.items()}


@contextlib.contextmanager
def _named(who: str) -> Iterator[None]:
    try:
        yield
    except RunError:
        raise
    except (Exception, SystemExit) as error:  # sys.exit(0) would end a launch as if it were done
        raise RunError(f"{who} failed: {told(error)}.") from error


def _listed(returned: Any, who: str) -> list[Any]:
    found = as_list(returned)
    if found is None:
        raise RunError(
            f"{who} returned {shown(returned, LONGEST)}; it must return a list of one number for each completion."
        )
    return found


def _numbers(found: list[Any], completions: Sequence[Any], who: str) -> list[float | None]:
    if len(found) != len(completions):
        raise RunError(
            f"{who} returned {len(found)} numbers for {len(completions)} completions; it must return one for each."
        )
    numbers: list[float | None] = []
    for row, (value, completion) in enumerate(zip(found, completions, strict=True)):
        number = None if value is None else as_number(value)
        if number is not None and not abs(number) <= LARGEST:
            raise RunError(
                f"{who} returned {shown(value, LONGEST)} for row {row} of {len(found)}, completion "
                f"{shown(completion, SHOWN)}; it must return a finite number for each, or None for one that it has no "
                "score for."
            )
        numbers.append(number)
    return numbers
