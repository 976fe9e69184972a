"""One rollout shared out over the processes there are: its loss, gradients and statistics.

test_processes.py calls it in its own process, and in two of their own.
"""

from pathlib import Path
from typing import Any

import fsdp_on_cpus
import torch
from accelerate.utils import gather_object
from ppo_helpers import PROMPTS, fixed_responses, make_trainer, responses_of
from torch.distributed.tensor import DTensor

from llm_rlhf.launch import processes

ROWS = 8


def first_token(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """Another score for every row."""
    return [ids[0] / 100 for ids in completion_ids]


def measure(base: Path, reward: Path, scratch: Path, value: str) -> dict[str, Any]:
    """What this process knows of the rollout when the value role is `value`."""
    world, rank = processes().num_processes, processes().process_index
    mine = ROWS // world
    trainer = make_trainer(
        base, scratch, reward, rows=ROWS, value=value, per_device_train_batch_size=2,
        gradient_accumulation_steps=mine // 2, use_cpu=True, reward_funcs=[first_token], score_normalization="whiten",
        adaptive_kl_target=0.1, adaptive_kl_horizon=100,
    )  # fmt: skip
    model = trainer.model
    if trainer.accelerator.is_fsdp2:  # before the rollout, which is to be scored with weights that are spread
        model, _ = trainer.accelerator.prepare(model, trainer.create_optimizer())
        assert all(isinstance(p, DTensor) for p in model.parameters())
    drawn = gather_object([torch.rand(4).tolist()])  # by each process' own generator, from its seed
    fixed_responses(trainer, responses_of(trainer.processing_class.eos_token_id)[rank * mine : (rank + 1) * mine])
    batches = trainer._rollout(
        [{"prompt": [{"role": "user", "content": p}]} for p in PROMPTS[rank * mine : (rank + 1) * mine]]
    )
    if world > 1 and not trainer.accelerator.is_fsdp2:
        model = trainer.accelerator.prepare(trainer.model)
        assert isinstance(model, torch.nn.parallel.DistributedDataParallel)
    loss = torch.zeros(())
    for i, batch in enumerate(batches):
        # As the Trainer does: gradients are averaged over processes at the last micro-batch of an optimizer step.
        with trainer.accelerator.no_sync(model) if i < len(batches) - 1 and world > 1 else torch.enable_grad():
            part = trainer._compute_loss(model, [batch])
            part.backward()
        loss += part.detach()
    trainer.finish_step()
    metrics = {
        name: sum(values) / len(values) for name, values in trainer._metrics["train"].items() if name != "num_tokens"
    }
    found = {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad}
    gradients = {n: grad.full_tensor() if isinstance(grad, DTensor) else grad for n, grad in found.items()}
    mean_loss = trainer.accelerator.reduce(loss, reduction="mean").item()
    known = {"moments": trainer.score_moments.state_dict(), "kl_coef": trainer.kl_controller.value, "drawn": drawn}
    return {"world": world, "loss": mean_loss, "gradients": gradients, "metrics": metrics, **known}


def main(base: Path, reward: Path, scratch: Path, shards: bool = False) -> None:
    """By all processes of a launch; the main one writes `shared.pt` and `adapter.pt` into the scratch folder."""
    if shards:
        fsdp_on_cpus.shard()
    for value in ("shared", "adapter"):
        found = measure(base, reward, scratch, value)
        if processes().is_main_process:
            torch.save(found, scratch / f"{value}.pt")
