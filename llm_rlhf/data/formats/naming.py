"""A row under our names, and which of its columns and keys nothing reads.

1. The source's `columns`; then other usual names, and ours in other case, with other blanks or underscores, where only
   one column can be meant.
2. NaN counts as absent; where a column holds a list as text, the list is read.
3. Public data sets' shapes are brought into ours (shapes.py).
4. Columns that need more than text to be understood (tools, images) set the row aside.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from llm_rlhf.data.cells import as_list, is_nan
from llm_rlhf.data.checks import BadRow
from llm_rlhf.data.formats.columns import (
    COMPLETIONS,
    FURTHER_PROMPTS,
    LABELS,
    PROMPTS,
    RANKS,
    REPLY_LISTS,
    SCORES,
    TEXTS,
    TREE,
    is_tree,
)
from llm_rlhf.data.formats.shapes import SHAPES, shaped
from llm_rlhf.data.formats.table import FORMATS
from llm_rlhf.data.messages import NOT_TEXT, TOOLS, is_read
from llm_rlhf.data.rows import RawRow

# Our name of a column: what else it is called.
ALIASES = {
    "messages": ("conversations", "conversation", "dialog", "dialogue", "dialogs"),
    "system": ("system_prompt", "system_message"),
    "prompt": ("context_messages",),
    "chosen": ("chosen_response",),
    "rejected": ("rejected_response",),
    "label": ("kto_tag",),
    "score_chosen": ("chosen_score", "chosen_rating", "rating_chosen"),
    "score_rejected": ("rejected_score", "rejected_rating", "rating_rejected"),
}
UNSUPPORTED = {
    **dict.fromkeys(("tools", "functions", "tool_calls"), TOOLS),
    **dict.fromkeys(("images", "image", "videos", "video", "audios", "audio"), NOT_TEXT),
}
_BESIDE = ("scores", "ranks", "ratings")
# What a rule judges by, and whose labels a row comes from: not looked into.
KEPT_WHOLE = ("facts", "provenance")
# What holds a list, and may have it as text. Text that cannot be read stays what it is; of messages none can be meant.
LISTS = frozenset(("messages", "history", *LABELS, *REPLY_LISTS, *UNSUPPORTED, *_BESIDE, "turns", "instances", "facts"))
_NAMES = {
    *PROMPTS, *FURTHER_PROMPTS, *COMPLETIONS, *LABELS, *REPLY_LISTS, *TEXTS, *SCORES, *RANKS, *LISTS, *ALIASES,
    *(name for shape in SHAPES for name in shape.needs), "response_1", "response_2", "objective", "margin",
    "confidence", "chosen_stopped", "rejected_stopped", "stopped",
    "helpfulness", "context", "message_id", "parent_id", "role",
}  # fmt: skip


def under_our_names(raw: RawRow, columns: dict[str, str]) -> RawRow:
    """The row itself, its fields renamed, read and in our shapes; where that cannot be, the BadRow that says why."""
    if not isinstance(raw.fields, dict):
        return raw
    raw.written = _names_of(tuple(raw.fields), tuple(columns.items()))
    try:
        fields = {ours: _cell(ours, raw.fields[theirs], columns) for ours, theirs in raw.written.items()}
        rows, raw.taken = ([fields], raw.taken) if is_tree(fields) else shaped(fields)
        for name in UNSUPPORTED:
            if fields.get(name):
                raise BadRow(UNSUPPORTED[name], f"the column {raw.written[name]} is not empty")
        raw.fields, raw.more = rows[0], rows[1:]
    except BadRow as bad:
        raw.fields = bad
    return raw


def unread(raw: RawRow, fields: dict[str, Any], form: str) -> Iterator[str]:
    """The names, as written, of the row's columns, and of its messages' and replies' keys, that nothing reads.

    Args:
        fields: the row as the file has it.
    """
    if not isinstance(raw.fields, dict):
        return
    read = {"objective", "system", "provenance", *UNSUPPORTED, *raw.taken, *FORMATS[form].reads(raw.fields)}
    known = {theirs: ours for ours, theirs in raw.written.items() if ours in read}
    for name, value in fields.items():
        if _is_empty(value):
            continue
        if name not in known:
            yield str(name) or "(no name)"
        elif known[name] not in KEPT_WHOLE:
            value = raw.fields.get(known[name], value)  # with replies under our names, and lists that were text
            items = value if isinstance(value, list) else [value]
            is_of_replies = form == "tree" or known[name] in REPLY_LISTS
            keys = (key for item in items if isinstance(item, dict) for key in _unread_keys(item, is_of_replies))
            yield from dict.fromkeys(f"{name}.{key}" for key in keys)


def _unread_keys(item: dict[str, Any], is_reply: bool) -> Iterator[str]:
    read = {next((name for name in TEXTS if name in item), "text"), *SCORES, *RANKS, "annotations"}
    read |= set(TREE) if is_tree(item) else set()
    for key, value in item.items():
        if not _is_empty(value) and not (key in read if is_reply else is_read(key, item)):
            yield key


def _is_empty(value: Any) -> bool:
    return value is None or is_nan(value) or (isinstance(value, (str, list, dict)) and not value)


@lru_cache(maxsize=64)
def _names_of(keys: tuple[Any, ...], columns: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Our name of every column: the file's."""
    renamed = {theirs for _, theirs in columns}
    meant: dict[str, list[str]] = {}
    for key in keys:
        if key in renamed or not isinstance(key, str) or key in _NAMES:
            continue
        if (name := _BY_PLAIN_NAME.get(_plain(key))) is not None:
            meant.setdefault(name, []).append(key)
    ours = {theirs[0]: name for name, theirs in meant.items() if len(theirs) == 1 and name not in keys}
    names = {ours.get(key, key): key for key in keys if key not in renamed}
    named = dict(columns)  # where one of these is not in a row, a column that happens to have our name is not it either
    others = {name: theirs for name, theirs in names.items() if name not in named}
    return others | {name: theirs for name, theirs in named.items() if theirs in keys}


def _plain(name: str) -> str:
    return "".join(name.casefold().replace("_", " ").replace("-", " ").split())


_BY_PLAIN_NAME = {_plain(other): name for name, others in ALIASES.items() for other in others} | {
    _plain(name): name for name in sorted(_NAMES)
}


def _cell(name: str, value: Any, columns: dict[str, str]) -> Any:
    if is_nan(value):
        return None
    if isinstance(value, str) and name in LISTS:
        try:
            value = as_list(value, name)
        except BadRow:
            if name == "messages":  # while a history may be text: SHP's post
                raise
    if columns and name in REPLY_LISTS and isinstance(value, list):
        return [_renamed(reply, columns) if isinstance(reply, dict) else reply for reply in value]
    return value


def _renamed(reply: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    moved = {ours: reply[theirs] for ours, theirs in columns.items() if theirs in reply}
    return {name: value for name, value in reply.items() if name not in columns.values()} | moved
