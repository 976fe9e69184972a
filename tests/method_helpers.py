"""Trainers of the other methods on a tiny model."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from ppo_helpers import LORA, PROMPTS
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, GRPOConfig, KTOConfig, RLOOConfig, SFTConfig

from llm_rlhf.data.rows import Origin, Preference
from llm_rlhf.methods.best_of_n import sft_rows
from llm_rlhf.methods.offline import PairDPOTrainer, ReplyKTOTrainer, dpo_rows, kto_rows
from llm_rlhf.methods.online import ScoredGRPOTrainer, ScoredRLOOTrainer
from llm_rlhf.recipe.sections import OnlineOptions
from llm_rlhf.stages.best_of_n import _SFTTrainer

ASKED = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
KINDS: dict[str, tuple[Any, Any]] = {
    "grpo": (ScoredGRPOTrainer, GRPOConfig),
    "rloo": (ScoredRLOOTrainer, RLOOConfig),
    "dpo": (PairDPOTrainer, DPOConfig),
    "kto": (ReplyKTOTrainer, KTOConfig),
    "best_of_n": (_SFTTrainer, SFTConfig),
}


def make(
    kind: str,
    base: Path,
    folder: Path,
    adapters: dict[str, Path] | None = None,
    functions: tuple[Any, ...] = (),
    scoring: OnlineOptions | None = None,
    tokenizers: tuple[Any, ...] = (),
    **options: Any,
) -> Any:
    """A trainer of eight prompts or pairs; the online ones sample two replies to each of four prompts a rollout."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer, config = KINDS[kind]
    online = kind in ("grpo", "rloo")
    defaults: dict[str, Any] = {
        "output_dir": str(folder), "report_to": "none", "bf16": False, "use_cpu": True, "disable_tqdm": True,
        "gradient_checkpointing": False, "learning_rate": 1e-2, "save_strategy": "no", "seed": 3,
        "per_device_train_batch_size": 8 if online else 2,
    }  # fmt: skip
    if online:
        defaults |= {"num_generations": 2, "max_completion_length": 6}
    else:
        defaults |= {"max_length": None, "remove_unused_columns": False}
    pairs = [Preference(asked, f"yes {i}", f"no {i}", "helpful", Origin("here", i)) for i, asked in enumerate(ASKED)]
    rows: Any = {
        "dpo": lambda: dpo_rows(tokenizer, pairs),
        "kto": lambda: kto_rows(tokenizer, pairs, [], 2, 0, True),
        "best_of_n": lambda: sft_rows(
            [{"prompt_ids": row["prompt_ids"], "reply_ids": row["chosen_ids"]} for row in dpo_rows(tokenizer, pairs)]
        ),
    }.get(kind, lambda: [{"prompt": asked, "objective": "helpful"} for asked in ASKED])()
    more = (
        {"adapters": adapters or {}, "functions": list(functions), "tokenizers": list(tokenizers), "options": scoring}
        if online
        else {}
    )
    if online and scoring is None:
        more["options"] = OnlineOptions()
    return trainer(
        model=AutoModelForCausalLM.from_pretrained(base), args=config(**defaults | options),
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=LORA, **more,
    )  # fmt: skip


def moved(trainer: Any) -> Any:
    """A policy that differs from its start."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return trainer
