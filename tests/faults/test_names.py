"""What a run may be called and where it may lie; values that the command line's YAML would cut."""

from datetime import datetime as real
from pathlib import Path
from types import SimpleNamespace

import pytest
from chain_helpers import write_recipe
from test_requests import ask, refused

from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.subjects import subject_of
from llm_rlhf.recipe.loading import load_recipe, recipe_of
from llm_rlhf.recipe.names import check_folder, check_name
from llm_rlhf.run_folder import move_to_archive


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../../x", "another folder"), ("a/b", "another folder"), ("a\\b", "on Windows"), ("", "empty"),
        ("  ", "empty"),
        (".", "already"), ("..", "already"), ("a\0b", r"'\x00'"), ("a\nb", r"'\n'"), ("a\x1b[31mb", r"'\x1b'"),
        ("a\u202eb", r"'\u202e'"), ("x" * 300, "300 signs"), ("-rf", "as options do"), ("a ", "a space"),
        (" a", "a space"),
        ("a.", "Windows"), ("CON", "Windows"), ("nul.txt", "Windows"), ("com1", "Windows"), ("a:sft", "RUN:STAGE"),
        ("a*", "patterns"), ("a|b", "Windows"), ("猫" * 90, "255 bytes"), ("\ud800", r"'\ud800'"),
    ],
)  # fmt: skip
def test_names_that_no_run_can_have(name, why) -> None:
    with pytest.raises(RecipeError, match="cannot be a run's name") as error:
        check_name(name)
    assert why in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "name", ["a", "hh-qwen2.5-0.5b", "a b", "a#1", "ünï", "a=b", "(1)", "console", "x" * 100, ".a", "_"]
)
def test_names_that_a_run_can_have(name) -> None:
    check_name(name)
    check_folder(f"runs/{name}")


@pytest.mark.parametrize(
    "folder", ["", " ", "a\0b", "runs/a\nb", "runs/a ", "runs/-x", "runs/a:b", "x" * 300, "x" * 300 + "/a"]
)
def test_folders_where_no_run_can_lie(folder) -> None:
    with pytest.raises(RecipeError, match="where no run can lie"):
        check_folder(folder)


@pytest.mark.parametrize("folder", [None, "/tmp/a", "../a", "a: b/c", "/mnt/x:y/a", ".", "..", "~/runs/a"])
def test_folders_where_a_run_can_lie(folder) -> None:
    check_folder(folder)


@pytest.mark.parametrize("override", ["name=../../escaped", "output_dir=''", "name=''", "output_dir=runs/a:b"])
def test_a_run_is_not_begun_there(tmp_path, override) -> None:
    before = sorted(p.name for p in tmp_path.parent.parent.iterdir())
    refused(ask("run", str(write_recipe(tmp_path)), override), f"'{override.partition('=')[0]}'")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]
    assert sorted(p.name for p in tmp_path.parent.parent.iterdir()) == before


def test_home_is_home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load_recipe(write_recipe(tmp_path), ["output_dir=~/runs/a"]).folder == Path("/home/somebody/runs/a")


@pytest.mark.parametrize(
    ("override", "left_out"),
    [("output_dir=a #1", "#1"), ("name=#1", "#1"), ("seed=1 # one", "# one"), ("name='a' #b", "#b")],
)
def test_an_override_that_yaml_would_cut_is_refused(tmp_path, override, left_out) -> None:
    refused(ask("run", str(write_recipe(tmp_path)), override), repr(left_out), "comment", "quotes")


@pytest.mark.parametrize("value", ['"a #1"', "a#1", "'#1'", "a b"])
def test_an_override_with_the_sign_in_it_stays_whole(tmp_path, value) -> None:
    assert load_recipe(write_recipe(tmp_path), [f"name={value}"]).name == value.strip("\"'")


@pytest.mark.parametrize("name", ["123", "a #1", "a: b", "x:y", "true"])
def test_a_run_is_found_whatever_its_folder_is_called(tmp_path, name) -> None:
    """It may have been moved, or made by an older version."""
    folder = tmp_path / name
    folder.mkdir()
    write_recipe(tmp_path, name="of/old").rename(folder / "recipe.yaml")
    (folder / "manifest.json").write_text("{}")
    (folder / "ppo" / "policy").mkdir(parents=True)
    (folder / "sft" / "model").mkdir(parents=True)
    assert recipe_of(Path(name)).folder == Path(name)
    assert subject_of(name).run == Path(name)
    assert subject_of(f"{name}:sft").base == str(Path(name) / "sft" / "model")


def test_what_is_archived_at_one_moment_lies_apart(tmp_path, monkeypatch) -> None:
    """A clock that goes back comes by a time again."""
    monkeypatch.setattr("llm_rlhf.run_folder.datetime", SimpleNamespace(now=lambda: real(2026, 1, 2)))
    for text in ("first", "second", "third"):
        (tmp_path / "report").write_text(text)
        move_to_archive(tmp_path, ["report"])
    kept = sorted((tmp_path / "archive").iterdir())
    assert [(place / "report").read_text() for place in kept] == ["first", "second", "third"]
