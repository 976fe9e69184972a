"""A judge that a recipe or the command line names compares the replies of two policies, and is no one of them.

local:MODEL           a causal language model here, by the log-probabilities of its answers
http://HOST/v1#MODEL  the model behind an OpenAI-compatible endpoint
people:FILE.jsonl     verdicts of people, as `llm-rlhf feedback export` writes them
people:STORE          a feedback store, or a run that has one; a run's evaluation makes a file of its verdicts first
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llm_rlhf.data.rows import Prompt
from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.answers import Answers
from llm_rlhf.evaluation.endpoints import Endpoint
from llm_rlhf.evaluation.judges import (
    Comparisons,
    Judge,
    Judged,
    LocalJudge,
    Pair,
    StoredJudge,
    check_not_itself,
    compare_all,
)
from llm_rlhf.evaluation.judges.remote import EndpointJudge
from llm_rlhf.evaluation.suites.gains import OBJECTIVES, win_estimates
from llm_rlhf.evaluation.wordings import Wordings
from llm_rlhf.models.finding import check_there
from llm_rlhf.recipe.sections import ModelSection, verdict_file
from llm_rlhf.statistics.intervals import RESAMPLES, Estimate

SPELLED = re.compile(r"(local|people):(.+)|(https?://[^#]+)#(.+)", re.DOTALL)


def check_judge(text: str, key_variable: str | None = None, what: str = "The judge") -> None:
    """RecipeError where `text` names no judge, or one whose file or key is not there; asks nothing of anyone."""
    found = SPELLED.fullmatch(text)
    if found is None:
        raise RecipeError(
            f"{what} {text!r} is not known; write local:MODEL, people:FILE.jsonl, people:STORE, or the URL of an "
            "endpoint and the model's name, http://localhost:8000/v1#MODEL."
        )
    if found[1] == "people" and "://" not in found[2] and not Path(found[2]).exists():
        raise RecipeError(f"{what} {text!r} names a file of verdicts that is not there, nor is it a store.")
    local = Path(found[2] or "")
    if found[1] == "local" and local.exists() and not (local / "config.json").is_file():
        raise RecipeError(f"{what} {text!r} names {local}, which holds no config.json and is no model; name a model.")
    if found[3] is not None:
        Endpoint(found[3], found[4], key_variable)


def find_judge(text: str, what: str = "The judge") -> None:
    """RecipeError where the model of a local judge is neither here nor on the hub, which is asked once."""
    found = SPELLED.fullmatch(text)
    if found is not None and found[1] == "local":
        check_there(found[2], f"{what} {text!r}: the model")


def judge_of(text: str, how: ModelSection, cache: Path, key_variable: str | None = None, batch_size: int = 8) -> Judge:
    """The judge that `text` names; see the top of this module.

    Args:
        how: type and quantisation of a local one.
        cache: the file an endpoint's answers are kept in.
        key_variable: environment variable with the API key of an endpoint.

    Raises:
        RecipeError: where it names none.
    """
    check_judge(text, key_variable)
    find_judge(text)
    found = SPELLED.fullmatch(text)
    assert found is not None
    kind, name, url, served = found.groups()
    if kind == "local":
        own = ModelSection(base=name, dtype=how.dtype, quantization=how.quantization, trust_remote_code=how.trusted)
        return LocalJudge.load(name, own, batch_size)
    if kind == "people":
        if verdict_file(text) is None:
            raise RecipeError(f"The judge {text!r} is a store; write its verdicts first: llm-rlhf feedback export.")
        return StoredJudge(name)
    return EndpointJudge(Endpoint(url, served, key_variable, cache=cache))


def judge_replies(
    judge: Judge, prompts: Sequence[Prompt], policy: Answers, start: Answers, policies: Sequence[dict[str, Any]]
) -> Comparisons:
    """Every pair of replies, in both orders.

    Args:
        policies: the identities of both, neither of which may be the judge.
    """
    _check_other(judge, policies)
    pairs = [Pair(p.messages, a, b, p.objective) for p, a, b in zip(prompts, policy.texts, start.texts, strict=True)]
    found = compare_all(judge, pairs, progress="judging")
    _check_other(judge, policies)  # an endpoint tells what it serves only when it has answered
    return found


def judged_estimates(
    found: Comparisons,
    prompts: Sequence[Prompt],
    policy: Answers,
    start: Answers,
    names: tuple[str, str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Estimate]:
    """Win rates of what was judged, raw and at equal length, as those of a judge called "judge"; raw by objective."""
    judged = [i for i, p in enumerate(found.probabilities) if p is not None]
    parts = {"judge": judged}
    parts |= {f"judge_{name}": [i for i in judged if found.pairs[i].rubric == name] for name in OBJECTIVES}
    estimates, wordings = [], Wordings(prompts)
    for split, rows in parts.items():
        if rows:
            told = [_outcome(found.rows[i], found.judge["kind"] == "people") for i in rows]
            lengths = [policy.lengths[i] for i in rows], [start.lengths[i] for i in rows]
            both = win_estimates(told, lengths, wordings.of(rows), (*names, split), resamples, seed)
            estimates += both if split == "judge" else both[:1]
    return estimates


def _outcome(row: Judged, by_people: bool) -> float:
    """1 where the first reply was preferred in both orders, 0 where the other was, else something between.

    How sure a model was does not count: a share of comparisons is of comparisons won. Of people it is their share.
    """
    if by_people or row.a_first is None or row.b_first is None:
        assert row.probability is not None
        return row.probability
    return float(np.mean([(p > 0.5) + 0.5 * (p == 0.5) for p in (row.a_first, row.b_first)]))


def judge_record(found: Comparisons) -> dict[str, Any]:
    """Who judged, what came of it and what it cost, for the report; less the time, which differs between two runs."""
    cost = {name: value for name, value in asdict(found.cost).items() if name != "seconds"}
    return {**found.judge, "counts": found.counts(), "cost": cost}


def _check_other(judge: Judge, policies: Sequence[dict[str, Any]]) -> None:
    for policy in policies:
        check_not_itself(judge.identity(), policy)
