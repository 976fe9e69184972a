"""Tiny trained things that several tests need."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.utils.integrations import dequantize_module_weight
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from llm_rlhf.models.base import load_causal_lm, load_tokenizer
from llm_rlhf.recipe.sections import ModelSection


def random_reward_adapter(base: Path, folder: Path, seed: int = 1, trust_remote_code: bool = False) -> Path:
    """What RewardTrainer leaves behind, with random weights: a LoRA adapter and its score head."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, trust_remote_code=trust_remote_code)
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", modules_to_save=["score"])
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def random_policy_adapter(base: Path, folder: Path, seed: int, r: int) -> Path:
    """A LoRA adapter of a policy with random weights: one that differs from its base."""
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=r, target_modules="all-linear")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def own_tokens(base: Path, folder: Path, template: str) -> Any:
    """The base's tokenizer with two tokens more and another template, saved beside an adapter; it is returned."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|ask|>", "<|reply|>"]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def grown_adapter(base: Path, folder: Path, task: str, rows: int, **options: Any) -> Path:
    """A LoRA adapter with random weights, trained on a base whose embeddings were grown; PEFT saves these with it."""
    torch.manual_seed(5)
    kind = AutoModelForSequenceClassification if task == "SEQ_CLS" else AutoModelForCausalLM
    model = kind.from_pretrained(base, **({"num_labels": 1} if task == "SEQ_CLS" else {}))
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[-2:].normal_(0, 0.2)
    model = get_peft_model(model, LoraConfig(task_type=task, r=4, target_modules=["q_proj", "down_proj"], **options))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(folder)
    return folder


def wide_llama(folder: Path, tokenizer: Any) -> Path:
    """A random Llama of 64 columns, which is what one NF4 block holds, saved with its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        initializer_range=0.1, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def quantized(base: Path, kind: str) -> Any:
    """It computes in float32 on a GPU, too."""
    section = ModelSection(base=str(base), quantization=kind, dtype="float32")
    return load_causal_lm(base, section, load_tokenizer(base, section))


def dequantized(base: Path, kind: str) -> Any:
    """A float32 model with the very weights that the quantised one stands for."""
    source = dict(quantized(base, kind).named_modules())
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear and type(source[name]) is not torch.nn.Linear:
            module.weight.data = dequantize_module_weight(source[name]).float()
    return model
