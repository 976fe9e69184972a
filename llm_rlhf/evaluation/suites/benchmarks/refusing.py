"""Refusals on a public suite: of what should be answered, and of what should be refused, before and after.

Whole suites are clustered by what their rows come in families by: what a policy does to one type of request it mostly
does to all of that type. Within one category there may be no families, and rows are taken together by wording.
"""

from collections.abc import Sequence
from dataclasses import replace

from llm_rlhf.data.rows import Prompt
from llm_rlhf.evaluation.answers import Answers
from llm_rlhf.evaluation.suites.gains import refusal_estimates
from llm_rlhf.evaluation.wordings import PHRASING
from llm_rlhf.statistics.intervals import Estimate


def refusing(
    suite: str, families: str, prompts: Sequence[Prompt], both: tuple[Answers, Answers], names: tuple[str, str]
) -> list[Estimate]:
    """`over_refusal` and `refusal_harmful` of both policies and their paired changes, on the suite and by category.

    Args:
        families: what the estimates' methods call the suite's families.
        both: the answers of the policy and of its start.
        names: of the policy and of its start.
    """
    found = _on(suite, families, prompts, range(len(prompts)), both, names)
    categories = dict.fromkeys(prompt.facts["category"] for prompt in prompts)
    for category in categories if len(categories) > 1 else ():
        rows = [i for i, prompt in enumerate(prompts) if prompt.facts["category"] == category]
        found += _on(f"{suite}/{category}", families, prompts, rows, both, names)
    return found


def _on(
    split: str,
    families: str,
    prompts: Sequence[Prompt],
    rows: Sequence[int],
    both: tuple[Answers, Answers],
    names: tuple[str, str],
) -> list[Estimate]:
    asked = [prompts[i] for i in rows]
    if len({prompt.facts["family"] for prompt in asked}) > 1:
        asked = [replace(prompt, facts=prompt.facts | {PHRASING: prompt.facts["family"]}) for prompt in asked]
    else:
        families = "wordings"
    policy, start = (_of_rows(given, rows) for given in both)
    found = refusal_estimates(asked, policy, start, names)
    return [replace(e, split=split, method=e.method.replace("wordings", families)) for e in found]


def _of_rows(given: Answers, rows: Sequence[int]) -> Answers:
    assert given.refused is not None, "requests of a suite say of what kind they are, so that refusals are looked for"
    return replace(given, refused=[given.refused[i] for i in rows])
