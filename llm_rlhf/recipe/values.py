"""Plain values (YAML, `key=value`) into dataclasses, refusing what does not fit by its full key.

Knows nothing of the sections themselves: any dataclass is one.
"""

import dataclasses
import datetime
import difflib
import sys
import types
import typing
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from llm_rlhf.errors import LONGEST_SHOWN, RecipeError, bounded, shown
from llm_rlhf.launch import speaks_for_all
from llm_rlhf.recipe.yaml_text import DEEPEST, read_yaml


def read_section(section: type, values: Any, prefix: str) -> Any:
    """Build one of our dataclasses from plain values, refusing unknown keys and wrong types by their full name."""
    if not isinstance(values, dict):
        raise RecipeError(
            f"Recipe key {prefix.rstrip('.')!r} is {shown(values)}; it must be a mapping of {_keys(section)}."
        )
    hints = typing.get_type_hints(section)
    fields = {f.metadata.get("key", f.name): f for f in dataclasses.fields(section)}
    read = {}
    for key, value in renamed(section, values, prefix).items():
        if key not in fields:
            raise RecipeError(unknown_key(prefix, key, value, list(fields)))
        read[fields[key].name] = _read_value(hints[fields[key].name], value, f"{prefix}{key}")
    missing = [
        key
        for key, f in fields.items()
        if f.name not in read and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise RecipeError(f"Recipe key {prefix + missing[0]!r} is missing; add it.")
    return section(**read)


def renamed(section: type, values: dict[str, Any], prefix: str, quiet: bool = False) -> dict[str, Any]:
    """The values with the keys that were called otherwise (a field's metadata, "was") under their names of today.

    Raises:
        RecipeError: where a key stands there under both names.
    """
    names = {
        f.metadata["was"]: f.metadata.get("key", f.name) for f in dataclasses.fields(section) if "was" in f.metadata
    }
    for old in [key for key in values if key in names]:
        if names[old] in values:
            raise RecipeError(
                f"Recipe key '{prefix}{old}' is called '{prefix}{names[old]}' now, and both are set; remove '{old}'."
            )
        if not quiet and speaks_for_all():
            print(
                f"note: recipe key '{prefix}{old}' is called '{prefix}{names[old]}' now; the next version will not "
                "know the old name.",
                file=sys.stderr,
            )
    return {names.get(key, key): value for key, value in values.items()}


def _read_value(hint: Any, value: Any, key: str) -> Any:
    section = _section_in(hint)
    if section is None:
        return typed(hint, value, key)
    if value is None and type(None) in typing.get_args(hint):
        return None
    if (words := words_in(hint)) and not isinstance(value, dict) and value is not None:
        if value in words:  # a word in the place of a section
            return value
        told = ", ".join(map(repr, words))
        near = nearest(value, words) if isinstance(value, str) and difflib.get_close_matches(value, words) else ""
        raise RecipeError(
            f"Recipe key {key!r} is {shown(value)}; it must be a mapping of {_keys(section)}, or {told}.{near}"
        )
    if typing.get_origin(hint) is list:
        items = [value] if isinstance(value, dict) else value  # one source may stand without its dash
        if not isinstance(items, list):
            raise RecipeError(f"Recipe key {key!r} is {shown(value)}; it must be a list of {_keys(section)}.")
        return [read_section(section, item, f"{key}.{i}.") for i, item in enumerate(items)]
    if value is None:
        raise RecipeError(f"Recipe key {key!r} is empty; leave it out for its defaults, or set: {_keys(section)}.")
    return read_section(section, value, f"{key}.")


def _section_in(hint: Any) -> type | None:
    """The dataclass inside `Section`, `Section | None` or `list[Section]`, or None for a plain value."""
    for candidate in (hint, *typing.get_args(hint)):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def words_in(hint: Any) -> list[str]:
    """The words that may stand in the place of a section: "none" of `Section | Literal["none"]`."""
    literals = [part for part in typing.get_args(hint) if typing.get_origin(part) is Literal]
    return [word for literal in literals for word in typing.get_args(literal)]


def typed(hint: Any, value: Any, key: str) -> Any:
    """`value` as `hint`; text from the command line or YAML's `1e-4` becomes the number it means."""
    adapter = _adapter(hint)
    if adapter is None:
        return value
    if isinstance(value, bool) and _plain_names(hint).isdisjoint({"bool", "Any"}):
        if value is not False or not _has_no(hint):
            raise RecipeError(_wrong_type(hint, value, key))
        value = "no"  # which is what was written, and false to YAML
    try:
        return adapter.validate_python(value)
    except ValidationError:
        raise RecipeError(_wrong_type(hint, value, key)) from None


def _has_no(hint: Any) -> bool:
    """Whether "no" is one of the values of a type, as of `save_strategy`."""
    kinds = typing.get_args(hint) or (hint,)
    enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)]
    return any(member.value == "no" for kind in enums for member in kind)


@cache
def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:  # a class of the trainer's own; its constructor checks it
        return None


def lay_over(tree: dict[str, Any], override: str) -> None:
    """Set one `a.b.0.c=value` in the tree of plain values, making sections on the way."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"Override {shown(override)} is not of the form section.key=value.")
    value = read_yaml(text, f"The value in override {shown(override)}")
    if comment := _comment_in(text):
        raise RecipeError(
            f"Override {shown(override)} ends in {shown(comment)}, which YAML takes for a comment and leaves out; put "
            f"the value into quotes of its own, as '{key}=\"{text}\"', or leave the end out."
        )
    *parents, last = key.split(".")
    if len(parents) >= DEEPEST:
        raise RecipeError(f"Override {shown(override)} names a key within more than {DEEPEST} sections; shorten it.")
    node: Any = tree
    for depth, name in enumerate(parents):
        here = ".".join(parents[: depth + 1])
        if isinstance(node, list):
            node = _list_item(node, name, override)
        else:
            if node.get(name) is None:
                node[name] = {}
            node = node[name]
        if not isinstance(node, (dict, list)):
            below = ".".join([*parents[depth + 1 :], last])
            raise RecipeError(
                f"Override {shown(override)} goes through {shown(here)}, which is {shown(node)} and has no keys; where "
                f"it is to be a mapping, give that whole, as '{here}={{{below}: ...}}'."
            )
    if isinstance(node, list):
        _list_item(node, last, override)
        node[int(last)] = value
    else:
        node[last] = value


def _comment_in(text: str) -> str:
    """What of a value YAML leaves out as a comment; "" where that is nothing."""
    ends = [token.end_mark.index for token in yaml.scan(text) if token.start_mark.index < token.end_mark.index]
    return text[max(ends, default=0) :].strip()


def _list_item(items: list[Any], name: str, override: str) -> Any:
    if not name.isdecimal() or len(name) > 9 or int(name) >= len(items):
        raise RecipeError(f"Override {shown(override)}: {shown(name)} must be a number from 0 to {len(items) - 1}.")
    return items[int(name)]


def unknown_key(prefix: str, key: Any, value: Any, known: list[str]) -> str:
    name = key if isinstance(key, str) else shown(key)
    full = bounded(f"{prefix}{name}", LONGEST_SHOWN)
    inside = [part for part in value if part in known] if isinstance(value, dict) else []  # `run.seed` for `seed`
    misspelt = difflib.get_close_matches(name[:LONGEST_SHOWN], known, n=1, cutoff=0.8)
    meant = f" Did you mean '{prefix}{inside[0]}'?" if inside and not misspelt else nearest(name, known, prefix)
    return f"Recipe key '{full}' (set to {shown(value)}) is unknown.{meant}"


def unknown_choice(key: str, value: str, known: list[str]) -> str:
    return f"Recipe key {key!r} is {shown(value)}, which is not known.{nearest(value, known)}"


def nearest(name: str, known: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name[:LONGEST_SHOWN], known, n=1, cutoff=0.5)
    if near:
        return f" Did you mean '{prefix}{near[0]}'?"
    return f" Known here: {', '.join(sorted(known)[:40])}." if known else ""


def neighbour(path: str | Path) -> str:
    """The folder beside a missing one that is called nearly as it is; nothing where there is none."""
    path = Path(path)
    try:
        there = [found.name for found in path.parent.iterdir() if found.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, there, n=1)
    return f" Did you mean '{path.parent / near[0]}'?" if near else ""


def _keys(section: type) -> str:
    return ", ".join(f.metadata.get("key", f.name) for f in dataclasses.fields(section))


def _wrong_type(hint: Any, value: Any, key: str) -> str:
    if typing.get_origin(hint) is Literal:
        choices = ", ".join(map(repr, typing.get_args(hint)))
        near = nearest(str(value), [str(a) for a in typing.get_args(hint)]) if isinstance(value, str) else ""
        return f"Recipe key {key!r} is {shown(value)}; it must be one of {choices}.{near}"
    wanted = " or ".join(sorted(_plain_names(hint) - {"NoneType"})) or str(hint)
    return f"Recipe key {key!r} is {shown(value)} ({type(value).__name__}); it must be of type {wanted}."


def _plain_names(hint: Any) -> set[str]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set().union(*(_plain_names(a) for a in typing.get_args(hint)))
    return {getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)}


def plain(value: Any) -> Any:
    """Dataclasses as plain values. What older versions had not ("silent") leaves no trace where it is not set."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        told = ((f.metadata, f.metadata.get("key", f.name), getattr(value, f.name)) for f in dataclasses.fields(value))
        return {key: plain(item) for how, key, item in told if item is not None or not how.get("silent")}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime.date) else value
