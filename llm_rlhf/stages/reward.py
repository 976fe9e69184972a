"""Reward modelling: an adapter and a head learn which of two replies people preferred, and a second one judges.

1. Training pairs are two disjoint sets by a hash of the prompt: one for the reward model, one for the held-out judge.
2. TRL's RewardTrainer trains `joint` on the first and, with another seed, `heldout` on the second, both LoRA adapters
   with a head on the same base. The judge is never trained against; it only measures.
3. Both are read back from their files, as PPO and the evaluation will read them, and their accuracy on pairs that
   neither saw is written beside what the longer reply and chance would score.

Writes: joint/ heldout/ (adapter, head, metrics.jsonl each) accuracy.json lengths.json
"""

import gc
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed
from trl import RewardTrainer

from llm_rlhf.data.checks import DataError
from llm_rlhf.data.rows import Preference
from llm_rlhf.evaluation.reward_accuracy import accuracy_estimates
from llm_rlhf.models.architecture import score_head_name
from llm_rlhf.models.base import context_limit, load_tokenizer, loading_arguments, lora_config, make_room_for
from llm_rlhf.models.encoding import encode_reply
from llm_rlhf.models.inference import load_roles, score_ids
from llm_rlhf.recipe import Recipe, trainer_config
from llm_rlhf.run_folder import RunFolder, write_json
from llm_rlhf.stages.inputs import Fitted, fit_preferences, splits, starting_model
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
    _measure(recipe, run_folder, base, tokenizer, sets["evaluation_pairs"], folder)


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
    make_room_for(tokenizer, model)
    head = score_head_name(model.config, recipe.model.trust_remote_code)
    trainer = _RewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(_encode(tokenizer, pairs)),
        processing_class=tokenizer,
        peft_config=lora_config(recipe.model, "SEQ_CLS", modules_to_save=[head]),
    )
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


def _measure(
    recipe: Recipe, run_folder: RunFolder, base: str | Path, tokenizer: Any, pairs: list[Preference], folder: Path
) -> None:
    model = load_roles(base, recipe.model, tokenizer, {name: folder / name for name in ADAPTERS})
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
