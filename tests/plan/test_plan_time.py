"""`llm-rlhf plan --time`: what a few steps say of a whole run, by hand, and the command on a tiny recipe."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig, AutoTokenizer
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.errors import RecipeError, RunError
from llm_rlhf.evaluation.suites.refusals import shipped_prompts
from llm_rlhf.plan import probe
from llm_rlhf.plan.forecast import StagePlan
from llm_rlhf.plan.probe import Tried, check_can_try, shallow
from llm_rlhf.plan.rows import Lists, Measured
from llm_rlhf.plan.text import duration, lines
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.sections import Recipe


def test_two_depths_tell_that_of_the_whole_model() -> None:
    """2 layers take 1 s and 8 take 4: half a second each, so that 28 take 14. No time grows less with the layers."""
    shallow_one = Tried({"sft": 1.0, "ppo": 3.0}, {"ppo": 2.0}, reply=0.1, report=5.0)
    deep = Tried({"sft": 4.0, "ppo": 2.9}, {"ppo": 2.0}, reply=0.4, report=5.0)
    found = shallow_one.deeper(deep, (2, 8), 28)
    assert found.step == {"sft": pytest.approx(14.0), "ppo": pytest.approx(2.9)}
    assert found.evaluation == {"ppo": 2.0}
    assert found.reply == pytest.approx(1.4)
    assert found.report == 5.0


def test_what_lies_between_two_lines_of_a_log() -> None:
    """The first rollout, in which kernels are chosen, does not count; an evaluation is told from steps."""
    log = [
        {"step": 0, "time": 0.0, "eval_kl": 0.0},
        {"step": 4, "time": 90.0, "loss": 1.0},
        {"step": 4, "time": 97.0, "eval_kl": 0.0},
        {"step": 8, "time": 107.0, "loss": 1.0},
        {"step": 8, "time": 108.0, "train_runtime": 5.0},
    ]
    assert [(gap.seconds, gap.steps) for gap in probe._gaps(log, "ppo")] == [(7.0, 0), (10.0, 4)]
    steps = [{"step": i, "time": float(i**2), "loss": 1.0} for i in range(1, 5)]
    assert [(gap.seconds, gap.steps) for gap in probe._gaps(steps, "sft")] == [(5.0, 1), (7.0, 1)]


def test_layers_are_cut_with_what_is_said_of_each() -> None:
    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=12)
    found = shallow(config, 2)
    assert found.num_hidden_layers == len(found.layer_types) == 2
    assert config.num_hidden_layers == len(config.layer_types) == 12
    assert shallow(AutoConfig.for_model("gpt2", n_layer=12), 2).n_layer == 2


def of(tmp_path: Path, **sections: Any) -> Recipe:
    path = tmp_path / "r.yaml"
    tree = {"name": "r", "model": {"base": "b"}, "data": {"preferences": [{"source": "hub/rows"}]}, **sections}
    path.write_text(yaml.safe_dump(tree))
    return load_recipe(path)


PPO = {"per_device_train_batch_size": 8, "num_mini_batches": 2, "num_ppo_epochs": 2, "total_episodes": 160}


def test_seconds_of_ppo_by_hand(tmp_path: Path) -> None:
    """40 steps of 2 s; an evaluation of 3 s after every other rollout of 4 steps and before the first, and the preview.

    The preview samples 8 replies to each prompt that is kept back: as much as 8 evaluations.
    """
    recipe = of(tmp_path, reward={}, ppo=PPO)
    found = Tried({"ppo": 2.0}, {"ppo": 3.0})
    plan = StagePlan("ppo", optimizer_steps=40)
    assert probe._seconds(recipe, Lists(), plan, found) == pytest.approx(40 * 2 + (5 + 1 + 8) * 3)
    assert probe._seconds(recipe, Lists(), StagePlan("sft", optimizer_steps=3), found) is None


def test_seconds_of_an_evaluation_by_hand(tmp_path: Path) -> None:
    """Two policies, 100 prompts and those about refusals; 64 prompts to 8 snapshots, and 16 replies to choose from."""
    recipe = of(tmp_path, reward={}, ppo=PPO, evaluate={"prompts": 100, "refusal_prompts": 10})
    refusals = len(shipped_prompts(10))
    asked = Lists(evaluation_prompts=Measured(5000, 10, 10))
    found = probe._seconds(recipe, asked, StagePlan("evaluate"), Tried({}, {}, reply=0.5, report=7.0))
    assert found == pytest.approx(7 + 0.5 * (2 * (100 + refusals) + 64 * (8 + 16)))


def test_seconds_of_a_reward_model_have_its_reference_replies(tmp_path: Path) -> None:
    """256 of 128 tokens, where a reply of PPO's 64 takes a tenth of a second."""
    recipe = of(tmp_path, reward={}, ppo={**PPO, "response_length": 64})
    found = probe._seconds(
        recipe, Lists(), StagePlan("reward", optimizer_steps=10), Tried({"reward": 1.0}, {}, reply=0.1)
    )
    assert found == pytest.approx(10 + 256 * 0.1 * 2)


def test_the_recipe_of_a_try_has_the_same_shapes_and_few_steps(tmp_path: Path) -> None:
    recipe = of(
        tmp_path, sft={"num_train_epochs": 3}, reward={}, rounds={"count": 3}, report_to=["tensorboard"],
        ppo={**PPO, "logging_steps": 50, "save_steps": 10}, evaluate={"judge": "local:m", "batch_size": 16},
    )  # fmt: skip
    tree = probe._shortened(recipe, tmp_path / "run", tmp_path / "base", compiled=True)
    path = tmp_path / "try.yaml"
    path.write_text(yaml.safe_dump(tree))
    tried = load_recipe(path)
    assert (tried.model.base, tried.folder) == (str(tmp_path / "base"), tmp_path / "run")
    assert (tried.rounds, tried.report_to) == (None, [])
    assert tried.sft is not None
    assert tried.ppo is not None
    assert tried.evaluate is not None
    assert tried.data is not None
    assert (tried.sft["max_steps"], tried.sft["save_strategy"]) == (6, "no")
    assert {tried.ppo[key] for key in ("total_episodes", "per_device_train_batch_size")} == {4 * 16, 8}
    assert (tried.ppo["logging_steps"], tried.ppo["eval_steps"], tried.ppo["decoding"]) == (4, 4, "compiled")
    assert (tried.evaluate.prompts, tried.evaluate.judge, tried.evaluate.suites) == (64, None, [])
    assert tried.data.preferences[0].limit == 3000


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"model": {"base": "b", "trust_remote_code": True}, "sft": {}}, "'model.trust_remote_code' is set"),
        ({"evaluate": None}, "trains nothing"),
    ],
)
def test_what_cannot_be_tried_is_told(sections: dict[str, Any], told: str, tmp_path: Path) -> None:
    recipe = of(tmp_path, **sections)
    with pytest.raises(RecipeError, match=told):
        check_can_try(recipe, [stage for stage in ("sft",) if getattr(recipe, stage) is not None])


def test_a_try_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="error: no room on the device")
    monkeypatch.setattr(probe.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(RunError, match=r"failed \(exit code 1\):\nerror: no room on the device"):
        probe._try(of(tmp_path, sft={}), tmp_path, None, compiled=False)


def test_a_duration_is_told_in_what_suits_it() -> None:
    assert [duration(s) for s in (0.4, 99, 110, 5400, 7200, 360_000)] == [
        "0 s", "99 s", "2 min", "90 min", "2.0 h", "100.0 h"
    ]  # fmt: skip
    told = lines([StagePlan("sft", seconds=3600.0), StagePlan("ppo")], 0, None, "cuda")
    assert told[0].split() == ["stage", "rows", "longest", "tokens", "steps", "memory", "disk", "time"]
    assert told[1].endswith("60 min")
    assert any("About 60 min, with one process on this machine" in line for line in told)
    assert "time" not in lines([StagePlan("sft")], 0, None, "cuda")[0]


@pytest.mark.slow
def test_the_command_tries_every_stage_and_leaves_nothing(tmp_path: Path, base_folder: Path) -> None:
    """A base of nine layers, of which two and eight are tried; its own weights are not needed."""
    base = tmp_path / "base"
    config = AutoConfig.from_pretrained(base_folder)
    config.num_hidden_layers = 9
    config.save_pretrained(base)
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(base)
    rows = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No." * (1 + i % 3)} for i in range(120)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = {"per_device_train_batch_size": 2}
    tree = {
        "name": "timed", "output_dir": str(tmp_path / "run"), "model": {"base": str(base), "lora": {"r": 2}},
        "data": {"preferences": [{"source": str(pairs)}], "evaluation_share": 0.2, "near_duplicates": None},
        "sft": few, "reward": few, "ppo": {**few, "num_mini_batches": 2, "response_length": 8, "eval_prompts": 4},
        "evaluate": {"batch_size": 4, "response_length": 8},
    }  # fmt: skip
    path = tmp_path / "timed.yaml"
    path.write_text(yaml.safe_dump(tree))
    result = CliRunner().invoke(app, ["plan", str(path), "--time", "--json"])
    assert result.exit_code == 0, result.output
    stages = json.loads(result.stdout.splitlines()[-1])["stages"]
    assert list(stages) == ["sft", "reward", "ppo", "evaluate"]
    for name, stage in stages.items():
        assert 0 < stage["seconds"] < 600, name
    assert not (tmp_path / "run").exists()
    refused = CliRunner().invoke(app, ["plan", str(path), "--time", "--device", "cuda"])
    assert refused.exit_code == 2
    assert "--device is cuda; leave one of the two out" in " ".join(refused.output.split())
