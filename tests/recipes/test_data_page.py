"""docs/data.md: every example is read by the loaders as the format it stands under, and every recipe line parses."""

import json
import re
from pathlib import Path

import pytest
import yaml

from llm_rlhf.data.formats.table import FORMATS
from llm_rlhf.data.sources import load_demonstrations, load_preferences, load_prompts
from llm_rlhf.data.storage import Rows
from llm_rlhf.recipe.sections import DataSection, Source
from llm_rlhf.recipe.values import read_section

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\S*) ?(\S*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
EXAMPLES = {name: text for language, name, text in BLOCKS if language == "jsonl"}
RECIPE_LINES = [text for language, _, text in BLOCKS if language == "yaml"]


def test_every_format_has_four_lines() -> None:
    assert set(EXAMPLES) == set(FORMATS)
    assert {name: len(text.splitlines()) for name, text in EXAMPLES.items()} == dict.fromkeys(FORMATS, 4)


@pytest.mark.parametrize("form", EXAMPLES)
def test_an_example_is_recognised_and_nothing_of_it_is_set_aside(form: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(EXAMPLES[form], encoding="utf-8")
    sources = [Source(source=str(path))]
    if form in ("messages", "prompt_completion", "instruction"):
        loaded = load_demonstrations(sources, Rows())
    elif form == "prompt":
        loaded = load_prompts(sources, Rows())
    else:
        loaded = load_preferences(sources)
    assert loaded.formats == {str(path): form}
    assert loaded.read == 4
    expected = {"feedback": 2, "scored": 2, "tree": 1}.get(form, 4)
    assert len(loaded.rows) == expected
    unused = [item.reason for item in loaded.set_aside]
    assert unused == (["no two ranked replies follow"] if form == "tree" else [])  # the last prompt waits for replies


@pytest.mark.parametrize("text", RECIPE_LINES)
def test_recipe_lines_parse(text: str) -> None:
    tree = yaml.safe_load(text)
    section = read_section(DataSection, tree.get("data", tree), "data.")
    named = [source for name in ("preferences", "demonstrations", "prompts") for source in getattr(section, name)]
    assert any(source.source for source in named)


def test_the_examples_are_strict_json() -> None:
    for text in EXAMPLES.values():
        for line in text.splitlines():
            assert isinstance(json.loads(line), dict)
