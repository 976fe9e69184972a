"""Public suites in an evaluation: from what was asked of the policies to estimates, suite by suite."""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_rlhf.data.rows import Prompt
from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.answers import Answers
from llm_rlhf.evaluation.ask import Found
from llm_rlhf.evaluation.material import Material
from llm_rlhf.evaluation.request import Both, Evaluation
from llm_rlhf.evaluation.suites.benchmarks.answering import Read, answering, splits_of
from llm_rlhf.evaluation.suites.benchmarks.refusing import refusing
from llm_rlhf.evaluation.suites.benchmarks.registry import BENCHMARKS
from llm_rlhf.evaluation.suites.benchmarks.rows import Choices
from llm_rlhf.recipe.sections import Benchmark
from llm_rlhf.statistics.intervals import RESAMPLES, Estimate


def check_possible(asked: Evaluation) -> None:
    """RecipeError where a suite asks for log-probabilities that nobody can tell."""
    for benchmark in asked.benchmarks:
        if BENCHMARKS[benchmark.name].kind == "choices" and not asked.local:
            raise RecipeError(
                f"{asked.key('benchmarks')}: {benchmark.name} goes by log-probabilities of given replies, which "
                "endpoints do not tell; leave it out."
            )


def measure_benchmarks(asked: Evaluation, material: Material, found: Found) -> tuple[list[Estimate], list[str]]:
    """The estimates of all suites, and notes on what could not be measured."""
    estimates: list[Estimate] = []
    notes = []
    for benchmark in asked.benchmarks:
        name = benchmark.name
        if name in material.prompts:
            estimates += of_replies(name, material.prompts[name], found.answers[name], asked.names)
        else:
            read, rows = found.choices[name], material.choices[name]
            estimates += of_choices(name, rows, read, asked.names, asked.resamples, asked.seed)
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


def record(asked: Benchmark, rows: int) -> dict[str, Any]:
    """What the report says of a suite, beside its estimates: an entry of its `benchmarks`."""
    known = BENCHMARKS[asked.name]
    return {"source": asked.source, "kind": known.kind, "rows": rows, "families": known.families}


def records(asked: Evaluation, material: Material) -> dict[str, dict[str, Any]]:
    """What the report says of each suite."""
    return {b.name: record(b, len((material.prompts | material.choices)[b.name])) for b in asked.benchmarks}
