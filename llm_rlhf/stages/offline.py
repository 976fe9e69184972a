"""DPO and KTO: the policy learns from the pairs themselves, without a reward model and without sampling.

1. The pairs are those that train the reward model: never the held-out one's, never evaluation's. They are cut to the
   context at turns, or counted as too long.
2. TRL's trainer reads them as token ids (methods/offline.py); the reference is the policy with its adapter off.
3. Snapshots and checkpoints are written; a launch that finds one of an interrupted launch goes on from it.

Writes: policy/ snapshots/ metrics.jsonl lengths.json
"""

from pathlib import Path
from typing import Any

from datasets import Dataset

from llm_rlhf.data.rows import Preference
from llm_rlhf.errors import DataError
from llm_rlhf.methods.offline import PairDPOTrainer, ReplyKTOTrainer, dpo_rows, kto_rows
from llm_rlhf.methods.prompts import write_account
from llm_rlhf.methods.training import train_policy
from llm_rlhf.models.base import context_limit, load_causal_lm, load_tokenizer, lora_config
from llm_rlhf.models.encoding import encode_whole_replies
from llm_rlhf.models.fitting import Fitted, fit_preferences
from llm_rlhf.recipe.loading import trainer_config
from llm_rlhf.recipe.sections import Recipe
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.runs import splits, starting_model
from llm_rlhf.training import constructing

RESUMES = True  # this stage goes on from what an interrupted launch left in its folder
TRAINERS = {"dpo": PairDPOTrainer, "kto": ReplyKTOTrainer}
SHOWN = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin", "kl": "kl"}


def run(recipe: Recipe, run_folder: RunFolder, folder: Path) -> None:
    """Train the policy. `folder` becomes `dpo/` or `kto/`."""
    stage = str(recipe.method)
    base = starting_model(recipe, run_folder, before=stage)
    tokenizer = load_tokenizer(base, recipe.model)
    config = trainer_config(recipe, stage, folder)
    model = load_causal_lm(base, recipe.model, tokenizer)
    account = Fitted(min(config.max_length or 2**30, context_limit(recipe.model, model.config)), "pairs")
    pairs = fit_preferences(tokenizer, splits(recipe, run_folder).reward_pairs, account, encode_whole_replies)
    if not pairs:
        raise DataError(no_pair_fits(stage, account))
    if run_folder.state.is_main_process:
        write_account(account, folder)
    config.max_length = None  # every pair already fits; nothing is left to cut
    with constructing(stage):
        trainer = TRAINERS[stage](
            model=model,
            args=config,
            train_dataset=Dataset.from_list(_rows(stage, tokenizer, pairs, config)),
            processing_class=tokenizer,
            peft_config=lora_config(recipe.model, "CAUSAL_LM", model),
        )
    train_policy(trainer, run_folder, folder, stage, SHOWN)


def _rows(stage: str, tokenizer: Any, pairs: list[Preference], config: Any) -> list[dict[str, Any]]:
    if stage == "dpo":
        return dpo_rows(tokenizer, pairs)
    estimates_kl = config.loss_type != "apo_zero_unpaired"
    return kto_rows(tokenizer, pairs, config.per_device_train_batch_size, config.seed, estimates_kl)


def no_pair_fits(stage: str, account: Fitted) -> str:
    """What to say where no pair fits."""
    return (
        f"None of the pairs fits into {account.limit} tokens; raise {stage}.max_length or model.context_length."
        + account.objection
    )
