"""What commands lead on to: only what there is, would work, and is understood; versions, completion, help."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from llm_rlhf.cli import next_steps
from llm_rlhf.cli.app import commands
from llm_rlhf.cli.completion import policies, recipes
from llm_rlhf.cli.main import app

STAGES = ["sft", "reward", "ppo", "evaluate"]


def folder(path: Path, *names: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / name).mkdir(parents=True, exist_ok=True)
    return path


def words(steps: list[next_steps.Step]) -> list[str]:
    return [" ".join(each) for _, each in steps]


def test_no_chat_with_what_was_not_trained(tmp_path) -> None:
    run = folder(tmp_path, "reward")
    assert words(next_steps.after_run(run, ["r.yaml", "seed=1"], STAGES)) == ["run r.yaml seed=1"]
    folder(run, "sft/model")
    assert words(next_steps.after_run(run, ["r.yaml"], STAGES)) == [
        "run r.yaml", f"chat {run}", f"serve {run}", f"export {run}"
    ]  # fmt: skip
    folder(run, "ppo/policy")
    assert words(next_steps.after_run(run, ["r.yaml"], STAGES[:-1]))[:2] == [f"chat {run}", f"evaluate {run}"]
    folder(run, "evaluate")
    (run / "report.json").touch()
    assert words(next_steps.after_run(run, ["r.yaml"], STAGES)) == [
        f"chat {run}", f"gate {run}", f"serve {run}", f"export {run}"
    ]  # fmt: skip


def test_what_the_others_lead_on_to(tmp_path) -> None:
    one, other = (str(folder(tmp_path / name, "ppo/policy")) for name in ("one", "other"))
    assert words(next_steps.after_comparison([one, "evaluations/x", other])) == [f"chat {one} {other}"]
    assert next_steps.after_comparison([one, "evaluations/x"]) == []
    assert words(next_steps.after_evaluation("http://h/v1#m", "x", "KEY")) == [
        "chat http://h/v1#m x --key-variable KEY"
    ]
    assert words(next_steps.after_check(["a.jsonl"], [], None, stops=False)) == [
        "data show a.jsonl", "init --data a.jsonl"
    ]  # fmt: skip
    assert words(next_steps.after_check(["a.jsonl"], ["--model=m"], None, stops=True)) == [
        "data show a.jsonl --model=m"
    ]
    assert words(next_steps.after_check([], [], "r.yaml", stops=True)) == ["data show --recipe r.yaml"]


def test_every_step_that_there_is_a_command_for_is_understood(tmp_path) -> None:
    run = folder(tmp_path, "sft/model", "ppo/policy", "evaluate")
    steps = next_steps.after_run(run, ["r.yaml"], ["sft", "ppo"])
    (run / "report.json").touch()
    steps += [
        *next_steps.after_run(run, ["r.yaml"], STAGES),
        *next_steps.after_run(run, ["r.yaml", "seed=1"], [*STAGES, "other"]),
        *next_steps.after_evaluation("a", "b", "KEY"),
        *next_steps.after_check(["a.jsonl", "b"], ["--format=hh", "--columns=prompt=goal"], None, stops=False),
        *next_steps.after_check(["a.jsonl"], [], None, stops=False),
        *next_steps.after_init(Path("r.yaml")),
    ]
    root = typer.main.get_command(app)
    for _, line in steps:
        if line[0] in commands():
            command, rest = root, line
            while hasattr(command, "commands"):
                name, *rest = rest
                command = command.commands[name]
            command.make_context(line[0], list(rest))  # raises where an option is not known
    assert {"chat", "init", "doctor", "run", "data", "evaluate"} <= {line[0] for _, line in steps} & commands()


def test_they_are_printed_for_people_on_the_main_process_alone(capsys, monkeypatch) -> None:
    steps = [("Talk to it", ["chat", "runs/a b"]), ("Fly", ["fly", "away"])]
    next_steps.tell(steps, as_json=True)
    monkeypatch.setenv("RANK", "1")
    next_steps.tell(steps)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    next_steps.tell(steps)
    assert capsys.readouterr().out == "\nTalk to it: llm-rlhf chat 'runs/a b'\n"


def test_every_help_has_an_example_of_itself() -> None:
    def leaves(command, path=()):
        if hasattr(command, "commands"):
            for name, each in command.commands.items():
                yield from leaves(each, (*path, name))
        else:
            yield " ".join(path), command

    for name, command in leaves(typer.main.get_command(app)):
        assert f"Example: llm-rlhf {name}" in (command.help or ""), name


def test_versions_in_a_line() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.stdout.startswith("llm-rlhf ")
    assert "trl 1." in done.stdout
    assert done.stdout.count("\n") == 1


def test_without_a_command_there_is_help() -> None:
    out = CliRunner().invoke(app, []).output
    assert "Begin: llm-rlhf init" in out
    assert "  chat " in out


@pytest.fixture
def somewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    run = folder(tmp_path / "runs" / "hh", "sft", "ppo/snapshots/step-4")
    (run / "recipe.yaml").touch()
    folder(tmp_path / "recipes")
    (tmp_path / "recipes" / "hh.yaml").touch()
    (tmp_path / "recipes" / "notes.txt").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("", ["runs/hh"]),
        ("ru", ["runs/hh"]),
        ("runs/", ["runs/hh"]),
        ("runs/h", ["runs/hh"]),
        ("runs/hh:", ["runs/hh:base", "runs/hh:sft", "runs/hh:ppo", "runs/hh:step-4"]),
        ("runs/hh:s", ["runs/hh:sft", "runs/hh:step-4"]),
        ("nowhere/", []),
    ],
)
def test_runs_and_their_stages_are_offered(somewhere, typed, offered) -> None:
    assert policies(typed) == offered


def test_recipes_are_offered(somewhere) -> None:
    assert recipes("") == recipes("rec") == recipes("recipes/") == ["recipes/hh.yaml"]
    assert recipes(f"{somewhere}/recipes/h") == [f"{somewhere}/recipes/hh.yaml"]
