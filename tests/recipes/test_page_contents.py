"""What the pages quote and name is there: messages, tests, recipe keys; and what is generated is up to date."""

import ast
import dataclasses
import functools
import re
import typing
from importlib.metadata import version
from pathlib import Path

import pytest
from test_recipes import PAGES, ROOT, named

from llm_rlhf.recipe.loading import TRAINER_CONFIGS, config_class_of
from llm_rlhf.recipe.reference import comments, own_rows, reference, section_in, words
from llm_rlhf.recipe.sections import STAGE_OPTIONS, ModelSection, Recipe, RewardOptions, Source

RECIPE_KEYS = ROOT / "docs" / "recipe-keys.md"
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


# --- every recipe key -----------------------------------------------------------------------------------------------


def test_the_page_of_recipe_keys_is_what_the_classes_say() -> None:
    published = RECIPE_KEYS.read_text(encoding="utf-8")
    releases = f"trl {version('trl')} and transformers {version('transformers')}"
    if releases not in published:
        pytest.skip(f"the page lists the keys of other releases than {releases}")
    assert published == reference()  # python -m llm_rlhf.recipe.reference > docs/recipe-keys.md


def test_comments_above_and_behind_a_field_are_its_meaning() -> None:
    assert comments(ModelSection)["base"].startswith("hub id or folder of a causal language model")
    told = comments(RewardOptions)["gates"]
    assert told.startswith("What a check of the finished")
    assert told.endswith("those not named warn.")  # of the third line
    assert "gates" not in comments(RewardOptions)["model"]  # each has its own


def test_every_key_of_ours_has_a_meaning() -> None:
    hints = typing.get_type_hints(Recipe)
    sections = [Recipe, Source, *STAGE_OPTIONS.values(), *filter(None, map(section_in, hints.values()))]
    rows = [row for section in sections for row in own_rows(section)]
    assert [row.key for row in rows if not row.meaning] == []
    # records in lists lead to a table of their own
    assert [row.key for row in rows if re.search(r"list of [A-Z]", row.kind)] == []


@pytest.mark.parametrize(
    ("key", "kind", "default"),
    [
        ("quantization", "`none` `nf4` `int8`", "`none`"),
        ("base", "text or null", "`null`"),
        ("lora.target_modules", "text or list of text", "`all-linear`"),
        ("trust_remote_code", "true/false or list of text", "`false`"),
    ],
)
def test_types_and_defaults_are_those_of_yaml(key: str, kind: str, default: str) -> None:
    (row,) = [row for row in own_rows(ModelSection) if row.key == key]
    assert (row.kind, row.default) == (kind, default)


def test_a_key_without_a_default_must_be_given() -> None:
    assert own_rows(Recipe)[0].default is None
    assert words(list[Source]) == "list of [sources](#a-source)"


@functools.cache
def keys() -> set[str]:
    """Every key of a recipe with its section before it, and those of trainers."""
    found = {row.key for name, hint in typing.get_type_hints(Recipe).items() if (section := section_in(hint))
             for row in own_rows(section, f"{name}.")}  # fmt: skip
    for stage in TRAINER_CONFIGS:
        found |= {f"{stage}.{field.name}" for field in dataclasses.fields(config_class_of(stage))}
        if stage in STAGE_OPTIONS:
            found |= {row.key for row in own_rows(STAGE_OPTIONS[stage], f"{stage}.")}
    return found


@pytest.mark.parametrize("path", [path for path in PAGES if path.name != "CHANGELOG.md"], ids=named)
def test_keys_that_a_page_names_are_keys_of_a_recipe(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    told = re.findall(r"`((?:model|data|world|sft|reward|ppo|evaluate)\.[a-z_.]*[a-z])(?=[`:])", text)
    known = keys() | {".".join(key.split(".")[:2]) for key in keys()}  # model.lora is a section
    told = [key for key in told if not key.endswith((".py", ".md")) and key != "evaluate.load"]  # files; a library's
    assert sorted(set(told) - known) == []


# --- messages -------------------------------------------------------------------------------------------------------


@functools.cache
def messages() -> str:
    """Every text of the package, a line each, with an ellipsis for what is filled in."""
    found = []
    for path in (ROOT / "llm_rlhf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(" ".join(text.split()) for text in found)


QUOTED = re.findall(r"^> (.+)$", TROUBLESHOOTING, re.M)


def test_every_symptom_that_the_project_words_is_quoted() -> None:
    assert len(QUOTED) > 30
    assert len(re.findall(r"^### ", TROUBLESHOOTING, re.M)) >= 20


@pytest.mark.parametrize("quote", QUOTED)
def test_a_message_that_a_page_quotes_is_one_of_ours(quote: str) -> None:
    """To the letter, but for what is filled in, which may be nothing but punctuation there."""
    pattern = re.escape(quote).replace("…", r"[^\n]{0,60}?")
    assert re.search(pattern, messages()), quote


# --- mathematics ----------------------------------------------------------------------------------------------------


def test_tests_that_a_page_names_exist() -> None:
    found = 0
    for path in PAGES:
        file = ""
        for named_file, name in re.findall(
            r"`(tests/[\w./-]+\.py)?(?:::(test_\w+))?`", path.read_text(encoding="utf-8")
        ):
            file = named_file or file
            if name:
                found += 1
                assert re.search(rf"def {name}\(", (ROOT / file).read_text(encoding="utf-8")), f"{file}::{name}"
    assert found > 30


def test_every_equation_names_its_function_and_its_test() -> None:
    page = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
    for section in re.split(r"^### ", page, flags=re.M)[1:]:
        title = section.partition("\n")[0]
        assert "::test_" in section, title
        assert "`llm_rlhf." in section or title == "What is maximised, and its optimum", title
