"""Tiny trained things that several tests need."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification


def random_reward_adapter(base: Path, folder: Path, seed: int = 1) -> Path:
    """What RewardTrainer leaves behind, with random weights: a LoRA adapter and its score head."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
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
