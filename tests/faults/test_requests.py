"""A wrong request: exit code 2 and one message that says what to do, no traceback, nothing half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from llm_rlhf.cli.main import app


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def recipe_on(base: Path, folder: Path, rows: list[dict] | None, **sections) -> Path:
    if rows is not None:
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "name": "faulty",
        "model": {"base": str(base)},
        "data": {"preferences": [{"source": "pairs.jsonl"}], "evaluation_share": 0.3},
        "sft": {"max_steps": 1},
        "reward": {"max_steps": 1},
        **sections,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def pairs(n: int) -> list[dict]:
    return [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(n)]


def refused(done: Result, *words: str) -> None:
    assert done.exit_code == 2, (done.exception, done.stderr[-2000:])
    (message,) = [line for line in done.stderr.splitlines() if line.lower().startswith("error:")]
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.yaml"], ["no recipe at nowhere.yaml"]),
        (["run", "recipe.yaml", "sft.lerning_rate=1"], ["sft.lerning_rate", "Did you mean 'sft.learning_rate'"]),
        (["run", "recipe.yaml", "--only", "ppo"], ["--only ppo", "sft, reward"]),
        (["run", "recipe.yaml", "--from", "sft", "--only", "sft"], ["exclude each other"]),
        (["run", "recipe.yaml", "--only", "reward"], ["--only reward needs sft"]),
        (["run"], ["Missing argument"]),
        (["fly"], ["No such command 'fly'"]),
    ],
)
def test_wrong_requests(base_folder, tmp_path, arguments, words) -> None:
    recipe_on(base_folder, tmp_path, pairs(40))
    refused(ask(*arguments), *words)


def test_a_missing_data_file_is_named_before_anything_is_made(base_folder, tmp_path) -> None:
    recipe_on(base_folder, tmp_path, None)
    refused(ask("run", "recipe.yaml"), "pairs.jsonl")
    assert not (tmp_path / "runs" / "faulty" / "sft").exists()


def test_a_suite_of_a_name_that_is_taken_is_refused_whatever_stage_is_asked_for(base_folder, tmp_path) -> None:
    own = [{"name": "kl", "prompts": [{"source": "pairs.jsonl"}], "function": "a:b"}]
    recipe_on(base_folder, tmp_path, pairs(40), ppo={"total_episodes": 16}, evaluate={"own": own})
    refused(ask("run", "recipe.yaml", "--only", "sft"), "evaluate.own.0.name", "'kl'", "a measure of the report's own")
    assert not (tmp_path / "runs").exists()


def test_empty_data(base_folder, tmp_path) -> None:
    recipe_on(base_folder, tmp_path, [])
    refused(ask("run", "recipe.yaml"), "pairs.jsonl")


def test_a_base_that_is_not_there(tmp_path) -> None:
    recipe_on(tmp_path / "no-model", tmp_path, pairs(40))
    refused(ask("run", "recipe.yaml"), "model.base", "no-model")


@pytest.mark.slow
def test_malformed_rows_are_counted_and_the_run_goes_on(base_folder, tmp_path) -> None:
    recipe_on(base_folder, tmp_path, pairs(60))
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "half a row\n{"prompt": "q", "chosen": "same", "rejected": "same"}\n')
        long = "a long question " * 100  # beyond the tiny model's 256 tokens
        file.write(json.dumps({"prompt": long, "chosen": "yes", "rejected": "no"}) + "\n")
        turns = [{"role": r, "content": "x" * 120} for r in ("user", "assistant", "user")]
        file.write(json.dumps({"prompt": turns, "chosen": [{"role": "assistant", "content": "yes"}],
                               "rejected": [{"role": "assistant", "content": "no"}]}) + "\n")  # fmt: skip
    done = ask("run", "recipe.yaml")
    run = tmp_path / "runs" / "faulty"
    assert done.exit_code == 0, (done.exception, done.stderr[-3000:])
    counts = json.loads((run / "data" / "counts.json").read_text())["preferences"]
    assert counts["read"] == 64
    assert sum(counts["set_aside"].values()) == 2
    rows = [json.loads(line) for line in (run / "data" / "quarantine.jsonl").read_text().splitlines()]
    assert {row["row"] for row in rows if "pairs.jsonl" in row["source"]} == {61, 62}
    lengths = json.loads((run / "reward" / "lengths.json").read_text())
    assert sum(s["too_long"] for s in lengths.values()) == 1
    assert sum(s["cut_at_turns"] for s in lengths.values()) == 1


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_exit_code_one(base_folder, tmp_path) -> None:
    recipe_on(base_folder, tmp_path, pairs(40), sft={"learning_rate": 1e30, "max_steps": 20, "max_grad_norm": 0.0})
    done = subprocess.run(
        [sys.executable, "-m", "llm_rlhf", "run", "recipe.yaml"],
        capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-2000:]
    assert "The sft loss is" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "faulty" / "sft").exists()


def test_help_shows_an_example() -> None:
    done = ask("run", "--help")
    assert done.exit_code == 0
    assert "llm-rlhf run recipes/quickstart.yaml" in done.stdout
