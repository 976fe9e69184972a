"""What stands in one cell: numbers, thumbs and lists, also where a table or a careless export has them as text."""

import ast
import math
import re
import warnings
from typing import Any

from llm_rlhf.data.checks import BadRow, extract
from llm_rlhf.json_lines import parse_json

UNREADABLE = "list that cannot be read"
LONGEST_LITERAL = 2**20  # characters: to read a list as Python prints it takes hundreds of times its size

_UP = ("true", "t", "yes", "y", "up", "thumbs_up", "thumbs up", "good", "like", "liked", "desirable", "positive", "👍")
_DOWN = (
    *("false", "f", "no", "n", "down", "thumbs_down", "thumbs down", "bad", "dislike", "disliked", "undesirable"),
    *("negative", "👎"),
)
# How text begins that was a list of objects; of messages, which nobody writes as a prompt or a reply in a table.
_LIST = re.compile(r"\s*[\[{]")
_MESSAGES = re.compile(r"""\s*(?:\[\s*)?\{\s*['"](?:role|from|content|value)['"]\s*:""")


def as_number(value: Any) -> float | None:
    """A finite number, also written as text; None for anything else."""
    if not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def thumb(label: Any) -> bool | None:
    """True for thumbs up, False for down, None where a label is neither. Of several people's, what most of them say."""
    if isinstance(label, list):
        votes = [vote for one in label if (vote := thumb(one)) is not None]
        ups = sum(votes)
        return None if 2 * ups == len(votes) else 2 * ups > len(votes)
    word = label.strip().lower() if isinstance(label, str) else None
    if word in _UP or word in _DOWN:
        return word in _UP
    return {1.0: True, 0.0: False, -1.0: False}.get(as_number(label))  # type: ignore[arg-type]


def is_nan(value: Any) -> bool:
    """The number that libraries of tables write where nothing stands."""
    return isinstance(value, float) and math.isnan(value)


def of_table(text: str, column: str) -> Any:
    """What a cell of a CSV or TSV file holds: nothing where it is empty or says nan, messages, or its text.

    Raises:
        BadRow: where it begins as messages do and cannot be read.
    """
    if not text or (len(text) == 3 and text.lower() == "nan"):
        return None
    return as_list(text, column) if _MESSAGES.match(text) else text


def as_list(text: Any, column: str) -> Any:
    """The list or object that a cell has as text, in JSON or as Python prints it; anything else as it is.

    Raises:
        BadRow: where the text begins as one and cannot be read.
    """
    if not isinstance(text, str) or not _LIST.match(text):
        return text
    try:
        return parse_json(text)
    except ValueError:
        pass
    if len(text) > LONGEST_LITERAL:
        raise BadRow(UNREADABLE, f"{column} is no JSON, and longer than {LONGEST_LITERAL:,} characters; write JSON")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash in the text
            value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        raise BadRow(UNREADABLE, f"{column} is neither JSON nor Python: {extract(text)}; write JSON") from None
    return value if isinstance(value, (list, dict)) else text
