"""The recipes for real models, each walked to its report with a tiny model of the same architecture.

The rows are ours, with the columns of the named data sets. Replaced are places, sizes and the compute type, and vLLM,
which needs a GPU; quantisation, sections and options are the recipe's own.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from llm_rlhf.pipeline import run_recipe
from llm_rlhf.ppo.prompts import small_rollout
from llm_rlhf.recipe.loading import load_recipe, trainer_config
from llm_rlhf.run_folder import read_json

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes" / "models").glob("*.yaml"))
ARCHITECTURES = {
    "smollm2": (LlamaConfig, LlamaForCausalLM, True),
    "llama-3.2": (LlamaConfig, LlamaForCausalLM, True),
    "llama-3.1": (LlamaConfig, LlamaForCausalLM, False),
    "qwen2.5-0.5b": (Qwen2Config, Qwen2ForCausalLM, True),
    "qwen2.5-1.5b": (Qwen2Config, Qwen2ForCausalLM, True),
    "qwen2.5-7b": (Qwen2Config, Qwen2ForCausalLM, False),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, True),
}  # by the start of a recipe's name; whether the embeddings are tied, as in the real one
SHORT = [
    "model.dtype=float32",
    "data.prompts=[{from: preferences}]",
    "sft.max_steps=1",
    "reward.max_steps=1",
    "reward.reference_samples=8",
    "ppo.total_episodes=8",
    "ppo.per_device_train_batch_size=4",
    "ppo.gradient_accumulation_steps=1",
    "ppo.num_mini_batches=2",
    "ppo.response_length=8",
    "ppo.eval_prompts=4",
    "ppo.preview_best_of=0",
    "evaluate.prompts=8",
    "evaluate.refusal_prompts=4",
    "evaluate.resamples=100",
]


def options(name: str) -> list[str]:
    """What is laid over every recipe, but for sections that it has not; and vLLM, which is not here."""
    sections = load_recipe_without_vllm(name).as_dict()
    kept = [entry for entry in SHORT if sections.get(entry.partition(".")[0]) is not None]
    return kept + (["ppo.use_vllm=false"] if "vllm" in name else [])


def load_recipe_without_vllm(name: str, *overrides: str) -> Any:
    path = ROOT / "recipes" / "models" / f"{name}.yaml"
    return load_recipe(path, [*(["ppo.use_vllm=false"] if "vllm" in name else []), *overrides])


def tiny_base(name: str, folder: Path, tokenizer: Any) -> Path:
    """A random model of the recipe's architecture, with its tokenizer."""
    kind, model, tied = next(found for start, found in ARCHITECTURES.items() if name.startswith(start))
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    } | ({"head_dim": 32} if "qwen3" in name else {})
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    model(kind(vocab_size=len(tokenizer), tie_word_embeddings=tied, **sizes, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def hh_rows(words: tuple[str, str]) -> list[dict[str, str]]:
    """As in Anthropic/hh-rlhf: two whole transcripts that part at the last reply."""
    asked = [f"\n\nHuman: {words[0]} number {i}?\n\nAssistant:" for i in range(60)]
    return [{"chosen": f"{p} {words[1]} {i}.", "rejected": f"{p} No idea {i}."} for i, p in enumerate(asked)]


def ultrafeedback_rows() -> list[dict[str, Any]]:
    """As in HuggingFaceH4/ultrafeedback_binarized."""
    rows = []
    for i in range(60):
        prompt = f"Tell me of number {i}"
        chosen, rejected = (
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": f"{text} {i}."}]
            for text in ("Gladly,", "No idea")
        )
        rows.append({"prompt": prompt, "prompt_id": f"{i:064x}", "chosen": chosen, "rejected": rejected,
                     "messages": chosen, "score_chosen": 8.0, "score_rejected": 4.0})  # fmt: skip
    return rows


def local_sources(recipe: Any, folder: Path) -> str:
    """The recipe's sources of preferences with files of ours in the place of the data sets, as one override."""
    sources = []
    for i, source in enumerate(recipe.data.preferences):
        wanted = (
            ("How do I bake", "With flour") if source.objective == "helpful" else ("How do I harm", "I will not help")
        )
        rows = ultrafeedback_rows() if "ultrafeedback" in source.source else hh_rows(wanted)
        file = folder / f"rows-{i}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append({"source": str(file), "format": source.format, "objective": source.objective})
    return f"data.preferences={json.dumps(sources)}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_model_recipe_is_valid_says_what_it_is_and_learns_from_enough(path: Path, tmp_path) -> None:
    recipe = load_recipe_without_vllm(path.stem)
    assert recipe.name == path.stem
    header = path.read_text(encoding="utf-8").split("name:")[0]
    for word in ("# Purpose:", "# Hardware:", "# Time:", "# Result:", "# Launch:", "# Seen:"):
        assert word in header
    assert f"run recipes/models/{path.name}" in header
    assert f"runs/{path.stem}/report.html" in header
    (config,) = [line.split()[5] for line in header.splitlines() if line.startswith("# Launch:")]
    assert (ROOT / config).is_file()
    processes = 8 if "fsdp2" in path.stem else 1
    assert trainer_config(recipe, "ppo", tmp_path).generation_batch_size * processes >= 128
    assert small_rollout(trainer_config(recipe, "ppo", tmp_path)) is None


def test_every_model_recipe_is_in_the_index() -> None:
    index = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert [path.name for path in RECIPES if f"../recipes/models/{path.name}" not in index] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_index_and_the_recipe_say_the_same_planned_memory(path: Path) -> None:
    index = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    (row,) = [line for line in index.splitlines() if f"../recipes/models/{path.name})" in line]
    header = path.read_text(encoding="utf-8").split("name:")[0]
    (memory,) = [line for line in header.splitlines() if line.startswith("# Memory:")]
    assert memory.split()[2:4] == [row.split("|")[3].strip(), "GiB"]


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_model_recipe_walks_to_its_report(path: Path, tmp_path, tokenizer) -> None:
    name = path.stem
    base = tiny_base(name, tmp_path / "base", tokenizer)
    places = [f"model.base={base}", f"output_dir={tmp_path / 'run'}"]
    data = local_sources(load_recipe_without_vllm(name), tmp_path)
    recipe = load_recipe(path, [*options(name), *places, data])
    run_recipe(recipe)
    report = read_json(tmp_path / "run" / "report.json")
    assert report is not None
    assert report["estimates"]
    assert (tmp_path / "run" / "sft").exists() == (recipe.sft is not None)
    assert (tmp_path / "run" / "ppo" / "policy" / "adapter_model.safetensors").is_file()
