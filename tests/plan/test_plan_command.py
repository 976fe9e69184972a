"""`llm-rlhf plan` on a tiny recipe: what it says, what it refuses, and that it leaves nothing behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.plan.forecast import Forecast, StagePlan, with_value
from llm_rlhf.plan.remedies import Remedy, remedies
from llm_rlhf.plan.text import lines, refusal, size, where
from llm_rlhf.recipe.loading import load_recipe


@pytest.fixture
def recipe(tmp_path: Path, base_folder: Path) -> Path:
    """A whole chain over twenty-four pairs; the base has no weights."""
    base = tmp_path / "base"
    base.mkdir()
    for file in base_folder.iterdir():
        if file.suffix != ".safetensors":
            (base / file.name).write_bytes(file.read_bytes())
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No." * (1 + i % 3)} for i in range(60)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    few = {"per_device_train_batch_size": 2, "max_steps": 3}
    tree: dict[str, Any] = {
        "name": "tiny", "output_dir": str(tmp_path / "run"), "model": {"base": str(base), "lora": {"r": 2}},
        "data": {"preferences": [{"source": str(pairs)}], "evaluation_share": 0.2, "near_duplicates": None},
        "sft": few, "reward": few,
        "ppo": {"per_device_train_batch_size": 2, "num_mini_batches": 2, "total_episodes": 8, "response_length": 8},
        "evaluate": {"batch_size": 4, "response_length": 8, "suites": []},
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def asked(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plan", *arguments])


@pytest.mark.slow
def test_the_command(recipe: Path) -> None:
    result = asked(str(recipe), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    stages = told["stages"]
    assert list(stages) == ["sft", "reward", "ppo", "evaluate"]
    assert stages["sft"]["optimizer_steps"] == 3
    assert stages["reward"]["optimizer_steps"] == 6  # the reward model and the held-out one
    assert stages["ppo"]["optimizer_steps"] == 8  # two rollouts of 4 replies, 2 epochs of 2 mini-batches each
    for stage in stages.values():
        steps = stage["memory"]["steps"]
        largest = max(sum(step.values()) for step in steps.values())
        assert stage["memory"]["bytes"] == told["process_bytes"] + largest
    assert "KV cache" in stages["ppo"]["memory"]["steps"]["sampling, last token"]
    assert not (recipe.parent / "run").exists()


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_what_would_help(recipe: Path) -> None:
    result = asked(str(recipe), "--device", "cuda", "--memory", "0.0001")
    assert result.exit_code == 2
    assert "Recipe section '" in result.stderr
    assert "per_device_train_batch_size=1" in result.stderr or "batch_size=2" in result.stderr
    assert "None is enough by itself" in result.stderr
    assert "stage " in result.stdout  # the table is there all the same


@pytest.mark.slow
def test_what_is_tried_holds_what_the_changed_recipe_holds(recipe: Path) -> None:
    forecast = Forecast(load_recipe(recipe, ["sft.gradient_checkpointing=false"]), "cuda")
    plan = forecast.stage(forecast.recipe, "sft")
    found = {remedy.told: remedy.bytes for remedy in remedies(forecast, plan)}
    assert set(found) >= {"sft.gradient_checkpointing=true", "model.dtype=bfloat16"}
    with_it = forecast.stage(with_value(forecast.recipe, "sft.gradient_checkpointing", True), "sft")
    assert found["sft.gradient_checkpointing=true"] == with_it.bytes < plan.bytes
    smaller = forecast.stage(with_value(forecast.recipe, "sft.per_device_train_batch_size", 1), "sft")
    assert smaller.bytes < plan.bytes


@pytest.mark.parametrize(("option", "value"), [("--device", "tpu"), ("--memory", "0")])
def test_wrong_options_are_refused(option: str, value: str) -> None:
    result = asked("none.yaml", option, value)
    assert result.exit_code == 2
    assert f"{option} is" in result.stderr


def test_a_recipe_that_is_not_there() -> None:
    result = asked("none.yaml")
    assert result.exit_code == 2
    assert "There is no recipe at none.yaml" in result.stderr


MIB = 2**20
PLAN = StagePlan("sft", memory={"update": {"base": 100 * MIB, "activations": 300 * MIB}, "merging": {"base": MIB}})


def test_the_largest_step_and_where_it_goes() -> None:
    assert PLAN.largest == "update"
    assert PLAN.bytes == 400 * MIB
    assert where(PLAN) == "update: activations 0.3 GiB, base 100 MiB"
    assert size(102 * MIB) == "102 MiB"
    assert size(103 * MIB) == "0.1 GiB"
    told = lines([PLAN, StagePlan("world")], 100 * MIB, 1024 * MIB, "cpu")
    assert told[-1].startswith("At most 0.5 GiB, of 1.0 GiB of the machine (sft)")


def test_the_refusal_names_section_value_rule_and_remedy() -> None:
    found = [Remedy({"sft.gradient_checkpointing": True}, 200 * MIB), Remedy({"sft.max_length": 512}, 390 * MIB)]
    told = refusal(PLAN, 0, 256 * MIB, found)
    assert told.startswith(
        "Recipe section 'sft' would hold 0.4 GiB at its largest step (update), and there are 0.2 GiB"
    )
    assert "sft.gradient_checkpointing=true (0.2 GiB); sft.max_length=512 (0.4 GiB)" in told
    assert told.endswith("Each that fits does by itself.")
    assert refusal(PLAN, 0, 10 * MIB, found).endswith("None is enough by itself; put several together.")
    assert "take a smaller base" in refusal(PLAN, 0, 10 * MIB, [])
