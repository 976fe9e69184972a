"""Predicted times against measured ones, on this machine: `llm-rlhf plan --time` beside `llm-rlhf run`, by stage.

    python benchmarks/plan_time.py FOLDER [CASE ...]

The models have random weights and the rows are noise, of lengths that differ; a stage's time is what its manifest says,
with its loading and saving. Prints a line for each stage, in Markdown.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from plan import write_recipe

LLAMA = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2000, "tie_word_embeddings": True,
}  # fmt: skip
QWEN = LLAMA | {"model_type": "qwen2", "hidden_size": 192, "num_hidden_layers": 12}
LOGGED = {"num_train_epochs": 1, "per_device_train_batch_size": 8}
PPO: dict[str, Any] = {"total_episodes": 256, "per_device_train_batch_size": 16, "num_mini_batches": 2,
                       "response_length": 32, "eval_prompts": 32}  # fmt: skip
EVALUATE = {"prompts": 64, "batch_size": 32, "refusal_prompts": 8, "resamples": 200}
CASES: dict[str, dict[str, Any]] = {
    "PPO, 16 layers": {"config": LLAMA, "sft": LOGGED, "reward": LOGGED, "ppo": PPO, "evaluate": EVALUATE},
    "PPO, all weights, 12 layers": {
        "config": QWEN, "model": {"lora": "none"}, "reward": LOGGED, "ppo": PPO | {"value": "adapter"},
        "evaluate": EVALUATE,
    },
    "DPO, 12 layers": {"config": QWEN, "sft": LOGGED, "dpo": LOGGED, "evaluate": EVALUATE},
}  # fmt: skip


def main(folder: Path, names: list[str]) -> None:
    rows = _rows(folder / "pairs.jsonl")
    print("| recipe | stage | predicted, s | measured, s | off by |\n|---|---|---|---|---|", flush=True)
    for name in names or CASES:
        path = write_recipe(folder, name, CASES[name], rows)
        planned = json.loads(_command("plan", str(path), "--time", "--json"))["stages"]
        _command("run", str(path))
        for stage in (stage for stage, of in planned.items() if of["seconds"] is not None):
            manifest = folder / "runs" / name / stage / "manifest.json"
            told, took = planned[stage]["seconds"], json.loads(manifest.read_text())["seconds"]
            print(f"| {name} | {stage} | {told:.0f} | {took:.0f} | {100 * (told / took - 1):+.0f} % |", flush=True)


def _command(*arguments: str) -> str:
    asked = [sys.executable, "-m", "llm_rlhf", *arguments]
    return subprocess.run(asked, env=os.environ, stdout=subprocess.PIPE, text=True, check=True).stdout


def _rows(path: Path) -> Path:
    """Pairs of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(f"{draw.randrange(100, 1000)}" for _ in range(draw.randint(least, most)))

    pairs = [{"prompt": words(8, 16), "chosen": words(4, 30), "rejected": words(4, 30)} for _ in range(500)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
