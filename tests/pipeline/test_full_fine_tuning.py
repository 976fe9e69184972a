"""The chain with all weights trained (`model.lora: none`): down to the report, killed and resumed, and under FSDP2."""

import json
import shutil
from pathlib import Path
from typing import Any

import fsdp_on_cpus
import pytest
import torch
from chain_helpers import TINY, copy, write_recipe
from launching import Launch, start
from safetensors.torch import load_file

from llm_rlhf.run_folder import read_json

pytestmark = pytest.mark.slow

# By plain gradient descent: Adam would make a whole step of the rounding where a gradient is next to nothing.
HALF = {"per_device_train_batch_size": 8, "max_steps": 3, "gradient_checkpointing": True, "optim": "sgd",
        "learning_rate": 0.1}  # fmt: skip
PPO = {**TINY["ppo"], "value": "adapter", "gradient_checkpointing": True, "total_episodes": 48, "learning_rate": 1e-4}
STEPS = 4  # optimizer steps a rollout


def launch(run: Path) -> Launch:
    return start(
        "run", run.parent / "tiny.yaml", f"output_dir={run}", "ppo.save_rollouts=1", folder=run.parent / "said"
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """In bfloat16, PPO with a value function of its own."""
    folder = tmp_path_factory.mktemp("whole")
    evaluate = {**TINY["evaluate"], "prompts": 24}  # enough for a curve of the snapshots
    write_recipe(folder, model={"lora": "none", "dtype": "bfloat16"}, ppo=PPO, evaluate=evaluate)
    launch(folder / "run").finish()
    return folder / "run"


def metrics(run: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]


def test_ppo_begins_at_its_reference_and_leaves_it(finished: Path) -> None:
    learned = [line for line in metrics(finished, "ppo") if "objective/kl" in line]
    assert learned[0]["objective/kl"] == learned[0]["objective/kl_k3"] == 0  # exactly, in bfloat16
    assert learned[-1]["objective/kl_k3"] > 0
    policy = load_file(finished / "ppo" / "policy" / "adapter_model.safetensors")
    base = load_file(finished / "sft" / "model" / "model.safetensors")
    moved = [name for name, w in base.items() if not torch.equal(policy[f"base_model.model.{name}"], w.float())]
    assert len(moved) == len(base)  # every weight trains
    assert {w.dtype for w in policy.values()} == {torch.float32}
    sampled = read_json(finished / "ppo" / "manifest.json")
    assert sampled is not None
    assert "weights merged and rounded" in json.dumps(sampled)
    report = read_json(finished / "report.json")
    assert report is not None
    assert report["curves"]


def test_killed_and_resumed_it_ends_in_the_same_bits(finished: Path, tmp_path) -> None:
    run = copy(finished, tmp_path)
    for name in ("ppo", "evaluate"):
        shutil.rmtree(run / name)
    launch(run).kill_when(run / "partial-ppo" / f"checkpoint-{STEPS}" / "complete.json")
    launch(run).finish()
    for name in ("policy/adapter_model.safetensors", "value/value/adapter_model.safetensors"):
        one, two = (load_file(r / "ppo" / name) for r in (finished, run))
        assert one.keys() == two.keys()
        assert [key for key in one if not torch.equal(one[key], two[key])] == []


METHODS = {
    "dpo": {"max_steps": 2, "per_device_train_batch_size": 8},
    "kto": {"max_steps": 2, "per_device_train_batch_size": 8},
    "grpo": {"max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 12},
    "rloo": {"max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 12},
    "best_of_n": {"max_steps": 2, "per_device_train_batch_size": 8, "response_length": 12},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_all_weights(finished: Path, method: str, tmp_path) -> None:
    """From the reward model of the same chain, in bfloat16."""
    run = copy(finished, tmp_path)
    for name in ("ppo", "evaluate"):
        shutil.rmtree(run / name)
    of = METHODS[method] | {"gradient_checkpointing": method in ("grpo", "dpo"), "learning_rate": 1e-3}
    write_recipe(tmp_path, model={"lora": "none", "dtype": "bfloat16"}, ppo=None, evaluate=None, **{method: of})
    start("run", tmp_path / "tiny.yaml", f"output_dir={run}", folder=tmp_path / "said").finish()
    policy = load_file(run / method / "policy" / "adapter_model.safetensors")
    base = load_file(run / "sft" / "model" / "model.safetensors")
    still = [name for name, w in base.items() if torch.equal(policy[f"base_model.model.{name}"], w.float())]
    assert still == []
    assert {w.dtype for w in policy.values()} == {torch.float32}


def test_fsdp2_trains_the_copies_that_one_process_trains(tmp_path) -> None:
    """Decoder layers and their copies are spread each by itself."""
    found = {name: tmp_path / name / "run" for name in ("one", "fsdp2")}
    for name, run in found.items():
        run.parent.mkdir()
        rows = HALF["per_device_train_batch_size"] * (2 if name == "one" else 1)
        stages = {stage: {**HALF, "per_device_train_batch_size": rows} for stage in ("sft", "reward")}
        recipe = write_recipe(run.parent, model={"lora": "none"}, ppo=None, evaluate=None, **stages)
        asked = ("run", str(recipe), f"output_dir={run}")
        if name == "one":
            start(*asked, folder=run.parent / "said").finish()
        else:
            Launch(fsdp_on_cpus.command, asked, 2, run.parent / "said").finish()
    for adapter in ("sft/adapter", "reward/joint"):
        one, two = (load_file(found[name] / adapter / "adapter_model.safetensors") for name in ("one", "fsdp2"))
        assert one.keys() == two.keys()
        start_of = load_file(found["one"] / "world" / "base" / "model.safetensors")
        for key, weight in one.items():
            torch.testing.assert_close(two[key], weight, rtol=0, atol=1e-6, msg=key)  # sums of two halves of a batch
        if adapter == "sft/adapter":
            apart = [(one[f"base_model.model.{key}"] - weight).abs().max() for key, weight in start_of.items()]
            assert min(apart) > 1e-5  # ten times the tolerance
