"""Requests that nobody thought of: whatever a person writes is carried out or refused in a sentence.

Hypothesis makes recipes, rows and names out of the pieces that real ones are made of. What is not a RecipeError or a
DataError fails the test: a person would have seen a traceback.
"""

import contextlib
import copy
import csv
import json
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trl import RewardConfig, SFTConfig
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.data.formats.columns import COMPLETIONS, LABELS, PROMPTS, RANKS, REPLY_LISTS, SCORES, TEXTS
from llm_rlhf.data.formats.table import FORMATS
from llm_rlhf.data.sources import load_demonstrations, load_preferences, load_prompts
from llm_rlhf.data.storage import Rows
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.evaluation.subjects import subject_of
from llm_rlhf.ppo.config import PPOConfig
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.sections import (
    STAGE_OPTIONS,
    DataSection,
    EvaluateSection,
    LoraSection,
    ModelSection,
    Recipe,
    Source,
    WorldSection,
    local_files,
)

WORDS = st.sampled_from(
    [
        *(
            "",
            " ",
            "yes",
            "no",
            "a",
            "b",
            "A",
            "1",
            "1.0",
            "nan",
            "-inf",
            "true",
            "null",
            "[]",
            "{}",
            "1e999",
            "é" * 99,
        ),
        *("Human: hi\n\nAssistant: ho", "[{'role': 'user', 'content': 'hi'}]", '[{"role": "assistant"}]', "~", ":"),
        *("<|im_end|>", "<think>x</think>y", "\ud800", "\0", "runs/x", "http://localhost:1/v1#m", "2025-02-06", "../x"),
    ]
)
PLAIN = st.one_of(
    WORDS, st.none(), st.booleans(), st.integers(-3, 9), st.sampled_from([10**400, 0.5, float("inf"), float("nan")])
)
TURN = st.fixed_dictionaries(
    {}, optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "prompter", "human", ""]) | PLAIN,
        "content": PLAIN, "from": st.sampled_from(["human", "gpt", "system"]) | PLAIN, "value": PLAIN,
        "weight": PLAIN, "loss": PLAIN, "tool_calls": PLAIN | st.lists(PLAIN, max_size=1), "reasoning_content": PLAIN,
    },
)  # fmt: skip
TURNS = st.lists(TURN | PLAIN, max_size=4)
RATED = st.fixed_dictionaries(
    {}, optional=dict.fromkeys((*TEXTS[:3], *SCORES[:2], *RANKS[:1], "annotations", "from", "value"), PLAIN)
)  # fmt: skip
CELL = PLAIN | TURNS | st.lists(RATED | PLAIN | st.lists(PLAIN, max_size=2), max_size=4) | RATED
OTHERS = (
    *("chosen", "rejected", "messages", "conversations", "output", "instances", "facts", "objective", "margin", "text"),
    *("output_1", "output_2", "response_0", "response_1", "response_a", "response_b", "is_response_0_safe", "is_safe"),
    *("system", "history", "tools", "images", "goal", "Behavior", "message_id", "parent_id", "role", "replies"),
)
COLUMNS = sorted({*PROMPTS, *COMPLETIONS, *LABELS, *REPLY_LISTS, *SCORES, *RANKS, *OTHERS})
ROW = st.dictionaries(st.sampled_from(COLUMNS) | WORDS, CELL, max_size=5)
LIKELY = st.fixed_dictionaries(
    {}, optional={"prompt": WORDS | TURNS, "chosen": WORDS | TURNS, "rejected": WORDS | TURNS, "messages": TURNS,
                  "completion": WORDS, "label": PLAIN, "system": PLAIN, "margin": PLAIN},
)  # fmt: skip
SOURCE = st.fixed_dictionaries(
    {}, optional={
        "format": st.sampled_from([*FORMATS, "auto"]),
        "columns": st.dictionaries(st.sampled_from(COLUMNS), WORDS, max_size=2),
        "labels": st.lists(PLAIN, max_size=3), "pairs": st.sampled_from(["best_worst", "all"]),
        "balance_positions": st.booleans(), "limit": st.integers(1, 3),
    },
)  # fmt: skip


@contextlib.contextmanager
def scratch():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def load_imitated(sources: list[Source]) -> Any:
    return load_demonstrations(sources, Rows())


def load_asked(sources: list[Source]) -> Any:
    return load_prompts(sources, Rows())


def cell_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(ROW | LIKELY | PLAIN, min_size=1, max_size=3), source=SOURCE)
def test_rows_are_used_or_set_aside_or_the_source_is_refused(rows: list[Any], source: dict[str, Any]) -> None:
    with scratch() as folder:
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        read = Source(source=str(path), **source)
        for load in (load_preferences, load_imitated, load_asked):
            with contextlib.suppress(DataError, RecipeError):
                loaded = load([read])
                counts = loaded.counts()  # asserts that every row is accounted for
                assert counts["read"] == len(rows)
                assert len(list(loaded.rows)) == counts["kept"]


@settings(max_examples=60, deadline=None)
@given(names=st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=4, unique=True), data=st.data())
def test_tables_of_text_cells_are_read_or_refused(names: list[str], data: st.DataObject) -> None:
    with scratch() as folder:
        path = folder / "rows.csv"
        with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            for _ in range(2):
                writer.writerow([cell_text(data.draw(CELL)).replace("\0", "") for _ in names])
        for load in (load_preferences, load_imitated, load_asked):
            with contextlib.suppress(DataError, RecipeError):
                load([Source(source=str(path))]).counts()


RECIPE = {
    "name": "fuzzed",
    "output_dir": "runs/fuzzed",
    "model": {"base": "somewhere/model", "lora": {"r": 4}},
    "data": {"preferences": [{"source": "pairs.jsonl"}], "prompts": [{"source": "prompts.txt"}]},
    "sft": {"max_steps": 1},
    "reward": {"max_steps": 1, "adapters": "joint"},
    "ppo": {"total_episodes": 64, "response_length": 8},
    "evaluate": {"prompts": 8, "temperature": 1.0},
}
SECTIONS: list[tuple[str, Any]] = [
    ("", Recipe),
    ("model.", ModelSection),
    ("model.lora.", LoraSection),
    ("data.", DataSection),
    ("data.preferences.0.", Source),
    ("world.", WorldSection),
    ("evaluate.", EvaluateSection),
    ("sft.", SFTConfig),
    ("reward.", RewardConfig),
    ("ppo.", PPOConfig),
    *((f"{stage}.", options) for stage, options in STAGE_OPTIONS.items()),
]
KEYS = st.sampled_from(sorted({prefix + f.metadata.get("key", f.name) for prefix, of in SECTIONS for f in fields(of)}))
NAMES = st.sampled_from(["source", "name", "function", "a", ""])
VALUE = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(NAMES, PLAIN)
KINDS = st.sampled_from(["preferences", "demonstrations", "prompts"])
CHANGES = st.lists(st.tuples(KEYS, VALUE), min_size=1, max_size=3)


def put(tree: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(tree, list) and not part.isdigit():
            return
        tree = tree[int(part)] if isinstance(tree, list) else tree.setdefault(part, {})
        if not isinstance(tree, (dict, list)):
            return
    if isinstance(tree, list):
        if not last.isdigit():
            return
        tree[int(last) : int(last) + 1] = [value]
    else:
        tree[last] = value


@settings(max_examples=150, deadline=None)
@given(CHANGES, st.sets(st.sampled_from(sorted(RECIPE)), max_size=2))
def test_a_recipe_is_read_or_refused_by_key(changes: list[tuple[str, Any]], gone: set[str]) -> None:
    tree: dict[str, Any] = copy.deepcopy(RECIPE)
    for name in gone:
        del tree[name]
    for key, value in changes:
        put(tree, key, value)
    with scratch() as folder:
        path = folder / "recipe.yaml"
        with contextlib.suppress(yaml.YAMLError, UnicodeEncodeError):  # what no file can hold
            path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
            with contextlib.suppress(RecipeError):
                load_recipe(path).as_dict()


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=30))
def test_a_recipe_of_any_text_is_refused(text: str) -> None:
    with scratch() as folder:
        path = folder / "recipe.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        with contextlib.suppress(RecipeError):
            load_recipe(path)


@settings(max_examples=150, deadline=None)
@given(override=st.tuples(KEYS, st.text(max_size=12) | WORDS).map("=".join) | st.text(max_size=20))
def test_an_override_is_laid_over_or_refused(override: str) -> None:
    with scratch() as folder:
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
        with contextlib.suppress(RecipeError):
            load_recipe(path, [override])


@settings(max_examples=200, deadline=None)
@example(text="~\x00")
@example(text="~\ud800")
@given(text=st.lists(WORDS | st.text(max_size=5), min_size=1, max_size=3).map("".join))
def test_a_policy_is_named_or_refused(text: str) -> None:
    with contextlib.suppress(RecipeError):
        subject_of(text)


@pytest.mark.parametrize("name", ["é" * 300, "~ ", "\0", "a" * 300 + "*"])
def test_a_name_that_no_file_can_have_names_none(name: str) -> None:
    assert local_files(name) == []


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(rows=st.lists(ROW | LIKELY, min_size=1, max_size=3), kind=KINDS)
def test_data_check_and_show_end_with_an_exit_code(rows: list[Any], kind: str) -> None:
    with scratch() as folder:
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for arguments in (["data", "check", str(path), "--as", kind], ["data", "show", str(path)]):
            done = CliRunner().invoke(app, arguments)
            assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
            assert done.exit_code in (0, 1, 2)
