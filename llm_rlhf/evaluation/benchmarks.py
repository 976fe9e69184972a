"""Public suites in an evaluation: from what was asked of the policies to estimates, suite by suite."""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_rlhf.data.rows import Prompt
from llm_rlhf.evaluation.answers import Answers
from llm_rlhf.evaluation.request import Both
from llm_rlhf.evaluation.suites.benchmarks.refusing import refusing
from llm_rlhf.evaluation.suites.benchmarks.registry import BENCHMARKS
from llm_rlhf.recipe.sections import Benchmark
from llm_rlhf.statistics.intervals import Estimate


def of_replies(
    suite: str, prompts: Sequence[Prompt], answers: Mapping[str, Answers], names: Both[str]
) -> list[Estimate]:
    """Estimates of a suite that the policies answered."""
    both = answers[names.policy], answers[names.start]
    return refusing(suite, BENCHMARKS[suite].families, prompts, both, names)


def record(asked: Benchmark, rows: int) -> dict[str, Any]:
    """What the report says of a suite, beside its estimates: an entry of its `benchmarks`."""
    known = BENCHMARKS[asked.name]
    return {"source": asked.source, "kind": known.kind, "rows": rows, "families": known.families}
