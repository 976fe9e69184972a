"""A step of PPO on the base model that ships, in a process of its own: prints one line of JSON.

`python -m llm_rlhf.doctor.smoke`. It goes the way that a run goes, by accelerate, TRL, PEFT and the device that these
choose; where it crashes, only this process does.
"""

import json
import tempfile
import warnings
from typing import Any


def main() -> None:
    """One rollout of eight answers and one optimizer step: {"loss": finite?, "ratio": 1?, "device": ...}."""
    warnings.simplefilter("ignore")
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llm_rlhf import PPOConfig, PPOTrainer
    from llm_rlhf.world.base_model import shipped_base

    transformers.logging.set_verbosity_error()
    base = str(shipped_base())
    prompts = [
        [{"role": "user", "content": f"what does the {animal} eat?"}] for animal in ("otter", "goat", "mole", "fox")
    ]
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "per_device_train_batch_size": 4, "num_mini_batches": 2, "num_ppo_epochs": 1, "total_episodes": 8,
            "response_length": 8, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "bf16": False,
            "disable_tqdm": True, "gradient_checkpointing": False,
        }  # fmt: skip
        trainer = PPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(base),
            reward_funcs=_length,
            args=PPOConfig(output_dir=folder, **options),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in 2 * prompts]),
            processing_class=AutoTokenizer.from_pretrained(base),
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"),
        )
        trainer.train()
        logged = next(row for row in trainer.state.log_history if "loss/policy" in row)
        found = {
            "loss": logged["loss/policy"],
            "ratio": logged["policy/ratio"],
            "device": str(trainer.accelerator.device),
        }
    print(json.dumps(found))


def _length(completions: list[Any], **known: Any) -> list[float]:
    """A reward that needs no model: shorter is better."""
    return [-float(len(str(completion))) for completion in completions]


if __name__ == "__main__":
    main()
