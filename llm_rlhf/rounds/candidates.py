"""What could be asked: replies of a run's policies to prompts, put together as questions, with what its reward models
make of them.

1. Every policy answers every prompt; a prompt that stands there k times gets k replies, drawn independently.
2. The run's reward models, and its held-out one, read every reply once.
3. The replies to one prompt become candidates: pairs, or all together, or each by itself, as the kind of task needs.
   Equal replies are one.

Layout: N candidates, M reward models.
"""

import gc
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_rlhf.data.near_duplicates import shingle_vectors
from llm_rlhf.data.rows import Preference, Prompt
from llm_rlhf.errors import DataError
from llm_rlhf.evaluation.ask import Base
from llm_rlhf.evaluation.request import Evaluation
from llm_rlhf.evaluation.rewards import OnTheBase, Reader, Rewards, told_of
from llm_rlhf.evaluation.subjects import Subject
from llm_rlhf.feedback.labels import KINDS
from llm_rlhf.feedback.selection import disagreement_of
from llm_rlhf.models.base import context_limit
from llm_rlhf.models.fitting import Fitted, fit_prompts
from llm_rlhf.reward.loading import read_temperature

SINGLE = ("rate", "annotate")  # kinds of which every reply is a candidate by itself
PAIRED = ("compare", "correct")  # and every pair; of other kinds all replies to a prompt are one


@dataclass
class Candidate:
    """A question that could be asked."""

    prompt: Prompt
    answers: list[dict[str, Any]]  # {"text": ..., "source": the policy's name, "stopped": ...}
    scores: list[dict[str, float]] = field(default_factory=list)  # of each answer by each model, in its own units


@dataclass
class Pool:
    """All that could be asked, and what is known of it.

    Attributes:
        margins: (N, M) of each model, answer 1 less answer 0, in its log-odds; None where candidates are no pairs, or
            nothing scored them.
        trained: which of the M models the policy was trained against; the others are held out.
        dropped: what was left out, by reason.
    """

    candidates: list[Candidate]
    margins: np.ndarray | None = None
    trained: list[bool] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def disagreement(self) -> np.ndarray | None:
        """How far the models are apart about each pair, (N,), 0 to 0.5; None of fewer than two models."""
        return None if self.margins is None or self.margins.shape[1] < 2 else disagreement_of(self.margins)

    @property
    def margin(self) -> np.ndarray | None:
        """By how much answer 1 is better to what the policy was trained against, (N,), in log-odds."""
        return None if self.margins is None else self.margins[:, self.trained or slice(None)].mean(1)

    @property
    def vectors(self) -> np.ndarray:
        """Of each candidate's prompt, (N, D), unit."""
        return shingle_vectors(["\n".join(t["content"] for t in c.prompt.messages) for c in self.candidates])

    def keep(self, wanted: Sequence[bool], reason: str) -> None:
        """Drop the others."""
        mask = np.asarray(wanted, bool)
        if gone := int((~mask).sum()):
            self.dropped[reason] += gone
            self.candidates = [one for one, stays in zip(self.candidates, mask, strict=True) if stays]
            self.margins = None if self.margins is None else self.margins[mask]


def candidates_of(
    asked: Evaluation, subjects: Sequence[Subject], prompts: Sequence[Prompt], kind: str, answers: int
) -> Pool:
    """Sample, score, and put together.

    Args:
        asked: the run's policy and its start, how replies are sampled, and the run's reward models.
        subjects: who answers, each every prompt.
        answers: of each policy to each prompt.

    Raises:
        DataError: where no prompt leaves room for a reply.
    """
    if kind in ("demonstrate", "chat"):
        return Pool([Candidate(prompt, []) for prompt in prompts] if kind == "demonstrate" else [])
    rewards = Rewards.of(asked)
    apart = [subject for subject in subjects if not _beside(asked, subject)]
    found: dict[str, Answered] = {}
    for subject in apart:  # each with a base of its own, which goes before the next one comes
        own = Base(asked, [subject], Rewards({role: [] for role in rewards.folders}, rewards.how))
        _sample(asked, own, [subject], prompts, answers, found)
        del own
        _free()
    together = [subject for subject in subjects if subject not in apart]
    base = Base(asked, together or [asked.policy], rewards) if together or rewards.adapters else None
    if base is not None:
        _sample(asked, base, together, prompts, answers, found)
    pool = Pool([])
    for one in found.values():
        distinct = list({reply["text"]: reply for reply in reversed(one.replies)}.values())[::-1]
        pool.dropped["empty replies"] += one.empty
        pool.dropped["identical replies"] += len(one.replies) - len(distinct)
        pool.candidates += [Candidate(one.prompt, list(group)) for group in _groups(distinct, kind)]
    pool.dropped = +pool.dropped
    if not pool.candidates:
        raise DataError(
            f"The replies to each of {len(prompts)} prompts are one and the same, so that there is nothing to ask "
            "about; raise --answers or --temperature, or name more policies."
        )
    readers = iter(()) if base is None else rewards.beside(base.model, base.tokenizer, prompts, asked.batch_size)
    for role, reader in readers:
        _score(rewards, role, reader, pool)
    del base
    _free()
    for role, reader in rewards.loaded():
        _score(rewards, role, reader, pool)
    return pool


@dataclass
class Answered:
    """A prompt with all replies to it, the first policy's first."""

    prompt: Prompt
    replies: list[dict[str, Any]] = field(default_factory=list)
    empty: int = 0


def _beside(asked: Evaluation, subject: Subject) -> bool:
    """Whether a policy is one with the run's but for its adapter: one copy of the base serves both."""
    return subject.url is None and subject.model == asked.policy.model and subject.run == asked.policy.run


def _sample(
    asked: Evaluation,
    base: Base,
    subjects: Sequence[Subject],
    prompts: Sequence[Prompt],
    answers: int,
    found: dict[str, Answered],
) -> None:
    """Add these policies' replies to every prompt that leaves them room."""
    for subject in subjects:
        room = context_limit(subject.model, base.model.config) - asked.decoding["response_length"]
        account = Fitted(room, "prompts")
        fitting = fit_prompts(base.tokenizer, prompts, account) if room > 0 else []
        if not fitting:
            raise DataError(f"No prompt leaves {subject.name} room for a reply.{account.objection}")
        many = [prompt for prompt in fitting for _ in range(answers)]
        role = base.roles[subject.adapter]
        replies = base.sample([prompt.messages for prompt in many], role, progress=f"{subject.name} answers")
        for prompt, reply in zip(many, replies, strict=True):
            of_prompt = found.setdefault(str(prompt.messages), Answered(prompt))
            if reply.text.strip():
                text = reply.text.strip()
                of_prompt.replies.append({"text": text, "source": subject.name, "stopped": reply.stopped})
            else:
                of_prompt.empty += 1


def _groups(replies: list[dict[str, Any]], kind: str) -> Iterator[tuple[dict[str, Any], ...]]:
    if kind in SINGLE:
        return iter([(reply,) for reply in replies])
    if kind in PAIRED:
        return itertools.combinations(replies, 2)
    return iter([tuple(replies)] if len(replies) in KINDS[kind].answers else [])


def _score(rewards: Rewards, role: str, reader: Reader, pool: Pool) -> None:
    """Add what the models of one role say of every answer, and their margins of pairs."""
    with told_of(rewards.folders[role]):
        each = _scores(reader, pool.candidates)
    names = rewards.names(role)
    for number, name in enumerate(names):
        for candidate, scores in zip(pool.candidates, each, strict=True):
            candidate.scores = candidate.scores or [{} for _ in candidate.answers]
            for of_answer, score in zip(candidate.scores, scores[:, number], strict=True):
                of_answer[f"{role}/{name}" if len(names) > 1 else role] = round(float(score), 4)
        if all(len(candidate.answers) == 2 for candidate in pool.candidates):
            margin = np.array([scores[1, number] - scores[0, number] for scores in each], float)
            column = (margin / _unit(Path(rewards.folders[role][number]), reader, margin))[:, None]
            pool.margins = column if pool.margins is None else np.hstack([pool.margins, column])
            pool.trained.append(role == "reward")


def _scores(reader: Reader, candidates: Sequence[Candidate]) -> list[np.ndarray]:
    """Of each candidate, (answers, M of this role). Answers are read in pairs; an odd one stands with itself."""
    rows: list[Preference] = []
    for candidate in candidates:
        answers = candidate.answers + candidate.answers[-1:] * (len(candidate.answers) % 2)
        prompt = candidate.prompt
        rows += [
            Preference(
                prompt.messages, one["text"], other["text"], prompt.objective, prompt.origin,
                chosen_stopped=one["stopped"], rejected_stopped=other["stopped"],
            )
            for one, other in zip(answers[::2], answers[1::2], strict=True)
        ]  # fmt: skip
    each = reader.of_pairs(rows)
    found, start = [], 0
    for candidate in candidates:
        count = len(candidate.answers)
        found.append(each[start : start + count])
        start += count + count % 2
    return found


def _unit(folder: Path, reader: Reader, margins: np.ndarray) -> float:
    """What a model's margins are divided by to be log-odds: its temperature, or their own size where that is not known.

    A temperature belongs to scores as the adapter was trained to give them, which those on the policies' base are.
    """
    temperature = read_temperature(folder) if isinstance(reader, OnTheBase) else None
    size = float(np.sqrt((margins**2).mean())) if len(margins) else 0.0
    return temperature or size or 1.0


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
