"""Runs on a base of the hub, made without training: what their stages leave, with random adapters."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoTokenizer

from llm_rlhf.models.adapter_folders import make_movable
from llm_rlhf.models.base import adapter_config, load_causal_lm, load_tokenizer
from llm_rlhf.models.decoding import sampling_config
from llm_rlhf.recipe.sections import ModelSection
from llm_rlhf.recipe.values import plain, read_section
from llm_rlhf.run_folder import write_json

BASE = "tiny-org/tiny-base"
QUESTIONS = [[{"role": "user", "content": f"what is number {i}?"}] for i in range(6)]


@pytest.fixture
def hub(tmp_path, monkeypatch, base_folder) -> Path:
    """The hub's cache with the tiny base in it; the folder of its files."""
    cache = tmp_path / "hub"
    files = cache / f"models--{BASE.replace('/', '--')}" / "snapshots" / ("a" * 40)
    shutil.copytree(base_folder, files)
    (files.parents[1] / "refs").mkdir()
    (files.parents[1] / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return files


@pytest.fixture
def without_pad(hub) -> Path:
    """The same base, whose tokenizer has no pad token: a run adds one."""
    tokenizer = AutoTokenizer.from_pretrained(hub)
    raw = json.loads((hub / "tokenizer.json").read_text())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != "<|pad|>"]
    raw["model"]["vocab"] = {("<|none|>" if t == "<|pad|>" else t): i for t, i in raw["model"]["vocab"].items()}
    (hub / "tokenizer.json").write_text(json.dumps(raw))
    settings = json.loads((hub / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (hub / "tokenizer_config.json").write_text(json.dumps(settings))
    assert tokenizer.pad_token is not None
    assert AutoTokenizer.from_pretrained(hub).pad_token is None
    return hub


def _random_adapter(model: Any, section: ModelSection, seed: int) -> Any:
    torch.manual_seed(seed)
    model = get_peft_model(model, adapter_config(section, "CAUSAL_LM", model))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.2)
    return model


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """A finished run as its stages leave it, but for the training and the report."""

    def make(base: str = BASE, sft: bool = True, **settings: Any) -> Path:
        run = tmp_path / "runs" / "hh"
        section = read_section(ModelSection, {"base": base, "lora": {"r": 4, "alpha": 8}, **settings}, "model.")
        run.mkdir(parents=True)
        recipe = {"name": "hh", "model": plain(section), "ppo": {"temperature": 0.7, "hub_token": "hf_" + "x" * 30},
                  "data": {"preferences": [{"source": str(tmp_path / "pairs.jsonl")}, {"source": "org/pairs"}]},
                  "sft": {}, "reward": {}}  # fmt: skip
        if not sft:
            recipe.pop("sft")
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        write_json(run / "manifest.json", {"versions": {"torch": "2"}, "chat_template_date": None})
        tokenizer = load_tokenizer(base, section)
        start: str | Path = base
        if sft:
            model = load_causal_lm(base, section, tokenizer)
            grown = model.get_input_embeddings().num_embeddings > AutoConfig.from_pretrained(base).vocab_size
            adapter = _random_adapter(model, section, 1)  # PEFT finds out by itself, where the hub can be asked
            adapter.save_pretrained(run / "sft/adapter", save_embedding_layers=grown)
            whole = load_causal_lm(base, section, tokenizer, quantized=False)
            merged = PeftModel.from_pretrained(whole, run / "sft/adapter").merge_and_unload()
            merged.to(getattr(torch, section.dtype)).save_pretrained(run / "sft/model")
            tokenizer.save_pretrained(run / "sft/model")
            start = run / "sft" / "model"
        policy = _random_adapter(load_causal_lm(start, section, tokenizer), section, 2)
        policy.save_pretrained(run / "ppo/policy")
        tokenizer.save_pretrained(run / "ppo/policy")
        stop = [tokenizer.eos_token_id]
        sampling_config(stop, tokenizer.pad_token_id, temperature=0.7).save_pretrained(run / "ppo/policy")
        for stage in ("sft", "ppo"):
            make_movable(run / stage, run)
        (run / "evaluate").mkdir()
        rows = [{"prompt": asked, "ppo": {"reply": f"it is {len(str(asked))}", "stopped": True},
                 "sft": {"reply": "no", "stopped": True}}
                for asked in QUESTIONS]  # fmt: skip
        (run / "evaluate" / "replies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return run

    return make
