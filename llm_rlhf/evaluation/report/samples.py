"""Replies to show, chosen by rule rather than by taste."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_rlhf.data.checks import prompt_share
from llm_rlhf.data.rows import Prompt
from llm_rlhf.evaluation.answers import Answers


def choose_samples(
    prompts: Sequence[Prompt],
    policy: Answers,
    start: Answers,
    count: int,
    names: tuple[str, str] = ("ppo", "sft"),
) -> list[dict[str, Any]]:
    """Up to `count` prompts with both replies: the median gain, the largest, the largest loss, the policy's worst
    reply, the most disputed one, and so on in turns.

    Gains and scores are the true ones where they are known, else the held-out reward model's. Taking medians keeps the
    choice honest (Bai et al. 2022 show the median of 17 samples so as not to pick cherries).
    """
    scored, scored_before = _surest(policy), _surest(start)
    if scored is None or scored_before is None:
        by_hash = sorted(range(len(prompts)), key=lambda i: prompt_share(prompts[i].messages, "samples"))
        answers = {names[1]: start, names[0]: policy}
        return [_sample(prompts[i], answers, i, "by a hash of the prompt") for i in by_hash[:count]]
    gains = np.asarray(scored) - np.asarray(scored_before)
    by_gain = np.argsort(gains, kind="stable").tolist()
    middle = sorted(range(len(by_gain)), key=lambda i: abs(i - (len(by_gain) - 1) / 2))
    rules = [
        ("median gain", [by_gain[i] for i in middle]),
        ("largest gain", by_gain[::-1]),
        ("largest loss", by_gain),
        ("worst reply", np.argsort(scored, kind="stable").tolist()),
    ]
    if policy.reward is not None and policy.heldout is not None:
        disputed = np.argsort(-np.abs(_standard(policy.reward) - _standard(policy.heldout)), kind="stable").tolist()
        rules.append(("the two reward models disagree most", disputed))
    chosen: dict[int, str] = {}
    turn = 0
    while len(chosen) < min(count, len(prompts)):
        rule, order = rules[turn % len(rules)]
        chosen[next(i for i in order if i not in chosen)] = rule
        turn += 1
    return [_sample(prompts[i], {names[1]: start, names[0]: policy}, i, rule) for i, rule in chosen.items()]


def _surest(answers: Answers) -> list[float] | None:
    """The scores of the fairest judge there is; None where the replies were scored by no one."""
    return next((s for s in (answers.gold, answers.heldout, answers.reward) if s is not None), None)


def _standard(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    return (array - array.mean()) / (array.std() or 1.0)


def _sample(prompt: Prompt, answers: dict[str, Answers], i: int, rule: str) -> dict[str, Any]:
    return {
        "prompt": prompt.messages,
        "objective": prompt.objective,
        "kind": prompt.facts.get("kind"),
        "chosen_by": rule,
        "replies": {name: _reply(given, i) for name, given in answers.items()},
    }


def _reply(answers: Answers, i: int) -> dict[str, Any]:
    judges = {"gold": answers.gold, "reward": answers.reward, "heldout": answers.heldout}
    scores = {name: values[i] for name, values in judges.items() if values is not None}
    return {"text": answers.texts[i], "scores": scores}
