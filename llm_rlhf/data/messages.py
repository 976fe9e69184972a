"""A list of messages as rows write it, read into role and text: names of roles, parts of text, thoughts, weights.

- A message has `role` and `content`, or ShareGPT's `from` and `value`; one of Capybara's has `input` and `output`.
- Content in parts is joined where all of it is text. An image, a call of a tool or its result sets the row aside: what
  is left without it is half a conversation.
- Thoughts (`reasoning_content`, `reasoning`, `thinking`) stay with an assistant's message as `reasoning_content`.
- An assistant's message whose `weight`, `loss`, `train` or `training` is 0 or false is context and not imitated.
"""

from collections.abc import Iterator
from typing import Any

from llm_rlhf.data.checks import BadRow, check_text, extract, is_blank
from llm_rlhf.data.rows import Conversation, Message

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "developer": "system",
    "human": "user",
    "prompter": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "bot", "model"), "assistant"),
}
TOOL_ROLES = ("tool", "function", "function_call", "tool_call", "tool_response", "observation", "ipython")
TOOLS, NOT_TEXT = "tools are not supported", "not text alone"
REASONING = ("reasoning_content", "reasoning", "thinking")
WEIGHTS = ("weight", "loss", "train", "training")
# Keys of a message that are read; an assistant's are these, its thoughts and its weight.
KEYS = frozenset(("role", "from", "content", "value", "input", "output", "tool_calls", "function_call"))


def check_messages(value: Any, field: str) -> Conversation:
    """The messages with known roles and good text; keys that KEYS does not name are left behind."""
    return [message for message, _ in read_messages(value, field)]


def read_messages(value: Any, field: str) -> list[tuple[Message, bool]]:
    """The messages, each with whether it is imitated where it is the assistant's; BadRow where one cannot be used."""
    if value is None:
        raise BadRow("missing field", field)
    if not isinstance(value, list):
        raise BadRow("wrong type", f"{field} is {type(value).__name__}, not a list of messages: {extract(value)}")
    return [found for number, message in enumerate(value, 1) for found in _read(message, f"{field}, message {number}")]


def is_message(value: Any) -> bool:
    """Whether an object says who speaks, as a message does."""
    return isinstance(value, dict) and bool({"role", "from"} & value.keys())


def is_read(key: str, message: dict[str, Any]) -> bool:
    """Whether anything reads this key of a message."""
    return key in KEYS or (key in (*REASONING, *WEIGHTS) and ROLES.get(str(_role(message))) == "assistant")


def text_of(content: Any, field: str) -> str:
    """Text, also where it stands in parts, as {"type": "text", "text": ...}; they are joined as chat templates do."""
    if not isinstance(content, list):
        return check_text(content, field)
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(check_text(part, field))
        elif isinstance(part, dict) and part.get("type", "text") == "text" and "text" in part:
            texts.append(check_text(part["text"], field))
        else:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise BadRow(NOT_TEXT, f"{field} has a part of type {extract(kind)}")
    return "".join(texts)


def _read(message: Any, place: str) -> Iterator[tuple[Message, bool]]:
    if not isinstance(message, dict):
        raise BadRow("wrong type", f"{place} is {type(message).__name__}, not a message: {extract(message)}")
    if not is_message(message) and {"input", "output"} <= message.keys():
        yield {"role": "user", "content": text_of(message["input"], f"{place}, input")}, True
        yield {"role": "assistant", "content": text_of(message["output"], f"{place}, output")}, True
        return
    role = check_text(_role(message), f"{place}, role")
    if role in TOOL_ROLES or message.get("tool_calls") or message.get("function_call"):
        raise BadRow(TOOLS, f"{place}: " + (f"role {role}" if role in TOOL_ROLES else "a call of a tool"))
    if role not in ROLES:
        raise BadRow("unknown role", f"{place}: {extract(role)}; known: {', '.join(ROLES)}")
    name = "value" if message.get("content") is None and "value" in message else "content"
    read = {"role": ROLES[role], "content": text_of(message.get(name), f"{place}, {name}")}
    if read["role"] == "assistant" and (thoughts := _thoughts(message, place)):
        read["reasoning_content"] = thoughts
    yield read, read["role"] != "assistant" or _is_imitated(message, place)


def _role(message: dict[str, Any]) -> Any:
    role = message.get("role") if message.get("role") is not None else message.get("from")
    return role.strip().lower() if isinstance(role, str) else role


def _thoughts(message: dict[str, Any], place: str) -> str | None:
    found = {}
    for name in REASONING:
        if message.get(name) is not None and not is_blank(text := check_text(message[name], f"{place}, {name}")):
            found[text] = name
    if len(found) > 1:
        raise BadRow("thoughts of a turn stand twice", f"{place}: {' and '.join(found.values())} differ")
    return next(iter(found), None)


def _is_imitated(message: dict[str, Any], place: str) -> bool:
    said = set()
    for name in WEIGHTS:
        weight = message.get(name)
        if weight is None:
            continue
        if isinstance(weight, str):
            weight = {"true": 1, "false": 0, "1": 1, "0": 0}.get(weight.strip().lower(), weight)
        if not isinstance(weight, (int, float)) or weight not in (0, 1):
            raise BadRow("weight that is neither 0 nor 1", f"{place}: {name} is {extract(weight)}")
        said.add(bool(weight))
    if len(said) > 1:
        raise BadRow("weights of a turn that contradict each other", place)
    return said != {False}
