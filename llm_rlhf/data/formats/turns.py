"""Turns, replies and pairs of conversations, as a row writes them.

Two conversations become a pair by the rules of transcripts.py, except that a reply may be the beginning of the other:
"Yes." against "Yes, because ..." is a fair pair where nothing cut the text.
"""

from typing import Any

from llm_rlhf.data.checks import BadRow, check_ends_with_reply, check_messages, check_prompt, check_text, extract
from llm_rlhf.data.formats.columns import is_transcript
from llm_rlhf.data.rows import Conversation


def pair_of(chosen: Conversation, rejected: Conversation, repairs: set[str]) -> tuple[Conversation, str, str]:
    """The shared prompt and the two replies of two conversations as written."""
    check_ends_with_reply(chosen, "chosen")
    check_ends_with_reply(rejected, "rejected")
    *prompt, chosen_reply = chosen
    *other_prompt, rejected_reply = rejected
    if [*prompt, _stripped(chosen_reply)] == [*other_prompt, _stripped(rejected_reply)]:
        raise BadRow("chosen equals rejected", extract(chosen_reply["content"]))
    if prompt != other_prompt:
        turns = f"{len(chosen)} turns in chosen, {len(rejected)} in rejected"
        same_start = bool(prompt) and bool(other_prompt) and prompt[0] == other_prompt[0]
        raise BadRow("parts before the last turn" if same_start else "no shared prompt", turns)
    return check_prompt(prompt, repairs), chosen_reply["content"], rejected_reply["content"]


def _stripped(turn: dict[str, str]) -> dict[str, str]:
    return {"role": turn["role"], "content": turn["content"].strip()}


def turns_of(value: Any, name: str) -> Conversation:
    """Messages, or text, which is one user turn."""
    if not isinstance(value, str):
        return check_messages(value, name)
    text = check_text(value, name)
    if is_transcript(text):
        raise BadRow("transcript where one turn is expected", f"{name}: {extract(text)}")
    return [{"role": "user", "content": text}]


def reply_of(value: Any, name: str, prompt: Conversation) -> dict[str, str]:
    """The one assistant turn of a completion: text, one message, or the prompt followed by one message."""
    if value is None or isinstance(value, str):
        return {"role": "assistant", "content": check_text(value, name)}
    messages = check_messages(value, name)
    if messages[: len(prompt)] == prompt:  # the whole conversation
        messages = messages[len(prompt) :]
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages)
        raise BadRow("not one assistant turn after the prompt", f"{name} has the turns: {roles or 'none'}")
    return messages[0]
