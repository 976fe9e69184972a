"""Predicted peaks of memory against measured ones, on a CPU: `llm-rlhf plan` beside `llm-rlhf run`, stage by stage.

    python benchmarks/plan.py FOLDER [CASE ...]
    python benchmarks/plan.py --stand-in FOLDER [CASE ...]    # on a stand-in for a GPU: the tensors that it holds

Each is a command of its own, started afresh, and a stage's peak is what the system says its process held at most
(VmHWM, Linux). The models have random weights and the rows are noise: only sizes matter. "beside tensors" is what was
measured less the tensors that were predicted: what plan/machine.py predicts as the process alone.
On the stand-in (tests/stand_in) a run goes the way of a GPU's: bfloat16, merged weights, reading in pieces. TRL's head
computes there on tensors of the CPU, as Triton's kernels take no memory of the device.
Prints a line for each stage, and a table in Markdown at the end; FOLDER keeps models, rows and runs, and what was
measured there is not measured again.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llm_rlhf.world.base_model import shipped_base

GIB = 2**30
COMMAND = """
import atexit, pathlib, runpy, sys
target = pathlib.Path(sys.argv.pop(1))
def keep():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    target.write_text(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
atexit.register(keep)
runpy.run_module("llm_rlhf", run_name="__main__", alter_sys=True)
"""  # llm-rlhf, leaving in a file what its process held at most, in KiB
ON_STAND_IN = """
import atexit, pathlib, runpy, sys, torch
from trl.kernels import chunked_logprob
target = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: target.write_text(str(torch.cuda.max_memory_allocated() // 1024)))
def on_cpu(x):
    return torch.ops.stand_in.on_cpu(x) if isinstance(x, torch.Tensor) and x.is_cuda else x
def in_place(fold):
    return lambda *args, **how: fold(*map(on_cpu, args), **{name: on_cpu(x) for name, x in how.items()})
for name in ("_forward_tile", "_backward_tile"):
    setattr(chunked_logprob, name, in_place(getattr(chunked_logprob, name)))
runpy.run_module("llm_rlhf", run_name="__main__", alter_sys=True)
"""  # the same of the device that stands in for a GPU
STAND_IN = {
    "LLM_RLHF_TEST_DEVICE": "stand-in",
    "PYTHONPATH": str(Path(__file__).parents[1] / "tests" / "stand_in"),
}
LLAMA = {
    "model_type": "llama", "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
    "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 32000, "tie_word_embeddings": True,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 384, "n_layer": 6, "n_head": 6, "vocab_size": 32000, "n_positions": 1024}
QWEN = LLAMA | {"model_type": "qwen2", "hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8}
SFT: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 8, "logging_steps": 1}
REWARD = SFT | {"reference_samples": 8, "reference_length": 32}
PPO: dict[str, Any] = {
    "total_episodes": 16, "per_device_train_batch_size": 8, "num_mini_batches": 2, "num_ppo_epochs": 1,
    "response_length": 32, "eval_prompts": 0,
}  # fmt: skip
GRPO: dict[str, Any] = {
    "total_episodes": 16, "per_device_train_batch_size": 8, "steps_per_generation": 2, "num_generations": 4,
    "max_completion_length": 32, "eval_prompts": 0, "reward_funcs": ["plan:brevity"],
}  # fmt: skip
EVALUATE: dict[str, Any] = {"prompts": 16, "batch_size": 16, "response_length": 32, "suites": [], "perplexity_rows": 16}
OFF = {"gradient_checkpointing": False}
STAGES = ("sft", "reward", "ppo", "grpo", "dpo", "kto", "evaluate")
TINY = LLAMA | {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1}
WIDE = LLAMA | {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
FEW = {"per_device_train_batch_size": 2}
CASES: dict[str, dict[str, Any]] = {  # name: model, what else the recipe says
    "the smallest": {
        "config": TINY | {"vocab_size": 512}, "sft": SFT | FEW, "reward": REWARD | FEW, "ppo": PPO | FEW,
        "evaluate": EVALUATE | {"batch_size": 2},
    },
    "SFT, float32": {"config": WIDE, "sft": SFT},
    "SFT, bfloat16": {"config": QWEN, "model": {"dtype": "bfloat16"}, "sft": SFT},
    "SFT, nf4": {"config": QWEN, "model": {"quantization": "nf4"}, "sft": SFT},
    "reward and PPO, float32": {"config": LLAMA, "sft": SFT, "reward": REWARD, "ppo": PPO, "evaluate": EVALUATE},
    "reward and PPO, nf4": {"config": QWEN, "model": {"quantization": "nf4"}, "reward": REWARD, "ppo": PPO},
    "without checkpointing": {"config": WIDE, "reward": REWARD | OFF, "ppo": PPO | OFF | {"value": "adapter"}},
    "all weights, float32": {
        "config": QWEN, "model": {"lora": "none"}, "sft": SFT, "reward": REWARD, "ppo": PPO, "evaluate": EVALUATE,
    },
    "all weights, bfloat16": {
        "config": QWEN, "model": {"lora": "none", "dtype": "bfloat16"}, "reward": REWARD,
        "ppo": PPO | {"value": "adapter"},
    },
    "DPO, gpt2": {"config": GPT2, "dpo": SFT},
    "KTO": {"config": LLAMA, "kto": SFT},
    "GRPO": {"config": LLAMA, "grpo": GRPO},
}  # fmt: skip


def brevity(completions: list[Any], **columns: Any) -> list[float]:
    """A reward function."""
    return [-float(len(str(completion))) for completion in completions]


def main(folder: Path, names: list[str], on_stand_in: bool) -> None:
    if on_stand_in:
        os.environ.update(STAND_IN)
    rows = _rows(folder / "pairs.jsonl")
    table = []
    for name in names or CASES:
        path = write_recipe(folder, name, CASES[name], rows)
        planned = _plan(folder, name, path)
        for stage in (s for s in STAGES if s in CASES[name]):
            held = _measured(folder, name, path, stage)
            told = planned["stages"][stage]["memory"]["bytes"]
            table.append((name, stage, told, held, told - planned["process_bytes"]))
            print(_line(*table[-1]), flush=True)
    print(
        "\n| recipe | stage | predicted, GiB | measured, GiB | off by | tensors predicted | measured beside tensors |"
    )
    print("|---|---|---|---|---|---|---|")
    print("\n".join(_line(*row) for row in table))


def _line(name: str, stage: str, predicted: int, held: int, tensors: int) -> str:
    off = f"{100 * (predicted / held - 1):+.0f} %"
    told = [f"{predicted / GIB:.2f}", f"{held / GIB:.2f}", off, f"{tensors / GIB:.2f}", f"{(held - tensors) / GIB:.2f}"]
    return f"| {name} | {stage} | {' | '.join(told)} |"


def _measured(folder: Path, name: str, recipe: Path, stage: str) -> int:
    """Bytes that the process of a stage held at most."""
    kept = folder / "measured" / f"{name}-{stage}"
    if not kept.is_file():
        _command(kept, "run", str(recipe), "--only", stage)
    return int(kept.read_text()) * 1024


def _plan(folder: Path, name: str, recipe: Path) -> dict[str, Any]:
    kept = folder / "planned" / f"{name}.json"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(_command(kept.with_suffix(".held"), "plan", str(recipe), "--json"))
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def _command(kept: Path, *arguments: str) -> str:
    """What the command prints, started afresh as from a shell."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    here = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    command = ON_STAND_IN if os.environ.get("LLM_RLHF_TEST_DEVICE") == "stand-in" else COMMAND
    call = [sys.executable, "-c", command, str(kept), *arguments]
    done = subprocess.run(call, env=os.environ | here, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        kept.unlink(missing_ok=True)
        raise SystemExit(f"{' '.join(arguments)} ended with exit code {done.returncode}:\n{done.stdout}")
    return done.stdout


def write_recipe(folder: Path, name: str, case: dict[str, Any], rows: Path) -> Path:
    """The case's recipe, with its model of random weights beside it."""
    base = folder / "models" / str(zlib.crc32(repr(case["config"]).encode()))
    if not (base / "model.safetensors").is_file():
        tokenizer = AutoTokenizer.from_pretrained(shipped_base())
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
        options = {key: value for key, value in case["config"].items() if key != "model_type"}
        config = AutoConfig.for_model(case["config"]["model_type"], **options, **ids)
        AutoModelForCausalLM.from_config(config).save_pretrained(base)
        tokenizer.save_pretrained(base)
    tree = {key: value for key, value in case.items() if key not in ("config", "model")}
    tree["name"] = name
    tree["output_dir"] = str(folder / "runs" / name)
    tree["model"] = {"base": str(base), **case.get("model", {})}
    tree["data"] = {"preferences": [{"source": str(rows)}], "evaluation_share": 0.2, "near_duplicates": None}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def _rows(path: Path) -> Path:
    """Pairs of noise, of like length, so that a run's first step is about as large as any."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = random.Random(0)

        def words(count: int) -> str:
            return " ".join(f"{draw.randrange(100, 1000)}" for _ in range(count))

        pairs = [{"prompt": words(12), "chosen": words(32), "rejected": words(32)} for _ in range(120)]
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stand-in", action="store_true", help="on a stand-in for a GPU")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "cases", nargs="*", default=[], metavar="CASE", help=f"one of: {', '.join(CASES)} (default: all)"
    )
    options = parser.parse_args()
    if unknown := set(options.cases) - CASES.keys():
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {'; '.join(CASES)}")
    main(options.folder, options.cases, options.stand_in)
