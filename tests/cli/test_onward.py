"""What commands lead on to: only what there is, would work, and is understood; versions, completion, help."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from llm_rlhf.cli import next_steps
from llm_rlhf.cli.app import commands
from llm_rlhf.cli.completion import joined, policies, recipes
from llm_rlhf.cli.main import app, main

STAGES = ["sft", "reward", "ppo", "evaluate"]


def folder(path: Path, *names: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / name).mkdir(parents=True, exist_ok=True)
    return path


def words(steps: list[next_steps.Step]) -> list[str]:
    return [" ".join(each) for _, each in steps if not isinstance(each, Path)]


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
    report(run, helpful="not measured", harmless="worse")
    assert words(next_steps.after_run(run, ["r.yaml"], STAGES)) == [
        f"chat {run}", f"gate {run}", f"feedback select {run}", f"serve {run}", f"export {run}"
    ]  # fmt: skip


def report(folder: Path, **sides: str) -> None:
    (folder / "report.json").write_text(json.dumps({"headline": {"sides": sides}}))


def test_no_gate_where_neither_side_was_measured(tmp_path) -> None:
    run = folder(tmp_path, "sft/model", "reward", "ppo/policy", "evaluate")
    report(run, helpful="not measured", harmless="not measured")
    others = [f"chat {run}", f"feedback select {run}", f"serve {run}", f"export {run}"]
    assert words(next_steps.after_run(run, ["r.yaml"], STAGES)) == others
    assert words(next_steps.after_evaluation("a", "b", None, run)) == ["chat a b"]
    report(run)  # of a reward model alone
    assert words(next_steps.after_run(run, ["r.yaml"], STAGES)) == others
    report(run, helpful="holds", harmless="not measured")
    assert words(next_steps.after_evaluation("a", "b", None, run)) == ["chat a b", f"gate {run}"]


def test_what_a_gate_an_export_and_rows_lead_on_to(tmp_path, monkeypatch) -> None:
    run = folder(tmp_path / "run", "ppo/policy")
    assert words(next_steps.after_gate(run, passed=True)) == [f"serve {run}", f"export {run}"]
    assert next_steps.after_gate(run, passed=False) == []
    (run / "report.html").touch()
    assert next_steps.after_gate(run, passed=False) == [("What to do about it", run / "report.html")]
    assert next_steps.after_gate(folder(tmp_path / "evaluations"), passed=True) == []
    made = folder(tmp_path / "exports")
    assert words(next_steps.after_export(made)) == [f"chat {made}", f"serve {made}"]
    (made / "adapter_config.json").touch()  # which `serve` refuses
    assert words(next_steps.after_export(made)) == [f"chat {made}"]
    assert words(next_steps.while_serving("http://h/v1", "m")) == ["chat http://h/v1#m"]
    assert words(next_steps.after_show(["a", "b"], ["--model=m"], None)) == ["data check a b --model=m"]
    assert words(next_steps.after_show([], [], "r.yaml")) == ["data check --recipe r.yaml"]
    monkeypatch.chdir(tmp_path)
    assert (next_steps.after_doctor(broken=True), words(next_steps.after_doctor(broken=False))) == ([], ["init"])
    folder(tmp_path / "recipes")
    (tmp_path / "recipes" / "quickstart.yaml").touch()
    assert words(next_steps.after_doctor(broken=False)) == ["run recipes/quickstart.yaml", "init"]


def test_what_the_others_lead_on_to(tmp_path) -> None:
    one, other = (str(folder(tmp_path / name, "ppo/policy")) for name in ("one", "other"))
    assert words(next_steps.after_comparison([one, "evaluations/x", other])) == [f"chat {one} {other}"]
    assert next_steps.after_comparison([one, "evaluations/x"]) == []
    assert words(next_steps.after_evaluation("http://h/v1#m", "x", "KEY", tmp_path)) == [
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
    report(run, helpful="better", harmless="worse")
    steps += [
        *next_steps.after_run(run, ["r.yaml"], STAGES),
        *next_steps.after_run(run, ["r.yaml", "seed=1"], [*STAGES, "other"]),
        *next_steps.after_evaluation("a", "b", "KEY", run),
        *next_steps.after_gate(run, passed=True),
        *next_steps.after_export(run),
        *next_steps.while_serving("http://h/v1", "m"),
        *next_steps.after_doctor(broken=False),
        *next_steps.after_show(["a"], ["--format=hh", "--columns=prompt=goal"], None),
        *next_steps.after_check(["a.jsonl", "b"], ["--format=hh", "--columns=prompt=goal"], None, stops=False),
        *next_steps.after_check(["a.jsonl"], [], None, stops=False),
        *next_steps.after_init(Path("r.yaml")),
    ]
    root = typer.main.get_command(app)
    lines = [line for _, line in steps if not isinstance(line, Path)]
    for line in lines:
        if line[0] in commands():
            command, rest = root, line
            while hasattr(command, "commands"):
                name, *rest = rest
                command = command.commands[name]
            command.make_context(line[0], list(rest))  # raises where an option is not known
    assert {"chat", "init", "doctor", "run", "data", "evaluate"} <= {line[0] for line in lines} & commands()


def test_they_are_printed_for_people_on_the_main_process_alone(capsys, monkeypatch) -> None:
    steps = [("Talk to it", ["chat", "runs/a b"]), ("Fly", ["fly", "away"])]
    next_steps.tell(steps, as_json=True)
    monkeypatch.setenv("RANK", "1")
    next_steps.tell(steps)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    next_steps.tell(steps)
    assert capsys.readouterr().out == "\nTalk to it: llm-rlhf chat 'runs/a b'\n"
    next_steps.tell([("What to do about it", Path("runs/a b/report.html"))])
    assert capsys.readouterr().out == "\nWhat to do about it: runs/a b/report.html\n"


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
    assert "..." not in out.partition("Commands:")[2]  # each is told in whole
    assert "..." not in CliRunner().invoke(app, ["data"]).output.partition("Commands:")[2]


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


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("llm-rlhf\nchat\nruns/hh\n:", ["base", "sft", "ppo", "step-4"]),  # as bash cuts runs/hh:
        ("llm-rlhf\nchat\nruns/hh\n:\ns", ["sft", "step-4"]),
        ("llm-rlhf\nchat\nruns/hh:s", ["runs/hh:sft", "runs/hh:step-4"]),  # where COMP_WORDBREAKS has no colon
        ("llm-rlhf\nchat\nruns/hh\n:\nsft\nruns/hh\n:\nb", ["base"]),
        ("llm-rlhf\nchat\nruns/hh\n:\nsft\nru", ["runs/hh"]),
        ("llm-rlhf\nchat\nru", ["runs/hh"]),
        ("llm-rlhf\nexport\nru", ["runs/hh"]),
        ("llm-rlhf\ngate\nruns/hh\n--against\nru", ["runs/hh"]),
        ("llm-rlhf\nevaluate\nruns/hh\n--reference\nruns/hh\n:\nsf", ["sft"]),
        ("llm-rlhf\ncha", ["chat"]),
    ],
)
def test_bash_which_cuts_words_at_colons_is_offered_the_rest_of_them(somewhere, monkeypatch, capsys, words, offered):
    monkeypatch.setenv("_LLM_RLHF_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count("\n")))
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.splitlines() == offered


def test_a_word_behind_a_space_is_one_of_its_own() -> None:
    assert joined(["chat", "runs/hh", ":", ""]) == ["chat", "runs/hh:", ""]
    assert joined(["http", ":", "//localhost", ":", "8000"]) == ["http://localhost:8000"]


def test_recipes_are_offered(somewhere) -> None:
    assert recipes("") == recipes("rec") == recipes("recipes/") == ["recipes/hh.yaml"]
    assert recipes(f"{somewhere}/recipes/h") == [f"{somewhere}/recipes/hh.yaml"]
