"""What the report calls policies, judges and groups of rows; a policy by its role while a page is printed."""

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import PurePath
from typing import Any

from llm_rlhf.evaluation.report.measures import Entry, contest
from llm_rlhf.recipe.sections import METHODS
from llm_rlhf.runs import BASES

SUBJECTS = {
    "policy": "Policy",
    "start": "Start",
    "sft": "SFT",
    **METHODS,
    "base": "Base model",
    "reward": "Reward model",
    "heldout": "Held-out model",
    "baseline": "No model",
}
# What `Run.base` says where the base was made by a run: no name that a reader knows.
WORLDS_BASE = "the gold world's own"
SPLITS = {
    "all": "all prompts",
    "helpful": "helpful prompts",
    "harmless": "harmful prompts",
    "overall": "prompts of no one objective",
    "scary": "safe-but-scary prompts",
    "question": "ordinary questions",
    "calibrated": "all pairs, with the fitted temperature",
    "gold": "judged by the gold score",
    "heldout": "judged by the held-out reward",
    "heldout_reward": "judged by the held-out reward",
    "reward": "judged by the training reward",
    "xstest": "XSTest",
    "or_bench": "OR-Bench",
    "or_bench_toxic": "OR-Bench toxic",
    "coconot": "CoCoNot",
    "coconot_contrast": "CoCoNot contrast",
    "harmbench": "HarmBench",
    "strongreject": "StrongREJECT",
    "truthfulqa": "TruthfulQA",
    "bbq": "BBQ",
    "reward_bench_2": "RewardBench 2",
    "rm_bench": "RM-Bench",
    "judge": "preferred by the judge",
    "judge_helpful": "preferred by the judge, helpful prompts",
    "judge_harmless": "preferred by the judge, harmful prompts",
}


# What the page being printed calls the policy and its start.
_called: ContextVar[dict[str, str]] = ContextVar("called", default={})  # noqa: B039 - never changed in place
# The name of the model that a run without SFT began from, while a report of it is made or printed.
_base: ContextVar[str | None] = ContextVar("base", default=None)


@contextlib.contextmanager
def start_called(report: dict[str, Any]) -> Iterator[None]:
    """While the report is made or printed, a start that the run did not train is called by its own name."""
    known = PurePath(report.get("run", {}).get("base", "")).parts
    made = "sft" in {e["subject"] for e in report["estimates"]} or known[-2:] in BASES or known == (WORLDS_BASE,)
    token = _base.set(None if made or not known else known[-1].partition("#")[0])
    try:
        yield
    finally:
        _base.reset(token)


@contextlib.contextmanager
def by_role(estimates: Iterable[Entry]) -> Iterator[dict[str, str]]:
    """While a page is printed, the policy is `policy` and its reference `start`, colours too, however they are named.

    Gives the role of each name; `subject_label` tells the name of a role.
    """
    policy, reference = contest(estimates)
    roles = {policy: "policy", reference: "start"}
    labels = {name: subject_label(name) for name in ("base", "sft", *METHODS)}  # of a run's own; others are the user's
    token = _called.set({role: labels.get(name, name) for name, role in roles.items()})
    try:
        yield roles
    finally:
        _called.reset(token)


def subject_label(subject: str) -> str:
    own = _base.get() if subject == "base" else None
    return _called.get().get(subject) or own or SUBJECTS.get(subject, subject)


def split_label(split: str) -> str:
    """What rows these are, in words; of a public suite's category SUITE/CATEGORY, both."""
    suite, slash, category = split.partition("/")
    return SPLITS.get(suite, suite.replace("_", " ")) + (f": {category.replace('_', ' ')}" if slash else "")
