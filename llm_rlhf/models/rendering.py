"""Conversations as text in a chat template, and that text as token ids.

Only the template may write special tokens. One that stands in a message was typed by somebody, who must not be able to
end a turn or to open another with it: it is replaced by a numbered mark while the template is filled in, and becomes
the plain text it is, wherever the template leaves its mark.
"""

import contextlib
import re
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from llm_rlhf.data.rows import Conversation

_MARK = "\U0010ffff"  # a code point that no text may hold
_MARKED = re.compile(f"{_MARK}(\\d+){_MARK}")
_patterns: weakref.WeakKeyDictionary[Any, tuple[int, re.Pattern[str]]] = weakref.WeakKeyDictionary()  # by tokenizer


class RefusedByTemplateError(ValueError):
    """The chat template refuses a conversation; the message is its reason, on one line."""


class Rendered(NamedTuple):
    """What a template makes of a conversation, or a part of it."""

    text: str  # with numbered marks where special tokens were typed
    typed: list[str]  # which those are


def render(
    tokenizer: Any,
    conversations: Sequence[Conversation],
    add_generation_prompt: bool = False,
    quoted: tuple[str, ...] = (),
) -> list[Rendered]:
    """Each conversation in the chat template.

    Args:
        quoted: what else is text where the assistant says it, whatever the template would make of it.

    Raises:
        RefusedByTemplateError: where the template refuses one.
    """
    if not conversations:
        return []
    marked, typed = zip(*(_marked(tokenizer, turns, quoted) for turns in conversations), strict=True)
    with _told_by_template():
        texts = tokenizer.apply_chat_template(list(marked), add_generation_prompt=add_generation_prompt, tokenize=False)
    return [Rendered(*both) for both in zip(texts, typed, strict=True)]


def token_ids(tokenizer: Any, rendered: Sequence[Rendered]) -> list[list[int]]:
    """Token ids of each; those in which nobody typed a special token, all in one call."""
    plain = [i for i, (_, typed) in enumerate(rendered) if not typed]
    found: dict[int, list[int]] = {}
    if plain:
        rows = tokenizer([rendered[i].text for i in plain], add_special_tokens=False)["input_ids"]
        found = {i: list(ids) for i, ids in zip(plain, rows, strict=True)}
    return [found[i] if i in found else _pieced(tokenizer, each) for i, each in enumerate(rendered)]


def _pieced(tokenizer: Any, rendered: Rendered) -> list[int]:
    """Token ids of a text with marks in it."""
    ids: list[int] = []
    for place, piece in enumerate(_MARKED.split(rendered.text)):  # text and numbers in turns
        if place % 2:
            typed = rendered.typed[int(piece)]
            ids += tokenizer(typed, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        else:
            ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids


def _marked(tokenizer: Any, messages: Conversation, quoted: tuple[str, ...]) -> tuple[Conversation, list[str]]:
    """The messages with marks in place of special tokens and what else is quoted, and these."""
    typed: list[str] = []
    pattern = _pattern(tokenizer)
    of_reply = re.compile("|".join([*map(re.escape, quoted), pattern.pattern])) if quoted else pattern

    def mark(found: re.Match[str]) -> str:
        typed.append(found[0])
        return f"{_MARK}{len(typed) - 1}{_MARK}"

    def text(role: str, key: str, value: str) -> str:
        if key == "role" or not isinstance(value, str):  # parts of a message with images
            return value
        found = of_reply if role == "assistant" and key == "content" else pattern
        return found.sub(mark, value.replace(_MARK, ""))

    return [{key: text(message["role"], key, value) for key, value in message.items()} for message in messages], typed


@contextlib.contextmanager
def _told_by_template() -> Iterator[None]:
    """What a template raises of a conversation as a RefusedByTemplateError: it may raise anything that Python does."""
    try:
        yield
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RefusedByTemplateError(reason) from None


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Every token that a tokenizer takes for special, by its id: those with a role, and all that are marked so.

    Llama 3 and Phi-3 name the tokens of their turns in `added_tokens_decoder` alone.
    """
    named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return named | {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def special_tokens_in(tokenizer: Any, text: str) -> list[str]:
    """The special tokens that stand in a text, in their order."""
    return _pattern(tokenizer).findall(text)


def _pattern(tokenizer: Any) -> re.Pattern[str]:
    """Finds special tokens in text. Kept for each tokenizer until it has other tokens."""
    size, pattern = _patterns.get(tokenizer, (-1, re.compile("")))
    if size != len(tokenizer):
        longest_first = sorted(filter(None, special_tokens(tokenizer).values()), key=len, reverse=True)
        size, pattern = len(tokenizer), re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        _patterns[tokenizer] = size, pattern
    return pattern
