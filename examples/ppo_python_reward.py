"""PPO against a reward that is a Python function; no reward model is needed.

    python examples/ppo_python_reward.py [MODEL] [OUTPUT] [EPISODES]

MODEL is a folder or hub id of a chat model, by default the small one that ships with the project.
"""

import sys
from typing import Any

from datasets import Dataset
from peft import LoraConfig

from llm_rlhf import PPOConfig, PPOTrainer


def brevity(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """One number a reply, higher is better: here, the fewer words the better. `columns` are the data set's others."""
    return [-float(len(completion[-1]["content"].split())) for completion in completions]


def main(model: str = "data/base", output: str = "runs/brevity", episodes: str = "640") -> None:
    questions = ["what does the fox eat?", "where does the owl live?", "and the badger?", "what does the hare wear?"]
    trainer = PPOTrainer(
        model=model,
        reward_funcs=[brevity],
        args=PPOConfig(
            output_dir=output, total_episodes=int(episodes), response_length=16, per_device_train_batch_size=32,
            learning_rate=1e-3, bf16=False, gradient_checkpointing=False, save_strategy="no", report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": q}]} for q in questions * 8]),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(output)  # policy/ is an adapter that PEFT loads; value/ is what PPO goes on with


if __name__ == "__main__":
    main(*sys.argv[1:])
