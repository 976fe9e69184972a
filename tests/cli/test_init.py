"""`llm-rlhf init`: whatever is answered, the recipe that it writes loads, and nothing is written over."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.ppo.prompts import small_rollout
from llm_rlhf.recipe.loading import load_recipe, trainer_config
from llm_rlhf.starter import HARDWARE, check_base, look_at, recipe_name, recipe_text

ROWS = {
    "pairs": {"prompt": "why?", "chosen": "because", "rejected": "no"},
    "hh": {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    "ranked": {"prompt": "why?", "responses": ["a", "b"], "scores": [1, 2]},
    "messages": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "instruction": {"instruction": "why?", "output": "because"},
}


def data_file(folder: Path, kind: str, name: str = "rows.jsonl") -> str:
    (folder / name).write_text(json.dumps(ROWS[kind]) + "\n")
    return str(folder / name)


@pytest.mark.parametrize("base", ["Qwen/Qwen2.5-0.5B", "gpt2", "1e5/0x10", "owner/true"])
@pytest.mark.parametrize("kind", [*ROWS, "hub"])
@pytest.mark.parametrize("gpu", HARDWARE)
def test_every_recipe_loads(base, kind, gpu, tmp_path) -> None:
    data = "Anthropic/hh-rlhf" if kind == "hub" else data_file(tmp_path, kind)
    check_base(base)
    seen = look_at(data)
    assert seen.pairs == (kind not in ("messages", "instruction"))
    path = tmp_path / "it is.yaml"
    text = recipe_text(path, base, data, gpu, seen)
    path.write_text(text)
    recipe = load_recipe(path)
    assert recipe.model.base == base
    named = recipe.data.preferences if seen.pairs else recipe.data.demonstrations
    assert [source.source for source in named] == [data]
    assert (recipe.ppo is not None, recipe.reward is not None, recipe.evaluate is not None) == (seen.pairs,) * 3
    if seen.pairs:
        assert small_rollout(trainer_config(recipe, "ppo", tmp_path)) is None
    assert max(map(len, text.replace(data, "").replace(str(path), "").splitlines())) <= 120
    commented = [line for line in text.splitlines() if ":" in line and not line.lstrip().startswith(("#", "- "))]
    assert sum("#" not in line for line in commented) <= 10, "what the same key says twice, it says once"
    assert f"llm-rlhf run '{path}'" in text


@pytest.mark.parametrize(
    "name", ["a b.jsonl", "it's.jsonl", "a}b,{c.jsonl", "#1: x.jsonl", "ü\u2028.jsonl", "{x}.jsonl"]
)
def test_any_file_name_is_named_as_it_is(name, tmp_path) -> None:
    data = data_file(tmp_path, "pairs", name)
    (tmp_path / "r.yaml").write_text(recipe_text(tmp_path / "r.yaml", "a/b", data, "cpu", look_at(data)))
    assert load_recipe(tmp_path / "r.yaml").data.preferences[0].source == data


def test_names_of_runs() -> None:
    assert recipe_name("Qwen/Qwen2.5-0.5B", "data/My Pairs.jsonl.gz") == "qwen2.5-0.5b-my-pairs"
    assert recipe_name("/models/x/", "Anthropic/hh-rlhf") == "x-hh-rlhf"
    assert recipe_name("é", "ü") == "run"


def test_what_cannot_be_a_recipe_is_said(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "why?"}\n')
    (tmp_path / "odd.jsonl").write_text('{"x": 1}\n')
    for base in (str(tmp_path / "empty"), str(tmp_path / "odd.jsonl"), "./nowhere", "a/b/c", ""):
        with pytest.raises(RecipeError, match="--base is"):
            check_base(base)
    for name, told in (
        ("prompts.jsonl", "A recipe needs pairs"),
        ("odd.jsonl", "not recognised"),
        ("none.jsonl", "There is no file"),
    ):
        with pytest.raises(DataError, match=told):
            look_at(str(tmp_path / name))
    with pytest.raises(DataError, match="There is no file"):
        look_at("none.jsonl.gz")


def init(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["init", *map(str, arguments)])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


def test_the_command_writes_once_and_leads_on(tmp_path) -> None:
    asked = [
        "--base",
        "a/b",
        "--data",
        data_file(tmp_path, "pairs"),
        "--gpu",
        "24GB",
        "--to",
        tmp_path / "new" / "r.yaml",
    ]
    told = init(*asked)
    path = tmp_path / "new" / "r.yaml"
    for line in (f"llm-rlhf data check --recipe {path}", f"llm-rlhf run {path}", "llm-rlhf doctor"):
        assert f": {line}\n" in told
    path.write_text("mine")
    assert "is there already" in init(*asked, code=2)
    assert path.read_text() == "mine"
    assert "--gpu is '7'" in init(*asked[:4], "--gpu", "7", code=2)


def test_without_a_terminal_nothing_is_asked() -> None:
    assert "--base is missing, and there is no terminal" in init("--data", "x/y", code=2)


def test_the_recipes_that_ship_are_copied_and_nothing_is_written_over(tmp_path, monkeypatch) -> None:
    shipped = Path(__file__).parents[2] / "recipes"
    monkeypatch.chdir(tmp_path)
    missing = CliRunner().invoke(app, ["run", "recipes/methods/dpo.yaml"])
    assert missing.exit_code == 2
    assert "llm-rlhf init --recipes copies it here" in missing.output
    told = init("--recipes")
    assert "llm-rlhf run recipes/quickstart.yaml\n" in told
    names = sorted(path.relative_to(shipped) for path in shipped.rglob("*.yaml"))
    assert len(names) > 5
    for name in names:
        assert (tmp_path / "recipes" / name).read_bytes() == (shipped / name).read_bytes()
        assert f"{Path('recipes') / name} written." in told
    assert load_recipe("recipes/quickstart.yaml").world is not None
    (tmp_path / "recipes" / "hh.yaml").write_text("mine")
    (tmp_path / "recipes" / "quickstart.yaml").unlink()
    assert "is there already" in init("--recipes", code=2)
    assert (tmp_path / "recipes" / "hh.yaml").read_text() == "mine"
    assert not (tmp_path / "recipes" / "quickstart.yaml").exists()
    assert "llm-rlhf run mine/quickstart.yaml\n" in init("--recipes", "--to", "mine")
    assert "leave out --base" in init("--recipes", "--base", "a/b", code=2)
    missing = CliRunner().invoke(app, ["run", "recipes/quickstrat.yaml"])
    assert "init --recipes" not in missing.output  # there is none of that name
