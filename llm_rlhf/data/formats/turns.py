"""Turns, replies and pairs of conversations, as a row writes them, and what stands before them in columns of their own.

Two conversations become a pair by the rules of transcripts.py, except that a reply may be the beginning of the other:
"Yes." against "Yes, because ..." is a fair pair where nothing cut the text. Thoughts are no part of that comparison,
and those of the two replies are left out: what is compared is what was said.
"""

import re
from typing import Any

from llm_rlhf.data.checks import BadRow, check_ends_with_reply, check_prompt, check_text, extract, is_blank
from llm_rlhf.data.formats.columns import is_transcript
from llm_rlhf.data.formats.transcripts import STRAY_MARKER, parse_transcript, stray_marker
from llm_rlhf.data.messages import check_messages, is_message
from llm_rlhf.data.rows import Conversation, Message

THOUGHTS_LEFT_OUT = "thoughts of compared replies left out"  # and of rated ones

# How other transcripts begin, and what stands before every turn but the first in the prompts of HelpSteer.
_TALK = re.compile(r"\s*### Human:|.*<extra_id_1>", re.DOTALL)


def pair_of(chosen: Conversation, rejected: Conversation, repairs: set[str]) -> tuple[Conversation, str, str]:
    """The shared prompt and the two replies of two conversations as written."""
    check_ends_with_reply(chosen, "chosen")
    check_ends_with_reply(rejected, "rejected")
    *prompt, chosen_reply = chosen
    *other_prompt, rejected_reply = rejected
    said, said_in_other = _said(prompt), _said(other_prompt)
    if said == said_in_other and chosen_reply["content"].strip() == rejected_reply["content"].strip():
        raise BadRow("chosen equals rejected", extract(chosen_reply["content"]))
    if said != said_in_other:
        turns = f"{len(chosen)} turns in chosen, {len(rejected)} in rejected"
        same_start = bool(prompt) and bool(other_prompt) and said[0] == said_in_other[0]
        raise BadRow("parts before the last turn" if same_start else "no shared prompt", turns)
    if any("reasoning_content" in reply for reply in (chosen_reply, rejected_reply)):
        repairs.add(THOUGHTS_LEFT_OUT)
    return check_prompt(prompt, repairs), chosen_reply["content"], rejected_reply["content"]


def _said(turns: Conversation) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in turns]


def hh_pair(row: dict[str, Any], repairs: set[str]) -> tuple[Conversation, str, str]:
    """The pair of two transcripts, by the rules of transcripts.py."""
    chosen, rejected = (check_text(row.get(name), name).strip() for name in ("chosen", "rejected"))
    chosen_turns, rejected_turns = parse_transcript(chosen), parse_transcript(rejected)
    for name, turns in (("chosen", chosen_turns), ("rejected", rejected_turns)):
        if turns[0]["role"] != "user":
            raise BadRow("does not start with a Human turn", name)
        check_ends_with_reply(turns, name)
    if chosen != rejected and (chosen.startswith(rejected) or rejected.startswith(chosen)):
        raise BadRow("one transcript is the beginning of the other", f"chosen ends {extract(chosen[-60:])}")
    prompt, good, bad = pair_of(chosen_turns, rejected_turns, repairs)
    if any(stray_marker(turn["content"]) for turn in (*chosen_turns, rejected_turns[-1])):
        repairs.add(STRAY_MARKER)
    return with_system(row, prompt), good, bad


def turns_of(value: Any, name: str) -> Conversation:
    """Messages, or text, which is one user turn, or a transcript that ends where the assistant is to speak."""
    if not isinstance(value, str):
        return check_messages(value, name)
    text = check_text(value, name)
    if is_transcript(text) and text.rstrip().endswith("\n\nAssistant:"):
        return parse_transcript(text)[:-1]
    if is_transcript(text) or _TALK.match(text):
        raise BadRow("transcript where one turn is expected", f"{name}: {extract(text)}")
    return [{"role": "user", "content": text}]


def with_system(row: dict[str, Any], turns: Conversation) -> Conversation:
    """The turns behind the system message that a row has in a column of its own; two that differ are a BadRow."""
    if row.get("system") is None or is_blank(text := check_text(row["system"], "system")):
        return turns
    if not turns or turns[0]["role"] != "system" or is_blank(turns[0]["content"]):
        return [{"role": "system", "content": text}, *(turns[1:] if turns and turns[0]["role"] == "system" else turns)]
    if turns[0]["content"].strip() != text.strip():
        raise BadRow("two system messages", f"{extract(text, 40)} in its column, {extract(turns[0]['content'], 40)}")
    return turns


def history_of(row: dict[str, Any]) -> Conversation:
    """The turns before a prompt that a row has in a column of its own: messages, or pairs of question and answer."""
    history = row.get("history")
    if not isinstance(history, list) or any(isinstance(one, dict) for one in history):
        return [] if history is None else check_messages(history, "history")
    turns: Conversation = []
    for number, said in enumerate(history, 1):
        place = f"history, exchange {number}"
        if not isinstance(said, (list, tuple)) or len(said) != 2:
            raise BadRow("wrong type", f"{place} is not a question and its answer: {extract(said)}")
        turns += [{"role": "user", "content": check_text(said[0], place)}]
        turns += [{"role": "assistant", "content": check_text(said[1], place)}]
    return turns


def reply_of(value: Any, name: str, prompt: Conversation) -> Message:
    """The one assistant turn of a completion: text, one message, or the prompt followed by one message."""
    if value is None or isinstance(value, str):
        return {"role": "assistant", "content": check_text(value, name)}
    messages = check_messages([value] if is_message(value) else value, name)
    if _said(messages[: len(prompt)]) == _said(prompt):  # the whole conversation
        messages = messages[len(prompt) :]
    elif prompt[:1] and prompt[0]["role"] == "system" and _said(messages[: len(prompt) - 1]) == _said(prompt[1:]):
        messages = messages[len(prompt) - 1 :]
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages)
        raise BadRow("not one assistant turn after the prompt", f"{name} has the turns: {roles or 'none'}")
    return messages[0]
