"""Training that SIGTERM ends at a safe point, with a checkpoint from which the same bits come as without it.

Safe points are the ends of optimizer steps (of online methods: those at which a rollout is used up), and everything
behind one that has changed no weight yet: further micro-batches, an evaluation, the next rollout. What such work has
changed (random states, counters, log lines) is put back to how it was at the step's end before the checkpoint is
written. All processes agree on the point, by a sum over them.

Private methods of transformers' Trainer that are called, guarded by tests/methods/test_methods_contract.py:
`_save_checkpoint`.
"""

import copy
import os
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import TrainerCallback

from llm_rlhf import interruption
from llm_rlhf.errors import RunError
from llm_rlhf.interruption import Terminated
from llm_rlhf.training import is_sharded


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
        except RunError:
            raise
        except RuntimeError as error:
            # Workers that load data die of a signal to all of a job's processes; another process may be gone already.
            if not interruption.asked():
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
    random_states: tuple[Any, ...]
    flos: float
    tokens: int
    own: dict[str, Any] | None  # of a trainer whose checkpoints are sealed
    samples: tuple[Path, int] | None  # the log of sampled replies, and its bytes


class _SafePoints(TrainerCallback):
    def __init__(self, trainer: Any) -> None:
        self.trainer, self.saves = trainer, not is_sharded(trainer.accelerator)
        self.every = getattr(trainer, "checkpoint_every", 1)
        self.point: _Point | None = None  # the newest step's end, where a checkpoint can hold it
        self.evaluates = False  # whether the evaluation that belongs to it is not through
        self.saved = self.began = 0  # the newest step that is saved; the one that this launch began at
        self.stops = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved = self.began = state.global_step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.point = None  # until the step's end weights are as no checkpoint has them

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        at_a_point = self.point is not None or state.global_step == self.began
        if at_a_point:
            stop_if_asked(self.trainer.accelerator)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.point = None
        # Ended by a limit; a resumed training would go on.
        ended = control.should_training_stop and state.global_step < state.max_steps
        if state.global_step % self.every or ended:
            return
        self.point, self.evaluates = self._here(), control.should_evaluate
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
        if self.point is not None:
            self.point = self.point._replace(samples=self._samples())

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved = state.global_step
        interruption.save_begins(False)
        if self.stops:
            raise Terminated(self.where())

    def save(self) -> str:
        """Write a checkpoint of the newest step's end, if weights are still as they were; returns where work stands."""
        point, trainer = self.point, self.trainer
        if not self.saves or point is None or point.step in (self.saved, self.began):
            return self.where()
        _set_random_states(point.random_states)
        trainer.current_flos, trainer.state.num_input_tokens_seen = point.flos, point.tokens
        if point.samples is not None and trainer.accelerator.is_main_process and point.samples[0].exists():
            os.truncate(*point.samples)
        self._tell_own_state(point)
        interruption.save_begins(True)
        trainer._save_checkpoint(trainer.model, trial=None)
        interruption.save_begins(False)
        self.saved = point.step
        return self.where()

    def where(self) -> str:
        """Where the work stands, as a sentence goes on with it."""
        if self.saved:
            step = self.trainer.state.global_step
            was_at = f" (training was at step {step})" if step > self.saved else ""
            return f"the newest checkpoint is of optimizer step {self.saved}{was_at}"
        return "this stage has no checkpoint yet and begins anew"

    def _here(self) -> _Point:
        trainer = self.trainer
        return _Point(
            step=trainer.state.global_step,
            random_states=_random_states(),
            flos=trainer.current_flos,
            tokens=trainer.state.num_input_tokens_seen,
            own=copy.deepcopy(trainer._own_state()) if hasattr(trainer, "_own_state") else None,
            samples=self._samples(),
        )

    def _samples(self) -> tuple[Path, int] | None:
        log = getattr(self.trainer, "samples_file", None)
        return (log, log.stat().st_size) if log is not None and log.exists() else None

    def _tell_own_state(self, point: _Point) -> None:
        """The trainer is to seal its checkpoint with its own state at that point."""
        if point.own is not None:
            own = {**point.own, "evaluation_due": self.evaluates}
            self.trainer._own_state = lambda: own


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
