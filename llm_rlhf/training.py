"""What every training stage shows and writes while it works."""

import contextlib
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.json_lines import read_json_lines
from llm_rlhf.progress import bar, tell

METRICS = "metrics.jsonl"
Follower = Callable[[str, int, Mapping[str, Any]], None]  # told of a stage's metrics at a step


class StageLog(TrainerCallback):
    """One progress line with the metrics that matter, and every logged metric as a line of `metrics.jsonl`.

    Each line is `{"stage", "step", "time", metric: number, ...}`; time is in seconds since the epoch.
    """

    def __init__(self, stage: str, folder: Path, shown: dict[str, str], followers: Sequence[Follower] = ()) -> None:
        """
        Args:
            shown: metric name to the short name it has on the progress line.
            followers: who else is told of every logged metric.
        """
        self.stage, self.folder, self.shown, self.followers = stage, folder, shown, followers
        self.bar: Any = None
        self.values: dict[str, str] = {}  # of the metrics shown, the newest: training and evaluation log in turns

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.bar = bar(total=state.max_steps, desc=self.stage)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        line = {"stage": self.stage, "step": state.global_step, "time": round(time.time(), 3), **logs}
        append_line(self.folder / METRICS, line)
        for follower in self.followers:
            follower(self.stage, state.global_step, logs)
        known = {name: f"{float(logs[key]):.3g}" for key, name in self.shown.items() if logs.get(key) is not None}
        self.values = {name: text for name in self.shown.values() if (text := (self.values | known).get(name))}
        if self.bar is not None and known:
            told = list(self.values.items())
            told.insert(2, ("memory", memory_peak()))  # not last: a narrow terminal cuts the line
            self.bar.set_postfix(dict(told), refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            if not sys.stderr.isatty() and self.values:  # where there is no bar to stay
                told = ", ".join(f"{name} {text}" for name, text in self.values.items())
                print(f"      {self.stage}: {state.global_step} steps; {told}", flush=True)


@contextlib.contextmanager
def constructing(stage: str) -> Iterator[None]:
    """What a trainer's constructor finds wrong, as a RecipeError of the stage's section; it says so by a ValueError."""
    try:
        yield
    except (RecipeError, DataError):
        raise
    except (ValueError, ImportError) as error:
        raise RecipeError(f"Recipe section '{stage}' cannot be carried out: {error}") from error


def attach_log(trainer: Trainer, log: StageLog) -> None:
    """Replace the trainer's own printing by ours."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(log)


def how_computed(trainer: Trainer) -> dict[str, str]:
    """What a training computes by that no key of its recipe says: for its manifest.

    Returns:
        "attention", the implementation (sdpa, eager, flash_attention_2, ...); "layers" where they are compiled; and
        where a loop of ours samples, "sampled_from" (which weights) and "decoding" (plain, or compiled).
    """
    found = {"attention": str(trainer.model.config._attn_implementation)}
    if getattr(trainer.model, "layers_are_compiled", False):
        found["layers"] = "compiled"
    sampler = getattr(trainer, "_sampler", None)
    return found | ({} if sampler is None else sampler.told)


def append_line(log: Path, line: Mapping[str, Any]) -> None:
    """Add a line of JSON to a log that people read; numbers that are not finite are null, as JSON has none.

    Where that fails, to a full disk for one, training goes on.
    """
    line = {key: None if isinstance(of, float) and not math.isfinite(of) else of for key, of in line.items()}
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        if log not in _UNWRITTEN:
            _UNWRITTEN.add(log)
            tell(f"warning: {log} cannot be written ({error}); it will lack lines.")


_UNWRITTEN: set[Path] = set()  # logs of which that was said


def memory_peak() -> str:
    """The most memory this process has held: of the accelerator, where there is one, else of the machine."""
    if torch.cuda.is_available():
        held = torch.cuda.max_memory_allocated()
    else:
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"{held / 2**30:.1f} GiB"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a stage's metrics.jsonl, in order; empty where there is none."""
    path = folder / METRICS
    if not path.is_file():
        return []
    return read_json_lines(path)


def is_sharded(accelerator: Any) -> bool:
    """Whether every process of a trainer holds a part of each weight only: FSDP, and DeepSpeed's ZeRO-3."""
    deepspeed = accelerator.state.deepspeed_plugin
    return accelerator.distributed_type == DistributedType.FSDP or (deepspeed is not None and deepspeed.zero_stage == 3)


def compute_in_own_types(trainer: Any) -> None:
    """Under FSDP2, compute as under DDP: weights stay in their types, and autocast decides. Called before training.

    accelerate's own way is to gather every weight in bfloat16, heads too, and to round to it what the model returns:
    log-probabilities, values and scores. And it leaves autocast out, so that a float32 head meets bfloat16 states.
    """
    accelerator = trainer.accelerator
    if accelerator.is_fsdp2:
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
        accelerator.prepare_model(trainer.model, evaluation_mode=True)  # autocast alone


def whole_weights(trainer: Any) -> dict[str, Tensor] | None:
    """Where weights are spread over processes, all of them, whole: what `save_pretrained` is to write.

    Called on every process, as each must help to gather; the first alone gets them under FSDP. None where each holds
    all, in the type that they train in. By
    `full_tensor`, a weight at a time; torch's get_model_state_dict leaves weights on CPUs as they are.
    """
    if not is_sharded(trainer.accelerator):
        return _masters(trainer)
    whole: dict[str, Tensor] = {}
    for name, part in trainer.accelerator.unwrap_model(trainer.model_wrapped).state_dict().items():
        weight = part.full_tensor() if isinstance(part, DTensor) else part
        if trainer.accelerator.is_main_process:
            whole[name] = weight.cpu()
    return whole


def _masters(trainer: Any) -> dict[str, Tensor] | None:
    """Under DeepSpeed's ZeRO-2 in bfloat16, the weights with those that train in float32; else None.

    Its engine rounds a model's weights to its compute type, and steps copies in float32 that are spread over processes.
    """
    if trainer.accelerator.distributed_type != DistributedType.DEEPSPEED:
        return None
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    rounded = {n: p for n, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float32}
    if not rounded or trainer.model_wrapped is model:  # which no engine has taken yet
        return None
    from deepspeed.utils import safe_get_full_fp32_param

    return {**model.state_dict(), **{name: safe_get_full_fp32_param(p).cpu() for name, p in rounded.items()}}
