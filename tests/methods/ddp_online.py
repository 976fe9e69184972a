"""Two optimizer steps of GRPO and RLOO on replies that are given, shared out over the processes there are.

test_method_processes.py calls it in its own process, and in two forked ones.
"""

from pathlib import Path
from typing import Any

import torch
from method_helpers import make
from ppo_helpers import responses_of

from llm_rlhf.launch import processes
from llm_rlhf.recipe.sections import OnlineOptions

ROWS = 8


def first_token(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """Another score for every row."""
    return [ids[0] / 100 for ids in completion_ids]


def measure(kind: str, base: Path, reward: Path, scratch: Path) -> dict[str, Any]:
    """Weights of the policy's adapter, and the lines logged of both steps."""
    world, rank = processes().num_processes, processes().process_index
    mine = ROWS // world
    scoring = OnlineOptions(reward_weights=[1.0, 0.5], missing_eos_penalty=0.7)
    trainer = make(
        kind, base, scratch / f"{kind}-{world}", {"joint": reward}, (first_token,), scoring, beta=0.1, max_steps=2,
        per_device_train_batch_size=mine, logging_steps=1,
    )  # fmt: skip
    rollouts = iter(range(2))

    def given(prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        """The same replies to the same rows, however many processes have them between them."""
        start = 3 * next(rollouts) + rank * mine
        ids = responses_of(trainer.processing_class.eos_token_id, rows=mine, start=start)
        return (ids, None) if kind == "grpo" else ids  # as either trainer has it

    trainer._generate_single_turn = given
    trainer.train()
    logged = [
        {name: line[name] for name in ("loss", "reward", "reward_std", "kl", "grad_norm")}
        for line in trainer.state.log_history
        if "reward" in line
    ]
    weights = {name: p.detach() for name, p in trainer.model.named_parameters() if ".default." in name}
    return {"world": world, "weights": weights, "logged": logged}


def main(base: Path, reward: Path, scratch: Path) -> None:
    """The main process writes `grpo.pt` and `rloo.pt`."""
    for kind in ("grpo", "rloo"):
        found = measure(kind, base, reward, scratch)
        if processes().is_main_process:
            torch.save(found, scratch / f"{kind}.pt")
