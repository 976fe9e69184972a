"""llm-rlhf: from a base model to a measured, helpful and harmless chat model."""

import os

# TRL's trainers and the hub client report usage when they are built. Off, unless the user said otherwise; this must
# be set before either is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__version__ = "0.1.0"
