"""A reward model as the judge: offline, deterministic and, its score being of one reply, blind to the order."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llm_rlhf.data.rows import Conversation
from llm_rlhf.evaluation.judges.protocol import Cost, Pair, Reading, Response

Score = Callable[[list[Conversation]], Any]


class RewardJudge:
    """Judges by the scores of a reward model: P(a is better) = sigma((s_a - s_b) / temperature).

    That is what a reward model is trained to say (Bradley and Terry 1952); the temperature is what its calibration
    found. Each reply is scored once, however often it is asked for.

    Args:
        score: conversations that end with the assistant's turn to their scores, one each.
        identity: what to record of the model, its "model" (name or folder) at least.
    """

    def __init__(self, score: Score, identity: dict[str, Any], temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise ValueError(f"The reward judge's temperature is {temperature}; it must be above 0.")
        self.score, self.temperature, self._identity = score, temperature, identity

    def identity(self) -> dict[str, Any]:
        return {"kind": "reward model", **self._identity, "temperature": self.temperature}

    def read_pairs(self, pairs: Sequence[Pair], progress: str | None, most_failures: int) -> list[Reading]:
        scored = self._scored([p.prompt for p in pairs] * 2, [p.a for p in pairs] + [p.b for p in pairs])
        readings = []
        for (a, asked_a), (b, asked_b) in zip(scored[: len(pairs)], scored[len(pairs) :], strict=True):
            probability = 0.5 * (1 + math.tanh((a - b) / self.temperature / 2))  # sigma, without overflow
            readings.append(_reading(probability, (a, b), asked_a + asked_b))
        return readings

    def read_responses(self, rows: Sequence[Response], progress: str | None, most_failures: int) -> list[Reading]:
        """The scores themselves, in the reward's unit."""
        scored = self._scored([row.prompt for row in rows], [row.response for row in rows])
        return [_reading(score, (score,), asked) for score, asked in scored]

    def _scored(self, prompts: Sequence[Conversation], replies: Sequence[str]) -> list[tuple[float, int]]:
        """Each reply's score, and 1 where it was asked for, 0 where an equal one was."""
        conversations = [[*p, {"role": "assistant", "content": r}] for p, r in zip(prompts, replies, strict=True)]
        keys = [repr(conversation) for conversation in conversations]
        unique = dict(zip(keys, conversations, strict=True))
        scores = np.asarray(self.score(list(unique.values())), dtype=np.float64)
        if scores.shape != (len(unique),):
            raise ValueError(f"The reward model gave scores of shape {scores.shape} for {len(unique)} conversations.")
        found = dict(zip(unique, scores.tolist(), strict=True))
        seen: set[str] = set()
        rows = []
        for key in keys:
            rows.append((found[key], int(key not in seen)))
            seen.add(key)
        return rows


def _reading(value: float, scores: tuple[float, ...], asked: int) -> Reading:
    cost = Cost(requests=asked, uncounted=asked)
    if all(map(math.isfinite, scores)):
        return Reading(value, cost=cost)
    return Reading(None, "not finite", f"the reward model's score is {' and '.join(map(str, scores))}", cost)
