"""Two processes, each on a device of its own, that speak by NCCL, or by what stands in for it, through the launch
configurations that the project ships."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from chain_helpers import SECTIONS, TINY, copy, write_recipe
from safetensors.torch import load_file

DEVICE = os.environ.get("LLM_RLHF_TEST_DEVICE")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        DEVICE != "stand-in" and (DEVICE != "cuda" or torch.cuda.device_count() < 2), reason="two devices are needed"
    ),
]
HERE, CONFIGURATIONS = Path(__file__).parent, Path(__file__).parents[2] / "recipes" / "accelerate"
WEIGHTS = "adapter_model.safetensors"
OFFLINE = ("dpo", "kto")  # whose rows do not depend on what is drawn
PPO = {
    "ddp": TINY["ppo"] | {"total_episodes": 96, "save_rollouts": 1},  # three rollouts of two processes, each kept
    "fsdp2": TINY["ppo"],  # under which none can be kept
}
METHODS = {"ddp": tuple(SECTIONS), "fsdp2": ("grpo", "dpo", "kto")}  # the others on CPUs: tests/pipeline/test_fsdp.py
STEPS = 4  # optimizer steps a rollout


def launched(configuration: str, *arguments: object) -> subprocess.Popen:
    """A script or `-m llm_rlhf` with its arguments by two processes; what they say stands in `said`."""
    launch = ["accelerate.commands.launch", "--config_file", CONFIGURATIONS / f"{configuration}.yaml"]
    command = [sys.executable, "-m", *launch, "--num_processes", 2, "--main_process_port", 0, *arguments]
    return subprocess.Popen(
        list(map(str, command)), env=os.environ | {"STAND_IN_DEVICES": "2"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def kill(process: subprocess.Popen) -> str:
    """The launcher and what it started, each in a session of its own; what they had said."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
    return str(process.communicate()[0])


def said_by(process: subprocess.Popen, seconds: float = 300) -> str:
    """What it said, which must end well."""
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        pytest.fail(f"did not end: {kill(process)[-3000:]}")
    assert process.returncode == 0, said[-6000:]
    return str(said)


def walk(configuration: str, recipes: Iterable[Path]) -> str:
    return said_by(launched(configuration, HERE / "walk.py", *recipes))


def by_other_methods(finished: Path, folder: Path, model: dict, methods: Iterable[str]) -> dict[str, Path]:
    """Copies of a finished chain without PPO, with the recipes that go on by other methods."""
    found = {}
    for method in methods:
        (folder / method).mkdir()
        run = copy(finished, folder / method)
        for name in ("ppo", "evaluate"):
            shutil.rmtree(run / name)
        tree = {key: value for key, value in TINY.items() if key != "ppo"} | {"model": model, method: SECTIONS[method]}
        found[method] = folder / method / "tiny.yaml"
        found[method].write_text(yaml.safe_dump(tree))
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Finished runs: chains under DDP and FSDP2 in float32, under DDP in NF4 too, and other methods after the first."""
    model, recipes = TINY["model"] | {"dtype": "float32"}, dict[str, Path]()
    quantised = TINY["model"] | {"dtype": "bfloat16", "quantization": "nf4"}
    for name in PPO:
        recipes[name] = write_recipe(tmp_path_factory.mktemp(name), model=model, ppo=PPO[name])
    recipes["ddp nf4"] = write_recipe(tmp_path_factory.mktemp("nf4"), model=quantised)
    walk("ddp", [recipes["ddp"], recipes["ddp nf4"]])
    for name, methods in METHODS.items():
        folder = tmp_path_factory.mktemp(f"{name}-methods")
        others = by_other_methods(recipes["ddp"].parent / "run", folder, model, methods)
        recipes |= {f"{name} {method}": path for method, path in others.items()}
        walk(name, [*others.values(), *([recipes[name]] if name == "fsdp2" else [])])
    return {which: path.parent / "run" for which, path in recipes.items()}


def moved(run: Path, method: str) -> float:
    estimates = json.loads((run / "report.json").read_text())["estimates"]
    return next(e["estimate"] for e in estimates if (e["name"], e["subject"]) == ("kl", method))


@pytest.mark.parametrize(("spread", "method"), [(s, m) for s, methods in METHODS.items() for m in ("ppo", *methods)])
def test_every_method_ends_with_a_report(runs, spread, method) -> None:
    run = runs[spread if method == "ppo" else f"{spread} {method}"]
    assert moved(run, method) != 0
    assert all(weight.isfinite().all() for weight in load_file(run / method / "policy" / WEIGHTS).values())
    assert "gpu" in json.loads((run / "manifest.json").read_text())["machine"]


def test_ppo_begins_at_the_reference(runs) -> None:
    for run in (runs["ddp"], runs["fsdp2"]):
        lines = [json.loads(line) for line in (run / "ppo" / "metrics.jsonl").read_text().splitlines()]
        (first,) = [line["objective/kl"] for line in lines if "objective/kl" in line][:1]
        assert first == 0.0


@pytest.mark.parametrize("part", ["sft/adapter", "reward/joint", "reward/heldout", "dpo/policy", "kto/policy"])
def test_fsdp2_learns_what_ddp_learns(runs, part) -> None:
    """From rows that do not depend on what is drawn."""
    method = part.split("/")[0]
    ddp, fsdp2 = (
        load_file(runs[f"{spread} {method}" if method in OFFLINE else spread] / part / WEIGHTS)
        for spread in ("ddp", "fsdp2")
    )
    assert ddp.keys() == fsdp2.keys()
    assert any(weight.any() for name, weight in ddp.items() if "lora_B" in name)
    for name, weight in ddp.items():
        # Sums of the same numbers; on GPUs perhaps in another order, and weights of gradients near 0 feel that.
        atol = 1e-7 if DEVICE == "stand-in" else 1e-3
        torch.testing.assert_close(fsdp2[name], weight, rtol=0, atol=atol, msg=f"{part} {name}")


SRUN = """#!/bin/bash
for node in 0 1; do
    CUDA_VISIBLE_DEVICES=$node SLURM_NODEID=$node "$@" &
    started+=($!)
done
for process in "${started[@]}"; do wait "$process" || exit 1; done
"""


def test_two_machines_under_slurm(tmp_path) -> None:
    """The shipped script, with a `srun` that starts both machines here, a device for each."""
    shutil.copytree(CONFIGURATIONS, tmp_path / "recipes" / "accelerate")
    configuration = tmp_path / "recipes" / "accelerate" / "two_nodes.yaml"
    text = configuration.read_text()
    assert "num_machines: 2\n" in text
    assert "num_processes: 16\n" in text
    configuration.write_text(text.replace("num_processes: 16", "num_processes: 2"))
    (tmp_path / "bin").mkdir()
    for name, script in {"srun": SRUN, "scontrol": "#!/bin/bash\necho 127.0.0.1; echo elsewhere\n"}.items():
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    told = {
        "PATH": os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "SLURM_JOB_NODELIST": "here,elsewhere", "SLURM_JOB_ID": str(os.getpid()), "STAND_IN_DEVICES": "2",
    }  # fmt: skip
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    changes = [f"output_dir={run}", *(f"{section}=null" for section in ("reward", "ppo", "evaluate"))]
    script = tmp_path / "recipes" / "accelerate" / "two_nodes.sbatch"
    done = subprocess.Popen(
        ["bash", str(script), str(recipe), *changes], cwd=tmp_path, env=os.environ | told, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said_by(done)
    assert json.loads((run / "manifest.json").read_text())["processes"] == 2


def test_a_quantised_base_lies_on_the_device_of_each_process(runs) -> None:
    assert moved(runs["ddp nf4"], "ppo") != 0


def test_a_killed_launch_ends_as_one_that_was_not(runs, tmp_path) -> None:
    run = copy(runs["ddp"], tmp_path)
    for stage in ("ppo", "evaluate"):
        shutil.rmtree(run / stage)
    asked = ["-m", "llm_rlhf", "run", tmp_path / "tiny.yaml", f"output_dir={run}", "--only", "ppo"]
    process = launched("ddp", *asked)
    first = run / "partial-ppo" / f"checkpoint-{STEPS}" / "complete.json"
    deadline = time.monotonic() + 200
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    said = kill(process)
    assert first.exists(), said[-3000:]
    assert f"goes on from optimizer step {STEPS}" in said_by(launched("ddp", *asked))
    for name in ("policy/adapter_model.safetensors", "value/value_head.safetensors"):
        one, other = (load_file(folder / "ppo" / name) for folder in (runs["ddp"], run))
        for key, weight in one.items():
            # On GPUs sums may be taken in another order the second time, which moves no token of these.
            atol = 0.0 if DEVICE == "stand-in" else 1e-5
            torch.testing.assert_close(other[key], weight, rtol=0, atol=atol, msg=f"{name} {key}")
