"""The commands `llm-rlhf data check` and `llm-rlhf data show`."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_rlhf.cli.completion import recipes
from llm_rlhf.cli.exits import said_aside, told_in_one_message
from llm_rlhf.cli.next_steps import after_check, after_show, tell
from llm_rlhf.cli.options import columns_of

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Read, check and print data before training.")

Sources = Annotated[list[str] | None, typer.Argument(help="files, globs, folders or hub ids")]
Format = Annotated[str, typer.Option("--format", help="as in a recipe; auto: told by the columns")]
Objective = Annotated[str, typer.Option("--objective", help="helpful, harmless or overall")]
Split = Annotated[str, typer.Option("--split", help="of a hub dataset or folder")]
Subset = Annotated[str | None, typer.Option("--subset", help="of a hub dataset")]
DataDir = Annotated[str | None, typer.Option("--data-dir", help="of a hub dataset")]
Columns = Annotated[
    list[str] | None, typer.Option("--columns", metavar="OURS=THEIRS", help="prompt=goal: columns of other names")
]
Kind = Annotated[
    str | None, typer.Option("--as", help="preferences, demonstrations, prompts or ratings; else as the rows allow")
]
RecipePath = Annotated[
    str | None,
    typer.Option("--recipe", help="YAML file: its data section, limits and template", autocompletion=recipes),
]
Model = Annotated[str | None, typer.Option("--model", help="hub id or folder: its tokenizer, template and context")]


@data_app.command(short_help="Count what is in data: rows, lengths, repeats, leaks.")
def check(
    sources: Sources = None,
    recipe: RecipePath = None,
    model: Model = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=8, help="tokens; else the model's limit")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option("--against", metavar="SOURCE", help="evaluation data that must share no prompt")
    ] = None,
    serve_as: Kind = None,
    format: Format = "auto",
    columns: Columns = None,
    objective: Objective = "overall",
    split: Split = "train",
    subset: Subset = None,
    data_dir: DataDir = None,
    near: Annotated[float, typer.Option("--near", min=0, max=1, help="similarity of near-duplicates; 0: none")] = 0.8,
    sample: Annotated[int, typer.Option("--sample", min=0, help="rows whose tokens are counted; 0: all")] = 2000,
    output: Annotated[str | None, typer.Option("--output", help="folder for check.json and quarantine.jsonl")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Count what is in a source: rows kept and set aside, lengths, repeats, imbalances, personal data, leaks.

    Example: llm-rlhf data check pairs.jsonl --model Qwen/Qwen2.5-0.5B --against test.jsonl

    A recipe as its run will read it: llm-rlhf data check --recipe recipes/hh.yaml

    Exit code 1 where a run would stop: nothing left, or prompts of --against among the rows to train on.
    """

    _one_of_both(sources, recipe)
    if recipe and (against or model):
        raise typer.BadParameter(
            "--recipe names its model and its evaluation data itself; leave --model and --against."
        )
    with told_in_one_message(), _Reading(sources or []):
        from llm_rlhf.audit.check import Tokens, check_recipe, check_sources
        from llm_rlhf.audit.readable import readable
        from llm_rlhf.audit.text import findings, render
        from llm_rlhf.recipe.loading import load_recipe
        from llm_rlhf.recipe.sections import ModelSection

        with said_aside(as_json):
            if recipe:
                loaded = load_recipe(recipe)
                with _collected(loaded) as collected, readable(loaded, collected) as read:
                    found = check_recipe(read, near or None, sample)
            else:
                options = {"split": split, "subset": subset, "data_dir": data_dir}
                named = [_source(name, format, objective, options, columns) for name in sources or []]
                others = [_source(name, "auto", objective, {}) for name in against or []]
                tokens = Tokens(ModelSection(base=model), sample, max_length) if model else None
                found = check_sources(named, others, serve_as, near or None, tokens)
            notable = findings(found)
        report = found.as_dict() | {"findings": [finding._asdict() for finding in notable]}
        quarantine = _write(report, found, Path(output)) if output else None
        print(json.dumps(report) if as_json else render(found, quarantine))
        stops = any(finding.stops for finding in notable)
        given = _given(format, split, subset, data_dir, model, columns)
        tell(after_check(sources or [], given, recipe, stops), as_json)
        if stops:
            raise typer.Exit(1)


@data_app.command(short_help="Print rows as the model will see them.")
def show(
    sources: Sources = None,
    rows: Annotated[str, typer.Option("--rows", "--row", help="numbers in the source: 7, 1-5 or 2,4,9-12")] = "1-3",
    recipe: RecipePath = None,
    model: Model = None,
    stage: Annotated[str | None, typer.Option("--stage", help="sft, reward or ppo; else as the rows allow")] = None,
    format: Format = "auto",
    columns: Columns = None,
    objective: Objective = "overall",
    split: Split = "train",
    subset: Subset = None,
    data_dir: DataDir = None,
) -> None:
    """Print rows as the model will see them: template, special tokens, what is trained on, token boundaries.

    Example: llm-rlhf data show pairs.jsonl --rows 1-5 --model Qwen/Qwen2.5-0.5B --stage sft

    Without a model or recipe: the conversation as read.
    """

    if not sources and not recipe:
        raise typer.BadParameter("name a source, or a recipe whose sources are to be shown.")
    with told_in_one_message(), _Reading(sources or []):
        from llm_rlhf.audit.readable import model_of, readable
        from llm_rlhf.audit.show import numbers, show_rows
        from llm_rlhf.recipe.loading import load_recipe
        from llm_rlhf.recipe.sections import ModelSection

        section = ModelSection(base=model) if model else None
        options = {"split": split, "subset": subset, "data_dir": data_dir}
        named = [_source(name, format, objective, options, columns) for name in sources or []]
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        loaded = load_recipe(recipe) if recipe else None
        section = model_of(loaded) if loaded else section
        with contextlib.ExitStack() as stack:
            read = None
            if loaded and not named:
                read = stack.enter_context(readable(loaded, stack.enter_context(_collected(loaded))))
            if read is not None and read.data is not None:
                named = [source for source in (*read.data.preferences, *read.data.demonstrations) if source.source]
            for text in show_rows(named, numbers(rows), section, stage, colour):
                print(text)
        tell(after_show(sources or [], _given(format, split, subset, data_dir, model, columns), recipe))


@contextlib.contextmanager
def _collected(recipe: Any) -> Iterator[Path | None]:
    """A folder with the labels that a recipe's run would collect now; None where it collects none."""
    if recipe.feedback is None:
        yield None
        return
    from llm_rlhf.feedback.snapshot import look_at

    with tempfile.TemporaryDirectory() as folder:
        collected = Path(folder) / "collect"  # as in a run
        collected.mkdir()
        look_at(recipe.feedback.store, collected, recipe.feedback.margins)
        yield collected


def _given(
    format: str, split: str, subset: str | None, data_dir: str | None, model: str | None, columns: list[str] | None
) -> list[str]:
    """Options that both commands have, as they were given, less those that say what is so anyway."""
    shared = {"--format": (format, "auto"), "--split": (split, "train"), "--subset": (subset, None),
              "--data-dir": (data_dir, None), "--model": (model, None)}  # fmt: skip
    given = [f"{name}={value}" for name, (value, default) in shared.items() if value not in (default, None)]
    return given + [f"--columns={column}" for column in columns or []]


def _one_of_both(sources: list[str] | None, recipe: str | None) -> None:
    if bool(sources) == bool(recipe):
        raise typer.BadParameter("give either sources or --recipe, which names its own.")


def _source(name: str, format: str, objective: str, options: dict[str, Any], columns: list[str] | None = None) -> Any:
    """A source as a recipe would have it, checked by the recipe's own rules."""
    from llm_rlhf.recipe.sections import Source, local_files
    from llm_rlhf.recipe.values import read_section

    if local_files(name) and not Path(name).is_dir():
        options = {}  # for hub datasets and folders
    values = {key: value for key, value in options.items() if value is not None}
    named = {"source": name, "format": format, "objective": objective, "columns": columns_of(columns), **values}
    return read_section(Source, named, "")


class _Reading:
    """A source that is there but cannot be used would stop a run: exit code 1; one that is not is a wrong request."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __enter__(self) -> None:
        if not sys.stderr.isatty():  # no bars in a log
            os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        from llm_rlhf.errors import DataError
        from llm_rlhf.recipe.sections import local_files

        if isinstance(error, DataError) and self.names and all(local_files(name) for name in self.names):
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from None


def _write(report: dict[str, Any], found: Any, folder: Path) -> Path:
    from llm_rlhf.data.checks import write_quarantine

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "check.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    write_quarantine(found.set_aside, folder / "quarantine.jsonl")
    return folder / "quarantine.jsonl"
