"""Two voices as the speaker of a live chat: their answers grow by turns, a token of each, on one model in memory.

`Local.answer` tells its answer token by token from within `generate`. Each side does so in a thread of its own that
runs only while somebody pulls a piece of it, so that the model is used by one at a time; the adapters of a side are on
while it runs, and as they were before in between.
"""

import contextlib
import copy
import dataclasses
import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_rlhf.chat.voices import Heard, Local, Remote, Voice, load, sides_of
from llm_rlhf.data.rows import Conversation
from llm_rlhf.evaluation.subjects import Subject
from llm_rlhf.feedback.speaker import Answering, Said
from llm_rlhf.models.adapters import active_adapters
from llm_rlhf.models.decoding import plain_decoding
from llm_rlhf.models.streaming import Sampling
from llm_rlhf.recipe.loading import recipe_of
from llm_rlhf.recipe.sections import ModelSection


class _StoppedError(Exception):
    """Nobody wants more of an answer."""


class Voices:
    """A `feedback.speaker.Speaker` of one voice, asked twice, or of two.

    Args:
        sampling: as their training sampled; the seed is each turn's own.
    """

    def __init__(self, voices: Sequence[Voice], sampling: Sampling) -> None:
        self.pair = (voices[0], voices[-1])
        self.sampling = sampling
        self.sources = (self.pair[0].name, self.pair[1].name)
        self.details: dict[str, Any] = {
            "models": {voice.name: voice.what for voice in self.pair},
            **{name: value for name, value in vars(sampling).items() if name != "seed"},
        }

    def answers(self, messages: Conversation, seed: int) -> tuple[Answering, Answering]:
        """Two streams; their draws are by `seed` and the number after it."""
        first, second = (
            _stream(_afresh(voice), messages, dataclasses.replace(self.sampling, seed=seed + number))
            for number, voice in enumerate(self.pair)
        )
        return first, second


def speaker_of(subjects: Sequence[Subject], recipe: Any, key_variable: str | None = None) -> Voices:
    """The policies that the subjects are, loaded without reward models.

    Raises:
        DataError, RecipeError: where they cannot be loaded.
    """
    voices, _, sampling = load(subjects, None, [], key_variable, recipe)
    return Voices(voices, sampling)


def speaker_of_run(run: str | Path, against_start: bool = False, key_variable: str | None = None) -> Voices:
    """The policy of a run, answering twice; or the policy against what its training started from.

    Raises:
        DataError, RecipeError: where it cannot be loaded.
    """
    subjects = sides_of([str(run)], None if against_start else "policy", ModelSection())
    recipe = recipe_of(subjects[-1].run) if subjects[-1].run is not None else None
    return speaker_of(subjects, recipe, key_variable)


def _afresh(voice: Voice) -> Voice:
    """The same voice as if it had been asked nothing before: an answer is then of its conversation and seed alone."""
    voice = copy.copy(voice)
    if isinstance(voice, Local | Remote):
        voice.asked = Counter()
    return voice


def _stream(voice: Voice, messages: Conversation, sampling: Sampling) -> Answering:
    """An answer a piece at a time. Its thread waits between two pieces, and ends when the stream is closed."""
    go, told = threading.Semaphore(0), queue.SimpleQueue[Said | Heard | BaseException]()
    wanted = True

    def tell(thought: str, text: str) -> None:
        told.put(Said(text, thinking=bool(thought) and not text))
        go.acquire()
        if not wanted:
            raise _StoppedError

    def run() -> None:
        go.acquire()
        try:
            if wanted:
                told.put(voice.answer(messages, sampling, tell))
        except BaseException as error:  # it is raised again where the answer is pulled
            told.put(error)

    thread = threading.Thread(target=run, name=f"answer of {voice.name}", daemon=True)
    thread.start()
    try:
        while True:
            with _alone(voice):
                go.release()
                found = told.get()
            if isinstance(found, BaseException):
                raise found
            if isinstance(found, Heard):
                yield Said(found.text, ended=True, cut=not found.stopped)
                return
            yield found
    finally:
        wanted = False
        with _alone(voice):
            go.release()
            thread.join()


@contextlib.contextmanager
def _alone(voice: Voice) -> Iterator[None]:
    """While it lasts, the voice's model is as the voice needs it; afterwards as it was."""
    if not isinstance(voice, Local):
        yield
        return
    model = voice.base.model
    with active_adapters(model, voice.base.roles[voice.subject.adapter]), plain_decoding(model):
        yield
