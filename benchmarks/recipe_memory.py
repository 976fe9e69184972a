"""What `llm-rlhf plan` says of the recipes for real models, beside what their headers say. Loads no weights.

    python benchmarks/recipe_memory.py                 # ten minutes on a CPU; the figures of docs/recipes.md
    python benchmarks/recipe_memory.py hh llama-3.2-1b

Every base has the shape that its release states; every token is a byte; prompts have 760 tokens and replies 250.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from gpu import qwen
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

RECIPES = Path(__file__).parents[1] / "recipes"
PROMPT, REPLY, ROWS = 760, 250, 3000


def llama(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> Any:
    return qwen(hidden, intermediate, layers, heads, kv_heads, vocabulary, tied) | {"model_type": "llama"}


BASES = {
    "HuggingFaceTB/SmolLM2-135M": llama(576, 1536, 30, 9, 3, 49152, tied=True),
    "meta-llama/Llama-3.2-1B": llama(2048, 8192, 16, 32, 8, 128256, tied=True) | {"head_dim": 64},
    "meta-llama/Llama-3.1-8B": llama(4096, 14336, 32, 32, 8, 128256, tied=False),
    "Qwen/Qwen2.5-0.5B": qwen(896, 4864, 24, 14, 2, 151936, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": qwen(1536, 8960, 28, 12, 2, 151936, tied=True),
    "Qwen/Qwen2.5-7B": qwen(3584, 18944, 28, 28, 4, 152064, tied=False),
    "Qwen/Qwen3-4B-Base": qwen(2560, 9728, 36, 32, 8, 151936, tied=True) | {"model_type": "qwen3", "head_dim": 128},
}
GPUS = {"smollm2": 8, "vllm": 80, "fsdp2": 40}  # GiB, by a part of the recipe's name; else 24


def main() -> None:
    paths = [RECIPES / "hh.yaml", *sorted((RECIPES / "models").glob("*.yaml"))]
    if wrong := set(sys.argv[1:]) - {path.stem for path in paths}:
        sys.exit(f"no such recipe: {', '.join(sorted(wrong))}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "pairs.jsonl").write_text("".join(json.dumps(pair(i)) + "\n" for i in range(ROWS)))
        for path in paths:
            if len(sys.argv) == 1 or path.stem in sys.argv[1:]:
                found, stage = planned(path, folder)
                stated = re.search(r"Memory: +([\d.]+) GiB", path.read_text())
                said = stated[1] if stated else "nothing"
                print(f"{path.stem}: {found:.1f} GiB, in {stage}; its header says {said}", flush=True)


def pair(number: int) -> dict[str, Any]:
    """Rows that differ, and whose prompts and replies are as long as they are said to be."""
    asked, good, bad = (f"{word} {number} " for word in ("ask", "good", "bad"))
    return {
        "prompt": asked + "p" * (PROMPT - len(asked) - 21),  # the plain template puts 21 tokens around it
        "chosen": good + "c" * (REPLY - len(good)),
        "rejected": bad + "r" * (REPLY - len(bad)),
        "objective": "helpful" if number % 2 else "harmless",
    }


def planned(path: Path, folder: Path) -> tuple[float, str]:
    """The largest peak in GiB, and its stage."""
    tree = yaml.safe_load(path.read_text())
    name = tree["model"]["base"]
    base = folder / name.replace("/", "_")
    if not base.exists():
        tokenizer = bytes_as_tokens()
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
        AutoConfig.for_model(**BASES[name], **ids).save_pretrained(base)
        tokenizer.save_pretrained(base)
    source = {"source": str(folder / "pairs.jsonl"), "format": "preference"}
    tree["model"]["base"] = str(base)
    tree["data"]["preferences"] = [source]
    tree["output_dir"] = str(folder / "run")
    changed = folder / f"{path.stem}.yaml"
    changed.write_text(yaml.safe_dump(tree, sort_keys=False))
    gpu = next((size for part, size in GPUS.items() if part in path.stem), 24)
    asked = ["plan", str(changed), "--device", "cuda", "--memory", f"{gpu}GiB", "--json"]
    done = subprocess.run([sys.executable, "-m", "llm_rlhf", *asked], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{path.stem}: {done.stdout[-500:]} {done.stderr[-2000:]}")
    known = json.loads(done.stdout)["stages"]
    stages = {stage: of["memory"]["bytes"] for stage, of in known.items() if of["memory"]}
    largest = max(stages, key=lambda stage: stages[stage])
    return stages[largest] / 2**30, largest


def bytes_as_tokens() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, "<eos>", "<pad>"])}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>")


if __name__ == "__main__":
    main()
