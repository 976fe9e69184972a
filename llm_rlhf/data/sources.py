"""Reads the sources a recipe names into typed rows, and accounts for every row.

1. A source is a local .jsonl file (gzipped or not), a folder with data files, or a hub id.
2. Its format is given or recognised; llm_rlhf/data/formats.py turns each row into what is asked for.
3. A row that cannot be used is set aside with its reason and number; a repair is made by a named rule and counted.
"""

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, TypeVar

from llm_rlhf.data.checks import BadRow, DataError, SetAside, extract, normalised_prompt, prompt_of, prompt_share
from llm_rlhf.data.formats import FORMATS, RawRow, formats_of, to_demonstration, to_preference, to_prompt
from llm_rlhf.data.rows import Demonstration, Origin, Preference, Prompt
from llm_rlhf.recipe import Source

BOM_REMOVED = "byte-order mark removed"
BEYOND_LIMIT = "beyond the source's limit"
DUPLICATE_PROMPT = "duplicate prompt"

Row = TypeVar("Row", Preference, Demonstration, Prompt)


@dataclass
class Loaded(Generic[Row]):
    """What came of one or several sources; every row read is kept, set aside or left out."""

    rows: list[Row] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)  # rows that cannot be used
    left_out: Counter[str] = field(default_factory=Counter)  # good rows not needed: over the limit, duplicate prompts
    repaired: Counter[str] = field(default_factory=Counter)  # kept rows, by the rule that repaired them
    read: int = 0

    def counts(self) -> dict[str, Any]:
        """The account as plain values for JSON. `repaired` counts rows that are among the kept."""
        reasons = Counter(item.reason for item in self.set_aside)
        assert self.read == len(self.rows) + reasons.total() + self.left_out.total(), "a row is not accounted for"
        return {
            "read": self.read,
            "kept": len(self.rows),
            "set_aside": dict(sorted(reasons.items())),
            "left_out": dict(sorted(self.left_out.items())),
            "repaired": dict(sorted(self.repaired.items())),
        }

    def add(self, other: "Loaded[Row]") -> None:
        self.rows += other.rows
        self.set_aside += other.set_aside
        self.left_out += other.left_out
        self.repaired += other.repaired
        self.read += other.read


def load_preferences(sources: list[Source]) -> Loaded[Preference]:
    """All pairs of the sources, in their order (formats hh and preference)."""
    loaded: Loaded[Preference] = Loaded()
    for source in sources:
        raws, form = _open(source, "preferences", ("hh", "preference"))
        loaded.add(_convert(raws, source, form, to_preference))
    return loaded


def load_demonstrations(sources: list[Source], preferences: list[Preference]) -> Loaded[Demonstration]:
    """Conversations to imitate. Of preferences, read here or reused (`from: preferences`), the chosen replies serve."""
    loaded: Loaded[Demonstration] = Loaded()
    for source in sources:
        formats = ("messages", "prompt_completion", "hh", "preference")
        raws, form = _open_or_reuse(source, preferences, "demonstrations", formats)
        loaded.add(_convert(raws, source, form, to_demonstration))
    return loaded


def load_prompts(sources: list[Source], preferences: list[Preference]) -> Loaded[Prompt]:
    """Conversations that wait for a reply; any format serves by its prompt. The same prompt is kept once, the first."""
    loaded: Loaded[Prompt] = Loaded()
    seen: set[str] = set()
    for source in sources:
        raws, form = _open_or_reuse(source, preferences, "prompts", tuple(FORMATS))
        of_source = _convert(raws, source, form, to_prompt, seen)
        seen |= {normalised_prompt(row.messages) for row in of_source.rows}
        loaded.add(of_source)
    return loaded


def _open_or_reuse(
    source: Source, preferences: list[Preference], purpose: str, formats: tuple[str, ...]
) -> tuple[list[RawRow], str]:
    if source.from_ == "preferences":
        return [RawRow(row.origin, row) for row in preferences], "preferences"
    return _open(source, purpose, formats)


def _open(source: Source, purpose: str, formats: tuple[str, ...]) -> tuple[list[RawRow], str]:
    """The raw rows of a source and its format, which must be one that can serve the purpose."""
    assert source.source is not None, "the recipe refuses a source without a name"
    if not source.source.strip():
        raise DataError(f"A source of {purpose} has an empty name; give a file, a folder or a hub id.")
    raws = list(_read_rows(source, source.source))
    form = source.format if source.format != "auto" else _recognise(raws, source.source)
    if form not in formats:
        raise DataError(
            f"{source.source} has rows of format '{form}', which cannot serve as {purpose}. "
            f"Formats that can: {', '.join(formats)}."
        )
    return raws, form


def _read_rows(source: Source, name: str) -> Iterator[RawRow]:
    path = Path(name).expanduser()
    looks_like_path = name.startswith((".", "/", "~")) or name.endswith(
        (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".parquet", ".txt")
    )
    if path.is_dir() or not (path.exists() or looks_like_path):
        yield from _read_dataset(source, str(path) if path.is_dir() else name)
        return
    if not path.exists():
        raise DataError(f"There is no file {name}.{_nearest_existing(path)}")
    if not name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError(f"{name} is neither .jsonl nor .jsonl.gz; write one JSON object a line and rename it.")
    for key, default in (("data_dir", None), ("subset", None), ("split", "train")):
        if (value := getattr(source, key)) != default:
            raise DataError(f"{name} is a file, but '{key}' is {value!r}, which is for hub datasets; remove it.")
    yield from _read_jsonl(path, name)


def _nearest_existing(path: Path) -> str:
    """A sentence naming what exists nearest to a missing path."""
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    folder = missing.parent.resolve()
    try:
        near = get_close_matches(missing.name, [p.name for p in folder.iterdir()], n=1, cutoff=0.5)
    except OSError:  # a folder that may be entered but not listed
        near = []
    return f" Did you mean {folder / near[0]}?" if near else f" The nearest folder that exists is {folder}."


def _read_jsonl(path: Path, name: str) -> Iterator[RawRow]:
    """One row a line. Blank lines are skipped, but counted in the row numbers, so these are line numbers."""
    try:
        with path.open("rb") as file:
            start = file.read(24)
        if start.startswith(b"version https://git-lfs"):
            raise DataError(f"{name} is a Git LFS pointer, not the data; run `git lfs pull` in its repository.")
        open_lines = gzip.open if start.startswith(b"\x1f\x8b") else open
        with open_lines(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                raw = RawRow(Origin(name, number), None)
                if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                    line = line[3:]
                    raw.repairs.add(BOM_REMOVED)
                if line.strip():
                    raw.fields = _parse_line(line)
                    yield raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{name} is a damaged gzip file ({error}); fetch it again.") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}.") from None


def _parse_line(line: bytes) -> Any:
    """The JSON object on a line, or the BadRow that says why there is none."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow("invalid UTF-8", f"byte {error.start + 1} of the line is 0x{line[error.start]:02x}")
    except (ValueError, RecursionError) as error:
        return BadRow("malformed JSON", str(error))
    if not isinstance(value, dict):
        return BadRow("wrong type", f"the row is {type(value).__name__}, not a JSON object")
    return value


def _read_dataset(source: Source, name: str) -> Iterator[RawRow]:
    import datasets

    try:
        rows = datasets.load_dataset(name, name=source.subset, data_dir=source.data_dir, split=source.split)
    except Exception as error:
        asked = {"split": source.split, "data_dir": source.data_dir, "subset": source.subset}
        described = ", ".join(f"{key} {value!r}" for key, value in asked.items() if value is not None)
        what = "folder" if Path(name).is_dir() else "hub dataset"
        first_line = (str(error).splitlines() or [""])[0][:300].rstrip(".")
        raise DataError(
            f"The {what} {name!r} ({described}) cannot be loaded: {type(error).__name__}: {first_line}. "
            "Check the name and the split, and that the network is there or the data set is in the local cache; "
            "or download its .jsonl file and name that."
        ) from None
    for number, row in enumerate(rows, 1):
        yield RawRow(Origin(name, number), dict(row))


def _recognise(raws: list[RawRow], name: str) -> str:
    """The format of the first row, of the first hundred, that has the shape of exactly one."""
    objects = [raw.fields for raw in raws if not isinstance(raw.fields, BadRow)][:100]
    known = "; ".join(f"{form}: {what}" for form, what in FORMATS.items())
    for row in objects:
        found = formats_of(row)
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise DataError(
                f"The rows of {name} (columns {_columns(row)}) could be of format {' or '.join(found)}; "
                "set 'format' to the one you mean."
            )
    if not objects:
        bad = [SetAside(raw.origin, raw.fields.reason, raw.fields.detail) for raw in raws]
        raise _nothing_left(name, Loaded(set_aside=bad, read=len(raws)))
    raise DataError(
        f"The format of {name} is not recognised; its first row has the columns {_columns(objects[0])}. "
        f"Known formats: {known}. Rename the columns, or set 'format'."
    )


def _columns(row: dict[str, Any]) -> str:
    return ", ".join(extract(name) for name in list(row)[:20]) or "(none)"


def _convert(
    raws: Iterable[RawRow],
    source: Source,
    form: str,
    convert: Callable[[RawRow, str, str], Row],
    seen: AbstractSet[str] | None = None,
) -> Loaded[Row]:
    """Typed rows of one source. With `seen`, the prompts kept from other sources, a prompt is kept once only."""
    loaded: Loaded[Row] = Loaded()
    good: list[tuple[Row, set[str]]] = []
    known = set(seen or ())
    for raw in raws:
        loaded.read += 1
        try:
            if isinstance(raw.fields, BadRow):
                raise raw.fields
            row = convert(raw, form, source.objective)
        except BadRow as bad:
            loaded.set_aside.append(SetAside(raw.origin, bad.reason, bad.detail))
            continue
        if seen is not None:
            key = normalised_prompt(prompt_of(row))
            if key in known:
                loaded.left_out[DUPLICATE_PROMPT] += 1
                continue
            known.add(key)
        good.append((row, raw.repairs))
    within = _within_limit([row for row, _ in good], source.limit)
    for number, (row, repairs) in enumerate(good):
        if number in within:
            loaded.rows.append(row)
            loaded.repaired.update(repairs)
        else:
            loaded.left_out[BEYOND_LIMIT] += 1
    if not loaded.rows and not loaded.left_out:
        raise _nothing_left(source.source or "data.preferences", loaded)
    return loaded


def _within_limit(rows: list[Row], limit: int | None) -> set[int]:
    """Which rows to keep: those whose prompts have the lowest hashes, so the choice does not depend on their order.

    Rows of one prompt are told apart by a hash of their content. The hash is not the one that splits by prompt;
    otherwise a limited source would lie wholly in the evaluation split.
    """
    if limit is None or len(rows) <= limit:
        return set(range(len(rows)))

    def rank(number: int) -> tuple[float, bytes]:
        row = rows[number]
        content = repr([value for name, value in vars(row).items() if name != "origin"])
        return prompt_share(prompt_of(row), "limit"), hashlib.sha256(content.encode()).digest()

    return set(sorted(range(len(rows)), key=rank)[:limit])


def _nothing_left(name: str, loaded: Loaded[Any]) -> DataError:
    reasons = Counter(item.reason for item in loaded.set_aside).most_common()
    if not reasons:
        return DataError(f"{name} has no rows.")
    first = loaded.set_aside[0]
    listed = ", ".join(f"{reason} ({count})" for reason, count in reasons)
    example = f"{first.reason}: {first.detail}" if first.detail else first.reason
    return DataError(
        f"Nothing is left of {name}: {loaded.read} rows read, all set aside: {listed}. "
        f"The first, row {first.origin.row}: {example}."
    )
