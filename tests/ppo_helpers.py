"""A PPO trainer on a tiny model, with its sampling replaced by responses that the test chooses."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_rlhf.ppo.config import PPOConfig
from llm_rlhf.ppo.rollout import MicroBatch
from llm_rlhf.ppo.trainer import PPOTrainer

PROMPTS = ["a", "why not", "tell me", "x y z", "who?", "hello there", "go", "is it so"]
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")


class FindsMemoryFull(torch.autograd.Function):
    """Passes values through; its backward finds memory full."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError(FULL)


def make_trainer(
    base: Path,
    folder: Path,
    reward: Path | None,
    rows: int = 8,
    model: Any = None,
    lora: LoraConfig | bool | None = None,
    perturb: bool = True,
    reward_funcs: Any = None,
    eval_dataset: Dataset | None = None,
    heldout_adapter: Path | None = None,
    ptx_dataset: Dataset | None = None,
    **options: Any,
) -> PPOTrainer:
    """A trainer of `rows` prompts a rollout. `perturb` gives the policy's adapter weights that do something.

    `lora=False` trains the whole model. A fresh LoRA adds nothing (B is zero) and gives A no gradient, which
    would hide most mistakes.
    """
    options = {
        "per_device_train_batch_size": rows,
        "response_length": 6,
        "bf16": False,
        "gradient_checkpointing": False,
        "total_episodes": 2 * rows,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 1e-3,
        **options,
    }
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer = PPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32) if model is None else model,
        reward_adapter=reward,
        reward_funcs=reward_funcs,
        args=PPOConfig(output_dir=str(folder), **options),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": p}]} for p in PROMPTS[:rows]]),
        processing_class=tokenizer,
        peft_config=None if lora is False else lora or LORA,
        eval_dataset=eval_dataset,
        heldout_adapter=heldout_adapter,
        ptx_dataset=ptx_dataset,
    )
    if perturb:
        generator = torch.Generator().manual_seed(3)
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * 0.05
                parameter.data.add_(noise.to(parameter))
            assert parameter.requires_grad == any(k in name for k in (".default.", ".value.", "value_head")), name
    trainer.model.train()
    return trainer


def fixed_responses(trainer: PPOTrainer, responses: Sequence[Sequence[int]], start: int = 0) -> None:
    """Make `_generate` return these token ids for PROMPTS[start:]."""
    tokenizer = trainer.processing_class

    def generate(prompts: list[Any]) -> Any:
        ids = [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"] for p in prompts
        ]
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        return ids, [list(r) for r in responses], [[{"role": "assistant", "content": t}] for t in texts]

    trainer._generate = generate


def responses_of(eos: int, rows: int = 8, start: int = 0) -> list[list[int]]:
    """Responses of one to six tokens; the even ones end with EOS, the odd ones are cut."""
    found = []
    for i in range(start, start + rows):
        length = 1 + i % 6
        ids = [10 + (7 * i + 3 * t) % 200 for t in range(length)]
        found.append([*ids[:-1], eos] if i % 2 == 0 else ids)
    return found


def rollout(trainer: PPOTrainer, start: int = 0, rows: int = 8) -> list[MicroBatch]:
    """One rollout over PROMPTS[start:]; where it is a single micro-batch, its rows are in the prompts' order."""
    batches = trainer._rollout([{"prompt": [{"role": "user", "content": p}]} for p in PROMPTS[start : start + rows]])
    if len(batches) > 1:
        return batches
    (batch,) = batches
    order = torch.tensor(batch.rows).argsort()

    def sorted_rows(x: Any) -> Any:
        if isinstance(x, dict):
            return {name: sorted_rows(part) for name, part in x.items()}
        return x[order] if isinstance(x, torch.Tensor) and x.dim() else x

    return [replace(batch, **{name: sorted_rows(x) for name, x in vars(batch).items()} | {"rows": sorted(batch.rows)})]


def gradients(
    trainer: PPOTrainer, batches: list[MicroBatch], together: bool = False
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss summed over micro-batches, each a step's only one or all `together`; gradients of every trainable tensor."""
    trainer.model.zero_grad(set_to_none=True)
    total = 0.0
    for step in [batches] if together else [[batch] for batch in batches]:
        loss = trainer._compute_loss(trainer.model, step)
        loss.backward()
        total += loss.item()
    found = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            found[name] = parameter.grad.clone()
    return total, found


def zero_values(trainer: PPOTrainer) -> None:
    """Make the value function say 0 everywhere."""
    for parameter in trainer.base_model().value_head.parameters():
        parameter.data.zero_()


def watch_approx_kl(trainer: PPOTrainer) -> list[float]:
    """Mean squared log-ratio of every micro-batch of a training run; 0.0 only if every ratio is exactly 1."""
    seen: list[float] = []
    compute = trainer._compute_loss

    def compute_and_note(model, inputs):
        before = trainer._step_sums
        loss = compute(model, inputs)
        after = trainer._step_sums if before is None else trainer._step_sums - before
        seen.append(after[trainer._step_names.index("policy/approxkl")].item())
        return loss

    trainer._compute_loss = compute_and_note
    return seen
