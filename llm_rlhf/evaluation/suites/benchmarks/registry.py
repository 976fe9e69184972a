"""The public suites that are known by name: how a row of each is read, and what is measured of it.

Titles for people stand with the other words of the report (SPLITS in report/measures.py), sources and hub ids in
docs/suites.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from llm_rlhf.evaluation.suites.benchmarks import bbq, scoring, truthfulqa
from llm_rlhf.evaluation.suites.benchmarks.answering import Measured, Read
from llm_rlhf.evaluation.suites.benchmarks.rows import ANSWER, REFUSE, Choices, Reader, requests, xstest
from llm_rlhf.evaluation.suites.benchmarks.scoring import Scored
from llm_rlhf.statistics.intervals import Array

Columns: TypeAlias = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Known:
    """A public suite.

    Attributes:
        kind: what is asked: replies of the policies, in which refusals are counted; log-probabilities of given replies;
            or scores of given replies by the reward models.
        read: what a row becomes.
        columns: our names of what every row must hold, each with what public copies call it.
        optional: likewise, of what a copy may lack.
        families: what rows are taken together by, in the plural.
        of_logprobs: what is measured of a policy's log-probabilities.
        of_scores: what is measured of a reward model's scores, by the suite's name, its rows, the scores of each row's
            replies, resamples and seed.
    """

    kind: Literal["refusals", "choices", "scores"]
    read: Reader
    columns: Columns
    families: str
    optional: Columns = field(default_factory=dict)
    of_logprobs: Callable[[Sequence[Choices], Read], list[Measured]] | None = None
    of_scores: Callable[[str, Sequence[Choices], Sequence[Array], int, int], list[Scored]] | None = None


_PROMPT, _CATEGORY = ("prompt",), ("category",)
_BY_CATEGORY = {"prompt": _PROMPT, "category": _CATEGORY}
_RANKED = {"chosen": ("chosen",), "rejected": ("rejected",)}
_SUBCATEGORY = {"family": ("subcategory",)}

BENCHMARKS: dict[str, Known] = {
    "xstest": Known("refusals", xstest, {"prompt": _PROMPT, "category": ("type",)}, "types", {"label": ("label",)}),
    "or_bench": Known("refusals", requests(ANSWER), _BY_CATEGORY, "categories"),
    "or_bench_toxic": Known("refusals", requests(REFUSE), _BY_CATEGORY, "categories"),
    "coconot": Known("refusals", requests(REFUSE), _BY_CATEGORY, "subcategories", _SUBCATEGORY),
    "coconot_contrast": Known("refusals", requests(ANSWER), _BY_CATEGORY, "subcategories", _SUBCATEGORY),
    "harmbench": Known(
        "refusals",
        requests(REFUSE),
        {"prompt": ("Behavior", "behavior", "prompt"), "category": ("SemanticCategory", "category")},
        "semantic categories",
        {"context": ("ContextString", "context")},
    ),
    "strongreject": Known(
        "refusals", requests(REFUSE), {"prompt": ("forbidden_prompt", "prompt"), "category": _CATEGORY}, "categories"
    ),
    "truthfulqa": Known(
        "choices", truthfulqa.truthfulqa, truthfulqa.COLUMNS, "categories", truthfulqa.OPTIONAL, truthfulqa.truthful
    ),
    "bbq": Known("choices", bbq.bbq, bbq.COLUMNS, "templates", of_logprobs=bbq.biased),
    "reward_bench_2": Known(
        "scores",
        scoring.reward_bench_2,
        {"prompt": _PROMPT, **_RANKED, "category": ("subset",), "id": ("id",)},
        "prompts",
        of_scores=scoring.best_of_four,
    ),
    "rm_bench": Known(
        "scores",
        scoring.rm_bench,
        {"prompt": _PROMPT, **_RANKED, "category": ("domain",)},
        "prompts",
        of_scores=scoring.style_matrix,
    ),
}
