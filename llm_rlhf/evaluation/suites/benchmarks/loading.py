"""Reads the rows of a public suite, from a file or the hub, and accounts for each."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from llm_rlhf.data.checks import BadRow, SetAside, normalised_prompt, prompt_share
from llm_rlhf.data.files import open_source
from llm_rlhf.data.formats.recognition import nothing_left
from llm_rlhf.data.rows import Conversation, Prompt, RawRow
from llm_rlhf.data.sources import BEYOND_LIMIT, DUPLICATE_PROMPT
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.evaluation.suites.benchmarks.registry import BENCHMARKS, Known
from llm_rlhf.evaluation.suites.benchmarks.rows import Choices
from llm_rlhf.recipe.sections import Benchmark, Source
from llm_rlhf.recipe.values import lay_over, nearest, read_section

_NAME = re.compile(r"[\w.-]+")
_KEY = re.compile(r"[a-z_]+(?:\.\w+)?=")
DUPLICATE_ROW = "duplicate row"


@dataclass
class LoadedBenchmark:
    """Rows of one suite; every row read is among them, set aside or left out."""

    rows: list[Any] = field(default_factory=list)  # of Prompt or of Choices
    set_aside: list[SetAside] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    read: int = 0

    def counts(self) -> dict[str, Any]:
        reasons = Counter(item.reason for item in self.set_aside)
        assert self.read == len(self.rows) + reasons.total() + self.left_out.total(), "a row is not accounted for"
        return {"read": self.read, "kept": len(self.rows), "set_aside": dict(sorted(reasons.items())),
                "left_out": dict(sorted(self.left_out.items()))}  # fmt: skip


def benchmark_of(text: str) -> Benchmark:
    """The suite that `NAME=SOURCE` names on the command line, perhaps with `,KEY=VALUE` after it for the other keys."""
    name, _, rest = text.partition("=")
    pieces = rest.split(",")
    more: list[str] = []
    while len(pieces) > 1 and _KEY.match(pieces[-1]) and pieces[:-1] != [""]:  # a source may hold commas, too
        more.append(pieces.pop())
    if not _NAME.fullmatch(name) or not rest:
        raise RecipeError(
            f"--benchmarks {text!r} is not of the form NAME=SOURCE, such as xstest=xstest_prompts.csv; more keys "
            "follow as or_bench=bench-llm/or-bench,subset=or-bench-hard-1k,limit=300 or ,columns.prompt=text."
        )
    tree: dict[str, Any] = {"name": name, "source": ",".join(pieces)}
    for override in reversed(more):
        lay_over(tree, override)
    asked: Benchmark = read_section(Benchmark, tree, "--benchmarks.")
    return asked


def check_benchmarks(asked: Iterable[Benchmark], key: str) -> None:
    """RecipeError where a suite is not known, stands twice or names columns it does not have."""
    names: list[str] = []
    for benchmark in asked:
        if benchmark.name not in BENCHMARKS:
            raise RecipeError(
                f"{key} has {benchmark.name!r}, no known suite.{nearest(benchmark.name, list(BENCHMARKS))}"
            )
        if benchmark.name in names:
            raise RecipeError(f"{key} has {benchmark.name!r} twice; leave one out, or evaluate twice.")
        names.append(benchmark.name)
        known = BENCHMARKS[benchmark.name]
        ours = [*known.columns, *known.optional]
        for column in benchmark.columns:
            if column not in ours:
                raise RecipeError(
                    f"{key}, {benchmark.name}: 'columns' has {column!r}, which is none of its columns: "
                    f"{', '.join(ours)}."
                )


def load_benchmark(asked: Benchmark, key: str) -> LoadedBenchmark:
    """The rows of a known suite, each once; `limit` of them by a hash of the prompt.

    Raises:
        DataError: where the source cannot be read, lacks a column, or nothing is left of it.
    """
    known, loaded = BENCHMARKS[asked.name], LoadedBenchmark()
    source = Source(source=asked.source, split=asked.split, data_dir=asked.data_dir, subset=asked.subset)
    raws = [raw for opened in open_source(source, asked.name) for raw in opened.rows()]
    columns = _columns(known, asked, raws, key)
    seen: set[str] = set()
    for raw in raws:
        loaded.read += 1
        try:
            row = known.read(_under_our_names(raw, columns), raw.origin)
        except BadRow as bad:
            loaded.set_aside.append(SetAside(raw.origin, bad.reason, bad.detail))
            continue
        if (content := _content(row)) in seen:
            loaded.left_out[DUPLICATE_PROMPT if isinstance(row, Prompt) else DUPLICATE_ROW] += 1
            continue
        seen.add(content)
        loaded.rows.append(row)
    if not loaded.rows:
        raise nothing_left(asked.source, loaded.read, loaded.set_aside)
    if asked.limit is not None and len(loaded.rows) > asked.limit:
        loaded.left_out[BEYOND_LIMIT] += len(loaded.rows) - asked.limit
        order = sorted(range(len(loaded.rows)), key=lambda i: (prompt_share(prompt_of(loaded.rows[i]), "suite"), i))
        loaded.rows = [loaded.rows[i] for i in sorted(order[: asked.limit])]
    return loaded


def prompt_of(row: Prompt | Choices) -> Conversation:
    return row.messages if isinstance(row, Prompt) else row.prompt


def _content(row: Prompt | Choices) -> str:
    """What two rows that ask the same have in common."""
    asked = normalised_prompt(prompt_of(row))
    return asked if isinstance(row, Prompt) else f"{asked}\n{row.replies!r}\n{row.right!r}\n{row.facts!r}"


def _columns(known: Known, asked: Benchmark, raws: list[RawRow], key: str) -> dict[str, str]:
    """The file's name of each of our columns that it has."""
    there = dict.fromkeys(name for raw in raws if isinstance(raw.fields, dict) for name in raw.fields)
    found = {}
    for ours, spellings in {**known.columns, **known.optional}.items():
        wanted = (asked.columns[ours],) if ours in asked.columns else spellings
        theirs = next((name for name in wanted if name in there), None)
        if theirs is not None:
            found[ours] = theirs
        elif there and (ours in known.columns or ours in asked.columns):
            raise DataError(
                f"{key}, {asked.name}: {asked.source} has no column {' or '.join(map(repr, wanted))}; it has "
                f"{', '.join(map(str, there))}. Say which one it is: columns.{ours}."
            )
    return found


def _under_our_names(raw: RawRow, columns: dict[str, str]) -> dict[str, Any]:
    if isinstance(raw.fields, BadRow):
        raise raw.fields
    if not isinstance(raw.fields, dict):
        raise BadRow("wrong type", f"the row is {type(raw.fields).__name__}, not a JSON object")
    return {ours: raw.fields.get(theirs) for ours, theirs in columns.items()}
