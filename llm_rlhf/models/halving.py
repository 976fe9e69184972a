"""When memory runs out in a training step of TRL's trainers: the micro-batch goes through the model in halves.

The pieces keep the micro-batch's width, and each piece's loss is weighed by its share of the micro-batch, so that
gradient and loss are the whole one's up to rounding. What a trainer logs beside the loss is a mean of its pieces, and
dropout draws other numbers. Losses that are not such a sum are not taken apart: an error then says what to lower.

Private methods of TRL's trainers that are overridden, guarded by tests/methods/test_methods_contract.py:
`_prepare_inputs`, `_get_per_token_logps_and_entropies`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llm_rlhf.errors import RunError, first_line
from llm_rlhf.finite import trained_parameters
from llm_rlhf.models.memory import Portion, make_room, ran_out
from llm_rlhf.training import is_sharded


class HalvesBatches:
    """Mixed into TRL's trainers, before what else overrides `training_step` and `compute_loss`.

    `stacked`: how many rows of the model's input belong to one row of the micro-batch, as chosen and rejected replies,
    which are stacked one half upon the other.
    """

    stacked = 1
    loss_is_scaled_for_ga: bool | None
    stage_name: str
    args: Any
    accelerator: Any
    model: Any
    _metrics: dict[str, dict[str, list[float]]]
    _logged: dict[str, int]  # how many of each there were before
    _tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        stage = self.stage_name
        settings = [f"{stage}.gradient_checkpointing: true"]
        if not is_sharded(self.accelerator):  # FSDP cannot spread it
            settings.insert(0, "model.quantization: nf4")
        lower = (
            f"{stage}.{self.longest_key} or model.context_length, or set {' or '.join(settings)}; `llm-rlhf plan` "
            "tells what fits"
        )
        self._pieces = Portion(f"the update of {stage}", lower)
        self._size = (0, 0)  # rows and width of the largest piece of the training step that is being made

    longest_key = "max_length"  # of the stage's section: tokens of a row

    # ---- of each loss, overridden where it is another -----------------------------------------------------------

    def inseparable(self) -> str | None:
        """Why the loss of a micro-batch is not the sum of its rows'; None where it is."""
        return "experts are balanced over a whole batch" if getattr(self, "aux_loss_enabled", False) else None

    def weight_of(self, inputs: dict[str, Any]) -> float:
        """By what a piece counts beside the others: rows. Where losses add up as they are, 1 by `adds_up`."""
        return float(self._rows(inputs))

    def adds_up(self, num_items_in_batch: Any) -> bool:
        """Whether the loss is divided already by a number of the whole optimizer step's."""
        return False

    def made_ready(self) -> bool:
        """Whether the training step's inputs are there; before, an online method makes a rollout."""
        return True

    # ---- the same for all ---------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        parameters = trained_parameters(self)
        alone = self.accelerator.num_processes == 1
        kept = [p.grad for p in parameters] if alone else []  # of the optimizer step's earlier micro-batches
        while True:
            for parameter in parameters if any(grad is not None for grad in kept) else ():
                parameter.grad = None
            failed: Exception | None = None
            self._size = (0, 0)
            try:
                loss: Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
                break
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                failed = error.with_traceback(None)  # whose frames hold activations
            self._check(failed)
            self._forget_metrics()
            for parameter in parameters:
                parameter.grad = None
            make_room()
            self._pieces.halve(*self._size, failed)
        for parameter, grad in zip(parameters, kept, strict=False):
            if grad is not None:
                parameter.grad = grad if parameter.grad is None else grad.add_(parameter.grad)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The parent's; of a micro-batch in pieces, the last one's graph, with the others' gradients already taken."""
        whole = super().compute_loss  # type: ignore[misc]
        if return_outputs or not self.model.training:
            return whole(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        pieces = self._cut(inputs)
        if len(pieces) == 1:
            return whole(model, inputs, num_items_in_batch=num_items_in_batch)
        total = sum(self.weight_of(piece) for piece in pieces)
        shares = [1.0 if self.adds_up(num_items_in_batch) else self.weight_of(piece) / total for piece in pieces]
        scaled = self.loss_is_scaled_for_ga
        if scaled is None:  # as transformers' own `training_step` settles it
            scaled = self.model_accepts_loss_kwargs and num_items_in_batch is not None  # type: ignore[attr-defined]
        steps = 1 if scaled else self.current_gradient_accumulation_steps  # type: ignore[attr-defined]
        known = torch.zeros((), device=self.accelerator.device)
        for piece, share in zip(pieces[:-1], shares, strict=False):
            loss = whole(model, piece, num_items_in_batch=num_items_in_batch) * share
            self.accelerator.backward(loss / steps)
            known += loss.detach()
        return whole(model, pieces[-1], num_items_in_batch=num_items_in_batch) * shares[-1] + known

    def _check(self, error: Exception) -> None:
        """Raises RunError where smaller pieces cannot help, or would not be the same."""
        stage, why = self.stage_name, first_line(error)
        fewer = (
            f"lower {stage}.per_device_train_batch_size and raise {stage}.gradient_accumulation_steps by as much, or "
            f"lower {self._pieces.lower}. ({why})"
        )
        if not self.made_ready():
            raise RunError(f"Memory ran out while {stage} sampled and scored its replies; {fewer}") from error
        if self.accelerator.num_processes > 1:
            raise RunError(
                f"Memory ran out in the update of {stage} in one of several processes, which the others' gradients "
                f"wait for; {fewer}"
            ) from error
        if (reason := self.inseparable()) is not None:
            raise RunError(
                f"Memory ran out in the update of {stage}, over {self._size[0]} rows of {self._size[1]} tokens, which "
                f"cannot be halved with the same gradient, as {reason}; {fewer}"
            ) from error

    def _forget_metrics(self) -> None:
        """Those of the attempt that failed."""
        for name, values in self._metrics["train"].items():
            del values[self._logged.get(name, 0) :]
        self._total_train_tokens = self._tokens

    def _rows(self, inputs: dict[str, Any]) -> int:
        return len(next(inputs[name] for name in ("completion_ids", "input_ids") if name in inputs)) // self.stacked

    def _cut(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        if self._size == (0, 0):  # a training step, or one that is made once more
            self._logged = {name: len(values) for name, values in self._metrics["train"].items()}
            self._tokens = getattr(self, "_total_train_tokens", 0)
        rows = self._rows(inputs)
        width = sum(inputs[name].size(1) for name in ("prompt_ids", "completion_ids", "input_ids") if name in inputs)
        most = self._pieces.rows(width) or rows
        self._size = max(self._size, (min(most, rows), width), key=lambda size: size[0] * size[1])
        if most >= rows:
            return [inputs]
        return [
            {name: self._part(of, rows, start, min(start + most, rows)) for name, of in inputs.items()}
            for start in range(0, rows, most)
        ]

    def _part(self, column: Any, rows: int, start: int, end: int) -> Any:
        """Some rows of a column; what is not a column, as a number for all, stays."""
        if isinstance(column, list) and len(column) == rows:
            return column[start:end]
        if not isinstance(column, Tensor) or column.dim() == 0:
            return column
        if self.stacked > 1 and len(column) == self.stacked * rows:
            return torch.cat([part[start:end] for part in column.chunk(self.stacked)])
        return column[start:end] if len(column) == rows else column


class HalvesTokens(HalvesBatches):
    """Of SFTTrainer, whose loss is a mean over tokens, nearly always of the whole optimizer step."""

    def adds_up(self, num_items_in_batch: Any) -> bool:
        return num_items_in_batch is not None

    def weight_of(self, inputs: dict[str, Any]) -> float:
        return float((inputs["labels"][..., 1:] != -100).sum())


class HalvesPairs(HalvesBatches):
    """Of RewardTrainer and DPOTrainer, whose rows are the chosen replies and then the rejected ones."""

    stacked = 2


class HalvesRollouts(HalvesBatches):
    """Of GRPOTrainer and RLOOTrainer, whose training step begins with a rollout when the last is used up."""

    longest_key = "max_completion_length"
    _step: int
    _buffered_inputs: Any
    _made = -1  # the step whose inputs were handed out last
    _scoring: Portion

    def made_ready(self) -> bool:
        return self._made == self._step

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """The parent's; for a step that is made once more, the same inputs, and no new rollout."""
        if self.model.training and self.made_ready():
            return self._buffered_inputs[self._step % self.args.steps_per_generation]
        found = super()._prepare_inputs(generation_batch)  # type: ignore[misc]
        if self.model.training:
            self._made = self._step
        return found

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: Any = None,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The parent's; what a rollout reads, which is all that asks for no entropy, in parts that fit."""
        read = super()._get_per_token_logps_and_entropies  # type: ignore[misc]
        if compute_entropy:
            found: tuple[Tensor, Tensor | None, Tensor | None] = read(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
            return found
        rows, width = input_ids.shape

        def read_part(part: Sequence[int]) -> Tensor:
            logprobs: Tensor = read(model, input_ids[part], attention_mask[part], logits_to_keep, **kwargs)[0]
            return logprobs

        return torch.cat(self._scoring.run(read_part, range(rows), width, most=batch_size)), None, None
