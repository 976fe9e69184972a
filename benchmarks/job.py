"""What both trainers are asked to do, and how it is measured: the part of the benchmarks that the two sides share.

1. `prepare` writes a random base model, its tokenizer and a reward adapter for one shape.
2. ours.py and trl112.py build their trainer for a `Job` and tell `Phases` when a phase begins.
3. `measure` trains and returns one record: seconds, FLOPs, peak memory, and the counts of work by which the two sides
   are held to be doing the same.

Runs in either side's environment, a fresh process for each job: `python ours.py JOB`, with JOB as JSON.
"""

import dataclasses
import gc
import json
import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedTokenizerFast,
)

EOS, PAD = 0, 1
# The counter leaves attention out where CPUs use a kernel of their own; it costs what the others cost.
_aten = torch.ops.aten
flop_registry[_aten._scaled_dot_product_flash_attention_for_cpu] = flop_registry[
    _aten._scaled_dot_product_flash_attention
]
flop_registry[_aten._scaled_dot_product_flash_attention_for_cpu_backward] = flop_registry[
    _aten._scaled_dot_product_flash_attention_backward
]


@dataclasses.dataclass(frozen=True)
class Job:
    """One process's work: one iteration of PPO."""

    column: str  # which trainer, with which value function
    folder: str  # what `prepare` wrote
    prompts: int = 32
    prompt_tokens: int = 32
    new_tokens: int = 64  # exactly: EOS and padding are never sampled
    epochs: int = 2
    micro_batches: int = 4  # of one mini-batch: an optimizer step accumulates over so many
    lora_r: int = 16
    device: str = "cpu"
    dtype: str = "float32"
    quantization: str | None = None  # "nf4"


class Phases:
    """Seconds of each phase of an iteration, and its FLOPs where a counter is given."""

    def __init__(self, device: str, counter: FlopCounterMode | None = None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.flops: dict[str, int] = defaultdict(int)
        self.current: str | None = None
        self._device, self._counter = device, counter
        self._since, self._flops_since = 0.0, 0

    def begin(self, phase: str | None) -> None:
        """End the phase that is going on and begin another, or none."""
        if self._device == "cuda":
            torch.cuda.synchronize()
        flops = self._counter.get_total_flops() if self._counter else 0
        if self.current is not None:
            self.seconds[self.current] += time.perf_counter() - self._since
            self.flops[self.current] += flops - self._flops_since
        self.current, self._since, self._flops_since = phase, time.perf_counter(), flops


@dataclasses.dataclass
class Work:
    """What a training run did: the two sides must have done the same."""

    tokens_generated: int = 0
    optimizer_steps: int = 0
    policy_lora_parameters: int = 0

    def note_step(self, *_: Any) -> None:
        self.optimizer_steps += 1


Build = Callable[[Job, Phases, Work], tuple[Any, Any]]


def measure(job: Job, build: Build) -> dict[str, Any]:
    """Warm up on one micro-batch, counting FLOPs, which are proportional to the rows; then train as the job says."""
    with FlopCounterMode(display=False) as counter:
        warm_up = Phases(job.device, counter)
        small = dataclasses.replace(job, prompts=job.prompts // job.micro_batches, micro_batches=1)
        train(small, build, warm_up)
    gc.collect()
    if job.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    timed = Phases(job.device)
    return {
        "work": dataclasses.asdict(train(job, build, timed)),
        "seconds": timed.seconds,
        "flops": {phase: count * job.micro_batches for phase, count in warm_up.flops.items()},
        **memory(job.device),
    }


def train(job: Job, build: Build, phases: Phases) -> Work:
    """One iteration. `build` returns the trainer and its policy."""
    torch.manual_seed(0)
    work = Work()
    trainer, policy = build(job, phases, work)
    lora = [p for n, p in policy.named_parameters() if p.requires_grad and "lora_" in n and ".value." not in n]
    work.policy_lora_parameters = sum(p.numel() for p in lora)
    hook = register_optimizer_step_post_hook(work.note_step)
    trainer.train()
    hook.remove()
    phases.begin(None)
    return work


def memory(device: str) -> dict[str, float]:
    """Peak memory of this process in MiB."""
    if device == "cuda":
        return {"peak_mib": torch.cuda.max_memory_allocated() / 2**20}
    return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}  # Linux counts in KiB


def main(build: Build) -> None:
    """Measure the job that the command line gives, or with `imports` only weigh what the imports take."""
    report(lambda job: measure(job, build))


def report(measured: Callable[[Job], dict[str, Any]]) -> None:
    """Print what a job's measurement gives, and in what surroundings, as the last line."""
    import accelerate
    import peft
    import transformers
    import trl

    if sys.argv[1] == "imports":
        record: dict[str, Any] = memory("cpu")
    else:
        try:
            record = measured(Job(**json.loads(sys.argv[1])))
        except torch.OutOfMemoryError as error:
            record = {"failed": f"out of memory: {str(error).splitlines()[0]}"}
    packages = (torch, transformers, trl, peft, accelerate)
    record["versions"] = {package.__name__: package.__version__ for package in packages}
    record["threads"] = torch.get_num_threads()
    record["accelerator"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    print("\n" + json.dumps(record))


# ---- what both sides load ------------------------------------------------------------------------------------------


def prepare(folder: Path, shape: dict[str, Any], dtype: str) -> None:
    """Random base, tokenizer of one word a token, and a reward adapter with its head, as RewardTrainer leaves them."""
    torch.manual_seed(0)
    vocab_size = shape["vocab_size"]
    words = {"<eos>": EOS, "<pad>": PAD} | {f"w{i}": i for i in range(2, vocab_size)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>", padding_side="left")
    config = AutoConfig.for_model(**shape, eos_token_id=EOS, pad_token_id=PAD, bos_token_id=None)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    parameters = sum(p.numel() for p in model.parameters())
    del model
    reward = AutoModelForSequenceClassification.from_pretrained(
        folder / "base", num_labels=1, dtype=getattr(torch, dtype)
    )
    lora = LoraConfig(task_type="SEQ_CLS", r=16, target_modules="all-linear", modules_to_save=["score"])
    get_peft_model(reward, lora).save_pretrained(folder / "reward")
    print("\n" + json.dumps({"parameters": parameters}))


def load(job: Job, auto_class: Any, quantized: bool = True, **options: Any) -> Any:
    """A model on the job's base, in its type and place; `generate` never samples EOS or padding."""
    dtype = getattr(torch, job.dtype)
    if job.quantization == "nf4" and quantized:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
        )
    model = auto_class.from_pretrained(Path(job.folder) / "base", dtype=dtype, device_map=job.device, **options)
    if model.can_generate():
        model.generation_config.suppress_tokens = [EOS, PAD]
    return model


def tokenizer(job: Job) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(Path(job.folder) / "base")


def policy_lora(job: Job) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=job.lora_r, lora_alpha=2 * job.lora_r, target_modules="all-linear")


def prompt_ids(job: Job) -> list[list[int]]:
    """Twice the prompts that are used: on its last batch, TRL's trainer would take a step every micro-batch."""
    vocab_size = AutoConfig.from_pretrained(Path(job.folder) / "base").vocab_size
    generator = torch.Generator().manual_seed(0)
    shape = (2 * job.prompts, job.prompt_tokens)
    return torch.randint(2, vocab_size, shape, generator=generator).tolist()


def common_arguments(job: Job) -> dict[str, Any]:
    """Arguments that the two trainers' configurations name alike."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": job.prompts // job.micro_batches,
        "gradient_accumulation_steps": job.micro_batches,
        "num_mini_batches": 1,
        "num_ppo_epochs": job.epochs,
        "total_episodes": job.prompts,
        "response_length": job.new_tokens,
        "temperature": 1.0,
        "learning_rate": 1e-5,
        "gradient_checkpointing": False,
        "bf16": job.dtype == "bfloat16",
        "use_cpu": job.device == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3])
