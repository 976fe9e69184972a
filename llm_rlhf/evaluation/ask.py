"""What the policies answer, and how probable they find replies that are given to them.

Policies on one base are asked of one copy of it in memory, and a run's reward models read the replies there, too: the
very tokens that were sampled. Replies are kept in a cache, so that an interrupted evaluation goes on where it stopped.
"""

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from llm_rlhf.data.checks import prompt_share
from llm_rlhf.data.rows import Conversation, Prompt
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.evaluation.answers import Answers
from llm_rlhf.evaluation.chat_wire import Answer
from llm_rlhf.evaluation.endpoints import Endpoint
from llm_rlhf.evaluation.material import OWN, REFUSALS, Material
from llm_rlhf.evaluation.request import Evaluation
from llm_rlhf.evaluation.rewards import PairScores, Reader, Rewards, score, told_of
from llm_rlhf.evaluation.subjects import Subject
from llm_rlhf.evaluation.suites.benchmarks.answering import Read, read_choices
from llm_rlhf.evaluation.suites.benchmarks.scoring import as_pairs
from llm_rlhf.evaluation.suites.hhh import PairLogprobs, pair_logprobs
from llm_rlhf.evaluation.suites.perplexity import Losses, read_replies
from llm_rlhf.evaluation.suites.snapshot_curve import LEAST_PROMPTS
from llm_rlhf.models.adapters import POLICY, load_beside
from llm_rlhf.models.base import load_tokenizer
from llm_rlhf.models.decoding import left_out
from llm_rlhf.models.inference import Reply, load_roles, reply_logprobs, sample_replies
from llm_rlhf.models.reply_decoding import ReplyDecoding
from llm_rlhf.models.roles import add_reward_role

SNAPSHOT = "snapshot"  # the role of the snapshot that is being asked


@dataclass
class Curve:
    """What the policy's base and its snapshots answered to some of the evaluation's own prompts."""

    rows: list[int]  # which of them
    steps: list[int]  # optimizer steps of the snapshots, 0 for the base
    kl: list[float]  # mean nats a reply from the base; an estimate from samples, so that it can lie a little under 0
    answers: list[Answers]  # of each step
    best_of: Answers | None = None  # best_of_n replies of the base to each prompt, one prompt's after the other's


@dataclass
class Found:
    """What came of it; endpoints answer, and read nothing."""

    answers: dict[str, dict[str, Answers]]  # by list of prompts and policy's name
    choices: dict[str, dict[str, Read]] = field(default_factory=dict)  # by public suite and policy's name
    hhh: dict[str, PairLogprobs] = field(default_factory=dict)  # by policy's name
    losses: dict[str, Losses] = field(default_factory=dict)  # likewise
    curve: Curve | None = None
    pair_scores: dict[str, PairScores] = field(default_factory=lambda: {"hhh": {}, "pairs": {}})
    notes: list[str] = field(default_factory=list)  # what a reader must know of how it was asked
    computed: dict[str, set[str]] = field(default_factory=dict)  # by what no key names: see `ReplyDecoding.used`


def ask(asked: Evaluation, material: Material, rewards: Rewards) -> Found:
    """What the policies make of the material, and what the reward models say of their replies."""
    found = Found({name: {} for name in material.prompts}, {name: {} for name in material.choices})
    found.pair_scores |= {name: {} for name in material.candidates}
    for subject in asked.subjects:
        if subject.url is not None:
            _ask_endpoint(asked, subject, material, found)
    local = asked.local
    if not asked.one_base and len(local) == 2 and asked.policy.model == asked.start.model:
        found.notes.append(
            f"{asked.policy.name} and {asked.start.name} stand on one base and have different tokenizers or chat "
            "templates; each was asked with its own, and no distance between them was measured."
        )
    for group in [local] if asked.one_base else [[subject] for subject in local]:
        base = Base(asked, group, rewards)
        readers = list(rewards.beside(base.model, base.tokenizer, material.prompts[OWN], asked.batch_size))
        if unused := left_out(base.model.get_base_model().generation_config):
            settings = ", ".join(f"{name}={value!r}" for name, value in unused.items())
            named = " and ".join(subject.name for subject in group)
            found.notes.append(f"The generation config of {named} has {settings}; replies were sampled without.")
        base.foresee(material)
        for subject in group:
            base.ask(subject, material, found)
        if asked.policy in group:
            base.measure_distance(found)
            found.curve = base.curve(material.prompts[OWN])
        for name, values in base.computed.items():
            found.computed[name] = found.computed.get(name, set()) | values
        _score(asked, rewards, readers, (OWN, REFUSALS), material, found)
        del base, readers
        gc.collect()
        torch.cuda.empty_cache()
    # Those with a base of their own may have no room for prompts that were cut to that of the policies.
    _score(asked, rewards, rewards.loaded(), (OWN,), material, found)
    found.notes += _told_of_thoughts(found.answers[OWN])
    if len(local) < 2:  # the endpoint's tokens are not known: all are counted in words
        found.answers = {n: {who: a.in_words() for who, a in by.items()} for n, by in found.answers.items()}
    return found


def _told_of_thoughts(answers: Mapping[str, Answers]) -> list[str]:
    """What a reader must know where policies think before they reply."""
    told = []
    for name, given in answers.items():
        thinking = sum(map(bool, given.thoughts))
        endless = sum(bool(thought) and not text for thought, text in zip(given.thoughts, given.texts, strict=False))
        if not thinking:
            continue
        note = f"{thinking} of {len(given.texts)} replies of {name} begin with a thought, which nobody judges."
        if endless:
            note += f" Of {endless} it does not end, so that nothing is said; allow for more tokens (response_length)."
        told.append(note)
    return told


def _score(
    asked: Evaluation,
    rewards: Rewards,
    readers: Iterable[tuple[str, Reader]],
    lists: Sequence[str],
    material: Material,
    found: Found,
) -> None:
    """Have reward models read the replies to these lists of prompts and those of the curve, and the given pairs."""
    judged = [(material.prompts[n], a) for n in lists if n in found.answers for a in found.answers[n].values()]
    if found.curve is not None:
        prompts = [material.prompts[OWN][i] for i in found.curve.rows]
        judged += [(prompts, answers) for answers in found.curve.answers]
        if found.curve.best_of is not None:
            judged.append(([prompt for prompt in prompts for _ in range(asked.best_of_n)], found.curve.best_of))
    pairs = {"hhh": material.hhh, "pairs": material.pairs}
    pairs |= {name: as_pairs(rows) for name, rows in material.candidates.items()}
    score(rewards, readers, judged, pairs, found.pair_scores)


class Base:
    """One base in memory, with the adapters of policies on it and those of the reward models beside them."""

    def __init__(self, asked: Evaluation, subjects: Sequence[Subject], rewards: Rewards) -> None:
        first, self.subjects = subjects[0], subjects
        self.asked, self.tokenizer = asked, load_tokenizer(first.base, first.model, first.adapter)
        adapters = list(dict.fromkeys(subject.adapter for subject in subjects if subject.adapter is not None))
        temperature = asked.decoding["temperature"] or 1.0
        policy = adapters[0] if adapters else None
        try:
            self.model = load_roles(
                first.base, first.model, self.tokenizer, {}, policy, temperature, alone=self._alone(subjects, rewards)
            )
        except (SafetensorError, OSError, ValueError) as error:
            folders = " or ".join(str(path) for path in (first.base, *adapters[:1]))
            raise DataError(f"The policy {first.name} cannot be loaded from {folders}: {error}") from None
        for name, folder in rewards.adapters.items():
            with told_of([str(folder)]):
                add_reward_role(self.model, folder, name)
        self.roles: dict[Path | None, list[str]] = {None: []}
        for number, adapter in enumerate(adapters):
            self.roles[adapter] = [f"{POLICY}{number or ''}"]
            if number:
                with told_of([str(adapter)], "Policy"):
                    self._load(adapter, f"{POLICY}{number}")
        self.model.requires_grad_(False).eval()
        try:
            self.decoding = ReplyDecoding(self.model, asked.decoding_step)
        except ValueError as error:
            raise RecipeError(f"{asked.key('decoding')} cannot be carried out: {error}") from None

    def _alone(self, subjects: Sequence[Subject], rewards: Rewards) -> bool:
        """Whether nothing but one policy is read on this base: no other, no start, no snapshot, no reward model."""
        return len(subjects) == 1 and not self.asked.snapshots and not rewards.adapters

    def _load(self, folder: Path, role: str) -> None:
        if astray := load_beside(self.model, folder, role, "policy adapter"):
            raise DataError(
                f"The policy adapter at {folder} was trained on another base: {len(astray)} weights do not fit, "
                f"{astray[0]} the first."
            )

    def ask(self, subject: Subject, material: Material, found: Found) -> None:
        """Answers to every list of prompts, and what the policy makes of given replies."""
        role, size = self.roles[subject.adapter], self.asked.batch_size
        for name, prompts in material.prompts.items():
            found.answers[name][subject.name] = self._answers(prompts, subject, role, f"{subject.name} answers {name}")
        for name, choices in material.choices.items():
            found.choices[name][subject.name] = read_choices(self.model, self.tokenizer, role, choices, size)
        if material.hhh:
            found.hhh[subject.name] = pair_logprobs(self.model, self.tokenizer, role, material.hhh, size)
        if rows := material.demonstrations:
            texts, ends = ([row.prompt for row in rows], [row.chosen for row in rows]), [r.chosen_stopped for r in rows]
            found.losses[subject.name] = read_replies(self.model, self.tokenizer, role, *texts, size, ends)

    @property
    def computed(self) -> dict[str, set[str]]:
        """By what replies were sampled and read that no key names."""
        return {"attention": {str(self.model.config._attn_implementation)}, **self.decoding.used}

    def foresee(self, material: Material) -> None:
        """Count the replies that will be sampled, so that it is known from the first what pays to be compiled."""
        asked = self.asked
        shape = asked.batch_size, asked.decoding["response_length"]
        for subject in self.subjects:
            for prompts in material.prompts.values():
                self.decoding.foresee(self.roles[subject.adapter], len(prompts), *shape)
        if asked.policy in self.subjects and asked.snapshots:
            for times in (1, asked.best_of_n if asked.best_of_n > 1 else 0):
                self.decoding.foresee([], min(asked.snapshot_prompts, len(material.prompts[OWN])) * times, *shape)

    def measure_distance(self, found: Found) -> None:
        """The policy's log ratio to its start, of each reply, where both are on this base and the replies a sample."""
        asked = self.asked
        role = self.roles[asked.policy.adapter]
        if role and asked.one_base and asked.decoding["temperature"] > 0:
            policy = found.answers[OWN][asked.policy.name]
            policy.sequence_kl = self._log_ratios(policy, role, self.roles[asked.start.adapter])

    def curve(self, prompts: Sequence[Prompt]) -> Curve | None:
        """The snapshots' answers and the best of n; None where neither is asked for, or the prompts are too few."""
        asked = self.asked
        by_share = sorted(range(len(prompts)), key=lambda i: prompt_share(prompts[i].messages, "snapshots"))
        rows = by_share[: asked.snapshot_prompts]
        if not asked.snapshots or len(rows) < LEAST_PROMPTS:
            return None
        chosen, origin = [prompts[i] for i in rows], asked.origin
        found = Curve(rows, [0], [0.0], [self._answers(chosen, origin, [])])
        for step, folder in asked.snapshots.items():
            self._load(folder, SNAPSHOT)
            try:
                subject = Subject(f"step-{step}", asked.policy.model, folder, run=asked.policy.run)
                answers = self._answers(chosen, subject, [SNAPSHOT], f"snapshot at step {step}")
                found.kl.append(float(np.mean(self._log_ratios(answers, [SNAPSHOT], []))))
            finally:
                self.model.delete_adapter(SNAPSHOT)
                self.decoding.forget(SNAPSHOT)
            found.steps.append(step)
            found.answers.append(answers)
        if asked.best_of_n > 1:
            many = [prompt for prompt in chosen for _ in range(asked.best_of_n)]
            found.best_of = self._answers(many, origin, [], f"best of {asked.best_of_n}")
        return found

    def sample(self, prompts: Sequence[Conversation], role: list[str], **how: Any) -> list[Reply]:
        """A reply of a role to each prompt, sampled as is asked.

        Args:
            how: batch_size, progress and known of `sample_replies`.
        """
        how = {"batch_size": self.asked.batch_size} | how
        decoding = self.asked.decoding | {"decoding": self.decoding}
        return sample_replies(self.model, self.tokenizer, prompts, role, **decoding, **how)

    def _answers(
        self, prompts: Sequence[Prompt], subject: Subject, role: list[str], progress: str | None = None
    ) -> Answers:
        asked = self.asked
        replies = self.sample(
            [prompt.messages for prompt in prompts],
            role,
            progress=asked.progress(progress) if progress is not None else None,
            known=asked.replies_of(subject),
        )
        answers = Answers.of(replies)
        answers.read_by_rule(prompts)
        return answers

    def _log_ratios(self, answers: Answers, role: list[str], start: list[str]) -> list[float]:
        """Of each reply, how much more probable it is under one role than under the other, in nats."""
        assert answers.replies is not None
        replies, pad = answers.replies, self.tokenizer.pad_token_id
        own, other = (reply_logprobs(self.model, of, replies, pad, self.asked.batch_size) for of in (role, start))
        return [a - b for a, b in zip(own, other, strict=True)]


def _ask_endpoint(asked: Evaluation, subject: Subject, material: Material, found: Found) -> None:
    """The replies, and a note where some were kept from an earlier request: the model may be another one by now."""
    assert subject.url is not None
    assert subject.served is not None
    cache = asked.cache_file(f"{subject.name}-endpoint.jsonl")
    endpoint = Endpoint(subject.url, subject.served, asked.key_variable, cache=cache)
    together = [prompt for prompts in material.prompts.values() for prompt in prompts]
    given = endpoint.answers(
        [prompt.messages for prompt in together], max_tokens=asked.decoding["response_length"],
        temperature=asked.decoding["temperature"], seed=asked.seed, progress=asked.progress(f"{subject.name} answers"),
        most_failures=0,
    )  # fmt: skip
    kept = sum(isinstance(answer, Answer) and answer.cached for answer in given)
    of_prompts = iter(given)
    for name, prompts in material.prompts.items():
        mine = [next(of_prompts) for _ in prompts]
        said = [answer if isinstance(answer, Answer) else None for answer in mine]
        texts = ["" if answer is None else answer.text for answer in said]
        thoughts = ["" if answer is None else answer.thought for answer in said]
        stopped = [answer is not None and answer.stopped for answer in said]
        answers = Answers(texts, [len(text.split()) for text in texts], stopped, thoughts if any(thoughts) else [])
        answers.read_by_rule(prompts)
        found.answers[name][subject.name] = answers
    if kept:
        found.notes.append(
            f"{kept} of {len(given)} replies of {subject.name} were kept from an earlier request ({cache}); if the "
            "server has another model under this name now, delete that file and ask again."
        )
