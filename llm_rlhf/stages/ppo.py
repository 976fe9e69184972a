"""PPO: the policy learns to please the reward model without leaving the SFT model far behind.

1. Prompts that leave room for a reply are kept, others are cut at turns or counted as too long. Some of each objective
   are kept back.
2. PPOTrainer puts policy, value, reward and held-out reward on one base in memory; the reference is that base.
3. Before the first update and between rollouts it is evaluated on the prompts kept back, by the held-out reward model
   and the refusal detector too, helpful and harmless each by itself; a side that gets worse is told, or ends the
   training. Snapshots and checkpoints are written; a launch that finds one of an interrupted launch goes on from it.
4. What is left is the policy's adapter, small enough to keep and to share, and the value function's.

Writes: policy/ value/ snapshots/ snapshots.jsonl watch.jsonl watch.json preview.json metrics.jsonl samples.jsonl
lengths.json
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from llm_rlhf.data.checks import prompt_share
from llm_rlhf.data.rows import Prompt
from llm_rlhf.errors import DataError
from llm_rlhf.evaluation.refusal_detector import refused
from llm_rlhf.models.base import announce, context_limit, load_causal_lm, load_tokenizer, lora_config
from llm_rlhf.models.fitting import Fitted, fit_demonstrations, fit_prompts
from llm_rlhf.models.roles import HELDOUT
from llm_rlhf.ppo import checkpoint
from llm_rlhf.ppo.preview import PREVIEW
from llm_rlhf.ppo.snapshots import LOG as SNAPSHOTS
from llm_rlhf.ppo.trainer import PPOTrainer
from llm_rlhf.ppo.watch import LOG as WATCH
from llm_rlhf.recipe.loading import trainer_config
from llm_rlhf.recipe.sections import Recipe, stage_options
from llm_rlhf.reward.adapters import reward_folders, whole_rewards
from llm_rlhf.reward.loading import Loading, load_whole
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.runs import splits, starting_model
from llm_rlhf.training import METRICS, StageLog, attach_log, constructing
from llm_rlhf.user_code import FUNCTION

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
    options = stage_options(recipe, "ppo")
    model = load_causal_lm(base, recipe.model, tokenizer)
    prompts, kept_back = _prompts(recipe, run_folder, folder, tokenizer, model, config, options.eval_prompts)
    adapters = reward_folders(recipe, run_folder)
    functions, tokenizers = _functions(recipe)
    heldout = run_folder / "reward" / HELDOUT
    with constructing("ppo"):
        trainer = PPOTrainer(
            model=model,
            reward_adapter=adapters if len(adapters) > 1 else next(iter(adapters.values()), None),
            reward_funcs=functions,
            reward_processing_classes=tokenizers,
            args=config,
            train_dataset=_dataset(prompts),
            eval_dataset=_dataset(kept_back) if kept_back else None,
            heldout_adapter=heldout if kept_back and heldout.exists() else None,
            ptx_dataset=_demonstrations(recipe, run_folder, tokenizer, model) if config.ptx_coef else None,
            processing_class=tokenizer,
            peft_config=lora_config(recipe.model, "CAUSAL_LM", model),
            samples_file=folder / "samples.jsonl",
            refuses=refused,
        )
    attach_log(trainer, StageLog("ppo", folder, SHOWN))
    found = checkpoint.latest(folder)
    run_folder.state.wait_for_everyone()  # before the main process deletes what is newer than that checkpoint
    if found is None:
        _start_anew(run_folder, folder)
    else:
        announce(f"PPO was interrupted; it goes on from optimizer step {checkpoint.step_of(found)}.")
        if run_folder.state.is_main_process:
            checkpoint.forget_after(folder / METRICS, checkpoint.step_of(found))
    trainer.train(resume_from_checkpoint=found)
    trainer.save_roles(folder)
    run_folder.state.wait_for_everyone()
    if run_folder.state.is_main_process:
        for old in checkpoint.checkpoints(folder):
            shutil.rmtree(old)


def _functions(recipe: Recipe) -> tuple[list[Any], list[Any]]:
    """What scores beside adapters: functions by name and models of their own, and the tokenizer of each, if it has one.

    A model that stands in for trained adapters comes first, as the weights expect.
    """
    named = stage_options(recipe, "ppo").reward_funcs
    names = named if recipe.reward is None else [*whole_rewards(recipe), *named]
    loading = Loading(dtype=recipe.model.dtype, trust_remote_code=recipe.model.trust_remote_code)
    loaded = [None if FUNCTION.match(name) else load_whole(name, None, loading) for name in names]
    return (
        [name if found is None else found.model for name, found in zip(names, loaded, strict=True)],
        [None if found is None else found.tokenizer for found in loaded],
    )


def _prompts(
    recipe: Recipe, run_folder: RunFolder, folder: Path, tokenizer: Any, model: Any, config: Any, eval_prompts: int
) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to train on, and those kept back."""
    room = context_limit(recipe.model, model.config) - config.response_length
    account = Fitted(room, "prompts")
    prompts = fit_prompts(tokenizer, splits(recipe, run_folder).prompts, account) if room > 0 else []
    if not prompts:
        raise DataError(no_room(config.response_length, account))
    if run_folder.state.is_main_process:
        (folder / "lengths.json").unlink(missing_ok=True)
        for name in ("too_long.jsonl", "refused_by_template.jsonl"):
            (folder / name).unlink(missing_ok=True)
        account.write(folder)
    return keep_back(prompts, eval_prompts)


def no_room(response_length: int, account: Fitted) -> str:
    """What to say where no prompt fits into the account's limit, the context less the response."""
    return (
        f"No prompt leaves room for ppo.response_length ({response_length}) in the model's context "
        f"({account.limit + response_length} tokens); lower it.{account.objection}"
    )


def number_kept_back(prompts: int, count: int) -> int:
    """How many of so many prompts are kept back where `count` are asked for."""
    return min(count, prompts // 10)


def keep_back(prompts: Sequence[Prompt], count: int) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to train on, and those to evaluate on: `count`, a tenth of all at most, by a hash of the prompt.

    Each objective gives equally many, but a tenth of its own at most; the others make up for one that has fewer.
    """
    by_hash = sorted(range(len(prompts)), key=lambda i: prompt_share(prompts[i].messages, "kept back"))
    groups: dict[str, list[int]] = {}
    for i in by_hash:
        groups.setdefault(prompts[i].objective, []).append(i)
    missing = number_kept_back(len(prompts), count)
    chosen: set[int] = set()
    smallest_first = sorted(groups.values(), key=len)
    for done, group in enumerate(smallest_first):
        share = min(missing // (len(smallest_first) - done), len(group) // 10)
        chosen.update(group[:share])
        missing -= share
    rest = [i for i in by_hash if i not in chosen]  # what rounding down has left
    chosen.update(rest[:missing])
    return [p for i, p in enumerate(prompts) if i not in chosen], [prompts[i] for i in sorted(chosen)]


def _dataset(prompts: list[Prompt]) -> Dataset:
    return Dataset.from_list([{"prompt": prompt.messages, "objective": prompt.objective} for prompt in prompts])


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
        for name in (METRICS, "samples.jsonl", SNAPSHOTS, WATCH, PREVIEW):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "snapshots", ignore_errors=True)
        for old in checkpoint.checkpoints(folder):
            shutil.rmtree(old)
    run_folder.state.wait_for_everyone()
