"""Best of n, imitated: the start learns to say at once what the reward model would have picked of n of its replies.

1. n replies of the start to each prompt are sampled; the training reward picks one. Prompts are of those that PPO would
   train on.
2. TRL's SFTTrainer trains a LoRA adapter on the picked ones, on top of the start.
3. Replies, picked rows, snapshots and checkpoints are kept: an interrupted launch goes on from them.

Writes: policy/ picked.jsonl snapshots/ metrics.jsonl lengths.json
"""

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig
from trl import SFTTrainer

from llm_rlhf.methods.best_of_n import Sources, chosen_prompts, pick, read_picked, sft_rows
from llm_rlhf.methods.prompts import training_prompts
from llm_rlhf.methods.rewards import paying_beside_adapters
from llm_rlhf.methods.training import train_policy
from llm_rlhf.models.adapter_training import TrainedAdapter
from llm_rlhf.models.base import adapter_config, context_limit, load_causal_lm, load_tokenizer
from llm_rlhf.models.compiled_layers import compile_if_asked
from llm_rlhf.models.halving import HalvesTokens
from llm_rlhf.models.inference import ReplyCache, load_roles
from llm_rlhf.models.liger import add_liger
from llm_rlhf.ppo.scores import weighing
from llm_rlhf.recipe.loading import trainer_config
from llm_rlhf.recipe.sections import Recipe, stage_options
from llm_rlhf.reward.adapters import reward_folders
from llm_rlhf.run_folder import RunFolder, write_text
from llm_rlhf.runs import starting_model
from llm_rlhf.training import constructing

RESUMES = True  # this stage goes on from what an interrupted launch left in its folder
PICKED, REPLIES = "picked.jsonl", "replies"


class _SFTTrainer(HalvesTokens, TrainedAdapter, SFTTrainer):
    stage_name = "best_of_n"


def run(recipe: Recipe, run_folder: RunFolder, folder: Path) -> None:
    """Sample, pick and train. `folder` becomes `best_of_n/`."""
    base = starting_model(recipe, run_folder, before="best_of_n")
    tokenizer = load_tokenizer(base, recipe.model)
    config = trainer_config(recipe, "best_of_n", folder)
    model_config = AutoConfig.from_pretrained(base, trust_remote_code=recipe.model.trusts_base)
    limit = min(config.max_length or 2**30, context_limit(recipe.model, model_config))
    if not (folder / PICKED).is_file():
        _pick(recipe, run_folder, folder, tokenizer, base, limit)
    run_folder.state.wait_for_everyone()
    rows = sft_rows(read_picked(folder / PICKED))
    config.max_length = None if not config.packing else limit  # every row already fits; nothing is left to cut
    model = load_causal_lm(base, recipe.model, tokenizer)
    add_liger(model, config)
    with constructing("best_of_n"):
        trainer = _SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=adapter_config(recipe.model, "CAUSAL_LM", model),
        )
        compile_if_asked(trainer.model, recipe.model)
    train_policy(trainer, run_folder, folder, "best_of_n", {"loss": "loss", "mean_token_accuracy": "accuracy"})
    if run_folder.state.is_main_process:
        shutil.rmtree(folder / REPLIES, ignore_errors=True)


def _pick(recipe: Recipe, run_folder: RunFolder, folder: Path, tokenizer: Any, base: str | Path, limit: int) -> None:
    """Write `picked.jsonl`, whole or not at all."""
    options = stage_options(recipe, "best_of_n")
    prompts, _ = training_prompts(recipe, run_folder, folder, tokenizer, limit - options.response_length)
    adapters = reward_folders(recipe, run_folder)
    how = {"dtype": recipe.model.dtype, "trust_remote_code": recipe.model.trusted}
    sources = Sources(adapters, paying_beside_adapters(recipe), weighing(recipe), recipe.seed, **how)
    model = load_roles(base, recipe.model, tokenizer, adapters)
    cache = ReplyCache(folder / REPLIES / "replies.jsonl", {"of": "best_of_n"})  # the folder is of these inputs alone
    picked = pick(model, tokenizer, chosen_prompts(prompts, options.prompts), sources, options, cache)
    if run_folder.state.is_main_process:
        write_text(folder / PICKED, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in picked))
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
