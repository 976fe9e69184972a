"""The chain under FSDP2 on two CPU processes, beside the same without it."""

from pathlib import Path

import fsdp_on_cpus
import pytest
import torch
from chain_helpers import SECTIONS, TINY, copy, write_recipe
from launching import Launch, start
from safetensors.torch import load_file

from llm_rlhf.json_lines import read_json_lines
from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.run_folder import read_json

pytestmark = pytest.mark.slow

HALF = {"per_device_train_batch_size": 8, "max_steps": 3, "gradient_checkpointing": True}
WHOLE = {**HALF, "per_device_train_batch_size": 16}
# Prompts enough for three rollouts of 16; two replies a process and step, so that processes finish sampling apart.
PPO = {**TINY["ppo"], "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "value": "adapter",
       "response_length": 24, "gradient_checkpointing": True}  # fmt: skip


KEPT = ["objective/kl", "objective/entropy", "val/rms", "val/explained_variance", "loss/value", "policy/ratio"]


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    """Of every adapter and head that a stage left."""
    files = sorted((run / stage).rglob("*.safetensors"))
    return {f"{file.relative_to(run)}:{name}": w for file in files for name, w in load_file(file).items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Of one process (SFT and reward model), and of two under DDP and under FSDP2 (all stages)."""
    folder = tmp_path_factory.mktemp("fsdp")
    recipe = write_recipe(folder, sft=HALF, reward=HALF, ppo=PPO)
    alone = folder / "one"
    alone.mkdir()
    of_one = write_recipe(alone, sft=WHOLE, reward=WHOLE, ppo=None)
    found = {name: folder / name / "run" for name in ("one", "ddp", "fsdp2")}
    start("run", of_one, "evaluate=null", f"output_dir={found['one']}", folder=alone / "said").finish()
    arguments = ["run", str(recipe)]
    start(*arguments, f"output_dir={found['ddp']}", folder=folder / "ddp" / "said", processes=2).finish()
    sharded = (*arguments, f"output_dir={found['fsdp2']}")
    Launch(fsdp_on_cpus.command, sharded, 2, folder / "fsdp2" / "said").finish()
    return found


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_fsdp2_trains_what_one_process_trains(runs, stage) -> None:
    one, two = weights(runs["one"], stage), weights(runs["fsdp2"], stage)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        if "heldout" not in name:  # its third batch is the last of an epoch, which two processes fill up to full ones
            # sums of two halves of a batch in float32: 3e-7 was seen, of steps of 1e-4 each
            torch.testing.assert_close(two[name], weight, rtol=0, atol=5e-6, msg=name)


def test_ppo_under_fsdp2_is_ppo_under_ddp(runs) -> None:
    """Both draw the same replies, by the same generators; what one process makes of them is in test_processes.py."""
    ddp, fsdp2 = weights(runs["ddp"], "ppo"), weights(runs["fsdp2"], "ppo")
    assert ddp.keys() == fsdp2.keys()
    moved = [name for name in ddp if "policy" in name and "lora_B" in name and ddp[name].any()]
    assert moved
    for name, weight in ddp.items():
        torch.testing.assert_close(fsdp2[name], weight, rtol=0, atol=1e-5, msg=name)
    assert not list(runs["fsdp2"].glob("ppo/checkpoint*"))


def test_the_run_under_fsdp2_has_a_report(runs) -> None:
    ddp, fsdp2 = (read_json(runs[name] / "report.json") for name in ("ddp", "fsdp2"))
    assert fsdp2["headline"] == ddp["headline"]


def one_after_another(sharded: bool, recipes: list[Path]) -> None:
    """Several recipes in the same processes."""
    if sharded:
        fsdp_on_cpus.shard()
    for path in recipes:
        run_recipe(load_recipe(path, [f"output_dir={path.parent / 'run'}"]))


@pytest.fixture(scope="module")
def by_method(runs, tmp_path_factory) -> dict[str, dict[str, Path]]:
    """By every other method, from the SFT and reward model of one process: runs under DDP and under FSDP2."""
    more = {
        "gradient_checkpointing": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
        "logging_steps": 1, "max_steps": 2,
    }  # fmt: skip
    found: dict[str, dict[str, Path]] = {}
    for name in ("ddp", "fsdp2"):
        folder, recipes = tmp_path_factory.mktemp(name), []
        found[name] = {}
        for method, section in SECTIONS.items():
            (folder / method).mkdir()
            found[name][method] = copy(runs["one"], folder / method)
            sections = {"sft": WHOLE, "reward": WHOLE, "ppo": None, "evaluate": None, method: section | more}
            recipes.append(write_recipe(folder / method, **sections))
        Launch(one_after_another, (name == "fsdp2", recipes), 2, folder / "said").finish()
    return found


@pytest.mark.parametrize("method", SECTIONS)
def test_another_method_under_fsdp2_is_the_method_under_ddp(by_method, method) -> None:
    ddp, fsdp2 = (by_method[name][method] for name in ("ddp", "fsdp2"))
    mine, theirs = weights(fsdp2, method), weights(ddp, method)
    assert mine.keys() == theirs.keys()
    assert any("policy" in name and "lora_B" in name and weight.any() for name, weight in theirs.items())
    for name, weight in theirs.items():
        # the same sums in float32; one that is added in another order turns no step of 1e-3 by so much
        torch.testing.assert_close(mine[name], weight, rtol=0, atol=1e-5, msg=name)
    losses = [[line["loss"] for line in read_json_lines(run / method / "metrics.jsonl") if "loss" in line]
              for run in (fsdp2, ddp)]  # fmt: skip
    assert losses[0]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_what_sampling_keeps_under_fsdp2_is_what_is_computed_again(tmp_path) -> None:
    """`old_logprobs: rollout`, where processes that have finished make forwards for the others."""
    found = []
    for mode in ("rollout", "rescored"):
        folder = tmp_path / mode
        folder.mkdir()
        ppo = {**PPO, "value": "shared", "old_logprobs": mode}
        recipe = write_recipe(folder, sft=HALF, reward=HALF, ppo=ppo, evaluate=None)
        arguments = ("run", str(recipe), f"output_dir={folder / 'run'}")
        Launch(fsdp_on_cpus.command, arguments, 2, folder / "said").finish()
        steps = [row for row in read_json_lines(folder / "run" / "ppo" / "metrics.jsonl") if "policy/ratio" in row]
        found.append([[step[name] for name in KEPT] for step in steps])
    rollout, rescored = found
    assert len(rollout) == len(rescored) == 2
    assert rescored[-1][KEPT.index("val/rms")] > 0  # the value head has learnt by then
    for mine, theirs in zip(rollout, rescored, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)  # float32: cached decoding beside one forward
