"""Training that SIGTERM ends at a safe point, with a checkpoint from which the same bits come as without it.

Safe points are the ends of optimizer steps (of online methods: those at which a rollout is used up), and everything
behind one that has changed no weight yet: further micro-batches, an evaluation, the next rollout. What such work has
changed (random states, counters, log lines) is put back to how it was at the step's end before the checkpoint is
written. In the middle of the steps that learn from a rollout, these are finished if that takes a few seconds; else
weights and optimizer go back to copies of how they were before, kept where they are small, as adapters are. All
processes agree on the point, by a sum over them.

Private methods of transformers' Trainer that are called, guarded by tests/methods/test_methods_contract.py:
`_save_checkpoint`.
"""

import copy
import os
import random
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import TrainerCallback

from llm_rlhf import interruption
from llm_rlhf.errors import RunError
from llm_rlhf.interruption import Terminated
from llm_rlhf.training import is_sharded

SMALL = 8 * 2**30  # bytes of copies that a process keeps
FEW_SECONDS = 8.0  # of the 30 that schedulers leave, in which checkpoints are written too


def train(trainer: Any, resume_from_checkpoint: Path | None = None) -> Any:
    """`trainer.train`, which ends by `Terminated` at a safe point once SIGTERM has come.

    Nothing is saved where weights are spread over processes, which cannot read a checkpoint back.

    Args:
        trainer: whose `checkpoint_every`, if it has one, says how many optimizer steps there are from one that a
            checkpoint can hold to the next.
    """
    points = _SafePoints(trainer)
    trainer.add_callback(points)
    with interruption.at_a_safe_point():
        try:
            found = trainer.train(resume_from_checkpoint=resume_from_checkpoint and str(resume_from_checkpoint))
            stop_if_asked(trainer.accelerator)  # as training ended by itself
        except Terminated as ended:
            raise Terminated(ended.told or points.save()) from None
        except RuntimeError as error:
            # Workers that load data die of a signal to all of a job's processes; another process may be gone already.
            of_saving = points.stops and isinstance(error, RunError)
            if of_saving or not interruption.asked():
                raise
            alone = trainer.accelerator.num_processes == 1
            raise Terminated(points.save() if alone else points.where()) from error
    return found


def stop_if_asked(accelerator: Any) -> None:
    """End by `Terminated` on all processes, once one of them is to stop. Called on every process."""
    if any_asked(accelerator):
        raise Terminated


def any_asked(accelerator: Any) -> bool:
    """Whether any process of the launch is to stop. Called on every process."""
    if accelerator.num_processes == 1:
        return interruption.asked()
    flag = torch.tensor(float(interruption.asked()), device=accelerator.device)
    torch.distributed.all_reduce(flag)
    return bool(flag > 0)


class _Point(NamedTuple):
    """What a checkpoint of a step's end holds beside weights, optimizer and schedule, which only steps change."""

    step: int
    epoch: float
    random_states: tuple[Any, ...]
    flos: tuple[float, float]  # counted in all, and since the last line of the log
    tokens: int
    copies: "_Copies | None"  # of what steps change, where a checkpoint cannot hold every step's end
    own: dict[str, Any] | None  # of a trainer whose checkpoints are sealed
    samples: tuple[Path, int] | None  # the log of sampled replies, and its bytes


class _Copies(NamedTuple):
    """Weights that are trained, optimizer and schedule, on the CPU."""

    weights: list[torch.Tensor]
    optimizer: Any
    schedule: Any

    @staticmethod
    def of(trainer: Any) -> "_Copies | None":
        """None where they are large, or the optimizer is not one of torch's, whose state is known."""
        weights = [p for p in trainer.model.parameters() if p.requires_grad]
        inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        size = 3 * sum(p.numel() * p.element_size() for p in weights)  # Adam has two moments beside each
        if size > SMALL or not type(inner).__module__.startswith("torch.optim"):
            return None
        state = _on_cpu(trainer.optimizer.state_dict())
        return _Copies(_on_cpu([p.detach() for p in weights]), state, copy.deepcopy(trainer.lr_scheduler.state_dict()))

    def put_back(self, trainer: Any) -> None:
        parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        with torch.no_grad():
            for parameter, weight in zip(parameters, self.weights, strict=True):
                parameter.copy_(weight)
        trainer.optimizer.load_state_dict(self.optimizer)
        trainer.lr_scheduler.load_state_dict(self.schedule)


def _on_cpu(tree: Any) -> Any:
    """A copy of every tensor in lists and dictionaries."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: _on_cpu(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_on_cpu(value) for value in tree)
    return tree


class _SafePoints(TrainerCallback):
    def __init__(self, trainer: Any) -> None:
        self.trainer, self.saves = trainer, not is_sharded(trainer.accelerator)
        self.every = getattr(trainer, "checkpoint_every", 1)
        self.point: _Point | None = None  # the newest step's end that a checkpoint can hold
        self.as_then = False  # whether weights are still as they were
        self.evaluates = False  # whether the evaluation that belongs to it is not through
        self.saved = self.began = 0  # the newest step that is saved; the one that this launch began at
        self.stops = False
        self.step_began, self.step_takes = 0.0, 0.0  # seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved = self.began = state.global_step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.as_then = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        interruption.raise_if_interrupted()
        self.step_began = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.point is not None and self.as_then:
            self.point = self.point._replace(flos=self._flos())

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.as_then or state.global_step == self.began:
            stop_if_asked(self.trainer.accelerator)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_takes = time.monotonic() - self.step_began
        # Ended by a limit; a resumed training would go on.
        ended = control.should_training_stop and state.global_step < state.max_steps
        if ended:
            return
        if left := -state.global_step % self.every:
            if any_asked(self.trainer.accelerator) and self._takes_long(left):
                raise Terminated
            return
        self.point, self.evaluates, self.as_then = self._here(), control.should_evaluate, True
        if not any_asked(self.trainer.accelerator):
            interruption.save_begins(control.should_save and not control.should_evaluate)  # behind this callback
            return
        if not self.saves:
            raise Terminated(self.where())
        control.should_save = self.stops = True
        control.should_evaluate = False
        interruption.save_begins(True)
        self._tell_own_state(self.point)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluates = False
        if self.point is not None and self.as_then:
            self.point = self.point._replace(samples=self._samples())

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved = state.global_step
        interruption.save_begins(False)
        if self.stops:
            raise Terminated(self.where())

    def save(self) -> str:
        """Write a checkpoint of the newest step's end that one can hold, if it can be gone back to.

        Returns:
            Where the work stands, as `where`.
        """
        point, trainer, state = self.point, self.trainer, self.trainer.state
        if not self.saves or point is None or point.step in (self.saved, self.began):
            return self.where()
        told = ""
        if not self.as_then:
            if point.copies is None:
                return self.where()
            told = self._was_at(point.step)
            point.copies.put_back(trainer)
            state.global_step, state.epoch = point.step, point.epoch
            state.log_history = [line for line in state.log_history if line["step"] <= point.step]
        _set_random_states(point.random_states)
        state.total_flos, trainer.current_flos = point.flos
        state.num_input_tokens_seen = point.tokens
        if point.samples is not None and trainer.accelerator.is_main_process and point.samples[0].exists():
            os.truncate(*point.samples)
        self._tell_own_state(point)
        interruption.save_begins(True)
        trainer._save_checkpoint(trainer.model, trial=None)
        interruption.save_begins(False)
        self.saved = point.step
        return self.where() + told

    def where(self) -> str:
        """Where the work stands, as a sentence goes on with it."""
        if self.saved:
            return f"the newest checkpoint is of optimizer step {self.saved}{self._was_at(self.saved)}"
        return "this stage has no checkpoint yet and begins anew"

    def _was_at(self, saved: int) -> str:
        step = self.trainer.state.global_step
        return f" (training was at step {step})" if step > saved else ""

    def _takes_long(self, steps: int) -> bool:
        """Whether so many steps take more than a few seconds on any process. Called on every process."""
        takes = torch.tensor(steps * self.step_takes, device=self.trainer.accelerator.device)
        if self.trainer.accelerator.num_processes > 1:
            torch.distributed.all_reduce(takes, torch.distributed.ReduceOp.MAX)
        return bool(takes > FEW_SECONDS)

    def _flos(self) -> tuple[float, float]:
        return self.trainer.state.total_flos, self.trainer.current_flos

    def _here(self) -> _Point:
        trainer = self.trainer
        return _Point(
            step=trainer.state.global_step,
            epoch=trainer.state.epoch,
            random_states=_random_states(),
            flos=self._flos(),
            tokens=trainer.state.num_input_tokens_seen,
            own=copy.deepcopy(trainer._own_state()) if hasattr(trainer, "_own_state") else None,
            samples=self._samples(),
            copies=_Copies.of(trainer) if self.every > 1 and self.saves else None,
        )

    def _samples(self) -> tuple[Path, int] | None:
        log = getattr(self.trainer, "samples_file", None)
        return (log, log.stat().st_size) if log is not None and log.exists() else None

    def _tell_own_state(self, point: _Point) -> None:
        """The trainer is to seal its checkpoint with its own state at that point."""
        if point.own is not None:
            self.trainer.state_then = {**point.own, "evaluation_due": self.evaluates}


def _random_states() -> tuple[Any, ...]:
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), on_gpus


def _set_random_states(states: tuple[Any, ...]) -> None:
    of_python, of_numpy, of_torch, on_gpus = states
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    torch.set_rng_state(of_torch)
    if on_gpus is not None:
        torch.cuda.set_rng_state_all(on_gpus)
