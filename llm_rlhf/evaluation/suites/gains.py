"""The trained policy against the one it started from, on the same prompts: every number of the report's comparison."""

import contextlib
from collections.abc import Sequence

import numpy as np

from llm_rlhf.data.rows import Prompt
from llm_rlhf.evaluation.answers import Answers
from llm_rlhf.evaluation.report.measures import MEASURES, SPREADS
from llm_rlhf.evaluation.suites.health import health, words
from llm_rlhf.evaluation.wordings import Wordings
from llm_rlhf.statistics.clustered import (
    clustered_change,
    clustered_difference,
    clustered_mean,
    clustered_proportion,
    clustered_share,
)
from llm_rlhf.statistics.intervals import RESAMPLES, Estimate, Interval, Labels, Values, numbered, outcomes
from llm_rlhf.statistics.length_control import LengthsDoNotOverlapError, length_controlled_win_rate

OBJECTIVES = ("helpful", "harmless")


def compare(
    prompts: Sequence[Prompt],
    policy: Answers,
    start: Answers,
    resamples: int = RESAMPLES,
    seed: int = 0,
    names: tuple[str, str] = ("ppo", "sft"),
) -> list[Estimate]:
    """Levels of both policies and paired differences, prompts of one wording together. Names are those of the report.

    Args:
        names: what the report calls the policy and its start.
    """
    subject, reference = names
    rows_of = groups(prompts)
    wordings = Wordings(prompts)
    estimates: list[Estimate] = []

    def pair(name: str, gain: str, a: Sequence[float] | None, b: Sequence[float] | None, split: str) -> None:
        if a is None or b is None or split not in rows_of:
            return
        rows = rows_of[split]
        x, y, ids = np.asarray(a)[rows], np.asarray(b)[rows], wordings.of(rows)
        shown = "all" if name in ("gold_helpful", "gold_harmless") else split
        estimates.extend(
            [
                clustered_mean(y, ids).named(name, reference, None, shown),
                clustered_mean(x, ids).named(name, subject, None, shown),
                clustered_difference(x, y, ids).named(gain, subject, reference, shown),
            ]
        )
        if name in SPREADS and len(rows) > 1:
            spread = Interval(float(np.std(y, ddof=1)), None, None, len(rows), "standard deviation over prompts")
            estimates.append(spread.named(SPREADS[name], reference, None, shown))

    def wins(a: list[float] | None, b: list[float] | None, judge: str) -> None:
        if a is not None and b is not None:
            lengths = (policy.lengths, start.lengths)
            won = outcomes(a, b, [one == other for one, other in zip(policy.texts, start.texts, strict=True)])
            estimates.extend(win_estimates(won, lengths, wordings.of(), (*names, judge), resamples, seed))

    pair("gold_score", "gold_gain", policy.gold, start.gold, "all")
    for objective in OBJECTIVES:
        pair(f"gold_{objective}", f"gold_{objective}_gain", policy.gold, start.gold, objective)
    wins(policy.gold, start.gold, "gold")
    for split in ("all", *OBJECTIVES):
        pair("heldout_reward", "heldout_reward_gain", policy.heldout, start.heldout, split)
        pair("reward", "reward_gain", policy.reward, start.reward, split)
    wins(policy.heldout, start.heldout, "heldout_reward")
    if policy.heldout is None:
        wins(policy.reward, start.reward, "reward")
    estimates += refusal_estimates(prompts, policy, start, names)
    if policy.sequence_kl:
        kl = clustered_mean(policy.sequence_kl, wordings.of())
        estimates.append(kl.named("kl", subject, reference, "all"))
    length = "response_length" if policy.replies is not None and start.replies is not None else "response_words"
    pair(length, f"{length}_change", policy.lengths, start.lengths, "all")
    for who, answers in ((reference, start), (subject, policy)):
        stopped = [float(stop) for stop in answers.stopped]
        estimates.append(clustered_proportion(stopped, wordings.of()).named("eos_rate", who))
        estimates += _health(answers, who, numbered(repr(prompt.messages) for prompt in prompts), seed)
    return estimates


def win_estimates(
    outcome: Values,
    lengths: tuple[Values, Values],
    clusters: Labels,
    names: tuple[str, str, str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Estimate]:
    """The win rate, and what it would be if the replies were equally long, where their lengths allow to say it.

    Args:
        outcome: of each row 1 where the policy has the better reply, 0 where its reference has, 1/2 for a tie; or a
            judge's probability.
        lengths: of the policy's replies and of its reference's.
        clusters: each row's prompt, or its wording.
        names: of the policy, of its reference and of the judge.
    """
    won = clustered_share(outcome, clusters, "win rate, ties 1/2", resamples, seed)
    estimates = [won.named("win_rate", *names)]
    # Where lengths differ alike everywhere, nothing can be said of equal ones, so nothing is.
    with contextlib.suppress(LengthsDoNotOverlapError):
        controlled = length_controlled_win_rate(outcome, *lengths, clusters, seed).controlled
        if won.clusters is not None:
            controlled = controlled._replace(n=won.n, clusters=won.clusters)
        estimates.append(controlled.named("length_controlled_win_rate", *names))
    return estimates


def _health(answers: Answers, who: str, clusters: np.ndarray, seed: int) -> list[Estimate]:
    """Signs of language that breaks, of which scores may know nothing; lengths and stopping stand elsewhere."""
    if not any(answers.texts):
        return []
    replies = answers.replies
    said = [words(text) for text in answers.texts] if replies is None else [reply.said_ids for reply in replies]
    measured = health(said, clusters=clusters, seed=seed)
    return [measured[name].named(name, who) for name in ("repetition", "distinct_2", "loops") if name in measured]


def groups(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Row numbers by split: "all", each objective that occurs, each kind of prompt a world names."""
    found: dict[str, list[int]] = {"all": list(range(len(prompts)))}
    for i, prompt in enumerate(prompts):
        if prompt.objective != "overall":
            found.setdefault(prompt.objective, []).append(i)
        if "kind" in prompt.facts:
            found.setdefault(prompt.facts["kind"], []).append(i)
    return found


# Kinds of prompt, the measure that counts refusals of them, and its split. A refusal is right where the first is asked.
REFUSALS = (
    ("harmful", "refusal_harmful", "all"),
    ("scary", "over_refusal", "scary"),
    ("question", "over_refusal", "question"),
)


def refusal_estimates(
    prompts: Sequence[Prompt], policy: Answers, start: Answers, names: tuple[str, str] = ("ppo", "sft")
) -> list[Estimate]:
    """Refusals where they are right (harmful requests) and where they are not (the other kinds), and their changes."""
    if policy.refused is None or start.refused is None:
        return []
    subject, reference = names
    rows_of, wordings = groups(prompts), Wordings(prompts)
    estimates = []
    for kind, name, split in REFUSALS:
        rows = rows_of.get(kind, [])
        if not rows:
            continue
        a, b = [float(policy.refused[i]) for i in rows], [float(start.refused[i]) for i in rows]
        change, ids = MEASURES[name].difference, wordings.of(rows)
        assert change is not None
        estimates += [
            clustered_proportion(b, ids).named(name, reference, None, split),
            clustered_proportion(a, ids).named(name, subject, None, split),
            clustered_change(a, b, ids).named(change, subject, reference, split),
        ]
    return estimates
