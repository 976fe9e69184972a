"""What both trainers are asked to do, and how it is measured: the part of the benchmarks that the two sides share.

1. `prepare` writes the configuration, tokenizer and reward adapter of one shape; `load` makes random weights in place.
2. ours.py and trl112.py build their trainer for a `Job` and tell `Phases` when a phase begins.
3. `measure` trains and returns one record: seconds, FLOPs or operations, peak memory, and the counts of work by which
   the two sides are held to be doing the same.

Runs in either side's environment, a fresh process for each job: `python ours.py JOB`, with JOB as JSON.
"""

import dataclasses
import gc
import json
import math
import os
import resource
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula
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
flop_registry[_aten.addmm_] = flop_registry[_aten.addmm]  # nor does it know the product that adds in place


@register_flop_formula(torch.ops.mkldnn._linear_pointwise)
def _of_onednn(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * int(weight[0])  # nor oneDNN's, (..., I) by (O, I)


@dataclasses.dataclass(frozen=True)
class Job:
    """One process's work: iterations of PPO."""

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
    iterations: int = 0  # timed after a whole first one, whose operations are counted; 0: see `measure`
    of_run: int = 100  # rollouts of the run that the iterations are the first of, for this package's trainer
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # more of this package's PPOConfig


# These start nothing on the device; of the others, those that move numbers about or change their type.
IDLE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach", "_local_scalar_dense",
        "lift_fresh", "resolve_conj", "_unsafe_view", "_has_compatible_shallow_copy_type"}  # fmt: skip
MOVES = {"copy_", "_to_copy", "clone", "contiguous", "_foreach_copy_", "cat", "index_select"}


class Operations(TorchDispatchMode):
    """Counts operations by name, below autograd and autocast: casts that those make are among them. Views are not."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.phase = ""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.split("::")[-1]
        if not function.is_view and name not in IDLE:
            self.counts[self.phase][name] += 1
        return function(*args, **(kwargs or {}))

    def summary(self) -> dict[str, Any]:
        """By phase: all of them, those that copy or cast, and the most frequent."""
        return {
            phase: {
                "all": sum(counts.values()),
                "moves": sum(n for name, n in counts.items() if name in MOVES),
                "most": dict(counts.most_common(12)),
            }
            for phase, counts in self.counts.items()
        }


class Phases:
    """Seconds of each phase of each iteration; FLOPs where a counter is given; operations of the first iteration's
    scoring and update where they are to be counted, which slows those two.
    """

    def __init__(
        self, device: str, counter: FlopCounterMode | None = None, operations: Operations | None = None
    ) -> None:
        self.iterations: list[dict[str, float]] = []
        self.flops: dict[str, int] = defaultdict(int)
        self.operations = operations
        self.current: str | None = None
        self.after_iteration: Callable[[], None] = lambda: None
        self._device, self._counter = device, counter
        self._since, self._flops_since, self._counting = 0.0, 0, False

    def begin(self, phase: str | None) -> None:
        """End the phase that is going on and begin another, or none. `generate` begins an iteration."""
        if self._device == "cuda":
            torch.cuda.synchronize()
        flops = self._counter.get_total_flops() if self._counter else 0
        if self._counting:
            self.operations.__exit__(None, None, None)
        if self.current is not None:
            self.iterations[-1][self.current] = time.perf_counter() - self._since
            self.flops[self.current] += flops - self._flops_since
        if phase in (None, "generate"):
            if self.iterations:
                self.after_iteration()
            if phase:
                self.iterations.append({})
        self._counting = bool(self.operations and phase in ("score", "update") and len(self.iterations) == 1)
        if self._counting:
            self.operations.phase = phase
            self.operations.__enter__()
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
    """One record. With `job.iterations`, `measure_steady`; else a warm-up on one micro-batch, counting FLOPs, which are
    proportional to the rows, and one timed iteration.
    """
    if job.iterations:
        return measure_steady(job, build)
    with FlopCounterMode(display=False) as counter:
        warm_up = Phases(job.device, counter)
        small = dataclasses.replace(job, prompts=job.prompts // job.micro_batches, micro_batches=1)
        train(small, build, warm_up)
    gc.collect()
    timed = Phases(job.device)
    return {
        "work": dataclasses.asdict(train(job, build, timed)),
        "seconds": timed.iterations[0],
        "flops": {phase: count * job.micro_batches for phase, count in warm_up.flops.items()},
        **memory(job.device),
    }


def measure_steady(job: Job, build: Build) -> dict[str, Any]:
    """One training run: an iteration that compiles what is compiled, then those that are timed.

    A record is printed after each, so that what a time-out leaves is a record too.
    """
    # Where operations are watched one by one, torch compiles nothing, then or later.
    phases = Phases(job.device, operations=None if job.column == "compiled" else Operations())

    def so_far() -> dict[str, Any]:
        first, *timed = phases.iterations
        found: dict[str, Any] = {"first": first, "timed": timed}
        found["operations"] = phases.operations.summary() if phases.operations else {}
        if timed:
            found["seconds"] = {phase: sum(one[phase] for one in timed) / len(timed) for phase in timed[0]}
        return {**found, **memory(job.device)}

    phases.after_iteration = lambda: print("\n" + json.dumps(so_far() | surroundings()), flush=True)
    work = train(job, build, phases)
    return {"work": dataclasses.asdict(work), **so_far()}


def train(job: Job, build: Build, phases: Phases) -> Work:
    """All iterations of a job. `build` returns the trainer and its policy."""
    torch.manual_seed(0)
    work = Work()
    trainer, policy = build(job, phases, work)
    lora = [p for n, p in policy.named_parameters() if p.requires_grad and "lora_" in n and ".value." not in n]
    work.policy_lora_parameters = sum(p.numel() for p in lora)
    hook = register_optimizer_step_post_hook(work.note_step)
    if job.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
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
    if sys.argv[1] == "imports":
        record: dict[str, Any] = memory("cpu")
    else:
        try:
            record = measured(Job(**json.loads(sys.argv[1])))
        except torch.OutOfMemoryError as error:
            record = {"failed": f"out of memory: {str(error).splitlines()[0]}"}
    print("\n" + json.dumps(record | surroundings()))


def surroundings() -> dict[str, Any]:
    import accelerate
    import peft
    import transformers
    import trl

    packages = (torch, transformers, trl, peft, accelerate)
    versions = {package.__name__: package.__version__ for package in packages}
    if "liger_kernel" in sys.modules:
        versions["liger_kernel"] = metadata.version("liger-kernel")
    return {
        "versions": versions,
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


# ---- what both sides load ------------------------------------------------------------------------------------------


def prepare(folder: Path, shape: dict[str, Any]) -> None:
    """Configuration, tokenizer of one word a token, and a reward adapter with its head, as RewardTrainer leaves them.

    No weights of the base: a file of 7B parameters would take longer to write and read than an iteration.
    """
    torch.manual_seed(0)
    words = {"<eos>": EOS, "<pad>": PAD} | {f"w{i}": i for i in range(2, shape["vocab_size"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>", padding_side="left")
    base = folder / "base"
    AutoConfig.for_model(**shape, eos_token_id=EOS, pad_token_id=PAD, bos_token_id=None).save_pretrained(base)
    tokenizer.save_pretrained(base)
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)).num_parameters()
        reward = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(base, num_labels=1))
        lora = LoraConfig(task_type="SEQ_CLS", r=16, target_modules="all-linear", modules_to_save=["score"])
        adapted = get_peft_model(reward, lora)
    weights = {name: torch.randn(x.shape) * 0.02 for name, x in get_peft_model_state_dict(adapted).items()}
    (folder / "reward").mkdir()
    save_file(weights, folder / "reward" / "adapter_model.safetensors")
    saved = adapted.peft_config["default"]
    saved.base_model_name_or_path, saved.inference_mode = str(base), True
    saved.save_pretrained(folder / "reward")
    print("\n" + json.dumps({"parameters": parameters}))


def load(job: Job, auto_class: Any, quantized: bool = True, **options: Any) -> Any:
    """A model of the job's shape with random weights, made in its type and place; the same at every call.

    `generate` never samples EOS or padding.
    """
    base, dtype = Path(job.folder) / "base", getattr(torch, job.dtype)
    config = AutoConfig.from_pretrained(base, **options)
    model_class = auto_class._model_mapping[type(config)]
    with torch.device("meta"):
        shapes = model_class(config).state_dict()
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    generator = torch.Generator(job.device).manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        weights[name] = torch.empty(shape.shape, dtype=dtype, device=job.device)
        if shape.dim() > 1:
            weights[name].normal_(0, 0.02, generator=generator)
        else:
            weights[name].fill_(0 if name.endswith("bias") else 1)  # norms
    how: dict[str, Any] = {}
    if job.quantization == "nf4" and quantized:
        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
        )
    model = model_class.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, device_map=job.device, **how
    )
    model.config._name_or_path = model.name_or_path = str(base)
    if model.can_generate():
        model.generation_config.suppress_tokens = [EOS, PAD]
    return model


def tokenizer(job: Job) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(Path(job.folder) / "base")


def policy_lora(job: Job) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=job.lora_r, lora_alpha=2 * job.lora_r, target_modules="all-linear")


def prompt_ids(job: Job) -> list[list[int]]:
    """Those of one iteration more than there are: on its last batch, TRL's would take a step every micro-batch."""
    vocab_size = AutoConfig.from_pretrained(Path(job.folder) / "base").vocab_size
    generator = torch.Generator().manual_seed(0)
    shape = ((job.iterations + 2) * job.prompts, job.prompt_tokens)
    return torch.randint(2, vocab_size, shape, generator=generator).tolist()


def common_arguments(job: Job) -> dict[str, Any]:
    """Arguments that the two trainers' configurations name alike."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": job.prompts // job.micro_batches,
        "gradient_accumulation_steps": job.micro_batches,
        "num_mini_batches": 1,
        "num_ppo_epochs": job.epochs,
        "total_episodes": job.prompts * (job.iterations + 1),
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
    prepare(Path(sys.argv[1]), json.loads(sys.argv[2]))
