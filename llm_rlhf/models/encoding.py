"""Conversations as token ids: one encoding, read by every stage.

What SFT trains on, what a reward model reads and what PPO continues are the same tokens: the chat template up to the
reply (`prompt ids`), then the reply up to and including the token that ends its turn (`reply ids`). Whatever a
template prints after that token (a newline, mostly) belongs to the next turn and is cut, so that the last token a
reward model reads is the stop token itself.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from llm_rlhf.data.rows import Conversation, Message
from llm_rlhf.models.rendering import Rendered, token_ids
from llm_rlhf.models.thoughts import KEY, closes_thought, fill_in, opens_thought, thought_marks, told_apart


class Encoded(NamedTuple):
    prompt_ids: list[int]
    reply_ids: list[int]  # ends with the stop token

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.reply_ids

    def as_said(self, stopped: bool) -> "Encoded":
        """Without the stop token where the reply did not stop by itself: cut at its length, it has none."""
        return self if stopped else self._replace(reply_ids=self.reply_ids[:-1])


def encode_prompt(tokenizer: Any, prompt: Conversation) -> list[int]:
    """Token ids up to where the assistant's reply begins."""
    return encode_prompts(tokenizer, [prompt])[0]


def encode_prompts(tokenizer: Any, prompts: Sequence[Conversation]) -> list[list[int]]:
    """`encode_prompt` of each."""
    return token_ids(tokenizer, fill_in(tokenizer, prompts, add_generation_prompt=True))


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
    marks = thought_marks(tokenizer)
    turns: list[Message] = [{"role": "assistant", "content": reply} for reply in replies]
    return encode_turns(tokenizer, prompts, [told_apart(turn, marks) | {KEY: ""} for turn in turns])


def encode_whole_replies(tokenizer: Any, prompts: Sequence[Conversation], replies: Sequence[str]) -> list[Encoded]:
    """`encode_replies`, each with the thought that it may begin with: what a policy learns to say.

    Raises:
        ValueError: as `encode_replies`.
    """
    return encode_turns(tokenizer, prompts, [{"role": "assistant", "content": reply} for reply in replies])


def encode_turn(tokenizer: Any, prompt: Conversation, turn: Message) -> Encoded:
    """Token ids of a prompt and an assistant's turn, with the thought that it may begin with.

    The thought is left out where the prompt ends it (`enable_thinking: false`).

    Raises:
        ValueError: as `encode_reply`.
    """
    return encode_turns(tokenizer, [prompt], [turn])[0]


def encode_turns(tokenizer: Any, prompts: Sequence[Conversation], turns: Sequence[Message]) -> list[Encoded]:
    """`encode_turn` of many; prompts that stand several times in a row are encoded once."""
    if not prompts:
        return []
    first = [i for i, prompt in enumerate(prompts) if i == 0 or prompt != prompts[i - 1]]
    rendered = fill_in(tokenizer, [prompts[i] for i in first], add_generation_prompt=True)
    repeats = [end - start for start, end in zip(first, [*first[1:], len(prompts)], strict=True)]
    several = zip(rendered, token_ids(tokenizer, rendered), repeats, strict=True)
    of_prompts = [(text, ids) for text, ids, times in several for _ in range(times)]
    marks = thought_marks(tokenizer)
    told, written, untold = [], [], []
    for (prompt, _), turn in zip(of_prompts, turns, strict=True):
        opened, closed = opens_thought(prompt.text, marks), closes_thought(prompt.text, marks)
        by_template = not closed and (marks.writes == "key" or (marks.writes == "text" and not opened))
        told.append(told_apart(turn, marks) | ({KEY: ""} if closed else {}))
        written.append(turn if by_template else told[-1] | {KEY: ""})
        untold.append("" if by_template else told[-1][KEY])
    wholes = fill_in(tokenizer, [[*prompt, turn] for prompt, turn in zip(prompts, written, strict=True)])
    rows = zip(of_prompts, wholes, token_ids(tokenizer, wholes), told, untold, strict=True)
    return [_join(tokenizer, *of_prompt, whole, ids, turn, left) for of_prompt, whole, ids, turn, left in rows]


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


def _join(
    tokenizer: Any,
    prompt: Rendered,
    prompt_ids: list[int],
    whole: Rendered,
    whole_ids: list[int],
    told: Message,
    untold: str,
) -> Encoded:
    """The reply is what the whole conversation has behind the prompt, up to the stop token.

    Args:
        told: the turn that follows the prompt, its thought told apart.
        untold: the thought, where the template does not write it.
    """
    start, stop = len(prompt_ids), tokenizer.eos_token_id
    if stop not in whole_ids:
        raise ValueError(
            f"The chat template does not end the assistant's turn with the EOS token {tokenizer.eos_token!r}; "
            "give model.chat_template one that does."
        )
    if whole_ids[:start] == prompt_ids and stop in whole_ids[start:] and not untold:
        return Encoded(prompt_ids, whole_ids[start : whole_ids.index(stop, start) + 1])
    reply_ids = _behind_prompt(tokenizer, prompt.text, whole, told, untold)
    return Encoded(prompt_ids, [*reply_ids[: reply_ids.index(stop)], stop] if stop in reply_ids else [*reply_ids, stop])


def _behind_prompt(tokenizer: Any, prompt: str, whole: Rendered, told: Message, untold: str) -> list[int]:
    """Token ids of a turn where the prompt's are not the conversation's first.

    A generation prompt may open a thought that the template, given the reply, writes in another way or not at all; the
    thought ends here all the same, so that the reply is none. Where earlier turns are written differently once a reply
    follows, the reply is tokenised by itself.
    """
    marks = thought_marks(tokenizer)
    opened = opens_thought(prompt, marks)
    starts = [prompt, prompt.rstrip(), prompt.rstrip().removesuffix(marks.opening)] if opened else [prompt]
    known = next((start for start in starts if whole.text.startswith(start)), None)
    if known is None:
        rest, untold = "", told[KEY]
        ids = _plain_ids(tokenizer, told["content"])
    else:
        rest = whole.text[len(known) :]
        if opened and rest.lstrip().startswith(marks.opening):
            rest = rest.lstrip().removeprefix(marks.opening)
        ids = token_ids(tokenizer, [Rendered(rest, whole.typed)])[0]
    if not untold and (not opened or (marks.closing in rest and marks.writes == "key")):
        return ids
    begin = [] if opened else tokenizer(f"{marks.opening}\n", add_special_tokens=False)["input_ids"]
    close = tokenizer(f"\n{marks.ending}{marks.closing}\n\n", add_special_tokens=False)["input_ids"]
    return [*begin, *_plain_ids(tokenizer, untold), *close, *ids]


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in which nothing is special."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
