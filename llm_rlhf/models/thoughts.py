"""Thoughts before a reply: how a chat template writes them, and what of a sampled text is the reply.

A model that thinks writes a thought first, then its reply, in marks that differ from family to family (`<think>`,
channels, ...). A thought is no part of the reply: people never see it. How a template marks one is found by letting it
write one.
"""

import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from llm_rlhf.data.rows import Conversation, Message
from llm_rlhf.models.rendering import RefusedByTemplateError, Rendered, render

KEY = "reasoning_content"  # a message's thought; templates read it under this name, or under ALIAS
ALIAS = "thinking"

_KNOWN = (("<think>", "</think>"), ("<|channel>thought", "<channel|>"), ("[THINK]", "[/THINK]"))
_LAST_TAG = re.compile(r"(?:<[^<>\s]+>|\[[A-Z_]+\])\Z")
_QUESTION, _THOUGHT, _REPLY = "The question.", "The thought.", "The reply."
_found: weakref.WeakKeyDictionary[Any, tuple[str, "ThoughtMarks"]] = weakref.WeakKeyDictionary()  # by tokenizer


class ThoughtMarks(NamedTuple):
    """How thoughts are marked.

    `writes` is what a template does with the last reply's thought: it writes one that a message names under a key of
    its own; it leaves text as it stands, so that a thought in it stays; or it takes thoughts out of text.
    """

    opening: str
    closing: str  # behind it the reply begins, whether or not there was a thought
    writes: Literal["key", "text", "nothing"]
    ending: str = ""  # what else stands between a thought and the closing mark


WRITTEN = ThoughtMarks(*_KNOWN[0], "text")  # in text of which no template is known


class Said(NamedTuple):
    """A sampled response: the thought, which may be empty, and the reply."""

    thought: str
    reply: str
    start: int = 0  # the token that the reply begins with; all of them are the thought's where it never ends


def thought_marks(tokenizer: Any) -> ThoughtMarks:
    """How the tokenizer's template marks thoughts; `<think>` and `</think>` where it knows none."""
    template = str(tokenizer.chat_template)
    known = _found.get(tokenizer)
    if known is None or known[0] != template:
        known = _found[tokenizer] = template, _probed(tokenizer, template)
    return known[1]


def split_thought(text: str, marks: ThoughtMarks, opened: bool = False) -> tuple[str, str]:
    """The thought and the reply of a text, each without the marks and the white space around it.

    In written text `<think>` marks a thought whatever the template's own marks are.

    Args:
        opened: the prompt ended with the opening mark.
    """
    body = text.lstrip()
    known = marks if opened else _beginning(body, marks)
    if known is None:
        return "", text
    thought, closed, reply = body.removeprefix(known.opening).partition(known.closing)
    return thought.strip().removesuffix(known.ending).strip(), reply.strip() if closed else ""


def _beginning(text: str, marks: ThoughtMarks) -> ThoughtMarks | None:
    """The marks with one of which a text begins; None where it begins with none."""
    return next((known for known in (marks, WRITTEN) if text.startswith((known.opening, known.closing))), None)


def read_response(tokenizer: Any, prompt_ids: list[int], ids: list[int]) -> Said:
    """What was said by the tokens of a response, those that prompted it known: a template may open the thought."""
    marks = thought_marks(tokenizer)
    opened = opens_thought(tokenizer.decode(prompt_ids[-16:]), marks)
    decoded = tokenizer.decode(ids)
    whole = decoded.removesuffix(tokenizer.eos_token or "")
    begun = whole.strip()
    if begun and whole == decoded and not opened and any(mark.startswith(begun) for mark in marks[:2]):
        return Said("", "", len(ids))  # cut within the mark
    known = marks if opened else _beginning(begun, marks)
    if known is None:
        return Said("", tokenizer.decode(ids, skip_special_tokens=True).strip())
    thought, _ = split_thought(whole, known, opened)
    start = _first(len(ids), lambda count: known.closing in tokenizer.decode(ids[:count]))
    behind = tokenizer.decode(ids[:start]).partition(known.closing)[2]  # a token may end the mark and begin the reply
    return Said(thought, (behind + tokenizer.decode(ids[start:], skip_special_tokens=True)).strip(), start)


def before_mark(text: str, mark: str) -> str:
    """The text without the beginning of a mark at its end, which more tokens may make the whole of."""
    begun = next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
    return text[: len(text) - begun]


def closes_thought(text: str, marks: ThoughtMarks) -> bool:
    """Whether a rendered prompt ends the thought itself, so that the reply has none."""
    return text.rstrip().endswith(marks.closing)


def opens_thought(text: str, marks: ThoughtMarks) -> bool:
    """Whether a text, mostly a rendered prompt, ends within a thought that has just begun."""
    return text.rstrip().endswith(marks.opening)


def told_apart(turn: Message, marks: ThoughtMarks) -> Message:
    """An assistant's turn with its thought under its key, empty where there is none, and its reply alone as the text.

    Of a turn that has the key, the text is the reply as it stands, but for a second copy of the thought before it.
    """
    thought, reply = split_thought(turn["content"], marks)
    if KEY in turn and thought != turn[KEY].strip():
        thought, reply = turn[KEY], turn["content"]
    return {"role": turn["role"], "content": reply, KEY: turn.get(KEY, thought)}


def thought_of(turn: Message, marks: ThoughtMarks) -> str:
    """The thought of an assistant's turn, under its key or in its text."""
    return told_apart(turn, marks)[KEY]


def _with_thought(message: Message, marks: ThoughtMarks) -> Message:
    """The message as the template is to get it, whether its thought stands under a key of its own or in the text."""
    if marks.writes == "text":
        thought, reply = message.get(KEY), message["content"]
        if thought:
            reply = f"{marks.opening}\n{thought}\n{marks.closing}\n\n{told_apart(message, marks)['content']}"
        return {"role": message["role"], "content": reply}
    told = told_apart(message, marks)
    thought = told.pop(KEY)
    return told | ({KEY: thought, ALIAS: thought} if thought and marks.writes == "key" else {})


def fill_in(
    tokenizer: Any, conversations: Sequence[Conversation], add_generation_prompt: bool = False
) -> list[Rendered]:
    """`render` of conversations that may hold thoughts, each where the template looks for it.

    What a reply quotes of the marks is text, in which a template that takes thoughts out would find one.
    """
    marks = thought_marks(tokenizer)
    quoted = () if marks.writes == "text" else (*marks[:2], *WRITTEN[:2])
    told = [
        [_with_thought(message, marks) if message["role"] == "assistant" else message for message in messages]
        for messages in conversations
    ]
    return render(tokenizer, told, add_generation_prompt, quoted)


def _probed(tokenizer: Any, template: str) -> ThoughtMarks:
    ask: Conversation = [{"role": "user", "content": _QUESTION}]
    opening, closing = next((known for known in _KNOWN if all(mark in template for mark in known)), _KNOWN[0])
    in_text = f"{opening}\n{_THOUGHT}\n{closing}\n\n{_REPLY}"
    try:
        (prompt,) = render(tokenizer, [ask], add_generation_prompt=True)
        plain, keyed, texted = render(
            tokenizer,
            [
                [*ask, {"role": "assistant", "content": _REPLY}],
                [*ask, {"role": "assistant", "content": _REPLY, KEY: _THOUGHT, ALIAS: _THOUGHT}],
                [*ask, {"role": "assistant", "content": in_text}],
            ],
        )
    except RefusedByTemplateError:
        return ThoughtMarks(opening, closing, "text")
    if _THOUGHT not in keyed.text:
        return ThoughtMarks(opening, closing, "text" if _THOUGHT in texted.text else "nothing")
    before, _, after = keyed.text.partition(_THOUGHT)
    tag = _LAST_TAG.search(before.rstrip())
    opening = _behind(before, prompt.text) or (tag[0] if tag else opening)
    between = after.partition(_REPLY)[0].strip()
    without = _behind(plain.text.partition(_REPLY)[0], prompt.text) or plain.text.partition(_REPLY)[0].rstrip()
    closing = _closing(between, without) or closing
    return ThoughtMarks(opening, closing, "key", between.removesuffix(closing).strip())


def _behind(text: str, prompt: str) -> str:
    """What a text has behind the prompt it starts with; empty where it starts with something else."""
    return text.removeprefix(prompt).strip() if text.startswith(prompt) else ""


def _closing(between: str, without: str) -> str:
    """What stands before the reply both behind a thought and without one; all of it, where that is no whole mark."""
    shared = next((between[i:] for i in range(len(between)) if without.endswith(between[i:])), "")
    whole = shared.startswith(("<", "[")) or between.removesuffix(shared).endswith(" ")
    return shared if shared and whole else between


def _first(most: int, holds: Callable[[int], bool]) -> int:
    """The least count up to `most` for which something holds that holds for all greater ones; `most` if for none."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
