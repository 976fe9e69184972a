"""Nothing is learned from numbers that are not finite, and no weights that are not finite are kept.

A loss that is not finite stops the run before the weights change. A gradient that is not takes its optimizer step with
it: the step is skipped, told and counted, and several in a row stop the run. In both cases the rows are saved.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from llm_rlhf.errors import NonFiniteError
from llm_rlhf.progress import tell

# Skipped steps in a row: with one row that overflows, the others of its epoch still teach; five different batches that
# all overflow are the weights' fault.
IN_A_ROW = 5
BATCHES = "not-finite-step-"  # of the files that hold what such a step was to learn from


class FiniteSteps:
    """Mixed into TRL's trainers, whose own training goes on with NaN weights after a NaN loss or gradient."""

    stage_name = "training"
    model: Any
    args: Any
    state: Any
    accelerator: Any
    is_in_train: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.step_inputs: list[Any] = []  # of the optimizer step that is being made
        self.add_callback(FiniteGradients(self))  # type: ignore[attr-defined]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.is_in_train and model.training:
            self.step_inputs.append(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        check_loss(loss, self)
        return loss


class FiniteGradients(TrainerCallback):
    """Skips the optimizer steps whose gradient is not finite; IN_A_ROW of them one after another end the training.

    Args:
        trainer: has `stage_name`, and in `step_inputs` what the step that is being made learns from.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.in_a_row = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        if trainer.accelerator.scaler is not None:  # float16: its steps overflow now and then, and it skips them itself
            return
        parameters = trained_parameters(trainer)
        if trainer.accelerator.distributed_type == DistributedType.DEEPSPEED:
            finite = not trainer.accelerator.optimizer_step_was_skipped  # its engine has stepped already, or did not
        else:
            finite = _finite(parameters, trainer.accelerator)
        if finite:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        folder = save_batch(trainer).parent
        if self.in_a_row >= IN_A_ROW:
            raise NonFiniteError(
                f"The gradient of {trainer.stage_name} is not finite in {IN_A_ROW} optimizer steps one after another, "
                f"the last at step {state.global_step}; training stopped, and the weights are as they were before the "
                f"first of them. {_remedy(trainer.stage_name)} What each was to learn from is in {folder}."
            )
        for parameter in parameters:
            parameter.grad = None  # AdamW passes over it: no momentum, no decay
        if trainer.accelerator.is_main_process:
            # By whose rows it is, this process does not know.
            rows = _batch_file(trainer, "*" if trainer.accelerator.num_processes > 1 else 0)
            tell(
                f"warning: {trainer.stage_name}: the gradient at optimizer step {state.global_step} is not finite; "
                f"the step is skipped. What it was to learn from is in {rows}."
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.step_inputs.clear()


def check_loss(loss: Tensor, trainer: Any) -> None:
    """The loss must be finite before anything is learned from it. Raises NonFiniteError."""
    if not torch.isfinite(loss).all():
        rows = save_batch(trainer)
        raise NonFiniteError(
            f"The {trainer.stage_name} loss is {loss.item()} at optimizer step {trainer.state.global_step}; training "
            f"stopped before the weights changed. {_remedy(trainer.stage_name)} What it was to learn from is in {rows}."
        )


def check_weights(model: nn.Module, what: str, every: bool = False) -> None:
    """Weights must be finite before they are kept.

    Args:
        what: is about to be written.
        every: look at those that did not train, too.

    Raises:
        NonFiniteError: naming the first that is not.
    """
    for name, parameter in model.named_parameters():
        if (every or parameter.requires_grad) and not torch.isfinite(_own_part(parameter.detach())).all():
            raise NonFiniteError(
                f"The weights {name} are not finite, so that {what} is not written; what was written before is kept. "
                "Lower the learning rate, or compute in float32 (model.dtype)."
            )


def save_batch(trainer: Any) -> Path:
    """Write the tensors that the optimizer step that is being made learns from, of this process; returns the file."""
    path = _batch_file(trainer, trainer.accelerator.process_index)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{number}.{name}": tensor.detach().cpu().contiguous().clone()
        for number, inputs in enumerate(trainer.step_inputs)
        for name, tensor in _tensors(inputs)
    }
    save_file(tensors, path)
    return path


def _batch_file(trainer: Any, process: int | str) -> Path:
    return Path(trainer.args.output_dir) / f"{BATCHES}{trainer.state.global_step}-process-{process}.safetensors"


def _tensors(inputs: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(inputs, Tensor):
        yield name, inputs
        return
    if dataclasses.is_dataclass(inputs) and not isinstance(inputs, type):
        inputs = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    if isinstance(inputs, Mapping):
        parts = [(str(key), value) for key, value in inputs.items()]
    elif isinstance(inputs, Sequence) and not isinstance(inputs, str):
        parts = [(str(number), value) for number, value in enumerate(inputs)]
    else:
        return
    for key, value in parts:
        yield from _tensors(value, f"{name}.{key}" if name else key)


def trained_parameters(trainer: Any) -> list[nn.Parameter]:
    """Those that the optimizer steps; a walk through the model would take a small one 1 % of each step."""
    if trainer.optimizer is None:
        return [p for p in trainer.model.parameters() if p.requires_grad]
    return [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]


def _finite(parameters: Sequence[nn.Parameter], accelerator: Any) -> bool:
    """Whether all gradients are, on every process: one norm, as the clipping takes it."""
    gradients = [_own_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return True
    finite = torch.isfinite(nn.utils.get_total_norm(gradients))
    if accelerator.num_processes > 1:  # parts of a gradient, under FSDP; all skip or none
        finite = accelerator.reduce((~finite).float(), reduction="sum") == 0
    return bool(finite)


def _own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that is spread over several."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _remedy(stage: str) -> str:
    section = stage.split("/")[0]
    return f"Lower {section}.learning_rate, or look at the last lines of metrics.jsonl for what grew."
