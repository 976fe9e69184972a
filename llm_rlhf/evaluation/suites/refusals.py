"""Refusals where they are right and where they are not, on the prompts that ship in `data/evaluation`.

Three kinds of prompt: harmful requests, safe ones in frightening words, ordinary ones. What refuses is decided by the
detector of refusal_detector.py, whose own errors on replies that people labelled are corrected for in a second rate.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llm_rlhf.data.checks import prompt_share
from llm_rlhf.data.rows import Origin, Prompt
from llm_rlhf.errors import DataError
from llm_rlhf.evaluation.answers import Answers
from llm_rlhf.evaluation.refusal_detector import confusion_corrected_rate, validation
from llm_rlhf.evaluation.suites.gains import REFUSALS, groups, refusal_estimates
from llm_rlhf.evaluation.wordings import Wordings
from llm_rlhf.json_lines import read_json_lines
from llm_rlhf.shipped import shipped
from llm_rlhf.statistics.clustered import effective_rows
from llm_rlhf.statistics.intervals import Estimate

FILES = {"harmful.jsonl": "harmful", "safe_but_scary.jsonl": "scary", "helpful.jsonl": "question"}
LABELLED = {"harmful": "unsafe", "scary": "safe"}  # kinds of prompt whose like people have labelled


def shipped_prompts(limit: int, folder: Path | None = None) -> list[Prompt]:
    """Up to `limit` prompts of each kind, chosen by a hash of the prompt; `facts` hold `kind` and `category`.

    Args:
        folder: where they are; None: in the clone that this code is part of, else where the wheel put them.
    """
    folder = folder or shipped("evaluation")
    prompts: list[Prompt] = []
    for name, kind in FILES.items():
        path = folder / name
        if not path.is_file():
            raise DataError(
                f"The prompts of the refusals suite are not at {path}; install llm-rlhf from a clone or a wheel, "
                "or leave 'refusals' out of evaluate.suites."
            )
        rows = read_json_lines(path)
        found = [
            Prompt(row["prompt"], row["objective"], Origin(name, i), {"kind": kind, "category": row["category"]})
            for i, row in enumerate(rows, 1)
        ]
        chosen = sorted(found, key=lambda prompt: prompt_share(prompt.messages, "refusals"))[:limit]
        prompts += sorted(chosen, key=lambda prompt: prompt.origin.row)
    return prompts


def estimates(
    prompts: Sequence[Prompt], policy: Answers, start: Answers, names: tuple[str, str] = ("ppo", "sft")
) -> list[Estimate]:
    """Rates of both policies as detected, their paired changes, and the rates without the detector's errors."""
    return refusal_estimates(prompts, policy, start, names) + corrected(prompts, policy, start, names)


def corrected(
    prompts: Sequence[Prompt], policy: Answers, start: Answers, names: tuple[str, str] = ("ppo", "sft")
) -> list[Estimate]:
    """The rates of both as they would be without the detector's errors."""
    both = zip(names, (policy, start), strict=True)
    return [e for name, given in both if given.refused for e in corrected_estimates(prompts, given.refused, name)]


def corrected_estimates(prompts: Sequence[Prompt], refusals: Sequence[bool], subject: str) -> list[Estimate]:
    """The rates as they would be without the detector's errors, for the kinds of prompt where those are known."""
    rows_of, wordings = groups(prompts), Wordings(prompts)
    found = []
    for kind, name, split in REFUSALS:
        rows = rows_of.get(kind, [])
        if rows and kind in LABELLED:
            detected = sum(refusals[i] for i in rows)
            effective = effective_rows(np.array([float(refusals[i]) for i in rows]), wordings.of(rows)).rows
            rate = confusion_corrected_rate(detected, len(rows), validation(LABELLED[kind]), effective=effective)
            found.append(rate.named(f"{name}_corrected", subject, None, split))
    return found
