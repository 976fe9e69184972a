"""Milliseconds of one decoding step of a LoRA policy, all prompts at once: `python decode.py JOB`, JOB as for ours.py.

Columns: "eager" (growing cache), "static" (static cache, compiled forward with CUDA graphs), "merged" (static, with the
adapter added to the base's matrices), "continuous" (continuous batching, where a step is the time of all tokens after
the first over their number).
"""

import statistics
import time
from typing import Any

import torch
from job import Job, load, memory, policy_lora, prompt_ids, report
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    CompileConfig,
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from llm_rlhf.extras import has_flash_attention


class Clock(LogitsProcessor):
    """Notes when each step's logits are there."""

    def __init__(self, device: str) -> None:
        self.device, self.times = device, list[float]()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        synchronize(self.device)
        self.times.append(time.perf_counter())
        return scores


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(job: Job) -> dict[str, Any]:
    model = get_peft_model(load(job, AutoModelForCausalLM), policy_lora(job)).eval()
    model.generation_config.eos_token_id = model.generation_config.suppress_tokens = None
    prompts = prompt_ids(job)[: job.prompts]
    if job.column == "merged":
        model.merge_adapter()
    step = continuous if job.column == "continuous" else stepwise
    started = time.perf_counter()
    step(job, model, prompts)  # compiles, captures, allocates
    first = time.perf_counter() - started
    found = {"ms_per_step": 1000 * step(job, model, prompts), "first_seconds": first, **memory(job.device)}
    return found | ({"flash_attention": has_flash_attention()} if job.column == "continuous" else {})


@torch.no_grad()
def stepwise(job: Job, model: Any, prompts: list[list[int]]) -> float:
    """Median seconds between two steps of `generate`."""
    options: dict[str, Any] = {}
    if job.column in ("static", "merged"):
        options = {"cache_implementation": "static", "compile_config": CompileConfig(mode="reduce-overhead")}
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=job.new_tokens, pad_token_id=1, **options)
    ids = torch.tensor(prompts, device=job.device)
    clock = Clock(job.device)
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config,
        logits_processor=LogitsProcessorList([clock]),
    )  # fmt: skip
    assert len(clock.times) == job.new_tokens
    return statistics.median(b - a for a, b in zip(clock.times, clock.times[1:], strict=False))


@torch.no_grad()
def continuous(job: Job, model: Any, prompts: list[list[int]]) -> float:
    """Seconds of a run with all new tokens less one with a single one, over the tokens between."""
    # Left to itself, its cache takes what memory the machine has.
    batching = ContinuousBatchingConfig(max_memory_percent=0.02) if job.device == "cpu" else None

    def seconds(new_tokens: int) -> float:
        config = GenerationConfig(do_sample=True, max_new_tokens=new_tokens, pad_token_id=1)
        synchronize(job.device)
        started = time.perf_counter()
        found = model.get_base_model().generate_batch(
            prompts, generation_config=config, continuous_batching_config=batching
        )
        synchronize(job.device)
        bad = [f.error for f in found.values() if f.error or len(f.generated_tokens) != new_tokens]
        if bad or len(found) != len(prompts):
            raise RuntimeError(
                f"Continuous batching gave back {len(found)} of {len(prompts)} responses; bad: {bad[:1]}"
            )
        return time.perf_counter() - started

    return (seconds(job.new_tokens) - seconds(1)) / (job.new_tokens - 1)


if __name__ == "__main__":
    report(measure)
