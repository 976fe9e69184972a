"""On which device these tests run: a GPU (`make test-gpu`), or what stands in for one (stand_in/), or the CPU."""

import os
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def device() -> Any:
    import torch

    name = os.environ.get("LLM_RLHF_TEST_DEVICE", "cpu")  # tests/conftest.py has hidden GPUs where it is cpu
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("LLM_RLHF_TEST_DEVICE is cuda, and torch finds no CUDA device here")
    name = "cuda" if name == "stand-in" else name
    return torch.device(name)


@pytest.fixture(scope="session")
def wide_base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    from model_helpers import wide_llama

    return wide_llama(tmp_path_factory.mktemp("wide"), tokenizer)


@pytest.fixture(scope="session")
def wide_reward(tmp_path_factory: pytest.TempPathFactory, wide_base: Path) -> Path:
    from model_helpers import random_reward_adapter

    return random_reward_adapter(wide_base, tmp_path_factory.mktemp("wide-reward"))
