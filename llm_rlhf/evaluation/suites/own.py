"""A user's own suite: a file of prompts and one function that gives every reply a number.

The function takes the prompts (conversations: lists of {"role", "content"}) and the replies (texts), both in the same
order, and returns one number for each reply, or None where it has nothing to say of one. True and False are 1 and 0.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from llm_rlhf.data.rows import Prompt
from llm_rlhf.data.sources import Loaded, load_prompts
from llm_rlhf.data.storage import Rows
from llm_rlhf.errors import DataError, RecipeError, shown
from llm_rlhf.evaluation.report.measures import MEASURES
from llm_rlhf.evaluation.suites.benchmarks.registry import BENCHMARKS
from llm_rlhf.evaluation.wordings import Wordings
from llm_rlhf.recipe.sections import OwnSuite
from llm_rlhf.recipe.values import read_section
from llm_rlhf.statistics.clustered import clustered_change, clustered_difference, clustered_mean, clustered_proportion
from llm_rlhf.statistics.intervals import Estimate, Interval
from llm_rlhf.user_code import as_list, as_number, load_function, told

Scored: TypeAlias = list[float | None]
TAKEN = (*MEASURES, *BENCHMARKS, "refusals")  # a suite of this name would stand in the report as another measure


_SPELLED = re.compile(r"([\w.-]+)=(.+),([\w.]+:\w+)(?:,(higher|lower|neither))?", re.DOTALL)


def suite_of(text: str) -> OwnSuite:
    """The suite that `NAME=SOURCE,MODULE:FUNCTION` names, perhaps with `,lower` after it where lower is better."""
    found = _SPELLED.fullmatch(text)
    if found is None:
        raise RecipeError(
            f"--own {text!r} is not of the form NAME=SOURCE,MODULE:FUNCTION, such as "
            "brevity=prompts.jsonl,my_suites:brevity (and ,lower or ,neither after it where higher is not better)."
        )
    name, source, function, good = found.groups()
    tree = {"name": name, "prompts": {"source": source}, "function": function, "good": good or "higher"}
    suite: OwnSuite = read_section(OwnSuite, tree, "--own.")
    return suite


def check_suites(suites: Iterable[OwnSuite]) -> None:
    """Import every function and read every source now, so that what is wrong with them does not show hours later."""
    for suite in suites:
        suite_function(suite)
        suite_prompts(suite)


def suite_function(suite: OwnSuite) -> Callable[..., Any]:
    """The function that the suite names, imported."""
    return load_function(suite.function, f"function of the suite '{suite.name}'")


def suite_prompts(suite: OwnSuite) -> Loaded[Prompt]:
    """The suite's prompts, each once, and the account of the rows they came from."""
    return load_prompts(suite.prompts, Rows())


def score_replies(suite: OwnSuite, prompts: Sequence[Prompt], replies: Sequence[str]) -> Scored:
    """The function's number for every reply; None where it has none.

    Raises:
        RecipeError: where the function fails, or returns anything but a finite number or None for each reply.
    """
    function = suite_function(suite)
    who = f"The function {suite.function} of the suite '{suite.name}'"
    try:
        # Copies: what a function does to its prompts must not reach those of the report.
        given = function([[dict(turn) for turn in prompt.messages] for prompt in prompts], list(replies))
        found = as_list(given)
    except (Exception, SystemExit) as error:
        raise RecipeError(f"{who} failed: {told(error)}.") from None
    if found is None:
        raise RecipeError(f"{who} returned {shown(given)}; it must return one number for each reply.")
    if len(found) != len(replies):
        raise RecipeError(
            f"{who} returned {len(found)} values for {len(replies)} replies; it must return one for each."
        )
    return [_number(value, f"{who}, {prompt.origin}:") for prompt, value in zip(prompts, found, strict=True)]


def _number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    found = as_number(value)
    if not math.isfinite(found):
        raise RecipeError(f"{where} returned {shown(value)}; return a finite number, or None where a reply has none.")
    return found


def suite_estimates(
    suite: OwnSuite,
    prompts: Sequence[Prompt],
    scored: Mapping[str, Scored],
    names: tuple[str, str],
) -> list[Estimate]:
    """The mean of both policies and the paired difference on the prompts where both have a number.

    Where the function says yes or no alone, Wilson's and Agresti and Min's intervals, which keep a width when all
    replies are alike; else Student's t. Prompts of one wording are taken together (clustered.py).

    Args:
        scored: the numbers of each policy's replies, by its name, in the prompts' order.
        names: of the policy and of its reference.
    """
    subject, reference = names
    binary, wordings = is_share(scored), Wordings(prompts, in_order=True)
    estimates = []
    for who in (reference, subject):
        there = [i for i, value in enumerate(scored[who]) if value is not None]
        if not there:
            raise DataError(
                f"The function {suite.function} of the suite '{suite.name}' gave no number to any of the "
                f"{len(scored[who])} replies of {who}; there is nothing to report."
            )
        values, ids = np.array([scored[who][i] for i in there], np.float64), wordings.of(there)
        level = clustered_proportion(values, ids) if binary else clustered_mean(values, ids)
        estimates.append(_counted(level, len(scored[who])).named(suite.name, who))
    pairs = list(zip(scored[subject], scored[reference], strict=True))
    both = [i for i, pair in enumerate(pairs) if None not in pair]
    if both:
        (a, b), ids = np.array([pairs[i] for i in both], np.float64).T, wordings.of(both)
        change = clustered_change(a, b, ids) if binary else clustered_difference(a, b, ids)
        estimates.append(_counted(change, len(scored[subject])).named(f"{suite.name}_gain", subject, reference))
    return estimates


def is_share(scored: Mapping[str, Scored]) -> bool:
    """Whether the function said nothing but yes and no, so that its mean is a share."""
    return all(value in (None, 0.0, 1.0) for values in scored.values() for value in values)


def suite_record(suite: OwnSuite, scored: Mapping[str, Scored]) -> dict[str, Any]:
    """What the report says of a suite, beside its estimates: an entry of its `own`."""
    return {
        "function": suite.function,
        "good": suite.good,
        "unit": "share" if is_share(scored) else "score",
        "prompts": len(next(iter(scored.values()))),
        "not_scored": {who: sum(value is None for value in values) for who, values in scored.items()},
    }


def write_suite_replies(
    path: Path, prompts: Sequence[Prompt], texts: Mapping[str, Sequence[str]], scored: Mapping[str, Scored]
) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i, prompt in enumerate(prompts):
            given = {who: {"reply": texts[who][i], "value": scored[who][i]} for who in texts}
            row = {"prompt": prompt.messages, "objective": prompt.objective, "origin": str(prompt.origin), **given}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _counted(interval: Interval, asked: int) -> Interval:
    missing = asked - interval.n
    return interval._replace(method=f"{interval.method}; {missing} prompts without a number") if missing else interval
