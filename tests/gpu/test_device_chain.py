"""The whole chain on the device, from the first stage to the report, in each type; killed and resumed."""

import gc
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from chain_helpers import SECTIONS, TINY, copy, recipe_of, write_recipe
from launching import command
from safetensors.torch import load_file

from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "LLM_RLHF_TEST_DEVICE" not in os.environ, reason="tests/pipeline has chains on CPUs; make test-gpu runs these"
    ),
]
MODELS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "nf4": {"dtype": "bfloat16", "quantization": "nf4"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "all weights": {"dtype": "bfloat16", "lora": "none"},
}
WEIGHTS = "adapter_model.safetensors"
LONGER = ("ppo.total_episodes=96", "ppo.save_rollouts=1")
STEPS, ROLLOUTS = 4, 6  # optimizer steps a rollout
PEAKS: dict[str, int] = {}  # bytes of the device that a chain took


@pytest.fixture(scope="module")
def chains(device, tmp_path_factory) -> dict[str, Path]:
    return {}


def chain(kind: str, chains: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    if kind not in chains:
        folder = tmp_path_factory.mktemp(kind)
        path = write_recipe(folder, model=TINY["model"] | MODELS[kind])
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        run_recipe(load_recipe(path, [f"output_dir={folder / 'run'}"]))
        chains[kind], PEAKS[kind] = folder / "run", torch.cuda.max_memory_allocated()
    return chains[kind]


@pytest.mark.parametrize("kind", MODELS)
def test_the_chain_ends_with_a_report(device, chains, tmp_path_factory, kind) -> None:
    run = chain(kind, chains, tmp_path_factory)
    estimates = {(e["name"], e["subject"]) for e in json.loads((run / "report.json").read_text())["estimates"]}
    assert {("gold_gain", "ppo"), ("heldout_reward_gain", "ppo"), ("kl", "ppo")} <= estimates
    lines = [json.loads(line) for line in (run / "ppo" / "metrics.jsonl").read_text().splitlines()]
    kl = [line["objective/kl"] for line in lines if "objective/kl" in line]
    assert kl[0] == 0.0
    assert kl[-1] != 0.0
    policy = load_file(run / "ppo" / "policy" / WEIGHTS)
    assert all(weight.isfinite().all() for weight in policy.values())
    assert ("gpu" in json.loads((run / "manifest.json").read_text())["machine"]) == (device.type == "cuda")


@pytest.mark.parametrize("method", SECTIONS)
def test_another_method_ends_with_a_report(device, chains, tmp_path_factory, tmp_path, method) -> None:
    finished = chain("bfloat16", chains, tmp_path_factory)
    recipe = recipe_of(finished, tmp_path, method, "model.dtype=bfloat16")
    run = run_recipe(recipe)
    estimates = json.loads((run / "report.json").read_text())["estimates"]
    moved = next(e["estimate"] for e in estimates if (e["name"], e["subject"]) == ("kl", method))
    assert moved != 0
    assert all(weight.isfinite().all() for weight in load_file(run / method / "policy" / WEIGHTS).values())


@pytest.mark.skipif(
    os.environ.get("LLM_RLHF_TEST_DEVICE") != "stand-in", reason="no other device can be given so little memory"
)
def test_a_chain_in_a_sixth_of_its_memory_ends_with_a_report(
    device, chains, tmp_path_factory, tmp_path, capsys
) -> None:
    """Updates, scoring and evaluation go on in halves; none leaves behind what the next one needs."""
    from stand_in import room_for

    chain("float32", chains, tmp_path_factory)
    gc.collect()
    with room_for(PEAKS["float32"] // 6):
        path = write_recipe(tmp_path, model=TINY["model"] | MODELS["float32"])
        run = run_recipe(load_recipe(path, [f"output_dir={tmp_path / 'run'}"]))
    said = "".join(capsys.readouterr())
    for work in ("the update of sft", "the update of reward", "the update", "reading and sampling"):
        assert f"memory ran out in {work}, over " in said
    assert json.loads((run / "report.json").read_text())["estimates"]


def launched(run: Path) -> subprocess.Popen:
    asked = command("run", run.parent / "tiny.yaml", f"output_dir={run}", "--only", "ppo", *LONGER)
    with (run.parent / "said").open("a") as said:
        return subprocess.Popen(asked, env=os.environ, stdout=said, stderr=said, start_new_session=True)


def test_who_asks_for_cpus_gets_them(device, tmp_path) -> None:
    """`accelerate launch --cpu`, or the variable that it sets, where there is a GPU."""
    path, run = write_recipe(tmp_path), tmp_path / "run"
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    asked = command("run", path, f"output_dir={run}")
    done = subprocess.run(asked, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "gpu" not in json.loads((run / "manifest.json").read_text())["machine"]
    assert "in bfloat16" not in done.stdout  # which is for GPUs that have it
    weights = load_file(run / "sft" / "model" / "model.safetensors").values()
    assert {weight.dtype for weight in weights} == {torch.float32}


def without_ppo(finished: Path, folder: Path) -> Path:
    folder.mkdir()
    run = copy(finished, folder)
    for name in ("ppo", "evaluate"):
        shutil.rmtree(run / name)
    return run


def test_a_killed_run_ends_as_one_that_was_not(device, chains, tmp_path_factory, tmp_path) -> None:
    finished = chain("float32", chains, tmp_path_factory)
    whole, killed = without_ppo(finished, tmp_path / "whole"), without_ppo(finished, tmp_path / "killed")
    first, second = launched(whole), launched(killed)
    checkpoint = killed / "partial-ppo" / f"checkpoint-{2 * STEPS}" / "complete.json"
    try:
        deadline = time.monotonic() + 200
        while not checkpoint.exists():
            assert second.poll() is None, (killed.parent / "said").read_text()[-3000:]
            assert time.monotonic() < deadline, f"{checkpoint} did not come"
            time.sleep(0.005)
        os.killpg(second.pid, signal.SIGKILL)
        second.wait()
        second = launched(killed)
        for process, run in ((first, whole), (second, killed)):
            assert process.wait(200) == 0, (run.parent / "said").read_text()[-3000:]
    finally:
        for process in (first, second):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert "goes on from optimizer step" in (killed.parent / "said").read_text()
    for name in ("policy/adapter_model.safetensors", "value/value_head.safetensors"):
        one, other = (load_file(run / "ppo" / name) for run in (whole, killed))
        for key, weight in one.items():
            # Bits on a CPU. On a GPU sums may be taken in another order the second time, but one token sampled
            # otherwise would move weights by the learning rate, 1e-3, of a later step.
            atol = 0.0 if device.type == "cpu" else 1e-5
            torch.testing.assert_close(other[key], weight, rtol=0, atol=atol, msg=f"{name} {key}")
