"""GRPO and RLOO: the policy learns to please the reward model from how the replies to one prompt differ in score.

1. Prompts are those that PPO would train on.
2. TRL's trainer samples several replies to each, scored as PPO scores them (methods/online.py); the reward adapters sit
   on the policy's base in memory, and the reference is that base.
3. Snapshots and checkpoints are written; a launch that finds one of an interrupted launch goes on from it.

Writes: policy/ snapshots/ metrics.jsonl lengths.json
"""

from pathlib import Path

from llm_rlhf.methods.online import ScoredGRPOTrainer, ScoredRLOOTrainer
from llm_rlhf.methods.prompts import as_dataset, training_prompts
from llm_rlhf.methods.rewards import reward_functions
from llm_rlhf.methods.training import train_policy
from llm_rlhf.models.base import adapter_config, context_limit, load_causal_lm, load_tokenizer
from llm_rlhf.models.compiled_layers import compile_if_asked
from llm_rlhf.models.liger import add_liger
from llm_rlhf.ppo.scores import weighing
from llm_rlhf.recipe.loading import steps_for, trainer_config
from llm_rlhf.recipe.sections import Recipe, stage_options
from llm_rlhf.reward.adapters import reward_folders
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.runs import starting_model
from llm_rlhf.training import constructing

RESUMES = True  # this stage goes on from what an interrupted launch left in its folder
TRAINERS = {"grpo": ScoredGRPOTrainer, "rloo": ScoredRLOOTrainer}
SHOWN = {"reward": "score", "kl": "kl", "completions/mean_length": "length", "entropy": "entropy"}


def run(recipe: Recipe, run_folder: RunFolder, folder: Path) -> None:
    """Train the policy. `folder` becomes `grpo/` or `rloo/`."""
    stage = str(recipe.method)
    base = starting_model(recipe, run_folder, before=stage)
    tokenizer = load_tokenizer(base, recipe.model)
    config = trainer_config(recipe, stage, folder)
    model = load_causal_lm(base, recipe.model, tokenizer)
    add_liger(model, config)
    room = context_limit(recipe.model, model.config) - config.max_completion_length
    prompts, _ = training_prompts(recipe, run_folder, folder, tokenizer, room)
    if (episodes := stage_options(recipe, stage).total_episodes) is not None:
        config.max_steps = steps_for(config, episodes, len(prompts))
    functions, tokenizers = reward_functions(recipe)
    with constructing(stage):
        trainer = TRAINERS[stage](
            model=model,
            adapters=reward_folders(recipe, run_folder),
            functions=functions,
            tokenizers=tokenizers,
            options=weighing(recipe),
            args=config,
            train_dataset=as_dataset(prompts),
            processing_class=tokenizer,
            peft_config=adapter_config(recipe.model, "CAUSAL_LM", model),
        )
        compile_if_asked(trainer.model, recipe.model)
    train_policy(trainer, run_folder, folder, stage, SHOWN)
