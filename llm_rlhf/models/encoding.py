"""Conversations as token ids: one encoding, read by every stage.

What SFT trains on, what a reward model reads and what PPO continues are the same tokens: the chat template up to the
reply (`prompt ids`), then the reply up to and including the token that ends its turn (`reply ids`). Whatever a
template prints after that token (a newline, mostly) belongs to the next turn and is cut, so that the last token a
reward model reads is the stop token itself.
"""

from typing import Any, NamedTuple

from llm_rlhf.data.rows import Conversation


class Encoded(NamedTuple):
    prompt_ids: list[int]
    reply_ids: list[int]  # ends with the stop token

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.reply_ids


def encode_prompt(tokenizer: Any, prompt: Conversation) -> list[int]:
    """Token ids up to where the assistant's reply begins."""
    return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])


def encode_reply(tokenizer: Any, prompt: Conversation, reply: str) -> Encoded:
    """Token ids of a prompt and one reply to it.

    Where the template writes earlier turns differently once a reply follows (some drop earlier thoughts), the reply is
    tokenised by itself, as the generation prompt is what a policy continues from.

    Raises:
        ValueError: where the template does not end the assistant's turn with the EOS token.
    """
    prompt_ids = encode_prompt(tokenizer, prompt)
    whole = [*prompt, {"role": "assistant", "content": reply}]
    ids = _cut_after_eos(list(tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]), tokenizer)
    if ids[: len(prompt_ids)] == prompt_ids:
        return Encoded(prompt_ids, ids[len(prompt_ids) :])
    alone = tokenizer(reply, add_special_tokens=False)["input_ids"]
    return Encoded(prompt_ids, [*alone, tokenizer.eos_token_id])


class Trained(NamedTuple):
    ids: list[int]
    mask: list[int]  # 1 on the tokens of the replies to imitate, their stop tokens included


def encode_demonstration(tokenizer: Any, messages: Conversation, every_reply: bool) -> Trained:
    """Token ids of a conversation and which of them are imitated: every assistant turn, or the last alone."""
    last = encode_reply(tokenizer, messages[:-1], messages[-1]["content"])
    ids = last.ids
    mask = [0] * len(last.prompt_ids) + [1] * len(last.reply_ids)
    if every_reply:
        for turn, message in enumerate(messages[:-1]):
            if message["role"] == "assistant":
                earlier = encode_reply(tokenizer, messages[:turn], message["content"])
                start, end = len(earlier.prompt_ids), len(earlier.ids)
                if ids[:end] == earlier.ids:  # else the template rewrites this turn, and it is context only
                    mask[start:end] = [1] * (end - start)
    return Trained(ids, mask)


def _cut_after_eos(ids: list[int], tokenizer: Any) -> list[int]:
    for end in range(len(ids), 0, -1):
        if ids[end - 1] == tokenizer.eos_token_id:
            return ids[:end]
    raise ValueError(
        f"The chat template does not end the assistant's turn with the EOS token {tokenizer.eos_token!r}; "
        "give model.chat_template one that does."
    )
