"""What `run` and `evaluate` make of their arguments: the request that reaches the package, and how each ends."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from huggingface_hub import constants
from typer.testing import CliRunner

import llm_rlhf.cli.main  # noqa: F401 registers the commands, which the last lines name
from llm_rlhf import pipeline
from llm_rlhf.cli.doctor import doctor
from llm_rlhf.cli.evaluate import compare, evaluate
from llm_rlhf.cli.exits import COVERS
from llm_rlhf.cli.export import export, serve
from llm_rlhf.cli.gate import gate
from llm_rlhf.cli.run import run
from llm_rlhf.doctor.findings import Finding
from llm_rlhf.errors import RunError
from llm_rlhf.evaluation import evaluate as driver
from llm_rlhf.export.folder import Exported
from llm_rlhf.recipe.sections import Benchmark, OwnSuite, Source

REPORT = {"headline": {"text": "Overall: better"}, "verdict": ["Both sides gained."], "alarms": ["an alarm"]}


def ask(command: Any, *arguments: object) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(a) for a in arguments])


class Folder:
    """A run folder that is done."""

    def __init__(self, path: Path) -> None:
        self.path, self.state = path, SimpleNamespace(is_main_process=True)

    def __truediv__(self, name: str) -> Path:
        return self.path / name


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text("name: mine\nworld: {}\nsft: {}\n")
    return tmp_path / "recipe.yaml"


def test_a_run_is_asked_with_overrides_and_stages_and_shows_its_report(recipe, tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(pipeline, "run_recipe", lambda *a: asked.append(a) or Folder(tmp_path))
    done = ask(run, recipe, "seed=7", "--from", "sft")
    onward = f"\nGo on with world: llm-rlhf run {recipe}"
    assert (done.exit_code, done.stdout) == (0, f"{onward} seed=7\n")  # no report yet
    ((loaded, *how),) = asked
    assert (loaded.name, loaded.seed, *how) == ("mine", 7, None, "sft", False)
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    text = ask(run, recipe, "--only", "sft").stdout
    assert asked[1][1:] == ("sft", None, False)
    ask(run, recipe, "--allow-partial-resume")
    assert asked[2][1:] == (None, None, True)
    page = tmp_path / "report.html"
    told = f"\nOverall: better\n\nBoth sides gained.\n{COVERS}\nwarning: an alarm\n\nReport: {page}\n"
    assert text == f"{told}{onward}\n"
    assert json.loads(ask(run, recipe, "--json").stdout) == REPORT | {"report": str(page)}


def test_json_is_all_of_stdout(recipe, tmp_path, monkeypatch) -> None:
    """Also where nothing is there to show, and where what is called says something on the way."""

    def says(what: Any) -> Any:
        def called(*arguments: object) -> Any:
            print("a note")
            return what

        return called

    monkeypatch.setattr(pipeline, "run_recipe", says(Folder(tmp_path)))
    assert json.loads(ask(run, recipe, "--json").stdout) == {"report": None, "run": str(tmp_path)}
    monkeypatch.setattr("llm_rlhf.export.folder.export", says(Exported(Path("exports/hh"), "model", [])))
    made = ask(export, "runs/hh", "--json")
    assert (json.loads(made.stdout)["folder"], made.stderr) == ("exports/hh", "a note\n")
    monkeypatch.setattr("llm_rlhf.evaluation.report.comparison.compare_runs", says({"summary": [], "cautions": []}))
    monkeypatch.setattr("llm_rlhf.evaluation.report.side_by_side.write_comparison", says(Path("page.html")))
    assert json.loads(ask(compare, "runs/a", "runs/b", "--json").stdout)["page"] == "page.html"


def test_a_mistyped_folder_is_told_with_the_one_beside_it(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    beside = "Did you mean 'runs/tiny'?\n"
    for command, *arguments in ((gate, "runs/tny"), (compare, "runs/tiny", "runs/tny"), (export, "runs/tny")):
        done = ask(command, *arguments)
        assert done.exit_code == 2
        assert done.stderr.endswith(beside) == (command is not compare), done.stderr  # of which the first has no report
    assert ask(gate, "runs/other").stderr == "error: There is no folder runs/other.\n"
    assert "runs/tiny holds no report.json" in ask(gate, "runs/tiny").stderr


def test_how_many_prompts_is_no_file_of_prompts() -> None:
    """The recipe's evaluate.prompts is a number; the option names files."""
    done = ask(evaluate, "org/model", "--reference", "org/other", "--prompts", "8")
    assert (done.exit_code, "--limit 8" in done.stderr) == (2, True)


def test_a_run_that_cannot_be_asked_or_fails_ends_with_its_code(recipe, monkeypatch) -> None:
    assert ask(run, recipe, "--only", "sft", "--from", "sft").exit_code == 2
    unknown = ask(run, recipe, "sfd.max_steps=3")
    assert (unknown.exit_code, "sfd" in unknown.stderr) == (2, True)
    assert ask(run, recipe.parent / "none.yaml").exit_code == 2

    def fail(*arguments: object) -> None:
        raise RunError("the judge is away")

    monkeypatch.setattr(pipeline, "run_recipe", fail)
    failed = ask(run, recipe)
    assert (failed.exit_code, failed.stderr) == (1, "error: the judge is away\n")


def test_an_evaluation_is_asked_as_its_options_say(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(driver, "evaluate", lambda request: asked.append(request) or REPORT)
    served, other = "mine=http://localhost:1/v1#m", "http://localhost:2/v1#org/start"
    done = ask(
        evaluate, served, "--reference", other, "--prompts", "a.jsonl", "--prompts", "b.jsonl",
        "--columns", "prompt=goal",
        "--own", "x=f.jsonl,m:f", "--benchmarks", "xstest=x.csv,limit=9",
        "--key-variable", "KEY", "--limit", 9, "--no-refusals", "--seed", 4, "--judge", "people:v.jsonl",
    )  # fmt: skip
    assert (done.exit_code, done.stderr) == (0, "")
    (request,) = asked
    assert (request.policy.name, request.start.name, request.start.served) == ("mine", "start", "org/start")
    assert [source.source for source in request.prompts] == ["a.jsonl", "b.jsonl"]
    assert [source.columns for source in request.prompts] == [{"prompt": "goal"}] * 2
    assert request.own == [OwnSuite("x", "m:f", [Source(source="f.jsonl")])]
    assert request.benchmarks == [Benchmark("xstest", "x.csv", limit=9)]
    assert (request.limit, request.refusal_limit, request.refusals, request.seed) == (9, 9, False, 4)
    assert (request.judge, request.key_variable, request.judge_key_variable) == ("people:v.jsonl", "KEY", "KEY")
    assert (request.recipe, request.temperature, request.output) == (None, None, Path("evaluations/mine-start"))
    page, onward = Path("evaluations/mine-start/report.html"), f"chat '{served}' '{other}' --key-variable KEY"
    assert done.stdout.endswith(f"Report: {page}\n\nTalk to them: llm-rlhf {onward}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["http://localhost:1/v1#m"], "name what it is compared with: --reference POLICY"),
        (["http://localhost:1/v1#m", "--columns", "prompt=goal"], "no --prompts are named"),
        (["--reward", "x", "--pairs", "y", "--best-of-n", "3"], "--best-of-n asks policies, but none is named"),
        (["--reward", "x", "--benchmarks", "bbq=y"], "--benchmarks asks policies, but none is named"),
        (["http://localhost:1/v1#m", "--benchmarks", "bbg=y"], "no known suite. Did you mean 'bbq'?"),
        (["--reward", "x"], "Name a policy to evaluate, or a reward model and labelled pairs"),
    ],
)
def test_an_evaluation_of_nothing_is_told(arguments: list[str], words: str) -> None:
    told = ask(evaluate, *arguments)
    assert (told.exit_code, words in told.stderr) == (2, True)


def test_reward_models_of_two_runs_do_not_share_a_folder(tmp_path, monkeypatch) -> None:
    asked = []

    def evaluation(rewards: Any, pairs: Any, folder: Path, *rest: Any, **more: Any) -> dict[str, Any]:
        asked.append(folder.as_posix())
        return REPORT

    monkeypatch.setattr("llm_rlhf.evaluation.reward_evaluation.evaluate_rewards", evaluation)
    for name in ("one", "two"):
        (tmp_path / name / "reward" / "joint").mkdir(parents=True)
        (tmp_path / name / "recipe.yaml").write_text("name: mine\n")
    for model in (tmp_path / "one/reward/joint", tmp_path / "two/reward/joint", "org/model"):
        assert ask(evaluate, "--reward", model, "--pairs", "pairs.jsonl").exit_code == 0
    assert asked == ["evaluations/one-joint", "evaluations/two-joint", "evaluations/model"]


def test_an_export_a_server_and_a_good_machine_lead_on(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llm_rlhf.export.folder.export", lambda *a: Exported(Path("exports/hh"), "model", []))
    onward = "\nTalk to it: llm-rlhf chat exports/hh\nServe it: llm-rlhf serve exports/hh\n"
    assert ask(export, "runs/hh").stdout.endswith(onward)
    answering = []
    monkeypatch.setattr("llm_rlhf.export.serving.check_can_serve", lambda *a: None)
    monkeypatch.setattr(
        "llm_rlhf.export.serving.folder_to_serve", lambda policy, trusted: (Path("runs/hh/cache/serve/hh"), False)
    )
    monkeypatch.setattr("llm_rlhf.export.serving.serve", lambda *a: answering.append(a))
    told = ask(serve, "runs/hh", "--port", "8001").stdout
    assert told.endswith("\nTalk to it: llm-rlhf chat 'http://localhost:8001/v1#hh'\n")
    assert len(answering) == 1
    for mark, said in (("good", "Nothing is broken.\n\nWrite a recipe for your data: llm-rlhf init\n"),
                       ("broken", "Broken: disk\n")):  # fmt: skip
        monkeypatch.setattr("llm_rlhf.doctor.examine.examine", lambda mark=mark: [Finding("disk", mark, "full")])
        assert ask(doctor).stdout.endswith(said)
        assert json.loads(ask(doctor, "--json").stdout)["broken"] == ["disk"] * (mark == "broken")


def test_runs_to_compare_are_at_least_two(tmp_path) -> None:
    told = ask(compare, tmp_path)
    assert (told.exit_code, told.stderr.startswith("error: ")) == (2, True)
