"""Reward modelling: an adapter and a head learn which of two replies people preferred, and a second one judges.

1. Training pairs are two disjoint sets by a hash of the prompt: one for the reward model, one for the held-out judge.
2. TRL's RewardTrainer trains `joint` on the first and, with another seed, `heldout` on the second, both LoRA adapters
   with a head on the same base. The judge is never trained against; it only measures.
3. Both are read back from their files, as PPO and the evaluation will read them, and their accuracy on pairs that
   neither saw is written beside what the longer reply and chance would score.
4. The mean score of the starting model's own replies is stored with each: PPO and the evaluation read scores less it.

Writes: joint/ heldout/ (adapter, head, normalisation.json, metrics.jsonl each) accuracy.json lengths.json
"""

import gc
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed
from trl import RewardTrainer

from llm_rlhf.data.checks import DataError, prompt_share
from llm_rlhf.data.rows import Preference, Prompt
from llm_rlhf.evaluation.reward_accuracy import accuracy_estimates
from llm_rlhf.models.architecture import score_head_name
from llm_rlhf.models.base import (
    adapters_in_float32,
    context_limit,
    keep_unpacked,
    load_tokenizer,
    loading_arguments,
    lora_config,
    make_room_for,
)
from llm_rlhf.models.encoding import encode_reply
from llm_rlhf.models.inference import load_roles, sample_replies, score_ids
from llm_rlhf.models.roles import NORMALISATION
from llm_rlhf.recipe import Recipe, stage_options, trainer_config
from llm_rlhf.run_folder import RunFolder, write_json
from llm_rlhf.stages.inputs import Fitted, fit_preferences, fit_prompts, splits, starting_model
from llm_rlhf.stages.progress import StageLog, StopsOnBadLoss, attach_log

ADAPTERS = ("joint", "heldout")
JUDGES = {"joint": "reward", "heldout": "heldout"}  # the names they have in the report


class _RewardTrainer(StopsOnBadLoss, RewardTrainer):
    stage_name = "reward"


def run(recipe: Recipe, run_folder: RunFolder, folder: Path) -> None:
    """Train both reward models and measure them. `folder` becomes `reward/`."""
    base = starting_model(recipe, run_folder, before="reward")
    tokenizer = load_tokenizer(base, recipe.model)
    config = trainer_config(recipe, "reward", folder / "trainer")
    model_config = AutoConfig.from_pretrained(base, trust_remote_code=recipe.model.trust_remote_code)
    score_head_name(model_config, recipe.model.trust_remote_code)  # refuses an architecture that cannot score
    limit = min(config.max_length or 2**30, context_limit(recipe.model, model_config))
    pairs = splits(recipe, run_folder)
    sets = {}
    for what in ("reward_pairs", "judge_pairs", "evaluation_pairs"):
        account = Fitted(limit, what)
        sets[what] = fit_preferences(tokenizer, getattr(pairs, what), account)
        if not sets[what]:
            raise DataError(f"None of the {what} fits into {limit} tokens; raise reward.max_length.")
        if run_folder.state.is_main_process:
            account.write(folder)
    for name, what, seed in (("joint", "reward_pairs", recipe.seed), ("heldout", "judge_pairs", recipe.seed + 1)):
        _train(recipe, run_folder, base, tokenizer, sets[what], folder / name, seed)
        gc.collect()
    run_folder.state.wait_for_everyone()
    model = load_roles(base, recipe.model, tokenizer, {name: folder / name for name in ADAPTERS})
    _measure(run_folder, model, tokenizer, sets["evaluation_pairs"], folder)
    _normalise(recipe, run_folder, model, tokenizer, sets["reward_pairs"], folder)


def _train(
    recipe: Recipe,
    run_folder: RunFolder,
    base: str | Path,
    tokenizer: Any,
    pairs: list[Preference],
    folder: Path,
    seed: int,
) -> None:
    config = trainer_config(recipe, "reward", folder / "trainer")
    config.seed = seed
    config.max_length = None  # every pair already fits; TRL would drop the others without a word
    set_seed(seed)  # the head starts random
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, **loading_arguments(recipe.model))
    keep_unpacked(model)
    make_room_for(tokenizer, model)
    head = score_head_name(model.config, recipe.model.trust_remote_code)
    trainer = _RewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(_encode(tokenizer, pairs)),
        processing_class=tokenizer,
        peft_config=lora_config(recipe.model, "SEQ_CLS", modules_to_save=[head]),
    )
    adapters_in_float32(trainer.model)
    if run_folder.state.is_main_process:
        folder.mkdir(exist_ok=True)
    run_folder.state.wait_for_everyone()
    attach_log(trainer, StageLog(f"reward/{folder.name}", folder, {"loss": "loss", "accuracy": "accuracy"}))
    trainer.train()
    if run_folder.state.is_main_process:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _encode(tokenizer: Any, pairs: list[Preference]) -> list[dict[str, Any]]:
    """RewardTrainer's columns; margins only where every pair has one, as a batch cannot mix the two losses."""
    with_margins = all(pair.margin is not None for pair in pairs)
    return [
        {
            "chosen_ids": encode_reply(tokenizer, pair.prompt, pair.chosen).ids,
            "rejected_ids": encode_reply(tokenizer, pair.prompt, pair.rejected).ids,
            **({"margin": float(pair.margin or 0.0)} if with_margins else {}),
        }
        for pair in pairs
    ]


def _measure(run_folder: RunFolder, model: Any, tokenizer: Any, pairs: list[Preference], folder: Path) -> None:
    estimates = []
    for name in ADAPTERS:
        chosen, rejected = (
            score_ids(
                model, name, [encode_reply(tokenizer, p.prompt, reply(p)).ids for p in pairs], tokenizer.pad_token_id
            )
            for reply in (lambda p: p.chosen, lambda p: p.rejected)
        )
        estimates += accuracy_estimates(JUDGES[name], pairs, chosen, rejected)
    if run_folder.state.is_main_process:
        write_json(folder / "accuracy.json", {"estimates": [estimate.as_dict() for estimate in estimates]})


def _normalise(
    recipe: Recipe, run_folder: RunFolder, model: Any, tokenizer: Any, pairs: list[Preference], folder: Path
) -> None:
    """Store the scores of the starting model's own replies beside each adapter: their mean becomes the score 0."""
    options = stage_options(recipe, "reward")
    if not options.reference_samples:
        return
    room = context_limit(recipe.model, model.config) - options.reference_length
    asked = [Prompt(pair.prompt, pair.objective, pair.origin) for pair in pairs]
    prompts = fit_prompts(tokenizer, asked, Fitted(room, "reference prompts")) if room > 0 else []
    prompts = sorted(prompts, key=lambda prompt: prompt_share(prompt.messages, "reference"))
    if len(prompts) < 2:
        raise DataError(
            f"No two prompts leave room for reference replies of {options.reference_length} tokens; lower "
            "reward.reference_length, or set reward.reference_samples to 0."
        )
    replies = sample_replies(
        model,
        tokenizer,
        [prompt.messages for prompt in prompts[: options.reference_samples]],
        [],
        response_length=options.reference_length,
        temperature=1.0,
        seed=recipe.seed,
        progress="reward: reference replies",
    )
    for name in ADAPTERS:
        scores = score_ids(model, name, [r.prompt_ids + r.ids for r in replies], tokenizer.pad_token_id).astype(float)
        known = {
            "mean": scores.mean(),
            "deviation": max(scores.std(ddof=1), 1e-8) if options.unit_deviation else 1.0,
            "samples": len(replies),
            "of": "replies sampled from the starting model at temperature 1",
        }
        if run_folder.state.is_main_process:
            write_json(folder / name / NORMALISATION, known)
