"""Pairs of replies to compare: BIG-bench tasks of two choices, and any preference pairs.

A BIG-bench task is a file with {"examples": [{"input": TEXT, "target_scores": {REPLY: SCORE, REPLY: SCORE}}]}; the
same as a row of a data set is {"input": TEXT, "targets": {"choices": [REPLY, REPLY], "labels": [1, 0]}}. The input is a
transcript ("\\n\\nHuman: ...\\n\\nAssistant:") or the one thing a person said.
"""

import codecs
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_rlhf.data.bounds import LONGEST_ROW, unpacked
from llm_rlhf.data.checks import BadRow, SetAside, check_prompt, check_text, extract, prompt_share
from llm_rlhf.data.files import GZIP, open_source
from llm_rlhf.data.formats.columns import is_transcript
from llm_rlhf.data.formats.naming import under_our_names
from llm_rlhf.data.formats.recognition import nothing_left
from llm_rlhf.data.formats.transcripts import parse_transcript
from llm_rlhf.data.rows import Conversation, Origin, Preference, RawRow
from llm_rlhf.data.sources import load_preferences
from llm_rlhf.errors import DataError
from llm_rlhf.json_lines import parse_json
from llm_rlhf.recipe.sections import Source, expanded, local_files

OBJECTIVES = ("helpful", "harmless", "honest", "other")
_NAMED = re.compile(rf"(?:^|[^a-z])({'|'.join(OBJECTIVES)})(?:[^a-z]|$)")


@dataclass
class Comparisons:
    """Pairs, and the account of the rows they came from."""

    pairs: list[Preference] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    read: int = 0
    left_out: int = 0  # beyond the limits of their sources

    def counts(self) -> dict[str, Any]:
        reasons = Counter(item.reason for item in self.set_aside)
        return {"read": self.read, "pairs": len(self.pairs), "set_aside": dict(sorted(reasons.items())),
                "left_out": self.left_out}  # fmt: skip


def load_comparisons(sources: Iterable[Source]) -> Comparisons:
    """The pairs of all sources in their order: tasks of BIG-bench, by file or by folder, or preferences of any format.

    Raises:
        DataError: where a source cannot be read, or no pair is left of it.
    """
    found = Comparisons()
    for source in sources:
        raws = _task_rows(source)
        of_source = _preferences(source) if raws is None else _choices(raws, source)
        found.pairs += of_source.pairs
        found.set_aside += of_source.set_aside
        found.read += of_source.read
        found.left_out += of_source.left_out
    return found


def _preferences(source: Source) -> Comparisons:
    loaded = load_preferences([source])
    return Comparisons(list(loaded.rows), loaded.set_aside, loaded.read, loaded.left_out.total())


def _choices(raws: Iterable[RawRow], source: Source) -> Comparisons:
    found = Comparisons()
    for raw in raws:
        found.read += 1
        try:
            found.pairs.append(_pair(raw, source))
        except BadRow as bad:
            found.set_aside.append(SetAside(raw.origin, bad.reason, bad.detail))
    if not found.pairs:
        raise nothing_left(str(source.source), found.read, found.set_aside)
    if source.limit is not None and len(found.pairs) > source.limit:
        order = sorted(range(len(found.pairs)), key=lambda i: (prompt_share(found.pairs[i].prompt), i))
        found.left_out = len(found.pairs) - source.limit
        found.pairs = [found.pairs[i] for i in sorted(order[: source.limit])]
    return found


def _task_rows(source: Source) -> list[RawRow] | None:
    """The examples of BIG-bench tasks, or None where the source is of another format."""
    assert source.source is not None
    path = expanded(source.source)
    files = sorted(path.rglob("task.json")) if path.is_dir() else local_files(source.source)
    tasks = [(file, _task(file)) for file in files if file.name.endswith((".json", ".json.gz"))]
    if tasks and all(task is not None for _, task in tasks) and len(tasks) == len(files):
        return [raw for file, task in tasks if task is not None for raw in _examples(file, task)]
    if path.is_dir() and not files:
        return None
    raws: list[RawRow] = []
    for opened in open_source(source, "comparisons"):
        rows = [under_our_names(raw, source.columns) for raw in opened.rows()]
        first = next((raw.fields for raw in rows if isinstance(raw.fields, dict)), {})
        if not ("input" in first and ("target_scores" in first or "targets" in first)):
            return None
        raws += rows
    return raws


def _task(file: Path) -> dict[str, Any] | None:
    """A file's one object where that is a task; None where it holds anything else."""
    with file.open("rb") as opened:
        packed = opened.read(len(GZIP)) == GZIP
    try:
        with unpacked(file, str(file)) if packed else file.open("rb") as opened:
            first = opened.readline(LONGEST_ROW)
            if first.removeprefix(codecs.BOM_UTF8).lstrip()[:1] not in (b"{", b""):  # a list, say
                return None
            try:
                found = parse_json(first)  # one line; or the first of many rows, which is no task
            except ValueError:
                opened.seek(0)
                found = parse_json(opened.read())
    except DataError:
        raise
    except (ValueError, OSError, EOFError, zlib.error):
        return None
    return found if isinstance(found, dict) and "examples" in found else None


def _examples(file: Path, task: dict[str, Any]) -> Iterator[RawRow]:
    if not isinstance(task["examples"], list):
        raise DataError(f"{file} is a task of BIG-bench whose 'examples' is no list; fetch it again.")
    about = _objective(f"{task.get('name', '')} {file.parent.name}")
    for number, example in enumerate(task["examples"], 1):
        fields = {"objective": about, **example} if about and isinstance(example, dict) else example
        yield RawRow(Origin(str(file), number), fields)


def _objective(name: str | None) -> str | None:
    """The objective that a task, its folder or a data set's subset is named after."""
    found = _NAMED.search((name or "").lower())
    return found[1] if found else None


def _pair(raw: RawRow, source: Source) -> Preference:
    if isinstance(raw.fields, BadRow):
        raise raw.fields
    if not isinstance(raw.fields, dict):
        raise BadRow("wrong type", f"the row is {type(raw.fields).__name__}, not a JSON object")
    chosen, rejected = _better_first(_scored(raw.fields))
    objective = raw.fields.get("objective") or (_objective(source.subset) or source.objective)
    if objective not in (*OBJECTIVES, "overall"):
        raise BadRow("unknown objective", extract(objective))
    prompt = check_prompt(_prompt(check_text(raw.fields.get("input"), "input")), raw.repairs)
    return Preference(prompt, chosen, rejected, str(objective), raw.origin)


def _scored(row: dict[str, Any]) -> list[tuple[Any, Any]]:
    scores = row.get("target_scores")
    if isinstance(scores, dict):
        return [(reply, score) for reply, score in scores.items() if score is not None]
    targets = row.get("targets")
    if isinstance(targets, dict) and all(isinstance(targets.get(k), list) for k in ("choices", "labels")):
        if len(targets["choices"]) == len(targets["labels"]):
            return list(zip(targets["choices"], targets["labels"], strict=True))
        raise BadRow("wrong number of labels", extract(targets["labels"]))
    raise BadRow("missing field", "target_scores, or targets with choices and labels")


def _better_first(scored: list[tuple[Any, Any]]) -> tuple[str, str]:
    if len(scored) != 2:
        raise BadRow("not two choices", str(len(scored)))
    replies = [check_text(reply, "a choice").strip() for reply, _ in scored]
    if not all(replies):
        raise BadRow("empty reply", extract(scored))
    if replies[0] == replies[1]:
        raise BadRow("chosen equals rejected", extract(replies[0]))
    first, second = (score for _, score in scored)
    if not all(isinstance(score, (int, float)) for score in (first, second)):
        raise BadRow("wrong type", f"scores {extract([first, second])}")
    if first == second:
        raise BadRow("tie", f"both choices score {first}")
    return (replies[0], replies[1]) if first > second else (replies[1], replies[0])


def _prompt(text: str) -> Conversation:
    """The turns of an input, without the assistant's turn that is left open at its end."""
    turns = parse_transcript(text if is_transcript(text) else f"Human: {text}")
    return turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns
