"""docs/templates.md says of well-known templates what they are found to do."""

import re
from pathlib import Path

import pytest
from template_helpers import FAMILIES, stand_in

from llm_rlhf.models.base import load_tokenizer
from llm_rlhf.models.template_facts import template_facts
from llm_rlhf.models.template_settings import asks_the_clock
from llm_rlhf.recipe.sections import ModelSection

PAGE = Path(__file__).parents[2] / "docs" / "templates.md"


def row(family: str, folder: Path) -> str:
    raw = stand_in(family)
    raw.save_pretrained(folder)
    loaded = load_tokenizer(folder, ModelSection(base=str(folder)))
    facts = template_facts(loaded)
    day = "printed" if asks_the_clock(raw.chat_template) else "no"
    cells = [
        FAMILIES[family].name,
        f"`{loaded.eos_token}`",
        facts.history,
        facts.thoughts,
        facts.prompt,
        facts.system,
        day,
    ]
    return "| " + " | ".join(re.sub(r"(<[^\s,]+)", r"`\1`", c) if "`" not in c else c for c in cells) + " |"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_has_the_row_of_each_template(family, tmp_path) -> None:
    assert row(family, tmp_path) in PAGE.read_text(encoding="utf-8").replace("\\|", "|").splitlines()


def test_a_sentence_is_said_of_what_is_not_as_it_stands() -> None:
    assert template_facts(stand_in("llama3")).sentences() == []
    assert template_facts(stand_in("gemma")).sentences() == ["system turns: refused"]
    assert template_facts(stand_in("qwen3_5")).sentences() == [
        "history: rewritten",
        "thoughts: written between <think> and </think>",
        "the generation prompt: opens a thought with <think>",
    ]
