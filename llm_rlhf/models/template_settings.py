"""What a recipe sets in a chat template: its arguments, and the day it takes for today.

Both are written into the template's own text, so that whoever reads it (a stage, a later evaluation, vLLM, another
library) fills it in alike, and the same tomorrow as today.
"""

import datetime
import json
import math
import re
from typing import Any

_CLOCK = re.compile(r"""strftime_now\(\s*(["'])(?P<format>[^"']*)\1\s*\)""")
_SETTINGS = "{#- set by the recipe #}\n"  # ends the first line
_NAME = re.compile(r"[A-Za-z_]\w*\Z")
_TAKEN = ("messages", "add_generation_prompt", "tools", "documents", "bos_token", "eos_token", "pad_token")


def with_arguments(template: str, arguments: dict[str, Any]) -> str:
    """The template with these of its variables set, in a first line that `set`s them.

    What that line set before is set anew: the last counts.

    Raises:
        ValueError: for a name that is none, or that the conversation itself decides, and for a value that is not plain.
    """
    sets = []
    for name, value in arguments.items():
        if not _NAME.match(name) or name in _TAKEN:
            raise ValueError(f"{name!r} is no argument of a template that can be set here.")
        sets.append(f"{{%- set {name} = {_literal(value)} %}}")
    before, found, rest = template.partition(_SETTINGS)
    known, body = (before, rest) if found else ("", template)
    settings = known if known.endswith("".join(sets)) else known + "".join(sets)
    return settings + _SETTINGS + body if settings else template


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
        return (
            "{"
            + ", ".join(f"{json.dumps(str(key), ensure_ascii=False)}: {_literal(item)}" for key, item in value.items())
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value, ensure_ascii=False)  # Jinja reads JSON's surrogate pairs as two characters
    raise ValueError(f"{value!r} is no plain value: text, a number, true, false, null, or a list or mapping of these.")
