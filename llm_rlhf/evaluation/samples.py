"""Replies to show, chosen by rule rather than by taste."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_rlhf.data.rows import Prompt
from llm_rlhf.evaluation.policies import Answers


def choose_samples(prompts: Sequence[Prompt], ppo: Answers, sft: Answers, count: int) -> list[dict[str, Any]]:
    """Up to `count` prompts with both replies: the median gains first, then the best, the worst, the most disputed.

    Gains are by the true score where it is known, else by the held-out judge. Taking medians keeps the choice honest
    (Bai et al. 2022 show the median of 17 samples so as not to pick cherries).
    """
    before, after = (answers.gold if answers.gold is not None else answers.heldout for answers in (sft, ppo))
    gains = np.asarray(after) - np.asarray(before)
    by_gain = np.argsort(gains, kind="stable").tolist()
    middle = sorted(range(len(by_gain)), key=lambda i: abs(i - (len(by_gain) - 1) / 2))
    disputed = np.argsort(-np.abs(_standard(ppo.reward) - _standard(ppo.heldout)), kind="stable").tolist()
    rules = [
        ("median gain", [by_gain[i] for i in middle]),
        ("largest gain", by_gain[::-1]),
        ("largest loss", by_gain),
        ("the two reward models disagree most", disputed),
    ]
    chosen: dict[int, str] = {}
    turn = 0
    while len(chosen) < min(count, len(prompts)):
        rule, order = rules[turn % len(rules)]
        chosen[next(i for i in order if i not in chosen)] = rule
        turn += 1
    return [_sample(prompts[i], ppo, sft, i, rule) for i, rule in chosen.items()]


def _standard(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    return (array - array.mean()) / (array.std() or 1.0)


def _sample(prompt: Prompt, ppo: Answers, sft: Answers, i: int, rule: str) -> dict[str, Any]:
    return {
        "prompt": prompt.messages,
        "objective": prompt.objective,
        "kind": prompt.facts.get("kind"),
        "chosen_by": rule,
        "replies": {"sft": _reply(sft, i), "ppo": _reply(ppo, i)},
    }


def _reply(answers: Answers, i: int) -> dict[str, Any]:
    scores = {"reward": answers.reward[i], "heldout": answers.heldout[i]}
    if answers.gold is not None:
        scores = {"gold": answers.gold[i], **scores}
    return {"text": answers.texts[i], "scores": scores}
