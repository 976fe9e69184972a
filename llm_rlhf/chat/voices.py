"""Who answers in a chat: policies sampled here, several on one base in memory, and endpoints; and who scores them."""

import contextlib
import dataclasses
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from llm_rlhf.data.checks import fit_conversation
from llm_rlhf.data.rows import Conversation, Message, Origin, Prompt
from llm_rlhf.errors import DataError, RecipeError, RunError
from llm_rlhf.evaluation.answers import Answers
from llm_rlhf.evaluation.ask import Base
from llm_rlhf.evaluation.endpoints import Endpoint
from llm_rlhf.evaluation.request import Evaluation
from llm_rlhf.evaluation.rewards import Reader, Rewards, told_of
from llm_rlhf.evaluation.subjects import Subject, is_named, start_of, subject_of
from llm_rlhf.models.base import context_limit
from llm_rlhf.models.encoding import encode_prompt
from llm_rlhf.models.finding import check_there
from llm_rlhf.models.inference import Reply
from llm_rlhf.models.rendering import RefusedByTemplateError
from llm_rlhf.models.streaming import Sampling, Tell, stream_reply
from llm_rlhf.models.thoughts import KEY, thought_marks
from llm_rlhf.recipe.sections import ModelSection
from llm_rlhf.unchanged import check_unchanged

SAID = Prompt([{"role": "user", "content": "Hello."}], "overall", Origin("chat", 1))  # what reward models are tried on


@dataclass(frozen=True)
class Heard:
    """An answer."""

    prompt: Conversation  # what was answered, without the turns that were cut
    text: str
    thought: str
    stopped: bool  # it came to its end by itself
    tokens: int | None  # None where the server does not say
    seconds: float
    cut: int = 0  # of the oldest turns that did not fit
    interrupted: bool = False
    reply: Reply | None = None  # as sampled here
    keeps_thought: bool = False  # in history; the template decides what becomes of it

    @property
    def turn(self) -> Message:
        """The answer as a turn of the conversation."""
        kept = {KEY: self.thought} if self.thought and self.keeps_thought else {}
        return {"role": "assistant", "content": self.text, **kept}


class Voice(Protocol):
    """One side of a chat."""

    name: str
    what: str  # in a few words, for people

    def answer(self, messages: Conversation, sampling: Sampling, tell: Tell) -> Heard:
        """The answer, told as it comes; what has been said before an interrupt (Ctrl-C) is the answer then.

        Raises:
            DataError: where the conversation cannot be answered.
            RunError: where the endpoint does not answer.
        """
        ...


class Local:
    """A policy whose weights are here."""

    def __init__(self, subject: Subject, base: Base) -> None:
        self.name, self.subject, self.base = subject.name, subject, base
        self.limit = context_limit(subject.model, base.model.config)
        self.asked: Counter[tuple[int, ...]] = Counter()
        self.what = str(subject.adapter or subject.base)

    def answer(self, messages: Conversation, sampling: Sampling, tell: Tell) -> Heard:
        model, tokenizer, began = self.base.model, self.base.tokenizer, time.monotonic()
        prompt = self._fitted(messages, self.limit - sampling.response_length)
        ids = encode_prompt(tokenizer, prompt)
        occurrence = self.asked[tuple(ids)]
        self.asked[tuple(ids)] += 1
        with interrupts_held() as interrupted:
            role = self.base.roles[self.subject.adapter]
            try:
                reply = stream_reply(model, tokenizer, ids, role, sampling, tell, interrupted, occurrence)
            except torch.OutOfMemoryError:
                raise RunError("The accelerator has no memory left for this answer; /reset, or ask for less.") from None
        return Heard(
            prompt, reply.text, reply.thought, reply.stopped, len(reply.ids), time.monotonic() - began,
            cut=len(messages) - len(prompt), interrupted=interrupted(), reply=reply,
            keeps_thought=thought_marks(tokenizer).writes == "key",
        )  # fmt: skip

    def _fitted(self, messages: Conversation, room: int) -> Conversation:
        """The conversation without its oldest turns, where all of it does not fit, as an evaluation would ask it."""
        if room < 1:
            raise DataError(
                f"{self.name} takes {self.limit} tokens of prompt and reply together, and response_length is "
                f"{self.limit - room}; set it lower."
            )
        try:
            fitted = fit_conversation(messages, lambda turns: len(encode_prompt(self.base.tokenizer, turns)), room)
        except RefusedByTemplateError as error:
            raise DataError(f"The chat template of {self.name} refuses the conversation: {error}") from None
        if fitted is None:
            raise DataError(
                f"That is too long for {self.name}: not even it alone fits into {room} tokens ({self.limit}, less "
                f"{self.limit - room} for the reply). Shorten it, or set response_length lower."
            )
        return fitted


class Remote:
    """A model behind an endpoint."""

    def __init__(self, subject: Subject, key_variable: str | None) -> None:
        assert subject.url is not None
        assert subject.served is not None
        self.name = subject.name
        self.endpoint = Endpoint(subject.url, subject.served, key_variable)
        self.what = f"{subject.served} at {self.endpoint.url}"
        self.asked: Counter[str] = Counter()

    def answer(self, messages: Conversation, sampling: Sampling, tell: Tell) -> Heard:
        began, interrupted, heard = time.monotonic(), False, None
        known = {"top_p": sampling.top_p, "top_k": sampling.top_k}
        self.endpoint.extra = {name: value for name, value in known.items() if value not in (0, 1.0)}
        seed = sampling.seed + self.asked[repr(messages)]
        self.asked[repr(messages)] += 1
        try:
            for heard in self.endpoint.stream(
                messages, max_tokens=sampling.response_length, temperature=sampling.temperature, seed=seed
            ):
                tell(heard.thought, heard.text)
        except KeyboardInterrupt:
            interrupted = True
        seconds = time.monotonic() - began
        if heard is None:
            return Heard(messages, "", "", False, None, seconds, interrupted=interrupted)
        stopped = heard.stopped and not interrupted
        return Heard(
            messages, heard.text, heard.thought, stopped, heard.completion_tokens, seconds, interrupted=interrupted
        )


class Scores:
    """The reward models of a chat."""

    def __init__(self, rewards: Rewards, readers: Sequence[tuple[str, Reader]]) -> None:
        self.rewards, self.readers = rewards, readers

    @property
    def names(self) -> dict[str, str]:
        """What each role's models are."""
        return {role: ", ".join(self.rewards.folders[role]) for role, _ in self.readers}

    def of(self, heard: Heard) -> dict[str, float]:
        """The score of an answer by each role; none of one that says nothing.

        Raises:
            DataError: where a reward model cannot read it.
        """
        if not heard.text.strip():
            return {}
        if heard.reply is not None:
            answers = Answers.of([heard.reply])
        else:
            answers = Answers([heard.text], [0], [heard.stopped], [heard.thought] if heard.thought else [])
        prompt = dataclasses.replace(SAID, messages=heard.prompt)
        found = {}
        # Half a switch of adapters would make every later answer another policy's: an interrupt waits.
        with interrupts_held(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of turns that were cut
            for role, reader in self.readers:
                with told_of(self.rewards.folders[role]):
                    found[role] = float(self.rewards.combined(role, reader.of_answers([prompt], answers))[0])
        return found


def load(
    subjects: Sequence[Subject],
    rewards: Sequence[str] | None,
    heldout: Sequence[str],
    key_variable: str | None,
    recipe: Any,
) -> tuple[list[Voice], Scores, Sampling]:
    """The sides, those on one base on one copy of it; their reward models; and how their training sampled.

    Args:
        rewards, heldout: reward models to use; empty: the run's, where there are some; `rewards` None: none at all.
        recipe: of the run that the sides are part of, where there is one.
    """
    asked = Evaluation(
        policy=subjects[-1], start=subjects[0], output=Path(), rewards=list(rewards or ()), heldout=list(heldout),
        key_variable=key_variable, recipe=recipe,
    )  # fmt: skip
    found = Rewards({"reward": [], "heldout": []}) if rewards is None else Rewards.of(asked)
    local = [subject for subject in subjects if subject.url is None]
    check_unchanged(found.places(local))
    for path in dict.fromkeys(subject.base for subject in local):
        check_there(path, "The model")  # once, where loading would ask the hub again and again
    voices: dict[str, Voice] = {s.name: Remote(s, key_variable) for s in subjects if s.url is not None}
    readers: list[tuple[str, Reader]] = []
    for group in [local] if asked.one_base or len(local) == 1 else [[subject] for subject in local]:
        if group:
            base = Base(asked, group, found)
            readers += found.beside(base.model, base.tokenizer, [SAID], 1)
            voices |= {subject.name: Local(subject, base) for subject in group}
    readers += found.loaded(progress=False)
    decoding = Sampling(**asked.decoding)
    return [voices[subject.name] for subject in subjects], Scores(found, readers), decoding


def sides_of(names: Sequence[str], only: str | None, defaults: ModelSection) -> list[Subject]:
    """The sides that the names stand for: a trained policy of a run comes with what its training started from.

    Args:
        only: "policy" or "start" of the one that is named; None: both, where there are two.
        defaults: how a model is loaded that is no run's.

    Raises:
        RecipeError: where the names cannot be sides.
    """
    if len(names) > 2:
        raise RecipeError(f"A chat has two sides at most, and {len(names)} are named; leave some out.")
    found = [subject_of(name, defaults) for name in names]
    if len(found) == 2:
        if only is not None:
            raise RecipeError("--only takes one of a policy and its start, and two sides are named; leave one out.")
        if found[0].name == found[1].name:
            found = [
                subject if is_named(name) else dataclasses.replace(subject, name=name.rstrip("/"))
                for subject, name in zip(found, names, strict=True)
            ]
        if found[0].name == found[1].name:
            raise RecipeError(f"Both sides are called {found[0].name!r}; name two, or give one a name by NAME=.")
        return found
    (policy,) = found
    trained = policy.run is not None and policy.adapter is not None
    if not trained and only == "start":
        raise RecipeError(f"{names[0]} has no policy trained in a run, and so no start of one; leave out --only start.")
    if not trained or only == "policy":
        return [policy]
    return [start_of(policy)] if only == "start" else [start_of(policy), policy]


@contextlib.contextmanager
def interrupts_held() -> Iterator[Callable[[], bool]]:
    """While it lasts, the first Ctrl-C is noted and interrupts nothing; what is given tells whether it came."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return

    def note(number: int, frame: Any) -> None:
        if came.is_set():
            raise KeyboardInterrupt
        came.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, before)
