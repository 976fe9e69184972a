"""llm-rlhf: from a base model to a measured, helpful and harmless chat model."""

import os
from typing import TYPE_CHECKING, Any

from llm_rlhf.launch import is_true

# TRL's trainers and the hub client report usage when they are built. Off, unless the user said otherwise; this must
# be set before either is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Who asks accelerate for CPUs gets them alone: beside it, transformers, PEFT and this package look for a GPU by torch.
if is_true("ACCELERATE_USE_CPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

if TYPE_CHECKING:
    from llm_rlhf.ppo.config import PPOConfig
    from llm_rlhf.ppo.trainer import PPOTrainer
    from llm_rlhf.reward.model import RewardModel

__version__ = "0.1.0"
__all__ = ["PPOConfig", "PPOTrainer", "RewardModel", "__version__"]


def __getattr__(name: str) -> Any:
    """The imports of trainers and models take seconds, so they wait until they are asked for."""
    if name == "PPOConfig":
        from llm_rlhf.ppo.config import PPOConfig

        return PPOConfig
    if name == "PPOTrainer":
        from llm_rlhf.ppo.trainer import PPOTrainer

        return PPOTrainer
    if name == "RewardModel":
        from llm_rlhf.reward.model import RewardModel

        return RewardModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
