"""Who answers in a live chat: something that gives two answers to a conversation, a piece at a time.

Models are loaded above this package (chat/speaking.py); here is what is asked of them.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

from llm_rlhf.data.rows import Conversation


@dataclass(frozen=True)
class Said:
    """An answer as far as it has come."""

    text: str
    thinking: bool = False  # a thought is being thought, which nobody is shown
    ended: bool = False  # no more will come
    cut: bool = False  # ended at the limit of tokens, not by itself


Answering = Generator[Said, None, None]


class Speaker(Protocol):
    """Two answers to one conversation."""

    sources: tuple[str, str]  # whose answers they are, as the store names them; people are not told
    details: dict[str, Any]  # of the models and how they are sampled: plain values for the store

    def answers(self, messages: Conversation, seed: int) -> tuple[Answering, Answering]:
        """Two streams, of which the last piece has `ended`. They are pulled by turns, from one thread at a time.

        Closing one stops it. The two differ where the models do, or by their draws.

        Raises:
            DataError: where the conversation cannot be answered; also while a stream is pulled.
            RunError: where an endpoint does not answer.
        """
        ...
