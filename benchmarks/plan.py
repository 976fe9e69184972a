"""Predicted peaks of memory against measured ones, on a CPU: `llm-rlhf plan` beside `llm-rlhf run`, stage by stage.

    python benchmarks/plan.py FOLDER [CASE ...]

Each stage runs in a process of its own, and its peak is what the system says the process held at most (VmHWM, Linux),
with glibc told to give blocks of a megabyte or more back when they are freed (docs/planning.md says why).
The models have random weights and the rows are noise: only sizes matter. Prints a line for each stage, and a table in
Markdown at the end; FOLDER keeps models, rows and runs, and what was measured there is not measured again.
"""

import gc
import importlib
import json
import os
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llm_rlhf.pipeline import MODULES, STAGES, run_recipe
from llm_rlhf.plan.forecast import Forecast
from llm_rlhf.plan.machine import process_bytes
from llm_rlhf.plan.text import as_dict
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.world.base_model import shipped_base

GIB = 2**30
ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", str(2**20))  # docs/planning.md
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
CASES: dict[str, dict[str, Any]] = {  # name: model, what else the recipe says
    "llama, float32": {"config": LLAMA, "sft": SFT, "reward": REWARD, "ppo": PPO, "evaluate": EVALUATE},
    "llama, no checkpointing": {"config": LLAMA, "reward": REWARD | OFF, "ppo": PPO | OFF | {"value": "adapter"}},
    "qwen2, bfloat16": {"config": QWEN, "model": {"dtype": "bfloat16"}, "sft": SFT},
    "qwen2, nf4": {"config": QWEN, "model": {"quantization": "nf4"}, "sft": SFT},
    "gpt2, DPO": {"config": GPT2, "dpo": SFT},
    "llama, GRPO": {"config": LLAMA, "grpo": GRPO},
}


def brevity(completions: list[Any], **columns: Any) -> list[float]:
    """A reward function."""
    return [-float(len(str(completion))) for completion in completions]


def main(folder: Path, names: list[str]) -> None:
    rows = _rows(folder / "pairs.jsonl")
    table = []
    for name in names or CASES:
        path = _recipe(folder, name, rows)
        planned = _plan(folder, name, path)
        for stage in (s for s in ("sft", "reward", "ppo", "grpo", "dpo", "evaluate") if s in CASES[name]):
            held = _measured(folder, name, path, stage)
            told = planned["stages"][stage]["memory"]
            table.append((name, stage, told["bytes"], held, planned["process_bytes"]))
            print(_line(*table[-1]), flush=True)
    print("\n| recipe | stage | predicted, GiB | measured, GiB | of it, the process alone | off by |")
    print("|---|---|---|---|---|---|")
    print("\n".join(_line(*row) for row in table))


def _line(name: str, stage: str, predicted: int, held: int, process: int) -> str:
    told = f"{predicted / GIB:.2f} | {held / GIB:.2f} | {process / GIB:.2f}"
    return f"| {name} | {stage} | {told} | {100 * (predicted / held - 1):+.0f} % |"


def _measured(folder: Path, name: str, recipe: Path, stage: str) -> int:
    """Bytes that the process of a stage held at most."""
    kept = folder / "measured" / f"{name}-{stage}"

    def run() -> None:
        run_recipe(load_recipe(recipe), only=stage)
        lines = Path("/proc/self/status").read_text().splitlines()
        kept.write_text(next(line.split()[1] for line in lines if line.startswith("VmHWM")))

    _alone(kept, run)
    return int(kept.read_text()) * 1024


def _alone(kept: Path, function: Callable[[], None]) -> None:
    """Call what writes a file in a process of its own, forked from this one, which has imported everything."""
    if kept.is_file():
        return
    kept.parent.mkdir(exist_ok=True)
    for stage in STAGES:
        importlib.import_module(f"llm_rlhf.stages.{MODULES.get(stage, stage)}")
    gc.collect()
    if (child := os.fork()) == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def _plan(folder: Path, name: str, recipe: Path) -> dict[str, Any]:
    kept = folder / "planned" / f"{name}.json"

    def plan() -> None:
        forecast = Forecast(load_recipe(recipe), "cpu")
        kept.write_text(json.dumps(as_dict(forecast.plan(), process_bytes(), None, "cpu")))

    _alone(kept, plan)
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def _recipe(folder: Path, name: str, rows: Path) -> Path:
    """The case's recipe, with its model beside it."""
    case = CASES[name]
    base = folder / "models" / case["config"]["model_type"]
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
    if ALLOCATOR[0] not in os.environ:  # read by glibc when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | dict([ALLOCATOR]))
    main(Path(sys.argv[1]), sys.argv[2:])
