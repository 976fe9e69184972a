"""Conversations as token ids: one encoding, read by every stage.

What SFT trains on, what a reward model reads and what PPO continues are the same tokens: the chat template up to the
reply (`prompt ids`), then the reply up to and including the token that ends its turn (`reply ids`). Whatever a
template prints after that token (a newline, mostly) belongs to the next turn and is cut, so that the last token a
reward model reads is the stop token itself.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from llm_rlhf.data.rows import Conversation, Message
from llm_rlhf.models.rendering import Rendered, render, token_ids
from llm_rlhf.models.thoughts import (
    closes_thought,
    for_template,
    opens_thought,
    split_thought,
    thought_marks,
    thought_of,
    without_thought,
)


class Encoded(NamedTuple):
    prompt_ids: list[int]
    reply_ids: list[int]  # ends with the stop token

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.reply_ids


def encode_prompt(tokenizer: Any, prompt: Conversation) -> list[int]:
    """Token ids up to where the assistant's reply begins."""
    return encode_prompts(tokenizer, [prompt])[0]


def encode_prompts(tokenizer: Any, prompts: Sequence[Conversation]) -> list[list[int]]:
    """`encode_prompt` of each."""
    return token_ids(tokenizer, _rendered_prompts(tokenizer, prompts))


def encode_reply(tokenizer: Any, prompt: Conversation, reply: str) -> Encoded:
    """Token ids of a prompt and one reply to it, without the thought before it: what reward models read.

    Raises:
        ValueError: where the template does not end the assistant's turn with the EOS token.
    """
    return encode_replies(tokenizer, [prompt], [reply])[0]


def encode_replies(tokenizer: Any, prompts: Sequence[Conversation], replies: Sequence[str]) -> list[Encoded]:
    """`encode_reply` of many rows at once, several times as fast; rows with one prompt in a row share its list.

    Raises:
        ValueError: as `encode_reply`, and whatever the template raises of a row.
    """
    if not prompts:
        return []
    marks = thought_marks(tokenizer)
    turns = [{"role": "assistant", "content": split_thought(reply, marks)[1]} for reply in replies]
    return _encode(tokenizer, prompts, turns)


def encode_turn(tokenizer: Any, prompt: Conversation, turn: Message) -> Encoded:
    """Token ids of a prompt and an assistant's turn, with the thought that it may begin with.

    The thought is left out where the prompt ends it (`enable_thinking: false`).

    Raises:
        ValueError: as `encode_reply`.
    """
    return _encode(tokenizer, [prompt], [turn])[0]


class Trained(NamedTuple):
    ids: list[int]
    mask: list[int]  # 1 on the tokens of the replies to imitate, their stop tokens included


def encode_demonstration(tokenizer: Any, messages: Conversation, turns: Collection[int]) -> list[Trained]:
    """Token ids of a conversation and which of them are imitated: the assistant's turns of these numbers.

    One row holds them all, as long as the template writes a turn the same way once others follow. Some do not (most
    drop earlier thoughts): a turn that is rewritten gets a row of its own, up to its end.
    """
    rows: list[Trained] = []
    for turn in sorted(turns, reverse=True):
        encoded = encode_turn(tokenizer, messages[:turn], messages[turn])
        start, ids = len(encoded.prompt_ids), encoded.ids
        row = next((row for row in rows if row.ids[: len(ids)] == ids), None)
        if row is None:
            row = Trained(ids, [0] * len(ids))
            rows.insert(0, row)
        row.mask[start : len(ids)] = [1] * (len(ids) - start)
    return rows


def _rendered_prompts(tokenizer: Any, prompts: Sequence[Conversation]) -> list[Rendered]:
    return render(tokenizer, [for_template(tokenizer, prompt) for prompt in prompts], add_generation_prompt=True)


def _encode(tokenizer: Any, prompts: Sequence[Conversation], turns: Sequence[Message]) -> list[Encoded]:
    """Prompts and the turns that follow them; prompts that stand several times in a row are encoded once."""
    first = [i for i, prompt in enumerate(prompts) if i == 0 or prompt != prompts[i - 1]]
    rendered = _rendered_prompts(tokenizer, [prompts[i] for i in first])
    repeats = [end - start for start, end in zip(first, [*first[1:], len(prompts)], strict=True)]
    several = zip(rendered, token_ids(tokenizer, rendered), repeats, strict=True)
    of_prompts = [(text, ids) for text, ids, times in several for _ in range(times)]
    marks = thought_marks(tokenizer)
    turns = [
        without_thought(turn, marks) if closes_thought(prompt.text, marks) else turn
        for (prompt, _), turn in zip(of_prompts, turns, strict=True)
    ]
    written = [without_thought(turn, marks) if marks.writes == "nothing" else turn for turn in turns]
    wholes = render(tokenizer, [for_template(tokenizer, [*p, turn]) for p, turn in zip(prompts, written, strict=True)])
    rows = zip(of_prompts, wholes, token_ids(tokenizer, wholes), turns, strict=True)
    return [_join(tokenizer, text, ids, whole, whole_ids, turn) for (text, ids), whole, whole_ids, turn in rows]


def _join(
    tokenizer: Any, prompt: Rendered, prompt_ids: list[int], whole: Rendered, whole_ids: list[int], turn: Message
) -> Encoded:
    """The reply is what the whole conversation has behind the prompt, up to the stop token."""
    start, stop = len(prompt_ids), tokenizer.eos_token_id
    if stop not in whole_ids:
        raise ValueError(
            f"The chat template does not end the assistant's turn with the EOS token {tokenizer.eos_token!r}; "
            "give model.chat_template one that does."
        )
    marks = thought_marks(tokenizer)
    untold = thought_of(turn, marks) if marks.writes == "nothing" else ""
    if whole_ids[:start] == prompt_ids and stop in whole_ids[start:] and not untold:
        return Encoded(prompt_ids, whole_ids[start : whole_ids.index(stop, start) + 1])
    reply_ids = _behind_prompt(tokenizer, prompt.text, whole, turn, untold)
    return Encoded(prompt_ids, [*reply_ids[: reply_ids.index(stop)], stop] if stop in reply_ids else [*reply_ids, stop])


def _behind_prompt(tokenizer: Any, prompt: str, whole: Rendered, turn: Message, untold: str) -> list[int]:
    """Token ids of a turn where the prompt's are not the conversation's first.

    A generation prompt may open a thought that the template, given the reply, writes in another way or not at all; the
    thought ends here all the same, so that the reply is none. Where earlier turns are written differently once a reply
    follows, the reply is tokenised by itself.

    Args:
        untold: the thought, where the template does not write it.
    """
    marks = thought_marks(tokenizer)
    opened = opens_thought(prompt, marks)
    starts = [prompt, prompt.rstrip(), prompt.rstrip().removesuffix(marks.opening)] if opened else [prompt]
    known = next((start for start in starts if whole.text.startswith(start)), None)
    if known is None:
        reply = split_thought(turn["content"], marks)[1]
        rest, ids, untold = reply, _plain_ids(tokenizer, reply), thought_of(turn, marks)
    else:
        rest = whole.text[len(known) :]
        if opened and rest.lstrip().startswith(marks.opening):
            rest = rest.lstrip().removeprefix(marks.opening)
        ids = token_ids(tokenizer, [Rendered(rest, whole.typed)])[0]
    if not untold and (not opened or (marks.closing in rest and marks.writes != "nothing")):
        return ids
    begin = [] if opened else tokenizer(f"{marks.opening}\n", add_special_tokens=False)["input_ids"]
    close = tokenizer(f"\n{marks.ending}{marks.closing}\n\n", add_special_tokens=False)["input_ids"]
    return [*begin, *_plain_ids(tokenizer, untold), *close, *ids]


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in which nothing is special."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
