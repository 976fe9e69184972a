"""Saving, loading and resuming PPO: what makes a killed run end as if nothing had happened.

A checkpoint at a rollout boundary holds the adapters, the heads, the optimizer, its schedule, the random states, the KL
controller and the scores' running moments. The data position and the order of micro-batches are functions of the step.

Private methods of transformers' Trainer that are overridden, guarded by tests/ppo/test_trl_contract.py: `_save`,
`_load_from_checkpoint`, and those of llm_rlhf/checkpoints.py.
"""

from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from peft import set_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_utils import TrainOutput
from trl import RLOOTrainer

from llm_rlhf import checkpoints
from llm_rlhf.finite import check_weights
from llm_rlhf.models.adapters import POLICY
from llm_rlhf.models.decoding import save_language
from llm_rlhf.models.liger import in_training
from llm_rlhf.models.roles import VALUE
from llm_rlhf.ppo.alarms import TrainingAlarms
from llm_rlhf.ppo.kl import KLController
from llm_rlhf.ppo.scores import ScoreMoments
from llm_rlhf.ppo.snapshots import Snapshots, best, last_sound
from llm_rlhf.ppo.watch import SUMMARY, Watch
from llm_rlhf.run_folder import remove
from llm_rlhf.training import is_sharded, whole_weights


class SavedRoles(checkpoints.SealedCheckpoints, RLOOTrainer):
    """The part of PPOTrainer that knows files."""

    kl_controller: KLController
    score_moments: ScoreMoments
    alarms: TrainingAlarms
    snapshots: Snapshots | None
    samples_file: Path | None
    watch: Watch | None
    _evaluation_due = False  # whether the evaluation at the step that training goes on from is still to be made

    @property
    def checkpoint_every(self) -> int:
        """Optimizer steps after which a rollout is used up: a checkpoint holds none."""
        return int(self.args.steps_per_rollout)

    def base_model(self) -> Any:
        """The causal language model that carries the roles, without PEFT's and the launcher's wrappers."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if is_peft_model(model) else model

    def save_policy(self, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write what any PEFT user loads on the base; without LoRA, the whole model. Called on every process.

        Raises:
            NonFiniteError: where a weight is not finite.
        """
        check_weights(self.model, str(folder))
        state_dict = whole_weights(self) if state_dict is None else state_dict
        if not self.accelerator.is_main_process:
            return
        model = self.accelerator.unwrap_model(self.model)
        if is_peft_model(model):
            model.save_pretrained(folder, selected_adapters=[POLICY], state_dict=state_dict)
        else:
            weights = model.state_dict() if state_dict is None else state_dict
            model.save_pretrained(
                folder, state_dict={k: w for k, w in weights.items() if not k.startswith("value_head")}
            )

    def save_roles(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write `policy/`, with tokenizer and generation config, and `value/`: its head, and its adapter if any.

        Called on every process.
        """
        state_dict = whole_weights(self) if state_dict is None else state_dict
        if not self.accelerator.is_main_process:
            return
        folder = Path(folder)
        self.save_policy(folder / "policy", state_dict)
        args = self.args
        save_language(
            folder / "policy", self.processing_class, list(self.eos_token_ids), temperature=args.temperature,
            top_p=args.top_p, top_k=args.top_k, min_p=args.min_p, repetition_penalty=args.repetition_penalty,
        )  # fmt: skip
        value = folder / "value"
        value.mkdir(parents=True, exist_ok=True)
        if self.args.value == "adapter":
            self.accelerator.unwrap_model(self.model).save_pretrained(
                value, selected_adapters=[VALUE], state_dict=state_dict
            )
        weights = self.base_model().state_dict() if state_dict is None else state_dict
        head = {n.split(".")[-1]: w.detach().cpu().contiguous() for n, w in weights.items() if "value_head." in n}
        save_file(head, value / "value_head.safetensors")

    def load_roles(self, folder: str | Path) -> None:
        """Read back what `save_roles` wrote, into the roles that are there, keeping what is trainable."""
        folder = Path(folder)
        model = self.accelerator.unwrap_model(self.model)
        if is_peft_model(model):
            adapters = {POLICY: folder / "policy"} | (
                {VALUE: folder / "value" / VALUE} if self.args.value == "adapter" else {}
            )
            for name, path in adapters.items():
                set_peft_model_state_dict(model, load_peft_weights(str(path), device="cpu"), adapter_name=name)
        else:
            super()._load_from_checkpoint(str(folder / "policy"))
        self.base_model().value_head.load_state_dict(load_file(folder / "value" / "value_head.safetensors"))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The parent would write every adapter and lose the value head."""
        self.save_roles(output_dir or self.args.output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The parent would load adapters by folders it does not find, and leave them untrainable."""
        self.load_roles(resume_from_checkpoint)

    def _own_state(self) -> dict[str, Any]:
        return {
            "kl_coef": self.kl_controller.value,
            "score_moments": self.score_moments.state_dict(),
            "alarms": self.alarms.state_dict(),
            "micro_steps": self._step,
            "processes": self.accelerator.num_processes,
            "rollout": self.args.generation_batch_size,
        }

    def train(self, resume_from_checkpoint: bool | str | Path | None = None, **kwargs: Any) -> Any:
        """Train to the end, from the start or from a checkpoint (True: the newest whole one in output_dir).

        A resumed run ends with the very bits of one that was never interrupted: same machine, versions and processes.
        """
        found = self._checkpoint_to_resume(resume_from_checkpoint)
        if found is None:
            self._forget_evaluations()
        if self.alarms.news and self.accelerator.is_main_process:
            self.alarms.write()  # without what was told after the checkpoint
        if self.watch is not None:
            self.watch.begin()
        if found is not None and self._stopped_by_a_side():  # killed between that stop and the end
            self.load_roles(found)
            self.state.global_step = checkpoints.step_of(found)
            output = TrainOutput(self.state.global_step, 0.0, {})
        else:
            evaluates = self.args.eval_on_start
            # A resumed run knows how it started; the evaluation that SIGTERM took from its checkpoint is made up for.
            self.args.eval_on_start = evaluates if found is None else self._evaluation_due
            with in_training(self.args):
                output = super().train(resume_from_checkpoint=None if found is None else str(found), **kwargs)
            self.args.eval_on_start = evaluates
        self._settle_on_a_policy()
        return output

    def _stopped_by_a_side(self) -> bool:
        return self.args.side_guard == "stop" and self.watch is not None and bool(self.watch.worse)

    def _settle_on_a_policy(self) -> None:
        """Set the policy to the snapshot that `keep` and the guard choose, and write down what the watch has seen."""
        step, stopped = self.state.global_step, self._stopped_by_a_side()
        self.accelerator.wait_for_everyone()  # the last snapshot is on the disk
        if self.snapshots is not None and (self.args.keep == "best" or stopped):
            rows = self.snapshots.rows()
            chosen = best(rows, self.args.keep_kl_limit) if self.args.keep == "best" else last_sound(rows)
            called = "best" if self.args.keep == "best" else "newest"
            self.accelerator.print(
                f"  note: the {called} snapshot in which no side looks worse is that of step {chosen['step']}"
                f"{' (the start)' if chosen['step'] == 0 else ''}; the policy is set to it."
            )
            self._load_policy(Path(self.args.output_dir) / "snapshots" / f"step-{chosen['step']}")
            step = chosen["step"]
        if self.watch is not None and self.watch.lines and self.accelerator.is_main_process:
            summary = Path(self.args.output_dir) / SUMMARY
            self.watch.write_summary(summary, self.args.side_guard, step, self.state.global_step if stopped else None)

    def _forget_evaluations(self) -> None:
        """What an earlier training in this folder saw is not this one's."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            for log in (self.snapshots and self.snapshots.log, self.watch and self.watch.log):
                if log:
                    log.unlink(missing_ok=True)
            self.alarms.file.unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()

    def _checkpoint_to_resume(self, asked: bool | str | Path | None) -> Path | None:
        if not asked:
            return None
        if is_sharded(self.accelerator):
            raise ValueError(
                "resume_from_checkpoint is set, but a checkpoint cannot be read into weights that FSDP or ZeRO-3 have "
                "spread over processes; go on from its `policy/` adapter as a new run, or use DDP."
            )
        if asked is True:
            newest = checkpoints.latest(Path(self.args.output_dir))
            found = None if newest is None else newest.path
        else:
            found = Path(asked)
        state = checkpoints.sealed_state(found) if found is not None else None
        if found is None or state is None:
            raise ValueError(f"There is no whole checkpoint at {self.args.output_dir if asked is True else asked}.")
        here = {"processes": self.accelerator.num_processes, "rollout": self.args.generation_batch_size}
        for name, value in here.items():
            if state[name] != value:
                raise ValueError(
                    f"The checkpoint {found} was made with {name} = {state[name]}, now it is {value}. Launch as "
                    "before, or start from the beginning without the checkpoint."
                )
        self.kl_controller.value = state["kl_coef"]
        self.score_moments.load_state_dict(state["score_moments"])
        if "alarms" in state:  # which older versions had not
            self.alarms.load_state_dict(state["alarms"])
        self._step = state["micro_steps"]
        self._evaluation_due = state.get("evaluation_due", False)
        self.accelerator.wait_for_everyone()  # all have read what the main process now tidies up
        if self.accelerator.is_main_process:
            self._forget_after(checkpoints.step_of(found))
        self.accelerator.wait_for_everyone()
        return found

    def _forget_after(self, step: int) -> None:
        """Undo what was written after the checkpoint: it will be written again."""
        logs = [self.samples_file] if self.samples_file is not None else []
        if self.snapshots is not None:
            logs.append(self.snapshots.log)
        if self.watch is not None:
            logs.append(self.watch.log)
        for log in logs:
            checkpoints.forget_after(log, step)
        for later in checkpoints.all_in(Path(self.args.output_dir)):
            if checkpoints.step_of(later) > step:
                remove(later)

    def _load_policy(self, folder: Path) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if is_peft_model(model):
            set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"), adapter_name=POLICY)
        else:
            super()._load_from_checkpoint(str(folder))
