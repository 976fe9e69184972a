"""Which format a file has, from its rows or as its source says, and whether it can serve what is asked for."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from llm_rlhf.data.bounds import MOST_SET_ASIDE
from llm_rlhf.data.cells import as_list
from llm_rlhf.data.checks import BadRow, SetAside, extract
from llm_rlhf.data.files import Opened
from llm_rlhf.data.formats.naming import under_our_names
from llm_rlhf.data.formats.table import FORMATS, formats_of, is_asked
from llm_rlhf.data.formats.trees import Kind
from llm_rlhf.data.rows import RawRow
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import Source

PAIRS = ("hh", "preference", "comparison", "ranked", "scored", "feedback", "tree")
# The formats that can serve each purpose.
SERVES = {
    "preferences": PAIRS,
    "demonstrations": ("messages", "prompt_completion", "instruction", *PAIRS),
    "prompts": tuple(FORMATS),
    "ratings": ("feedback",),
}
LOOKED_AT = 100  # rows from which a format is told


def recognise(opened: Opened, source: Source, purpose: Kind) -> str:
    """The format named in the recipe, or that of the first row, of the first hundred, that has the shape of one.

    Raises:
        DataError: where no format fits, or more than one, or it cannot serve the purpose.
    """
    _check_columns(opened, source)
    form = source.format if source.format != "auto" else _recognised(opened, source, purpose)
    if form not in SERVES[purpose]:
        needed = " Its 'label' must be a thumb: true or false, 1 or 0, 1 or -1." if purpose == "ratings" else ""
        raise DataError(
            f"{opened.name} has rows of format '{form}', which cannot serve as {purpose}. "
            f"Formats that can: {', '.join(SERVES[purpose])}.{needed}"
        )
    return form


def _check_columns(opened: Opened, source: Source) -> None:
    """DataError for a column that the source names and that no row has, nor a reply in one."""
    if not source.columns:
        return
    there: dict[str, None] = {}
    absent = {theirs: ours for ours, theirs in source.columns.items()}
    for raw in opened.rows():
        if isinstance(raw.fields, dict):
            there |= dict.fromkeys(name for one in (raw.fields, *_objects_in(raw.fields)) for name in one)
            absent = {theirs: ours for theirs, ours in absent.items() if theirs not in there}
            if not absent:
                return
    if there:
        theirs, ours = next(iter(absent.items()))
        near = [name for name in there if name.lower() == theirs.lower()] or get_close_matches(theirs, there, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"'columns' says that {ours} is called {theirs!r} in {opened.name}, which has no such column but "
            f"{_listed(there)}.{hint}"
        )


def _objects_in(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for value in row.values():
        with contextlib.suppress(BadRow):
            items = as_list(value, "")
            yield from (item for item in items if isinstance(item, dict)) if isinstance(items, list) else ()


def _recognised(opened: Opened, source: Source, purpose: Kind) -> str:
    good = (raw for raw in named_rows(opened, source) if isinstance(raw.fields, (dict, str)))
    rows = list(itertools.islice(good, LOOKED_AT))
    for raw in rows:
        found = formats_of(raw.fields)
        serving = [form for form in found if form in SERVES[purpose]]
        if len(found) == 1 or len(serving) == 1:
            return (serving or found)[0]
        if len(found) > 1:
            raise DataError(
                f"The rows of {opened.name} (columns {_listed(raw.written.values())}) could be of format "
                f"{' or '.join(found)}; set 'format' to the one you mean."
            )
    if not rows:
        bad = [(raw, _unreadable(raw)) for raw in itertools.islice(named_rows(opened, source), MOST_SET_ASIDE)]
        set_aside = [SetAside(raw.origin, reason.reason, reason.detail) for raw, reason in bad]
        raise nothing_left(opened.name, len(bad), set_aside)
    if purpose == "prompts" and is_asked(rows[0].fields):  # what else the rows have is not wanted
        return "prompt"
    raise DataError(
        f"The format of {opened.name} is not recognised; its first row has the columns {_described(rows[0])}.\n"
        "Say which are ours (columns: {prompt: NAME, chosen: NAME, ...}, or --columns prompt=NAME), or set 'format' to "
        f"one of {', '.join(FORMATS)}; docs/data.md has what each reads."
    )


def _unreadable(raw: RawRow) -> BadRow:
    if isinstance(raw.fields, BadRow):
        return raw.fields
    one_list = "; a file that is one list is called .json" if isinstance(raw.fields, list) else ""
    return BadRow("wrong type", f"the row is {type(raw.fields).__name__}, not a JSON object{one_list}")


def _described(raw: RawRow) -> str:
    """The columns as written, those that hold no text with what they hold."""
    if not isinstance(raw.fields, dict):
        return _listed(raw.written.values())
    kinds = ((theirs, type(raw.fields.get(ours)).__name__) for ours, theirs in list(raw.written.items())[:20])
    return ", ".join(
        extract(theirs) + (f" ({kind})" if kind in ("list", "dict", "int", "float") else "") for theirs, kind in kinds
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(extract(name) for name in list(names)[:20]) or "(none)"


def nothing_left(name: str, read: int, set_aside: list[SetAside]) -> DataError:
    reasons: dict[str, int] = {}
    for item in set_aside:
        reasons[item.reason] = reasons.get(item.reason, 0) + 1
    if not reasons:
        return DataError(f"{name} has no rows.")
    first = set_aside[0]
    most_first = sorted(reasons.items(), key=lambda pair: -pair[1])
    listed = ", ".join(f"{reason} ({count})" for reason, count in most_first)
    example = f"{first.reason}: {first.detail}" if first.detail else first.reason
    return DataError(
        f"Nothing is left of {name}: {read} rows read, all set aside: {listed}. "
        f"The first, row {first.origin.row}: {example}."
    )


def named_rows(opened: Opened, source: Source) -> Iterator[RawRow]:
    """The rows under our names."""
    return (under_our_names(raw, source.columns) for raw in opened.rows())
