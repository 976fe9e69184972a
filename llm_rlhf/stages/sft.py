"""Supervised fine-tuning: the base learns to answer as the demonstrations do.

1. Demonstrations are encoded by the chat template; only the assistant's replies and their stop tokens are trained on.
2. TRL's SFTTrainer trains a LoRA adapter on the (optionally quantised) base. Checkpoints are written; a launch that
   finds one of an interrupted launch goes on from it.
3. The adapter is merged into full weights: `sft/model` is the base of every later role, and the reference of PPO.

Writes: adapter/ model/ metrics.jsonl lengths.json
"""

import gc
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoConfig
from trl import SFTTrainer

from llm_rlhf.errors import DataError
from llm_rlhf.finite import check_weights
from llm_rlhf.models.adapter_training import TrainedAdapter, train_adapter
from llm_rlhf.models.adapters import onto_device_of
from llm_rlhf.models.base import adapter_config, context_limit, load_causal_lm, load_tokenizer
from llm_rlhf.models.compiled_layers import compile_if_asked
from llm_rlhf.models.fitting import Fitted, fit_demonstrations
from llm_rlhf.models.halving import HalvesTokens
from llm_rlhf.models.liger import add_liger
from llm_rlhf.recipe.loading import trainer_config
from llm_rlhf.recipe.sections import Recipe
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.runs import splits, starting_model
from llm_rlhf.training import constructing

RESUMES = True  # this stage goes on from what an interrupted launch left in its folder


class _SFTTrainer(HalvesTokens, TrainedAdapter, SFTTrainer):
    stage_name = "sft"


def run(recipe: Recipe, run_folder: RunFolder, folder: Path) -> None:
    """Train and merge. `folder` becomes `sft/`."""
    base = starting_model(recipe, run_folder, before="sft")
    tokenizer = load_tokenizer(base, recipe.model)
    config = trainer_config(recipe, "sft", folder)
    dataset = _encode(recipe, run_folder, folder, tokenizer, config, base)
    model = load_causal_lm(base, recipe.model, tokenizer)
    add_liger(model, config)
    with constructing("sft"):
        trainer = _SFTTrainer(
            model=model,
            args=config,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=adapter_config(recipe.model, "CAUSAL_LM", model),
        )
        compile_if_asked(trainer.model, recipe.model)
    train_adapter(trainer, run_folder, "sft", {"loss": "loss", "mean_token_accuracy": "accuracy"})
    trainer.save_adapter(folder / "adapter")
    run_folder.state.wait_for_everyone()
    del trainer, model
    gc.collect()
    if run_folder.state.is_main_process:
        _merge(recipe, base, tokenizer, folder)


def _encode(recipe: Recipe, run_folder: RunFolder, folder: Path, tokenizer: Any, config: Any, base: Any) -> Dataset:
    model_config = AutoConfig.from_pretrained(base, trust_remote_code=recipe.model.trusts_base)
    limit = min(config.max_length or 2**30, context_limit(recipe.model, model_config))
    account = Fitted(limit, "demonstrations")
    rows = fit_demonstrations(tokenizer, splits(recipe, run_folder).demonstrations, account)
    if not rows:
        raise DataError(none_fits(account))
    if run_folder.state.is_main_process:
        account.write(folder)
    config.max_length = None if not config.packing else limit  # every row already fits; nothing is left to cut
    return Dataset.from_list(rows)


def none_fits(account: Fitted) -> str:
    """What to say where no demonstration fits."""
    told = f"No demonstration fits into {account.limit} tokens; raise sft.max_length or model.context_length."
    return told + account.objection


def _merge(recipe: Recipe, base: str | Path, tokenizer: Any, folder: Path) -> None:
    """Full weights with the adapter added, in the compute type, next to the tokenizer they were trained with."""
    model = load_causal_lm(base, recipe.model, tokenizer, quantized=False)
    merged = PeftModel.from_pretrained(model, folder / "adapter", **onto_device_of(model)).merge_and_unload()
    merged.to(getattr(torch, recipe.model.dtype))
    check_weights(merged, str(folder / "model"), every=True)
    merged.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
