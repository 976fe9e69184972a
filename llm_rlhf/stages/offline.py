"""DPO and KTO: the policy learns from what people said of replies, without a reward model and without sampling.

1. The pairs are those that train the reward model: never the held-out one's, never evaluation's. KTO takes each of
   their replies by itself, and `data.ratings` beside them. All are cut to the context at turns, or counted as too long.
2. TRL's trainer reads them as token ids (methods/offline.py); the reference is the policy with its adapter off.
3. Snapshots and checkpoints are written; a launch that finds one of an interrupted launch goes on from it.

Writes: policy/ snapshots/ metrics.jsonl lengths.json
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from llm_rlhf.data.rows import Preference
from llm_rlhf.data.splits import Splits
from llm_rlhf.errors import DataError
from llm_rlhf.launch import processes
from llm_rlhf.methods.offline import (
    PairDPOTrainer,
    ReplyKTOTrainer,
    Rows,
    balance,
    dpo_rows,
    kto_rows,
    not_in_pairs,
)
from llm_rlhf.methods.prompts import write_accounts
from llm_rlhf.methods.training import train_policy
from llm_rlhf.models.base import adapter_config, announce, context_limit, load_causal_lm, load_tokenizer
from llm_rlhf.models.compiled_layers import compile_if_asked
from llm_rlhf.models.encoding import encode_whole_replies
from llm_rlhf.models.fitting import Fitted, fit_preferences, fit_ratings
from llm_rlhf.models.liger import add_liger
from llm_rlhf.ppo.soundness import turn_off_noise
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
    add_liger(model, config)
    limit = min(config.max_length or 2**30, context_limit(recipe.model, model.config))
    found = splits(recipe, run_folder)
    if stage == "dpo":
        rows, accounts = _dpo_rows(tokenizer, found, limit)
    else:
        rows, accounts = _kto_rows(tokenizer, found, limit, config, recipe)
    if not rows:
        raise DataError(nothing_fits(stage, accounts))
    if note := not_used(stage, found.reward_pairs):
        announce(note)
    if run_folder.state.is_main_process:
        write_accounts(folder, *accounts)
    config.max_length = None  # every row already fits; nothing is left to cut
    if config.disable_dropout:  # TRL turns off the modules alone, and not what attention reads in its configuration
        turn_off_noise(model)
    with constructing(stage):
        trainer = TRAINERS[stage](
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=adapter_config(recipe.model, "CAUSAL_LM", model),
        )
        compile_if_asked(trainer.model, recipe.model)
    train_policy(trainer, run_folder, folder, stage, SHOWN)


def _dpo_rows(tokenizer: Any, found: Splits, limit: int) -> tuple[Rows, list[Fitted]]:
    account = Fitted(limit, "pairs")
    pairs = fit_preferences(tokenizer, found.reward_pairs, account, encode_whole_replies)
    return dpo_rows(tokenizer, pairs) if pairs else [], [account]


def _kto_rows(tokenizer: Any, found: Splits, limit: int, config: Any, recipe: Recipe) -> tuple[Rows, list[Fitted]]:
    """The weights of good and bad replies are set in `config`."""
    account = Fitted(limit, "pairs")
    pairs = fit_preferences(tokenizer, found.reward_pairs, account, encode_whole_replies)
    single = not_in_pairs(found.ratings, found.reward_pairs)
    if len(single) < len(found.ratings):
        held = f"{len(found.ratings) - len(single):,} of {len(found.ratings):,} ratings"
        announce(f"{held} are of replies that pairs hold, and are taken once.")
    kinds = {True: Fitted(limit, "good ratings"), False: Fitted(limit, "bad ratings")}
    ratings = [fitted for row in single for fitted in fit_ratings(tokenizer, [row], kinds[row.good])]
    good, bad = (len(pairs) + account.kept for account in kinds.values())
    accounts = [account, *(kinds.values() if found.ratings else ())]
    if not good + bad:
        return [], accounts
    if not (good and bad):
        raise DataError(one_sided(good=bool(good)))
    section = recipe.kto or {}
    weighed = balance(good, bad, section.get("desirable_weight"), section.get("undesirable_weight"))
    config.desirable_weight, config.undesirable_weight = weighed.desirable, weighed.undesirable
    if weighed.note:
        announce(weighed.note)
    size = config.per_device_train_batch_size * processes().num_processes
    estimates_kl = config.loss_type != "apo_zero_unpaired"
    return kto_rows(tokenizer, pairs, ratings, size, config.seed, estimates_kl), accounts


def not_used(stage: str, pairs: Sequence[Preference]) -> str:
    """A sentence on what pairs say that the method has no use for; empty where they say no such thing."""
    counted = {
        "say by how much the chosen reply is better (margin)": sum(pair.margin is not None for pair in pairs),
        "how probably it is (a soft label)": sum(pair.confidence < 1 for pair in pairs),
    }
    told = ", ".join(f"{count:,} {what}" for what, count in counted.items() if count)
    if not told:
        return ""
    more = "; dpo.label_smoothing is one number for all" if stage == "dpo" else ""
    return f"of {len(pairs):,} pairs {told}: {stage} has no use for that and takes all alike{more}."


def nothing_fits(stage: str, accounts: Sequence[Fitted]) -> str:
    """What to say where no row fits."""
    what = "pairs" if len(accounts) == 1 else "pairs and ratings"
    return (
        f"None of the {what} fits into {accounts[0].limit} tokens; raise {stage}.max_length or model.context_length."
        + next((account.objection for account in accounts if account.refused), "")
    )


def one_sided(good: bool) -> str:
    """What to say where KTO has good replies alone, or bad ones."""
    there, missing = ("good", "bad") if good else ("bad", "good")
    return (
        f"The replies for kto that fit are all {there} ones, and it learns from how they differ; add {missing} ones to "
        "'data.ratings' or pairs to 'data.preferences'. Good ones alone serve as 'data.demonstrations'."
    )
