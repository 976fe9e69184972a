"""The rows of one opened file or dataset, read under one format: what each became, or why it became nothing.

Every row read is accounted for: an Entry says for how many of them it stands, and the sum is compared with the number
of rows that were read.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from llm_rlhf.data.cells import as_list
from llm_rlhf.data.checks import BadRow, SetAside, extract
from llm_rlhf.data.files import Opened
from llm_rlhf.data.formats.columns import FORMATS, formats_of, is_asked, prompt_columns, reply_columns
from llm_rlhf.data.formats.conversations import (
    DOWN_VOTED,
    asked,
    demonstration_of,
    prompt_of_pair,
    row_of,
    to_demonstrations,
    to_preference,
    to_prompts,
)
from llm_rlhf.data.formats.labelled_replies import (
    Scale,
    compared_pair,
    completion,
    find_scale,
    liked_completion,
    opposed_pairs,
)
from llm_rlhf.data.formats.naming import under_our_names, unread
from llm_rlhf.data.formats.rankings import ranked_pairs, scored_rows
from llm_rlhf.data.formats.trees import Kind, flat_trees, grow, nested_tree
from llm_rlhf.data.rows import Demonstration, Preference, Prompt, RawRow
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import Source

PAIRS = ("hh", "preference", "comparison", "ranked", "scored", "feedback", "tree")
# The formats that can serve each purpose.
SERVES = {
    "preferences": PAIRS,
    "demonstrations": ("messages", "prompt_completion", "instruction", *PAIRS),
    "prompts": tuple(FORMATS),
}
LOOKED_AT = 100  # rows from which a format is told
ONE_OF_BOTH = "the better and the safer reply differ"

AnyRow = Preference | Demonstration | Prompt


@dataclass(frozen=True)
class Entry:
    """A row made, a row set aside (`reason`), or parts of a row in use that were not used (`rows` is 0)."""

    number: int  # of the row it came from
    made: AnyRow | None = None
    reason: str = ""
    detail: str = ""
    rows: int = 1  # how many of the rows read it accounts for
    parts: int = 0
    repairs: frozenset[str] = field(default_factory=frozenset)
    unread: str = ""  # else a column, or a key in one, that nothing reads, and `parts` says in how many rows it stands


def recognise(opened: Opened, source: Source, purpose: Kind) -> str:
    """The format named in the recipe, or that of the first row, of the first hundred, that has the shape of one.

    Raises:
        DataError: where no format fits, or more than one, or it cannot serve the purpose.
    """
    _check_columns(opened, source)
    form = source.format if source.format != "auto" else _recognised(opened, source, purpose)
    if form not in SERVES[purpose]:
        raise DataError(
            f"{opened.name} has rows of format '{form}', which cannot serve as {purpose}. "
            f"Formats that can: {', '.join(SERVES[purpose])}."
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
    good = (raw for raw in _named(opened, source) if isinstance(raw.fields, (dict, str)))
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
        bad = [(raw, _unreadable(raw)) for raw in _named(opened, source)]
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


def _named(opened: Opened, source: Source) -> Iterator[RawRow]:
    """The rows under our names."""
    return (under_our_names(raw, source.columns) for raw in opened.rows())


def parse(opened: Opened, form: str, source: Source, kind: Kind) -> Iterator[Entry]:
    """What the rows became, in their order (of feedback and trees, in that of the prompts), and what nothing reads."""
    read = accounted = 0
    columns: Counter[str] = Counter()

    def counted() -> Iterator[RawRow]:
        nonlocal read
        for raw in opened.rows():
            read += 1
            written = raw.fields
            under_our_names(raw, source.columns)
            if isinstance(written, dict):
                columns.update(unread(raw, written, form))
            yield raw

    for entry in _entries(counted(), opened, form, source, kind):
        accounted += entry.rows
        yield entry
    assert read == accounted, f"{opened.name}: {read} rows read, {accounted} accounted for"
    for name, rows in columns.items():
        yield Entry(0, rows=0, parts=rows, unread=name)


def _entries(raws: Iterator[RawRow], opened: Opened, form: str, source: Source, kind: Kind) -> Iterator[Entry]:
    if form == "feedback" and kind == "preferences":
        yield from _feedback(raws, source)
        return
    if form == "scored" and kind != "prompts":
        yield from _scored(raws, source, kind)
        return
    if form == "tree":
        first = next(raws, None)
        if first is None:
            return
        raws = itertools.chain([first], raws)
        if not _is_nested(first.fields):
            yield from _flat_trees(raws, source, kind)
            return
    scale = None
    if form == "comparison" and kind != "prompts":
        rows = (fields for raw in _named(opened, source) for fields in (raw.fields, *raw.more))
        scale = find_scale(rows, source.labels, opened.name)
    yield from _row_by_row(raws, lambda raw: _all_made(raw, form, source, kind, scale))


def _row_by_row(raws: Iterable[RawRow], make: Callable[[RawRow], list[Any]]) -> Iterator[Entry]:
    for raw in raws:
        try:
            if isinstance(raw.fields, BadRow):
                raise raw.fields
            made = make(raw)
        except BadRow as bad:
            yield Entry(raw.origin.row, None, bad.reason, bad.detail)
            continue
        for i, row in enumerate(made):
            yield Entry(raw.origin.row, row, rows=int(i == 0), repairs=frozenset(raw.repairs))
        for reason, count in raw.parts.items():
            if count:
                yield Entry(raw.origin.row, None, reason, rows=0, parts=count)


def _all_made(raw: RawRow, form: str, source: Source, kind: Kind, scale: Scale | None) -> list[Any]:
    """What a row becomes that may hold several; those of them that become nothing are parts not used."""
    if not raw.more or kind == "prompts":  # the others ask the same
        return _made(raw, form, source, kind, scale)
    made: list[Any] = []
    bad: list[BadRow] = []
    for fields in (raw.fields, *raw.more):
        try:
            made += _made(replace(raw, fields=fields), form, source, kind, scale)
        except BadRow as one:
            bad.append(one)
    if not made:
        raise bad[0]
    if kind == "demonstrations" and form == "comparison":  # one pair, judged for two objectives
        if bad or any(one.messages != made[0].messages for one in made):
            raise BadRow(ONE_OF_BOTH)
        return made[:1]
    raw.parts.update(one.reason for one in bad)
    return made


def _made(raw: RawRow, form: str, source: Source, kind: Kind, scale: Scale | None) -> list[Any]:
    """What one row becomes: one row mostly, several where it holds several; BadRow where it becomes nothing."""
    if form == "tree":
        return _of_nested_tree(raw, source, kind)
    if kind == "prompts":
        return _prompts(raw, form, source)
    if kind == "demonstrations" and form in ("messages", "prompt_completion", "instruction"):
        return list(to_demonstrations(raw, form))
    if form == "feedback":
        if not liked_completion(raw):
            raise BadRow(DOWN_VOTED)
        row = row_of(raw)
        named = RawRow(raw.origin, {"prompt": asked(row, raw.repairs), "completion": completion(row)}, raw.repairs)
        return list(to_demonstrations(named, "prompt_completion"))
    if form == "comparison":
        assert scale is not None
        pairs = [compared_pair(raw, scale, source.objective)]
    elif form == "ranked":
        pairs = ranked_pairs(raw, source.objective, source.pairs if kind == "preferences" else "best_worst")
    else:
        pairs = [to_preference(raw, form, source.objective)]
    return pairs if kind == "preferences" else [demonstration_of(pair) for pair in pairs]


def _prompts(raw: RawRow, form: str, source: Source) -> list[Any]:
    if form in ("hh", "preference"):
        return [prompt_of_pair(to_preference(raw, form, source.objective))]
    if form == "comparison":
        row = row_of(raw)
        columns = reply_columns(row)
        if columns and not prompt_columns(row):  # two whole conversations
            raw = RawRow(raw.origin, {"messages": row[columns[0][0]]}, raw.repairs)
            return list(to_prompts(raw, "messages", source.objective))
    return list(to_prompts(raw, form, source.objective))


def _feedback(raws: Iterator[RawRow], source: Source) -> Iterator[Entry]:
    for raw, other, pair in opposed_pairs(raws, source.objective):
        if isinstance(pair, BadRow):
            yield Entry(raw.origin.row, None, pair.reason, pair.detail)
        else:
            assert other is not None
            yield Entry(raw.origin.row, pair, rows=2, repairs=frozenset(raw.repairs | other.repairs))


def _scored(raws: Iterator[RawRow], source: Source, kind: Kind) -> Iterator[Entry]:
    known: set[int] = set()
    for rows, made in scored_rows(raws, source.objective, source.pairs, best_alone=kind == "demonstrations"):
        if isinstance(made, BadRow):
            yield Entry(rows[0].origin.row, None, made.reason, made.detail)
            continue
        new = {raw.origin.row for raw in rows} - known
        known |= new
        repairs = frozenset(repair for raw in rows for repair in raw.repairs)
        yield Entry(made.origin.row, made, rows=len(new), repairs=repairs)


def _is_nested(fields: Any) -> bool:
    return isinstance(fields, dict) and (isinstance(fields.get("prompt"), dict) or fields.get("replies") is not None)


def _of_nested_tree(raw: RawRow, source: Source, kind: Kind) -> list[Any]:
    grown = grow(nested_tree(raw), kind, source.objective, source.pairs, raw.repairs)
    if not grown.rows:
        raise grown.reason()
    raw.parts.update(bad.reason for _, bad in grown.unused)
    return [row for row, _ in grown.rows]


def _flat_trees(raws: Iterator[RawRow], source: Source, kind: Kind) -> Iterator[Entry]:
    for root in flat_trees(raws):
        if isinstance(root, tuple):
            yield Entry(root[0].origin.row, None, root[1].reason, root[1].detail)
            continue
        repairs: set[str] = set()
        grown = grow(root, kind, source.objective, source.pairs, repairs)
        known: set[int] = set()
        for row, nodes in grown.rows:
            new = {node.raw.origin.row for node in nodes} - known
            known |= new
            yield Entry(row.origin.row, row, rows=len(new), repairs=frozenset(repairs))
        for node, bad in grown.unused:
            yield Entry(node.raw.origin.row, None, bad.reason, bad.detail)
