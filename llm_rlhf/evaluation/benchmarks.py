"""Public suites in an evaluation: from what was asked of the policies to estimates, suite by suite."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_rlhf.data.rows import Prompt
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.evaluation.answers import Answers
from llm_rlhf.evaluation.ask import Found
from llm_rlhf.evaluation.material import Material, what
from llm_rlhf.evaluation.request import Both, Evaluation
from llm_rlhf.evaluation.rewards import PairScores
from llm_rlhf.evaluation.suites.benchmarks.answering import Read, answering, splits_of
from llm_rlhf.evaluation.suites.benchmarks.refusing import refusing
from llm_rlhf.evaluation.suites.benchmarks.registry import BENCHMARKS
from llm_rlhf.evaluation.suites.benchmarks.rows import Choices
from llm_rlhf.evaluation.suites.benchmarks.scoring import of_pairs
from llm_rlhf.recipe.sections import Benchmark
from llm_rlhf.statistics.intervals import RESAMPLES, Estimate


def check_possible(asked: Evaluation, scored: bool) -> None:
    """RecipeError where a suite asks for what nobody can tell.

    Args:
        scored: whether there is a reward model.
    """
    for benchmark in asked.benchmarks:
        kind = BENCHMARKS[benchmark.name].kind
        if kind == "choices" and not asked.local:
            raise RecipeError(
                f"{asked.key('benchmarks')}: {benchmark.name} goes by log-probabilities of given replies, which "
                "endpoints do not tell; leave it out."
            )
        if kind == "scores" and not scored:
            raise RecipeError(
                f"{asked.key('benchmarks')}: {benchmark.name} tests reward models, and there is none; name one: "
                "--reward MODEL."
            )


def measure_benchmarks(asked: Evaluation, material: Material, found: Found) -> tuple[list[Estimate], list[str]]:
    """The estimates of all suites, and notes on what could not be measured."""
    estimates: list[Estimate] = []
    notes = []
    for benchmark in asked.benchmarks:
        name, how = benchmark.name, (asked.resamples, asked.seed)
        if name in material.prompts:
            estimates += of_replies(name, material.prompts[name], found.answers[name], asked.names)
        elif name in material.candidates:
            of_suite, fitted = of_scores(name, material.candidates[name], found.pair_scores[name], *how)
            estimates += of_suite
            material.counts[what(name)]["fitted"] = fitted
        else:
            read, rows = found.choices[name], material.choices[name]
            estimates += of_choices(name, rows, read, asked.names, *how)
            if mute := [who for who in asked.names if who not in read]:
                notes.append(
                    f"{name} was not asked of {' and '.join(mute)}: an endpoint tells no log-probabilities of replies."
                )
    return estimates, notes


def of_replies(
    suite: str, prompts: Sequence[Prompt], answers: Mapping[str, Answers], names: Both[str]
) -> list[Estimate]:
    """Estimates of a suite that the policies answered."""
    both = answers[names.policy], answers[names.start]
    return refusing(suite, BENCHMARKS[suite].families, prompts, both, names)


def of_choices(
    suite: str,
    rows: Sequence[Choices],
    read: Mapping[str, Read],
    names: Both[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Estimate]:
    """Estimates of a suite whose given replies the policies read."""
    known = BENCHMARKS[suite]
    assert known.of_logprobs is not None
    measured = {who: known.of_logprobs(rows, given) for who, given in read.items()}
    return answering(splits_of(suite, rows), measured, names, known.families, resamples, seed)


def of_scores(
    suite: str, rows: Sequence[Choices], scores: PairScores, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[list[Estimate], dict[str, int]]:
    """Estimates of a suite whose given replies the reward models scored, and how many rows all of them could read.

    Args:
        scores: of `as_pairs(rows)`, by the model's name; NaN where it could not read a pair.

    Raises:
        DataError: where no row could be read.
    """
    known = BENCHMARKS[suite]
    assert known.of_scores is not None
    by_name = {who: of_pairs(rows, both) for who, both in scores.items()}
    read = [i for i in range(len(rows)) if all(np.isfinite(by_row[i]).all() for by_row in by_name.values())]
    if not read:
        raise DataError(f"None of {len(rows)} rows of {suite} fits into what the reward models read.")
    found: list[Estimate] = []
    for number, (who, by_row) in enumerate(by_name.items()):
        for one in known.of_scores(suite, [rows[i] for i in read], [by_row[i] for i in read], resamples, seed):
            found.append(one.interval.named(one.name, who, None, one.split))
            if one.chance is not None and number == 0:
                found.append(
                    Estimate(one.name, "baseline", None, one.split, one.chance, None, None, one.interval.n, "a guess")
                )
    if not found:
        raise DataError(f"{suite}: of {len(rows)} rows none is of a subset that has a measure, or has its other half.")
    return found, {"kept": len(read), "too_long": len(rows) - len(read)}


def record(asked: Benchmark, rows: int) -> dict[str, Any]:
    """What the report says of a suite, beside its estimates: an entry of its `benchmarks`."""
    known = BENCHMARKS[asked.name]
    return {"source": asked.source, "kind": known.kind, "rows": rows, "families": known.families}


def records(asked: Evaluation, material: Material) -> dict[str, dict[str, Any]]:
    """What the report says of each suite."""
    lists: dict[str, Sequence[Any]] = {**material.prompts, **material.choices, **material.candidates}
    return {benchmark.name: record(benchmark, len(lists[benchmark.name])) for benchmark in asked.benchmarks}
