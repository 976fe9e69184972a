"""What the pages tell a reader to run is run: Python blocks, commands and recipes, on a finished tiny run.

The folder that they run in has everything by the names that the pages use: runs, data, a model and a data set where the
hub would have them. What cannot be run here is listed with its reason, and so is what a page leaves to its reader.
"""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chain_helpers import copy
from endpoint_stand_in import StandIn, letters, reply
from test_recipes import PAGES, ROOT, blocks, commands, named
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.data.sources import load_demonstrations, load_preferences
from llm_rlhf.data.storage import Rows
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.sections import DataSection, EvaluateSection, Source
from llm_rlhf.recipe.values import read_section

SERVED = "http://localhost:8000/v1"
NOT_RUN = {  # commands that match, and why they are not run here; that they would be understood is tested for all
    r"^make |^\. |^python -m pip |^python benchmarks/": "sets up the machine",
    r"mountain.car": "its runs are not there; tests/recipes/test_mountain_car.py makes one",
    r"^(ACCELERATE_\S+ )?accelerate launch": "asks for GPUs; tests/parity/test_processes.py starts processes",
    r"^llm-rlhf run ": "takes minutes to hours; tests/pipeline runs every stage, resumes and archives",
    r"bench-llm/or-bench": "its subset is the hub's",
    r"total_dataset\.json|harmbench|strongreject|xstest": "others' files; tests/evaluation/test_benchmarks.py has rows",
    r"^llm-rlhf doctor": "half a minute; tests/doctor looks at each of its findings",
    r"^llm-rlhf init( --recipes)?$": "asks, or finds the recipes here already; tests/cli/test_init.py has both",
    r"--push": "asks the hub; tests/export/test_pushing.py has a stand-in",
    r"^llm-rlhf feedback serve": "answers until it is interrupted; tests/feedback/test_web_serve.py opens it",
    r"^llm-rlhf serve": "answers until it is interrupted; tests/export/test_serving.py asks it",
    r"--own lists=": "in the repository's root; tests/recipes/test_examples.py does",
}
SHORTER = ["--limit", "20", "--response-length", "8"]  # what is added to evaluations of policies


@pytest.fixture(scope="module")
def place(finished: Path, base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the pages' names are there."""
    folder = tmp_path_factory.mktemp("pages")
    run = copy(finished, folder)
    steps = sorted(int(path.name[5:]) for path in (run / "ppo" / "snapshots").glob("step-*"))
    for name in ("hh", "quickstart", "second", "looser", "released", "quickstart-dpo", "seed-0", "seed-1", "seed-2"):
        shutil.copytree(run, folder / "runs" / name)
        for step in (10, 40, 48):  # snapshots of longer runs
            source = folder / "runs" / name / "ppo" / "snapshots" / f"step-{steps[-1]}"
            shutil.copytree(source, source.with_name(f"step-{step}"))
    shutil.copytree(run / "ppo" / "policy", folder / "path/to/adapter")
    shutil.copytree(run / "sft" / "model", folder / "path/to/model")
    shutil.copytree(run / "reward" / "joint", folder / "path/to/reward-model")
    (folder / "log.jsonl").write_text(dict(blocks(ROOT / "docs" / "monitor.md"))["jsonl"], encoding="utf-8")
    shutil.copytree(run / "ppo" / "policy", folder / "exported")
    for name in ("path/to/adapter", "path/to/reward-model", "exported"):  # outside their run
        config = json.loads((folder / name / "adapter_config.json").read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = str(folder / "path/to/model")
        (folder / name / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copytree(base_folder, folder / "Qwen/Qwen2.5-0.5B")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    asked = [f"What is {i} and {i}?" for i in range(40)]
    good, bad = [f"It is {2 * i}." for i in range(40)], [f"{i}, said she." + " So." * (i % 3) for i in range(40)]
    pairs = [{"prompt": q, "chosen": x, "rejected": y} for q, x, y in zip(asked, good, bad, strict=True)]
    talks = [
        {name: f"\n\nHuman: {row['prompt']}\n\nAssistant: {row[name]}" for name in ("chosen", "rejected")}
        for row in pairs
    ]
    write(folder / "pairs.jsonl", pairs)
    write(folder / "labelled.jsonl", pairs)
    for name in ("helpful-base", "harmless-base"):
        write(folder / "Anthropic" / "hh-rlhf" / name / "train.jsonl", talks)
    write(
        folder / "test.jsonl", [{"prompt": "Name a river in Asia.", "chosen": "The Mekong.", "rejected": "The Rhine."}]
    )
    write(folder / "asked.jsonl", [{"prompt": f"Is {i} odd?", "objective": "helpful"} for i in range(24)])
    (folder / "asked").mkdir()
    shutil.copy(run / "evaluate" / "replies.jsonl", folder / "asked")  # what a command of human-feedback.md writes
    (folder / "goals.csv").write_text("goal\nName a river.\nName a sea.\n", encoding="utf-8")
    (folder / "my_rewards.py").write_text(
        "def brevity(prompts, completions, **columns):\n"
        "    return [-float(len(str(completion))) for completion in completions]\n",
        encoding="utf-8",
    )
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The URL of an endpoint that judges by letters, or answers shortly where it is asked for no judgement."""

    def script(body: dict[str, Any], count: int) -> Any:
        if body.get("logprobs"):
            return reply("A", logprobs=letters({"A": 0.6, "B": 0.4}))
        return reply("the fox eats berries.")

    server = StandIn(script)
    yield server.url
    server.close()


@pytest.fixture
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("JUDGE_KEY", "secret")
    return place


# --- Python ---------------------------------------------------------------------------------------------------------


def given(page: str) -> dict[str, Any]:
    """What a page's blocks leave to the reader."""
    if page == "docs/ppo.md":
        from datasets import Dataset

        asked = [{"prompt": [{"role": "user", "content": f"what does the {animal} eat?"}]} for animal in ("fox", "owl")]
        return {"prompts": Dataset.from_list(asked * 8), "held_out_prompts": Dataset.from_list(asked)}
    return {
        "docs/statistics.md": {
            "policy_scores": [1.2, 0.4, 0.9], "reference_scores": [0.7, 0.4, 1.0], "prompt_ids": [0, 1, 2],
        },
        "docs/judges.md": {
            "prompt": [{"role": "user", "content": "What does the fox eat?"}], "a": "Berries.", "b": "No idea.",
            "policy_identity": {"kind": "local", "model": "mine"},
            "prompts": [[{"role": "user", "content": "What does the owl eat?"}]],
        },
    }.get(page, {})  # fmt: skip


OTHERS = {"inspect_ai": "tasks of another evaluation, which is not installed here"}
WITH_PYTHON = [path for path in PAGES if any(language == "python" for language, _ in blocks(path))]


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_PYTHON, ids=named)
def test_python_of_a_page_runs_from_top_to_bottom(path: Path, there: Path, served: str) -> None:
    names = given(named(path))
    if named(path) == "docs/using.md":
        shutil.copytree("exported", "exports/hh")
    for language, text in blocks(path):
        if language == "python" and not any(package in text for package in OTHERS):
            exec(compile(text.replace(SERVED, served), named(path), "exec"), names)
    shutil.rmtree("exports", ignore_errors=True)  # the command that makes it is run, too


# --- commands -------------------------------------------------------------------------------------------------------


def runnable() -> list[Any]:
    """The commands of the pages that match nothing of NOT_RUN, each once."""
    found = {p.values[1]: p for p in commands() if not any(re.search(pattern, p.values[1]) for pattern in NOT_RUN)}
    return list(found.values())


def test_what_is_not_run_is_there_and_is_not_much() -> None:
    lines = [parameter.values[1] for parameter in commands()]
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, line) for line in lines)] == []
    assert len(runnable()) >= 15


@pytest.mark.slow
@pytest.mark.parametrize(("path", "line"), runnable())
def test_a_command_of_a_page_runs(path: Path, line: str, there: Path, served: str) -> None:
    program, *words = shlex.split(line.replace(SERVED, served))
    assert program == "llm-rlhf"
    if words[0] == "evaluate" and words[1][0] != "-":
        words += SHORTER
    done = CliRunner().invoke(app, words)
    ends = (0, 1) if words[0] == "gate" else (0,)  # whatever a tiny policy's verdict is
    assert done.exit_code in ends, done.output[-2000:] + str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception


# --- rows and recipes -----------------------------------------------------------------------------------------------


YAMLS = [
    pytest.param(text, id=f"{named(path)}-{number}")
    for path in PAGES
    for number, (language, text) in enumerate(blocks(path))
    if language == "yaml"
]


ROWS = [
    pytest.param(text, id=named(path))
    for path in PAGES
    if path.name not in ("data.md", "monitor.md")  # test_data_page.py; a log, which `llm-rlhf monitor` reads here
    for language, text in blocks(path)
    if language == "jsonl"
]


@pytest.mark.parametrize("text", ROWS)
def test_rows_of_the_pages_are_pairs_and_demonstrations(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    source = Source(source=str(tmp_path / "rows.jsonl"))
    pairs, imitated = load_preferences([source]), load_demonstrations([source], Rows())
    assert len(pairs.rows) == len(imitated.rows) == len(text.splitlines())
    assert [row.messages[-1]["content"] for row in imitated.rows] == [pair.chosen for pair in pairs.rows]


OTHERS_YAML = ("uses: actions/", "dataset_kwargs:")  # a workflow's steps, a task of lm-eval


@pytest.mark.parametrize("text", [given for given in YAMLS if not any(sign in given.values[0] for sign in OTHERS_YAML)])
def test_yaml_of_the_pages_is_a_recipe_or_sections_of_one(text: str, tmp_path: Path) -> None:
    """A whole recipe is loaded; sections alone are laid over one that has all of them; so are lists of sources."""
    tree = yaml.safe_load(text)
    if "name" not in tree:
        lists = {key for key in tree if key in DataSection.__dataclass_fields__}
        tree = {"data": tree} if lists else tree
        whole = {
            "name": "page", "model": {"base": "some/model"}, "data": {"preferences": [{"source": "pairs.jsonl"}]},
            "sft": {}, "reward": {}, "evaluate": {}, "kto" if "ratings" in tree.get("data", {}) else "ppo": {},
        }  # fmt: skip
        tree = whole | tree | {"data": whole["data"] | tree.get("data", {})}
    (tmp_path / "page.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    for name, section in (("data", DataSection), ("evaluate", EvaluateSection)):
        read_section(section, tree.get(name, {}), f"{name}.")
    load_recipe(tmp_path / "page.yaml")
