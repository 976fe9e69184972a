"""A recipe's arguments of a chat template, and the day it takes for today, are written into the template."""

import datetime
import json

import pytest
from template_helpers import FAMILIES, stand_in

from llm_rlhf.errors import RecipeError
from llm_rlhf.models.base import load_tokenizer
from llm_rlhf.models.encoding import encode_prompt
from llm_rlhf.models.template_settings import asks_the_clock, at_day, with_arguments
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.sections import ModelSection

ASK = [{"role": "user", "content": "Q"}]


def loaded(family: str, folder, **section):
    stand_in(family).save_pretrained(folder)
    return load_tokenizer(folder, ModelSection(base=str(folder), **section))


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5", "nemotron"])
def test_thinking_is_turned_off_by_the_recipe(family, tmp_path) -> None:
    tokenizer = loaded(family, tmp_path, chat_template_kwargs={"enable_thinking": False})
    found = tokenizer.decode(encode_prompt(tokenizer, ASK))
    assert found == stand_in(family).apply_chat_template(
        ASK, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert found.rstrip().endswith("</think>")
    tokenizer.save_pretrained(tmp_path / "again")  # as a policy's: whoever loads it thinks no more
    section = ModelSection(base=str(tmp_path / "again"), chat_template_kwargs={"enable_thinking": False})
    assert load_tokenizer(tmp_path / "again", section).chat_template == tokenizer.chat_template


def test_an_argument_may_be_any_plain_value() -> None:
    value = {"a": [1, 2.5, None, True], "b": 'say "no"\n{% raw %}é 😀 %}'}
    template = with_arguments("{{ x | tojson }}{{ messages | length }}", {"x": value, "y": None})
    tokenizer = stand_in("qwen2_5")
    text = tokenizer.apply_chat_template(ASK, chat_template=template, tokenize=False)
    assert json.loads(text[:-1]) == value
    assert text[-1] == "1"


def test_what_is_set_anew_counts() -> None:
    """A saved policy's template brings its settings along; a recipe that goes on from it may have others."""
    saved = with_arguments("{{ x }}{{ y }}", {"x": False, "y": 1})
    template = with_arguments(saved, {"x": True})
    assert stand_in("qwen2_5").apply_chat_template(ASK, chat_template=template, tokenize=False) == "True1"
    assert with_arguments(template, {"x": True}) == template
    assert with_arguments(template, {}) == template


@pytest.mark.parametrize("value", [float("nan"), float("inf"), datetime.date(2025, 2, 6)])
def test_a_value_that_jinja_cannot_spell_is_refused(value, tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"'model.chat_template_kwargs': .* is no plain value"):
        loaded("qwen3", tmp_path, chat_template_kwargs={"enable_thinking": [value]})


def test_the_default_is_taken_of_several_templates(tmp_path) -> None:
    template = stand_in("qwen3").chat_template
    for name, folder in (("default", tmp_path / "a"), ("chat", tmp_path / "b")):
        tokenizer = stand_in("qwen3")
        tokenizer.chat_template = {name: template, "tool_use": "{{ x }}"}
        tokenizer.save_pretrained(folder)
    assert load_tokenizer(tmp_path / "a", ModelSection(base=str(tmp_path / "a"))).chat_template == template
    with pytest.raises(RecipeError, match=r"no default specified.* Recipe key 'model.chat_template' takes a file"):
        load_tokenizer(tmp_path / "b", ModelSection(base=str(tmp_path / "b")))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_first_line_changes_nothing_else(family) -> None:
    tokenizer = stand_in(family)
    before = tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    template = with_arguments(tokenizer.chat_template, {"unheard_of": 1})
    assert (
        tokenizer.apply_chat_template(ASK, chat_template=template, tokenize=False, add_generation_prompt=True) == before
    )


def test_an_argument_that_the_template_does_not_read_is_refused(tmp_path) -> None:
    with pytest.raises(
        RecipeError, match=r"'model.chat_template_kwargs.enable_thinkin' is set to False, but .* not read"
    ):
        loaded("qwen3", tmp_path, chat_template_kwargs={"enable_thinkin": False})
    with pytest.raises(RecipeError, match=r"'model.chat_template_kwargs': 'messages' is no argument"):
        loaded("qwen3", tmp_path, chat_template_kwargs={"messages": []})


@pytest.mark.parametrize(("family", "printed"), [("llama3_2", "Today Date: 06 Feb 2025"), ("gptoss", "2025-02-06")])
def test_the_clock_stands_still(family, printed, tmp_path, capsys) -> None:
    tokenizer = loaded(family, tmp_path, chat_template_date=datetime.date(2025, 2, 6))
    assert printed in tokenizer.decode(encode_prompt(tokenizer, ASK))
    assert not asks_the_clock(tokenizer.chat_template)
    assert "prints today's date; it is 2025-02-06 throughout" in capsys.readouterr().out
    today = loaded(family, tmp_path)
    assert str(datetime.date.today().year) in today.decode(encode_prompt(today, ASK))


def test_a_call_of_the_clock_that_is_no_date_is_left_and_said(tmp_path, capsys) -> None:
    strange = "{{ strftime_now(format) }}{{ strftime_now('%Y') }}"
    assert at_day(strange, datetime.date(2025, 2, 6)) == '{{ strftime_now(format) }}{{ "2025" }}'
    tokenizer = stand_in("qwen2_5")
    tokenizer.chat_template = "{% set f = '%Y' %}{{ strftime_now(f) }}" + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path)
    load_tokenizer(tmp_path, ModelSection(base=str(tmp_path)))
    assert "but for a call that asks the clock in a way of its own" in capsys.readouterr().out


def test_the_keys_of_a_recipe(tmp_path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: x\noutput_dir: runs\nmodel: {base: m, chat_template_date: 2025-02-06, chat_template_kwargs: {a: 1}}\n"
        "data: {preferences: [{source: pairs.jsonl}]}\nsft: {max_steps: 1}\n"
    )
    recipe = load_recipe(path)
    assert recipe.model.chat_template_date == datetime.date(2025, 2, 6)
    assert recipe.as_dict()["model"]["chat_template_date"] == "2025-02-06"
    assert load_recipe(path, ["model.chat_template_date='2025-02-07'"]).model.chat_template_date.day == 7
    with pytest.raises(RecipeError, match=r"'model.chat_template_date'"):
        load_recipe(path, ["model.chat_template_date=yesterday"])
    with pytest.raises(RecipeError, match=r"'sft.chat_template_kwargs' is set .* model.chat_template_kwargs decides"):
        load_recipe(path, ["sft.chat_template_kwargs={a: 2}"])


def test_a_template_that_leaves_text_out_is_refused(tmp_path) -> None:
    """As those of models that see images, which want content as a list of parts."""
    tokenizer = stand_in("qwen2_5")
    parts = "{% for part in message.content %}{{ part.text }}{% endfor %}"
    tokenizer.chat_template = f"{{% for message in messages %}}{parts}<|im_end|>{{% endfor %}}"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="leaves out what a turn says"):
        load_tokenizer(tmp_path, ModelSection(base=str(tmp_path)))
