"""What vLLM takes of the GPU where a PPO run has it sample on the trainer's own (`vllm_mode: colocate`)."""

from typing import Any

import torch

from llm_rlhf.plan.steps import Simulation

ENGINE = "vLLM"


def engine_bytes(config: Any, device: str, there: int | None) -> int:
    """Bytes that vLLM asks for when it starts: its share of all the GPU's memory, whatever the model needs of that.

    0 where it takes none of this device, or nobody knows how much there is.
    """
    if not config.use_vllm or config.vllm_mode != "colocate" or device != "cuda" or there is None:
        return 0
    return int(config.vllm_gpu_memory_utilization * there)


def sample_by_engine(simulation: Simulation, size: int) -> None:
    """A rollout by an engine that is awake for it alone, beside what training holds."""
    held = torch.empty(size, dtype=torch.uint8)
    simulation.memory.hold([held], ENGINE)
    with simulation.step("sampling by vLLM"):
        pass


def engine_note(config: Any, device: str, there: int | None) -> str:
    """What is not counted of it."""
    if config.vllm_mode != "colocate":
        return "the vLLM server is taken to have a GPU of its own"
    if device == "cuda" and there is None:
        return "what vLLM takes is not counted; with --memory it is: a share of all there is"
    if device != "cuda":
        return "what vLLM takes is not counted"
    if config.vllm_enable_sleep_mode:
        return "what vLLM keeps while it sleeps (its context and graphs) is not counted"
    return "vLLM's share is counted in ppo alone, though the process may keep it afterwards"
