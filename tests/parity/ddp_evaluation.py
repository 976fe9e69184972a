"""An evaluation of nine prompts kept back, in batches of four, by as many processes as there are.

test_processes.py calls it in its own process, and in two forked ones, whose second batches have one row of the nine
and seven that fill up.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from ppo_helpers import make_trainer

from llm_rlhf.launch import processes

KEPT_BACK = 9


def length_asked(prompts: list[Any], **kwargs: Any) -> list[float]:
    """A score that is the prompt's own, whatever is sampled."""
    return [float(len(prompt[0]["content"])) for prompt in prompts]


def first_token(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """A score that is the reply's own."""
    return [float(ids[0]) for ids in completion_ids]


def measure(
    base: Path, scratch: Path, score: Callable[..., list[float]] = length_asked, **options: Any
) -> dict[str, float]:
    """What the evaluation found, and the mean score of the rows by which sides are judged."""
    rows = [{"prompt": [{"role": "user", "content": "p" * (i + 1)}]} for i in range(KEPT_BACK)]
    trainer = make_trainer(
        base, scratch / str(processes().num_processes), None, reward_funcs=[score], perturb=False,
        eval_dataset=Dataset.from_list(rows), eval_rollouts=1, per_device_train_batch_size=4,
        per_device_eval_batch_size=4, **options,
    )  # fmt: skip
    found = {name: value for name, value in trainer.evaluate().items() if "scores" in name}
    kept = trainer._gathered_rows()
    assert len(kept) == KEPT_BACK
    return {**found, "mean of rows": sum(row.score for row in kept.values()) / KEPT_BACK}


def main(base: Path, scratch: Path) -> None:
    for replies in (1, 2):
        found = measure(base, scratch, num_generations_eval=replies)
        if processes().is_main_process:
            torch.save(found, scratch / f"evaluation-{replies}.pt")
    found = measure(base, scratch, first_token)
    if processes().is_main_process:
        torch.save(found, scratch / "of-replies.pt")
