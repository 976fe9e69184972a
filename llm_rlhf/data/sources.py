"""Reads the sources a recipe names into typed rows, and accounts for every row.

1. A source is a file or several (llm_rlhf/data/files.py), a folder or a hub id; its format is given or recognised.
2. Each file becomes a table of typed rows (parsing.py, storage.py), made once and kept by the datasets library.
3. A row that cannot be used is set aside with its reason and number; a repair is made by a named rule and counted.
4. Good rows that are not wanted (positions to balance, a limit, prompts that stand twice) are left out and counted.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from llm_rlhf.data.checks import BadRow, SetAside, key_of
from llm_rlhf.data.files import open_source
from llm_rlhf.data.formats.conversations import demonstration_of, prompt_of_pair
from llm_rlhf.data.formats.recognition import nothing_left, recognise
from llm_rlhf.data.formats.trees import Kind
from llm_rlhf.data.rows import Demonstration, Origin, Preference, Prompt, Rating
from llm_rlhf.data.storage import Part, Rows, Table, table_of
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import Source

BEYOND_LIMIT = "beyond the source's limit"
DUPLICATE_PROMPT = "duplicate prompt"
UNBALANCED = "left out to balance positions"
NOT_IMITATED = "of a source whose replies are not imitated"

Row = TypeVar("Row", Preference, Rating, Demonstration, Prompt)


@dataclass
class Loaded(Generic[Row]):
    """What came of one or several sources; every row read is in use, set aside or left out.

    A row may hold several (ranked replies, a tree, instances), and two may make one (feedback); `made` counts what came
    of them, and `parts` what of rows in use was not used.
    """

    rows: Rows[Row] = field(default_factory=Rows)
    set_aside: list[SetAside] = field(default_factory=list)  # rows that cannot be used
    left_out: Counter[str] = field(default_factory=Counter)  # made but not wanted: over the limit, duplicate prompts
    repaired: Counter[str] = field(default_factory=Counter)  # kept rows, by the rule that repaired them
    parts: Counter[str] = field(default_factory=Counter)  # replies, messages and pairs of rows in use, by reason
    formats: dict[str, str] = field(default_factory=dict)  # file or dataset: its format
    unread: dict[str, Counter[str]] = field(default_factory=dict)  # file: rows with columns or keys that nothing reads
    read: int = 0
    used: int = 0  # rows read that came to something
    made: int = 0

    def counts(self) -> dict[str, Any]:
        """The account as plain values for JSON. `repaired` counts rows that are among the kept."""
        reasons = Counter(item.reason for item in self.set_aside)
        assert self.read == self.used + reasons.total(), "a row is not accounted for"
        assert self.made == len(self.rows) + self.left_out.total(), "a row that was made is not accounted for"
        unread = {name: dict(columns.most_common()) for name, columns in self.unread.items()}
        return {
            "read": self.read,
            **({"used": self.used, "made": self.made} if self.used != self.made else {}),
            "kept": len(self.rows),
            "set_aside": dict(sorted(reasons.items())),
            **({"parts_set_aside": dict(sorted(self.parts.items()))} if self.parts else {}),
            "left_out": dict(sorted(self.left_out.items())),
            "repaired": dict(sorted(self.repaired.items())),
            **({"unread": unread} if unread else {}),
        }

    def add(self, other: "Loaded[Row]") -> None:
        self.rows += other.rows
        self.set_aside += other.set_aside
        for name in ("left_out", "repaired", "parts", "formats", "unread"):
            getattr(self, name).update(getattr(other, name))
        self.read += other.read
        self.used += other.used
        self.made += other.made

    def leave_out(self, kept: np.ndarray, reason: str) -> None:
        """Keep the rows where the mask is true."""
        if not kept.all():
            self.left_out[reason] += int((~kept).sum())
            self.rows = self.rows.select(kept)


def load_preferences(sources: list[Source]) -> Loaded[Preference]:
    """All pairs of the sources, in their order."""
    loaded: Loaded[Preference] = Loaded()
    for source in sources:
        loaded.add(_wanted(_load(source, "preferences"), source))
    return loaded


def load_ratings(sources: list[Source]) -> Loaded[Rating]:
    """All rated replies of the sources, in their order."""
    loaded: Loaded[Rating] = Loaded()
    for source in sources:
        loaded.add(_wanted(_load(source, "ratings"), source))
    return loaded


def load_demonstrations(sources: list[Source], preferences: Rows[Preference]) -> Loaded[Demonstration]:
    """Conversations to imitate. Of preferences, read here or reused (`from: preferences`), the chosen replies serve."""
    loaded: Loaded[Demonstration] = Loaded()
    for source in sources:
        reused = source.from_ == "preferences"
        of_source = _reuse(preferences, demonstration_of, source) if reused else _load(source, "demonstrations")
        loaded.add(_wanted(of_source, source))
    return loaded


def load_prompts(sources: list[Source], preferences: Rows[Preference]) -> Loaded[Prompt]:
    """Conversations that wait for a reply; any format serves by its prompt. The same prompt is kept once, the first."""
    loaded: Loaded[Prompt] = Loaded()
    for source in sources:
        reused = source.from_ == "preferences"
        of_source = _reuse(preferences, prompt_of_pair, source) if reused else _load(source, "prompts")
        keys = of_source.rows.column("prompt")
        first = np.zeros(len(keys), bool)
        first[np.unique(keys, return_index=True)[1]] = True
        of_source.leave_out(first & ~np.isin(keys, loaded.rows.column("prompt")), DUPLICATE_PROMPT)
        loaded.add(_wanted(of_source, source))
    return loaded


def _load(source: Source, kind: Kind) -> Loaded[Any]:
    """All good rows of a source, and the account of its files."""
    loaded: Loaded[Any] = Loaded()
    for opened in open_source(source, kind):
        form = recognise(opened, source, kind)
        loaded.formats[opened.name] = form
        _account(loaded, table_of(opened, form, source, kind), source)
    if not loaded.made:
        assert source.source is not None
        raise nothing_left(source.source, loaded.read, loaded.set_aside)
    return loaded


def _account(loaded: Loaded[Any], table: Table, source: Source) -> None:
    is_row, rows, parts = (table.column(name) for name in ("is_row", "rows", "parts"))
    loaded.rows += Rows([Part(table, np.flatnonzero(is_row), source)])
    loaded.read += int(rows.sum())
    loaded.used += int(rows[is_row].sum())
    loaded.made += int(is_row.sum())
    others = np.flatnonzero(~is_row)
    described = table.lines(["number", "reason", "detail", "unread"], others)
    for line, number, reason, detail, unread in zip(others, *(described[name] for name in described), strict=True):
        if unread:
            loaded.unread.setdefault(table.name, Counter())[unread] += int(parts[line])
        elif parts[line]:
            loaded.parts[reason] += int(parts[line])
        else:
            loaded.set_aside.append(SetAside(Origin(table.name, number), reason, detail))


def _reuse(preferences: Rows[Preference], convert: Callable[[Preference], Any], source: Source) -> Loaded[Any]:
    """The preference rows as others; those that cannot serve are set aside."""
    loaded: Loaded[Any] = Loaded(rows=preferences.seen_as(convert, source), read=len(preferences))
    imitated = np.ones(len(preferences), bool)
    if convert is demonstration_of and preferences:
        imitated = np.concatenate(
            [np.full(len(part.lines), part.source.imitate is not False) for part in preferences.parts]
        )
        imitable = preferences.column("imitable").astype(bool)
        for pair in preferences.select(~imitable):
            try:
                demonstration_of(pair)
            except BadRow as bad:
                loaded.set_aside.append(SetAside(pair.origin, bad.reason, bad.detail))
        loaded.rows, imitated = loaded.rows.select(imitable), imitated[imitable]
    loaded.used = loaded.made = len(loaded.rows)
    if not loaded.made:
        raise nothing_left("data.preferences", loaded.read, loaded.set_aside)
    if not imitated.any():
        raise DataError(
            "No pair of data.preferences is one to imitate (imitate: false; nor are people's comparisons of a policy's "
            "own replies); name data.demonstrations, or leave out what takes them: sft, ppo.ptx_coef."
        )
    loaded.leave_out(imitated, NOT_IMITATED)
    return loaded


def _wanted(loaded: Loaded[Row], source: Source) -> Loaded[Row]:
    """Leaves out what the source's keys do not want, and counts the repairs of what stays."""
    if source.balance_positions:
        loaded.leave_out(_balanced(loaded.rows, source), UNBALANCED)
    if source.limit is not None and len(loaded.rows) > source.limit:
        loaded.leave_out(_within(loaded.rows, source.limit), BEYOND_LIMIT)
    if source.from_ is None:
        for part in loaded.rows.parts:
            for repairs, count in Counter(part.table.column("repairs")[part.lines]).items():
                loaded.repaired.update(dict.fromkeys(repairs.split("\n") if repairs else [], count))
    return loaded


def _within(rows: Rows[Any], limit: int) -> np.ndarray:
    """Which rows to keep: those whose prompts have the lowest keys, so the choice does not depend on their order.

    Rows of one prompt are told apart by a hash of their content. The key is not the one that splits by prompt;
    otherwise a limited source would lie wholly in the evaluation split.
    """
    kept = np.zeros(len(rows), bool)
    kept[np.lexsort((rows.column("content"), rows.column("prompt")))[:limit]] = True
    return kept


def _balanced(rows: Rows[Any], source: Source) -> np.ndarray:
    """As many rows of each position of the better reply as the rarest has, those with the lowest hashes."""
    positions = rows.column("position")
    present = sorted(set(positions.tolist()))
    if len(present) < 2 or 0 in present:
        raise DataError(
            f"'balance_positions' is true for {source.source}, but its better replies do not stand in different "
            "places; remove the key."
        )
    share = int(min((positions == position).sum() for position in present))
    order = np.argsort(shares(rows, "balance"), kind="stable")
    kept = np.zeros(len(rows), bool)
    for position in present:
        kept[order[positions[order] == position][:share]] = True
    return kept


def shares(rows: Rows[Any], purpose: str) -> np.ndarray:
    """A number in [0, 1) for every row, by its content; independent between purposes."""
    return np.array([key_of(str(key), purpose) / 2**64 for key in rows.column("content").tolist()])
