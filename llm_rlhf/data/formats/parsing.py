"""The rows of one opened file or dataset, read under one format: what each became, or why it became nothing.

Every row read is accounted for: an Entry says for how many of them it stands, and the sum is compared with the number
of rows that were read.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from llm_rlhf.data.bounds import MOST_SET_ASIDE
from llm_rlhf.data.checks import BadRow
from llm_rlhf.data.files import Opened
from llm_rlhf.data.formats.columns import prompt_columns, reply_columns
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
    rating_of,
    without_neutral,
    zero_is_neutral,
)
from llm_rlhf.data.formats.naming import under_our_names, unread
from llm_rlhf.data.formats.rankings import ranked_pairs, scored_rows
from llm_rlhf.data.formats.recognition import named_rows
from llm_rlhf.data.formats.trees import Kind, flat_trees, grow, nested_tree
from llm_rlhf.data.rows import Demonstration, Preference, Prompt, Rating, RawRow
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import Source

ONE_OF_BOTH = "the better and the safer reply differ"

AnyRow = Preference | Rating | Demonstration | Prompt


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

    lost: Counter[str] = Counter()
    for entry in _entries(counted(), opened, form, source, kind):
        accounted += entry.rows
        if entry.made is None:
            lost[entry.reason] += entry.rows
            if lost.total() > MOST_SET_ASIDE and lost.total() > 0.9 * accounted:
                reason, count = lost.most_common(1)[0]
                raise DataError(
                    f"{opened.name}: of the first {accounted:,} rows read as '{form}' {lost.total():,} cannot be used, "
                    f"{count:,} as '{reason}'. It is a file of another kind: look at some rows with llm-rlhf data show."
                )
        yield entry
    assert read == accounted, f"{opened.name}: {read} rows read, {accounted} accounted for"
    for name, rows in columns.items():
        yield Entry(0, rows=0, parts=rows, unread=name)


def _entries(raws: Iterator[RawRow], opened: Opened, form: str, source: Source, kind: Kind) -> Iterator[Entry]:
    if form == "feedback" and kind != "prompts":
        if zero_is_neutral((raw.fields for raw in named_rows(opened, source)), opened.name):
            raws = without_neutral(raws)
        if kind == "preferences":
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
        rows = (fields for raw in named_rows(opened, source) for fields in (raw.fields, *raw.more))
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
    if kind == "ratings":
        return [rating_of(raw, source.objective)]
    if kind == "demonstrations" and form in ("messages", "prompt_completion", "instruction"):
        return list(to_demonstrations(raw, form))
    if form == "feedback":
        if not liked_completion(raw):
            raise BadRow(DOWN_VOTED)
        row = row_of(raw)
        said = {"prompt": asked(row, raw.repairs), "completion": completion(row), "stopped": row.get("stopped")}
        named = RawRow(raw.origin, said, raw.repairs)
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
