"""Conversations as token ids: one encoding, read by every stage.

What SFT trains on, what a reward model reads and what PPO continues are the same tokens: the chat template up to the
reply (`prompt ids`), then the reply up to and including the token that ends its turn (`reply ids`). Whatever a
template prints after that token (a newline, mostly) belongs to the next turn and is cut, so that the last token a
reward model reads is the stop token itself.
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


class Encoded(NamedTuple):
    prompt_ids: list[int]
    reply_ids: list[int]  # ends with the stop token

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.reply_ids


def encode_prompt(tokenizer: Any, prompt: Conversation) -> list[int]:
    """Token ids up to where the assistant's reply begins."""
    return _templated(tokenizer, prompt, add_generation_prompt=True)


def encode_reply(tokenizer: Any, prompt: Conversation, reply: str) -> Encoded:
    """Token ids of a prompt and one reply to it.

    Where the template writes earlier turns differently once a reply follows (some drop earlier thoughts), the reply is
    tokenised by itself, as the generation prompt is what a policy continues from.

    Raises:
        ValueError: where the template does not end the assistant's turn with the EOS token.
    """
    whole = [*prompt, {"role": "assistant", "content": reply}]
    return _join(tokenizer, encode_prompt(tokenizer, prompt), _templated(tokenizer, whole), reply)


def encode_replies(tokenizer: Any, prompts: Sequence[Conversation], replies: Sequence[str]) -> list[Encoded]:
    """`encode_reply` of many rows at once, several times as fast; rows with one prompt in a row share its list.

    Raises:
        ValueError: as `encode_reply`, and whatever the template raises of a row.
    """
    if not prompts:
        return []
    first = [i for i, prompt in enumerate(prompts) if i == 0 or prompt != prompts[i - 1]]
    of_first = _all_templated(tokenizer, [prompts[i] for i in first], add_generation_prompt=True)
    repeats = [end - start for start, end in zip(first, [*first[1:], len(prompts)], strict=True)]
    prompt_ids = [ids for ids, times in zip(of_first, repeats, strict=True) for _ in range(times)]
    wholes = [[*p, {"role": "assistant", "content": r}] for p, r in zip(prompts, replies, strict=True)]
    rows = zip(prompt_ids, _all_templated(tokenizer, wholes), replies, strict=True)
    return [_join(tokenizer, *row) for row in rows]


def _join(tokenizer: Any, prompt_ids: list[int], whole_ids: list[int], reply: str) -> Encoded:
    start, stop = len(prompt_ids), tokenizer.eos_token_id
    if stop not in whole_ids:
        raise ValueError(
            f"The chat template does not end the assistant's turn with the EOS token {tokenizer.eos_token!r}; "
            "give model.chat_template one that does."
        )
    if whole_ids[:start] == prompt_ids and stop in whole_ids[start:]:
        return Encoded(prompt_ids, whole_ids[start : whole_ids.index(stop, start) + 1])
    alone = tokenizer(reply, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return Encoded(prompt_ids, [*alone, stop])


class Trained(NamedTuple):
    ids: list[int]
    mask: list[int]  # 1 on the tokens of the replies to imitate, their stop tokens included


def encode_demonstration(
    tokenizer: Any,
    messages: Conversation,
    every_reply: bool,
    last: Encoded | None = None,
    context: Sequence[int] = (),
) -> Trained:
    """Token ids of a conversation and which of them are imitated: every assistant turn, or the last alone.

    Args:
        last: what encode_reply says of the last turn, where that is known already.
        context: as in Demonstration.
    """
    last = last or encode_reply(tokenizer, messages[:-1], messages[-1]["content"])
    ids = last.ids
    mask = [0] * len(last.prompt_ids) + [1] * len(last.reply_ids)
    if every_reply:
        for turn, message in enumerate(messages[:-1]):
            if message["role"] == "assistant" and turn - len(messages) not in context:
                earlier = encode_reply(tokenizer, messages[:turn], message["content"])
                start, end = len(earlier.prompt_ids), len(earlier.ids)
                if ids[:end] == earlier.ids:  # else the template rewrites this turn, and it is context only
                    mask[start:end] = [1] * (end - start)
    return Trained(ids, mask)


def _templated(tokenizer: Any, messages: Conversation, add_generation_prompt: bool = False) -> list[int]:
    """Token ids of the conversation in the chat template.

    Only the template may write special tokens. One that stands in a message was typed by somebody, who must not be able
    to end a turn or to open another with it: it is replaced by a numbered mark while the template is filled in, and put
    back as the plain text it is, wherever the template leaves its mark.
    """
    typed: list[str] = []
    pattern = _pattern(tokenizer)

    def mark(found: re.Match[str]) -> str:
        typed.append(found[0])
        return f"{_MARK}{len(typed) - 1}{_MARK}"

    marked = [{**m, "content": pattern.sub(mark, m["content"].replace(_MARK, ""))} for m in messages]
    if not typed:
        with _told_by_template():
            found = tokenizer.apply_chat_template(
                messages, add_generation_prompt=add_generation_prompt, return_dict=True
            )
        return list(found["input_ids"])
    with _told_by_template():
        text = tokenizer.apply_chat_template(marked, add_generation_prompt=add_generation_prompt, tokenize=False)
    ids: list[int] = []
    for place, piece in enumerate(_MARKED.split(text)):  # text and numbers in turns
        if place % 2:
            ids += tokenizer(typed[int(piece)], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        else:
            ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids


@contextlib.contextmanager
def _told_by_template() -> Iterator[None]:
    """What a template raises of a conversation as a RefusedByTemplateError: it may raise anything that Python does."""
    try:
        yield
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RefusedByTemplateError(reason) from None


def types_special_tokens(tokenizer: Any, messages: Conversation) -> bool:
    """Whether a special token stands in one of the messages."""
    pattern = _pattern(tokenizer)
    return any(pattern.search(message["content"]) for message in messages)


def _all_templated(
    tokenizer: Any, conversations: Sequence[Conversation], add_generation_prompt: bool = False
) -> list[list[int]]:
    """`_templated` of each; those in which nobody typed a special token, all in one call."""
    found: list[list[int] | None] = [None] * len(conversations)
    plain = [i for i, turns in enumerate(conversations) if not types_special_tokens(tokenizer, turns)]
    if plain:
        with _told_by_template():
            rows = tokenizer.apply_chat_template(
                [conversations[i] for i in plain], add_generation_prompt=add_generation_prompt, return_dict=True
            )["input_ids"]
        for i, ids in zip(plain, rows, strict=True):
            found[i] = list(ids)
    return [
        _templated(tokenizer, turns, add_generation_prompt) if ids is None else ids
        for turns, ids in zip(conversations, found, strict=True)
    ]


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
