"""A speaker without a model: it says what it was told to, a word at a time."""

import threading
import time
from collections.abc import Sequence

from llm_rlhf.errors import RunError
from llm_rlhf.feedback.speaker import Answering, Said


class Scripted:
    """Says the same two answers to everything.

    Args:
        pause: seconds before each word. gate: where given, a word is said for each of its releases.
        fails: raise after so many words.
    """

    sources = ("ppo", "sft")

    def __init__(
        self,
        answers: Sequence[str] = ("It boils in ten minutes.", "I would not know."),
        pause: float = 0.0,
        gate: threading.Semaphore | None = None,
        fails: int | None = None,
        error: Exception | None = None,
    ) -> None:
        self.texts, self.pause, self.gate, self.fails = answers, pause, gate, fails
        self.error = error or RunError("The endpoint is gone.")
        self.details = {"models": {"ppo": "scripted", "sft": "scripted"}}
        self.asked: list[list[dict]] = []
        self.closed = 0
        self.speaking = 0
        self.most_speaking = 0

    def answers(self, messages, seed) -> tuple[Answering, Answering]:
        self.asked.append(messages)
        first, second = (self._say(text) for text in self.texts)
        return first, second

    def _say(self, text: str) -> Answering:
        words, said = text.split(" "), ""
        self.speaking += 1
        self.most_speaking = max(self.most_speaking, self.speaking)
        try:
            for number, word in enumerate(words):
                if self.gate is not None:
                    self.gate.acquire()
                time.sleep(self.pause)
                if number == self.fails:
                    raise self.error
                said = f"{said} {word}".strip()
                yield Said(said)
            yield Said(said, ended=True)
        finally:
            self.closed += 1
            self.speaking -= 1
