"""What a recipe sets in a chat template: its arguments, and the day it takes for today.

Both are written into the template's own text, so that whoever reads it (a stage, a later evaluation, vLLM, another
library) fills it in alike, and the same tomorrow as today.
"""

import datetime
import json
import re
from typing import Any

_CLOCK = re.compile(r"""strftime_now\(\s*(["'])(?P<format>[^"']*)\1\s*\)""")
_NAME = re.compile(r"[A-Za-z_]\w*\Z")
_TAKEN = ("messages", "add_generation_prompt", "tools", "documents", "bos_token", "eos_token", "pad_token")


def with_arguments(template: str, arguments: dict[str, Any]) -> str:
    """The template with these of its variables set, in a first line that `set`s them.

    Raises:
        ValueError: for a name that is none, or that the conversation itself decides.
    """
    sets = []
    for name, value in arguments.items():
        if not _NAME.match(name) or name in _TAKEN:
            raise ValueError(f"{name!r} is no argument of a template that can be set here.")
        sets.append(f"{{%- set {name} = {_literal(value)} %}}")
    first = "".join(sets)
    return template if not first or template.startswith(f"{first}\n") else f"{first}\n{template}"


def unused(template: str, arguments: dict[str, Any]) -> list[str]:
    """The arguments that the template does not speak of."""
    return [name for name in arguments if not re.search(rf"\b{re.escape(name)}\b", template)]


def asks_the_clock(template: str) -> bool:
    """Whether what the template writes changes from day to day."""
    return "strftime_now(" in template


def at_day(template: str, today: datetime.date) -> str:
    """The template with the day in place of every call that asks the clock for it (`strftime_now("%d %b %Y")`)."""
    return _CLOCK.sub(lambda call: json.dumps(today.strftime(call["format"])), template)


def _literal(value: Any) -> str:
    """A plain value as Jinja spells it: JSON, but for `none`."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value)
