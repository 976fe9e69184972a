"""PPO: the policy learns to please the reward model without leaving the SFT model far behind.

1. Prompts that leave room for a reply are kept; the others are cut at turns, or counted as too long.
2. PPOTrainer puts policy, value and reward on one base in memory; the reference is that base.
3. What is left is the policy's adapter, small enough to keep and to share, and the value function's.

Writes: policy/ value/ metrics.jsonl samples.jsonl lengths.json
"""

from pathlib import Path

from datasets import Dataset

from llm_rlhf.data.checks import DataError
from llm_rlhf.models.base import context_limit, load_causal_lm, load_tokenizer, lora_config
from llm_rlhf.ppo.trainer import PPOTrainer
from llm_rlhf.recipe import Recipe, trainer_config
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.stages.inputs import Fitted, fit_prompts, splits, starting_model
from llm_rlhf.stages.progress import StageLog, attach_log

SHOWN = {"objective/scores": "score", "objective/kl": "kl", "response_length": "length", "policy/entropy": "entropy"}


def run(recipe: Recipe, run_folder: RunFolder, folder: Path) -> None:
    """Train the policy. `folder` becomes `ppo/`."""
    base = starting_model(recipe, run_folder, before="ppo")
    tokenizer = load_tokenizer(base, recipe.model)
    config = trainer_config(recipe, "ppo", folder / "trainer")
    model = load_causal_lm(base, recipe.model, tokenizer)
    room = context_limit(recipe.model, model.config) - config.response_length
    account = Fitted(room, "prompts")
    prompts = fit_prompts(tokenizer, splits(recipe, run_folder).prompts, account) if room > 0 else []
    if not prompts:
        raise DataError(
            f"No prompt leaves room for ppo.response_length ({config.response_length}) in the model's context "
            f"({room + config.response_length} tokens); lower it."
        )
    if run_folder.state.is_main_process:
        account.write(folder)
    trainer = PPOTrainer(
        model=model,
        reward_adapter=run_folder / "reward" / "joint",
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt.messages} for prompt in prompts]),
        processing_class=tokenizer,
        peft_config=lora_config(recipe.model, "CAUSAL_LM"),
        samples_file=folder / "samples.jsonl",
    )
    attach_log(trainer, StageLog("ppo", folder, SHOWN))
    trainer.train()
    trainer.save_roles(folder)
