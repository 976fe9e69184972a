"""PPO: the policy learns to please the reward model without leaving the SFT model far behind.

1. Prompts that leave room for a reply are kept, others are cut at turns or counted as too long. Some of each objective
   are kept back.
2. PPOTrainer puts policy, value, reward and held-out reward on one base in memory; the reference is that base.
3. Before the first update and between rollouts it is evaluated on the prompts kept back, by the held-out reward model
   and the refusal detector too, helpful and harmless each by itself; a side that gets worse is told, or ends the
   training. Snapshots and checkpoints are written; a launch that finds one of an interrupted launch goes on from it.
4. What is left is the policy's adapter, small enough to keep and to share, and the value function's.

Writes: policy/ value/ snapshots/ snapshots.jsonl watch.jsonl watch.json preview.json alarms.json metrics.jsonl
samples.jsonl lengths.json
"""

import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset

from llm_rlhf import checkpoints, stopping
from llm_rlhf.errors import DataError
from llm_rlhf.evaluation.refusal_detector import refused
from llm_rlhf.finite import BATCHES
from llm_rlhf.methods.prompts import as_dataset, training_prompts
from llm_rlhf.methods.rewards import reward_functions
from llm_rlhf.models.base import adapter_config, context_limit, load_causal_lm, load_tokenizer
from llm_rlhf.models.compiled_layers import compile_if_asked
from llm_rlhf.models.fitting import Fitted, fit_demonstrations
from llm_rlhf.models.roles import HELDOUT
from llm_rlhf.ppo.alarms import ALARMS
from llm_rlhf.ppo.preview import PREVIEW
from llm_rlhf.ppo.snapshots import LOG as SNAPSHOTS
from llm_rlhf.ppo.trainer import PPOTrainer
from llm_rlhf.ppo.watch import LOG as WATCH
from llm_rlhf.recipe.loading import trainer_config
from llm_rlhf.recipe.sections import Recipe
from llm_rlhf.reward.adapters import reward_folders
from llm_rlhf.run_folder import RunFolder, remove
from llm_rlhf.runs import splits, starting_model
from llm_rlhf.training import METRICS, StageLog, attach_log, constructing, how_computed, is_sharded

RESUMES = True  # this stage goes on from what an interrupted launch left in its folder
SHOWN = {
    "objective/scores": "score",
    "objective/kl": "kl",
    "response_length": "length",
    "objective/entropy": "entropy",
    "eval_helpful/heldout_scores": "helpful",  # by the held-out reward model on the prompts kept back
    "eval_harmless/heldout_scores": "harmless",
    "eval_harmless/refusal_rate": "refuses",
}


def run(recipe: Recipe, run_folder: RunFolder, folder: Path) -> None:
    """Train the policy. `folder` becomes `ppo/`."""
    base = starting_model(recipe, run_folder, before="ppo")
    tokenizer = load_tokenizer(base, recipe.model)
    config = trainer_config(recipe, "ppo", folder)
    model = load_causal_lm(base, recipe.model, tokenizer)
    room = context_limit(recipe.model, model.config) - config.response_length
    prompts, kept_back = training_prompts(recipe, run_folder, folder, tokenizer, room)
    adapters = reward_folders(recipe, run_folder)
    functions, tokenizers = reward_functions(recipe)
    heldout = run_folder / "reward" / HELDOUT
    with constructing("ppo"):
        trainer = PPOTrainer(
            model=model,
            reward_adapter=adapters if len(adapters) > 1 else next(iter(adapters.values()), None),
            reward_funcs=functions,
            reward_processing_classes=tokenizers,
            args=config,
            train_dataset=as_dataset(prompts),
            eval_dataset=as_dataset(kept_back) if kept_back else None,
            heldout_adapter=heldout if kept_back and heldout.exists() else None,
            ptx_dataset=_demonstrations(recipe, run_folder, tokenizer, model) if config.ptx_coef else None,
            processing_class=tokenizer,
            peft_config=adapter_config(recipe.model, "CAUSAL_LM", model),
            samples_file=folder / "samples.jsonl",
            refuses=refused,
        )
        compile_if_asked(trainer.model, recipe.model)
    attach_log(trainer, StageLog("ppo", folder, SHOWN, run_folder.followers))
    run_folder.computed = how_computed(trainer)
    found = checkpoints.to_resume(folder, "ppo", run_folder.allow_partial_resume, is_sharded(trainer.accelerator))
    if found is None:
        _start_anew(run_folder, folder)
    elif run_folder.state.is_main_process:
        checkpoints.forget_after(folder / METRICS, found.step)
    stopping.train(trainer, None if found is None else found.path)
    trainer.save_roles(folder)


def _demonstrations(recipe: Recipe, run_folder: RunFolder, tokenizer: Any, model: Any) -> Dataset:
    account = Fitted(context_limit(recipe.model, model.config), "ptx demonstrations")
    rows = fit_demonstrations(tokenizer, splits(recipe, run_folder).demonstrations, account)
    if not rows:
        raise DataError(nothing_to_imitate(account))
    return Dataset.from_list(rows)


def nothing_to_imitate(account: Fitted) -> str:
    """What to say where no demonstration fits."""
    return f"ppo.ptx_coef is set, but no demonstration fits into {account.limit} tokens.{account.objection}"


def _start_anew(run_folder: RunFolder, folder: Path) -> None:
    """Nothing of an interrupted launch that had no checkpoint yet may stay."""
    if run_folder.state.is_main_process:
        for name in (METRICS, "samples.jsonl", SNAPSHOTS, WATCH, PREVIEW, ALARMS):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "snapshots", ignore_errors=True)
        for old in checkpoints.all_in(folder):
            remove(old)
        for rows in folder.glob(f"{BATCHES}*"):
            rows.unlink()
    run_folder.state.wait_for_everyone()
