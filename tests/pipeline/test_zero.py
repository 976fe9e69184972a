"""SFT and reward model under DeepSpeed's ZeRO-2 on two CPU processes, beside the same in one process.

Takes `pip install deepspeed` (0.19.8 was tried; with DS_BUILD_OPS=0) and a C++ compiler: it builds an operation of its
own for processes that share memory when it is first imported on CPUs.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
import zero_on_cpus
from chain_helpers import write_recipe
from launching import Launch, start
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]

HALF = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 3}
KINDS = {"adamw": {}, "sgd": {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.05}}  # its clipping shows by SGD


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    """Of every adapter and head that a stage left."""
    files = sorted((run / stage).rglob("*.safetensors"))
    return {f"{file.relative_to(run)}:{name}": w for file in files for name, w in load_file(file).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_zero_2_trains_what_one_process_trains(tmp_path, kind) -> None:
    half = HALF | KINDS[kind]
    whole = {**half, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
    (tmp_path / "alone").mkdir()
    recipe = write_recipe(tmp_path, sft=half, reward=half, ppo=None, evaluate=None)
    of_one = write_recipe(tmp_path / "alone", sft=whole, reward=whole, ppo=None, evaluate=None)
    runs = [tmp_path / "one", tmp_path / "two"]
    start("run", of_one, f"output_dir={runs[0]}", folder=tmp_path / "said" / "one").finish()
    spread = ("run", str(recipe), f"output_dir={runs[1]}")
    said = Launch(zero_on_cpus.command, spread, 2, tmp_path / "said" / "two").finish()
    assert said.count("ZeRO-2: 9 steps") == 2  # of SFT, the reward model and the held-out one, in each process
    for stage in ("sft", "reward"):
        one, two = weights(runs[0], stage), weights(runs[1], stage)
        assert one.keys() == two.keys()
        for name, weight in one.items():
            if "heldout" not in name:  # its third batch is the last of an epoch, which two processes fill up
                # sums of two halves of a batch in float32: 2e-7 was seen, of steps of 1e-4 each
                torch.testing.assert_close(two[name], weight, rtol=0, atol=5e-6, msg=name)
    assert any(weight.any() for name, weight in two.items() if "lora_B" in name)


def test_in_bfloat16_what_is_saved_is_what_trained_in_float32(tmp_path) -> None:
    """DeepSpeed's engine rounds the weights in the model itself, by steps of 1e-3 of each."""
    section = {**HALF, **KINDS["sgd"]}
    recipe = write_recipe(
        tmp_path, sft=section, reward=None, ppo=None, evaluate=None,
        model={"dtype": "bfloat16", "lora": {"r": 4, "alpha": 8}},
    )  # fmt: skip
    spread = ("run", str(recipe), f"output_dir={tmp_path / 'two'}")
    Launch(zero_on_cpus.command, spread, 2, tmp_path / "said").finish()
    saved = load_file(tmp_path / "two" / "sft" / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in saved.values())


def test_a_gradient_that_is_not_finite_ends_the_stage_and_nothing_is_saved(tmp_path) -> None:
    """The engine steps within the backward pass, and passes over such a gradient without a word."""
    recipe = write_recipe(tmp_path, sft=HALF | {"max_steps": 6}, reward=None, ppo=None, evaluate=None)
    spread = (str(recipe), f"output_dir={tmp_path / 'two'}")
    launch = Launch(zero_on_cpus.command_with_a_gradient_of_no_number, ("run", *spread), 2, tmp_path / "said")
    assert 0 not in launch.codes()
    assert "The gradient of sft is not finite in 5 optimizer steps one after another" in launch.errors
    assert not (tmp_path / "two" / "sft").exists()
    assert len(list((tmp_path / "two").rglob("not-finite-step-*-process-1.safetensors"))) == 5


@pytest.mark.parametrize(
    ("stage", "overrides", "words"),
    [
        ("2", ("sft.save_strategy=steps",), "'sft.save_strategy' is 'steps', but to go on from a checkpoint"),
        ("2", (), "Recipe section 'ppo' cannot run under DeepSpeed"),
        ("3", ("ppo=null",), "The launch asks for DeepSpeed's ZeRO-3"),
    ],
)
def test_the_rest_is_refused_before_anything_is_made(tmp_path, stage, overrides, words) -> None:
    recipe = write_recipe(tmp_path, sft=HALF, reward=HALF)
    asked = (stage, "run", str(recipe), "evaluate=null", f"output_dir={tmp_path / 'run'}", *overrides)
    launch = Launch(zero_on_cpus.command_at, asked, 2, tmp_path / "said")
    assert launch.codes() == [2, 2]
    assert words in launch.errors
    assert not (tmp_path / "run" / "world").exists()
