"""PPOTrainer: PPO with a per-token KL penalty on TRL's online trainer.

Generation (transformers, continuous batching, vLLM), prompt handling, samplers, reward functions and the distributed
plumbing are TRL's RLOOTrainer. The roles (llm_rlhf/models/roles.py) and the mathematics (objectives.py) are ours:

1. `_rollout` samples a response to every prompt and cuts the rollout into the micro-batches of the update
   (collecting.py, as the next two).
2. Each micro-batch is scored once in exactly the shapes the update will use: log-probabilities and values of the
   policy, log-probabilities of the reference, scores of the response.
3. Rewards, advantages and returns follow; advantages are whitened over the counted tokens of the whole rollout.
4. `_compute_loss` adds up a micro-batch's clipped policy and value losses, divided by the counted tokens of the
   rollout over the mini-batches: one number for all processes, so that neither their count nor the micro-batch size
   changes the gradient.
5. Between rollouts the trainer evaluates on held-out prompts, side by side (evaluating.py), keeps snapshots, and writes
   checkpoints that a killed run goes on from as if nothing had happened (saving.py).

Private methods of the parents that are overridden, each guarded by tests/ppo/test_trl_contract.py: `_prepare_inputs`,
`_compute_loss`, `_get_train_sampler`; those that sample are in generation.py, those that know files in saving.py.
"""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import is_peft_model, set_seed
from datasets import Dataset
from peft import set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback
from trl.trainer.utils import RepeatSampler, add_fused_lm_head

from llm_rlhf import checkpoints
from llm_rlhf.errors import RunError, first_line
from llm_rlhf.finite import FiniteGradients, check_loss
from llm_rlhf.models.adapters import POLICY
from llm_rlhf.models.architecture import embedding_rows, hidden_width
from llm_rlhf.models.base import adapters_in_float32, complete_tokenizer, make_room_for, stop_token_ids, stops_of_files
from llm_rlhf.models.freed_memory import keep_freed_memory
from llm_rlhf.models.liger import add_liger
from llm_rlhf.models.memory import Portion, make_room, ran_out, token_budget
from llm_rlhf.models.products import multiply_faster
from llm_rlhf.models.roles import HELDOUT, VALUE, add_reward_role, add_role_forward, add_value_role, scalar_head
from llm_rlhf.models.template_settings import with_arguments
from llm_rlhf.ppo import objectives
from llm_rlhf.ppo.alarms import ALARMS, TrainingAlarms
from llm_rlhf.ppo.config import PPOConfig
from llm_rlhf.ppo.evaluating import Refuses, WatchedEvaluation
from llm_rlhf.ppo.guards import StepGuard
from llm_rlhf.ppo.kl import KLController
from llm_rlhf.ppo.preparation import (
    MOVED,
    SeededSampler,
    check_before_loading,
    check_distribution,
    check_models,
    check_reads_alike,
    checkpoint_with_adapters,
    copy_for_reference,
    given_adapter,
    load_reward_models,
    objectives_of,
    reference_of_the_parents,
)
from llm_rlhf.ppo.prompts import check_lengths
from llm_rlhf.ppo.rollout import MicroBatch, rows_of, shuffled_steps
from llm_rlhf.ppo.scores import THOUGHT, ScoreMoments, ScoreSources
from llm_rlhf.ppo.snapshots import Snapshots
from llm_rlhf.ppo.soundness import check_embeddings, settle, turn_off_noise, without_gradient
from llm_rlhf.ppo.vllm_adapter import engine_takes_adapters
from llm_rlhf.training import compute_in_own_types, is_sharded

OVER_TOKENS = (  # what is logged of an update and is a mean over tokens
    *("loss/policy", "loss/value", "policy/approxkl", "policy/clipfrac", "policy/ratio", "policy/clamped"),
    "val/clipfrac",
)


class PPOTrainer(WatchedEvaluation):
    """Trains a policy by PPO against reward adapters, reward models of their own, Python functions, or all of them.

    Args:
        model: hub id, folder or model of a causal language model: the base of every role, and the reference. A PEFT
            model goes on from its own adapter, of which a copy is the reference.
        reward_adapter: folder of an adapter and score head saved by RewardTrainer on the same base, or several by name.
        reward_funcs: as in trl.RLOOTrainer: hub ids or folders of sequence-classification models of any family, with
            one label (the response is decoded and put into their own chat template), or of adapters on bases of their
            own; Python functions, or their `module:function`.
            `args.reward_weights` holds one weight for each adapter, then for each of these.
        args: PPOConfig.
        train_dataset: a Dataset with a column `prompt`: messages, which get the chat template, or text, which is
            continued as it stands (as in TRL). Other columns reach the reward functions.
        eval_dataset: the same; evaluated before training and every `args.eval_rollouts`, by `objective` where its rows
            say one ("helpful", "harmless"), and watched over as `args.side_guard` says.
        peft_config: LoRA of the policy; without it the whole model is trained and the reference is a copy of it.
        heldout_adapter: a second reward model, never trained against; it scores in evaluation only.
        ptx_dataset: demonstrations for `args.ptx_coef`, rows of `input_ids` and `assistant_masks` (1: trained on).
        refuses: of prompts and replies, which replies refuse (llm_rlhf.evaluation.refusal_detector.refused does);
            with it, refusals are watched in evaluation.
        samples_file: JSON lines of sampled rollouts are appended here (prompt, response, score, KL), some per rollout.

    Everything else is as in trl.RLOOTrainer.

    Raises:
        ValueError: where the pieces do not fit, before anything is trained.
        NonFiniteError: when a score or the loss is not finite; the weights are then as they were.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "ppo", "llm-rlhf"]
    _name = "PPO"
    stage_name = "ppo"
    _paper: ClassVar[dict[str, str]] = {"title": "Proximal Policy Optimization Algorithms", "id": "1707.06347"}
    loss_is_scaled_for_ga = True  # the loss is already divided by the whole mini-batch's counted tokens

    def __init__(
        self,
        model: Any,
        reward_adapter: str | Path | Mapping[str, str | Path] | None = None,
        reward_funcs: Any = None,
        args: PPOConfig | None = None,
        train_dataset: Dataset | None = None,
        heldout_adapter: str | Path | None = None,
        ptx_dataset: Dataset | None = None,
        samples_file: str | Path | None = None,
        refuses: Refuses | None = None,
        **kwargs: Any,
    ) -> None:
        for name in MOVED.keys() & kwargs.keys():
            raise TypeError(f"{name} is an argument of trl.PPOTrainer; here, {MOVED[name]}.")
        if args is None:
            raise ValueError("args is missing; give a PPOConfig with at least an output_dir.")
        adapters = {"reward": reward_adapter} if isinstance(reward_adapter, (str, Path)) else dict(reward_adapter or {})
        self.scores = ScoreSources(adapters, reward_funcs, args)
        named = adapters if heldout_adapter is None else {**adapters, HELDOUT: heldout_adapter}
        check_models(model, named, args, kwargs.get("peft_config"))
        check_before_loading(args, train_dataset, ptx_dataset, model, named.values(), kwargs)
        assert train_dataset is not None  # it was checked
        columns = train_dataset.column_names
        if not isinstance(train_dataset[0]["prompt"], str):
            if THOUGHT in columns and self.scores.functions:
                raise ValueError(
                    f"train_dataset has a column {THOUGHT!r}, by which reward functions get the thought before each "
                    "response; rename it."
                )
            columns = [*columns, THOUGHT]
        self.scores.check_signatures(columns)
        load_reward_models(self.scores.functions, args, train_dataset, kwargs)
        self.refuses = refuses
        kwargs["eval_dataset"] = self._watch_over(kwargs.get("eval_dataset"), args)
        if args.gradient_checkpointing and args.value == "adapter":
            checkpoint_with_adapters(args)
        not_said = args.ddp_find_unused_parameters is None
        if not_said:
            args.ddp_find_unused_parameters = False  # one joint forward uses every trainable parameter, nearly always
        path = model if isinstance(model, (str, Path)) else model.config.name_or_path
        if kwargs.get("processing_class") is None and path:
            kwargs["processing_class"] = AutoTokenizer.from_pretrained(path, trust_remote_code=args.trust_remote_code)
        if isinstance(kwargs.get("processing_class"), PreTrainedTokenizerBase):
            tokenizer = kwargs["processing_class"]
            stops = stops_of_files(path, args.trust_remote_code) if path is model else stop_token_ids(tokenizer, model)
            complete_tokenizer(tokenizer, tokenizer.name_or_path or "the model", stops)
            tokenizer.chat_template = with_arguments(tokenizer.get_chat_template(), args.chat_template_kwargs or {})
            check_reads_alike(tokenizer, named.values(), args.trust_remote_code)
        check_lengths(train_dataset, kwargs["eval_dataset"], kwargs.get("processing_class"), model, args)
        add_liger(model, args)  # before it is copied
        reference = copy_for_reference(model, args, kwargs)
        given = given_adapter(model)
        if kwargs.get("peft_config") is not None:
            kwargs["peft_config"] = copy.deepcopy(kwargs["peft_config"])  # PEFT writes the layers it finds into it
        adapter = kwargs.get("peft_config") or getattr(model, "peft_config", {}).get(POLICY)
        parents = self.scores.parent_weights(args), reference_of_the_parents(args, reference)
        with parents[0], parents[1], engine_takes_adapters(args, adapter):
            super().__init__(
                model=model, reward_funcs=self.scores.functions, args=args, train_dataset=train_dataset, **kwargs
            )
        self.scores.bind(self.reward_funcs, self.reward_func_names)
        check_embeddings(self.base_model())
        if reference is not None:
            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = self.accelerator.prepare_model(turn_off_noise(reference), evaluation_mode=True)
        self._make_room_for_pad()
        self._add_roles(adapters, named, given)
        self._settle_model(find_unused=not_said)
        compute_in_own_types(self)
        keep_freed_memory(self.accelerator.device.type)
        self.samples_file = Path(samples_file) if samples_file is not None else None
        self.ptx_dataset = ptx_dataset
        imitated = ptx_dataset["input_ids"] if args.ptx_coef and ptx_dataset is not None else []
        self._longest_demonstration = max(map(len, imitated), default=0)
        self.kl_controller = KLController(args.kl_coef, args.adaptive_kl_target, args.adaptive_kl_horizon)
        self.score_moments = ScoreMoments(objectives_of(train_dataset, args.score_normalization_by))
        check_distribution(self.accelerator.distributed_type, args)
        self.guard = StepGuard(args.ratio_limit, args.update_kl_limit)
        self.alarms = TrainingAlarms(Path(args.output_dir) / ALARMS, args.value_alarm, args.entropy_alarm)
        self.add_callback(FiniteGradients(self))
        self.add_callback(_GuardCallback(self))
        self.add_callback(checkpoints.LogsAtCheckpoints())
        self.snapshots: Snapshots | None = None
        if self.eval_dataset is not None:
            self.snapshots = Snapshots(Path(args.output_dir), self.save_policy, self.watch)
            self.add_callback(self.snapshots)
        self._ready_to_sample()
        self._micro_batch_tokens = args.micro_batch_tokens or self._budget()
        self._scoring = Portion("scoring a rollout", self._to_lower(), halves=not is_sharded(self.accelerator))
        self._update = Portion("the update", self._to_lower())
        self._largest_piece = (0, 0)  # rows and tokens of each, of the optimizer step's pieces
        self._prepared = -1  # the step whose micro-batches were handed out last
        self._micro_batches: list[MicroBatch] = []
        self._steps: list[list[int]] = []  # micro-batches of each step of this epoch, by number
        self._step_sums: Tensor | None = None
        self.step_inputs: list[MicroBatch] = []  # of the optimizer step that is being made
        self.warming_up = False  # whether that step is of a rollout from which the value function alone learns
        set_seed(args.seed, device_specific=True)  # what is sampled does not depend on which roles were loaded

    # ---- the roles ---------------------------------------------------------------------------------------------

    def _make_room_for_pad(self) -> None:
        """Both models must have room for the pad token."""
        for causal_lm in (self.base_model(), self.ref_model and self.accelerator.unwrap_model(self.ref_model)):
            # Only for a pad token that was added: other new tokens are the caller's to make room for.
            if causal_lm and self._tokenizer.pad_token_id >= embedding_rows(causal_lm):
                make_room_for(self._tokenizer, causal_lm)

    def _settle_model(self, find_unused: bool) -> None:
        """Refuse what cannot be trained rightly; `find_unused`: let DDP look for parameters that get no gradient."""
        engine = self.use_vllm or self.use_transformers_continuous_batching
        settle(self.accelerator.unwrap_model(self.model), self.args.learning_rate, generates=not engine)
        if unused := without_gradient(self.accelerator.unwrap_model(self.model)):
            self.accelerator.print(
                f"  note: {len(unused)} parameters get no gradient and stay as they are ({unused[0]} the first)."
            )
            if find_unused and self.accelerator.ddp_handler is not None:
                self.accelerator.ddp_handler.find_unused_parameters = True

    def _add_roles(self, adapters: dict[str, Any], named: dict[str, Any], given: dict[str, Tensor] | None) -> None:
        base = self.base_model()
        # A model that came with an adapter: the parent has kept a copy of it, named "ref", as the reference.
        has_copy = is_peft_model(self.model) and "ref" in self.model.peft_config
        self.reference_adapters = ["ref"] if has_copy else []
        for name, folder in named.items():
            add_reward_role(self.model, folder, name)
        self.has_heldout = HELDOUT in named
        if is_peft_model(self.model):
            adapters_in_float32(self.model)
            for name in [POLICY, *self.reference_adapters] if given is not None else []:
                set_peft_model_state_dict(self.model, given, adapter_name=name)
            if self.reference_adapters:
                self.model.set_requires_grad(*self.reference_adapters, requires_grad=False)
            first = next(iter(adapters), None)
            add_value_role(self.model, self.args.value, adapters[first] if first else None, first)
            self.model.set_requires_grad(POLICY, requires_grad=True)
            adapters_in_float32(self.model)  # what has come to train since
        else:
            base.value_head = scalar_head(hidden_width(base)).to(base.device)
            multiply_faster(base)
        add_role_forward(base, self.temperature)
        if self.ref_model is not None:
            multiply_faster(self.ref_model)
            add_role_forward(self.accelerator.unwrap_model(self.ref_model), self.temperature)

    def _budget(self) -> int | None:
        """Tokens of a micro-batch on CUDA, where nothing else is said; None: a mini-batch is one micro-batch."""
        device, args = self.accelerator.device, self.args
        if device.type != "cuda" or args.gradient_accumulation_steps > 1 or is_sharded(self.accelerator):
            return None
        free = torch.cuda.mem_get_info(device)[0]
        return token_budget(self.base_model().config, args.gradient_checkpointing, free)

    # ---- what each step learns from ----------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        """The parent's sampler draws each pass from where the last one left its generator; a resumed run could not."""
        sampler = super()._get_train_sampler(dataset)
        return SeededSampler(sampler) if isinstance(sampler, RepeatSampler) else sampler

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> list[MicroBatch]:
        """The next step's micro-batches, one or several; a new rollout when the last one is used up.

        Micro-batches are formed once per rollout: log-probabilities depend on the padded width (by 1e-6 in fp32, by up
        to 0.1 in bf16), so the first ratio is exactly 1 only in the shapes that the old ones were computed in. Each
        epoch after the first goes through them in another order, which also regroups them into mini-batches.

        No dictionary, as the parents' own is: they hand it to `_compute_loss` without a look inside.
        """
        steps = self.args.steps_per_generation
        if self._prepared == self._step:  # the same step once more: memory ran out
            pass
        elif self._step % (steps * self.num_iterations) == 0 or not self._micro_batches:
            self.guard.new_rollout()
            self._micro_batches = []  # the old rollout's memory is free before the new one is sampled
            self._micro_batches = self._rollout(generation_batch)
        elif self._step % steps == 0:
            self._steps = shuffled_steps(len(self._micro_batches), steps, self.args.seed + self._step)
        self._prepared = self._step
        return [self._micro_batches[i] for i in self._steps[self._step % steps]]

    # ---- the update --------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """The parent's, less the steps of a rollout that the guard has ended."""
        starts_rollout = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        if self.guard.rest_is_skipped and not starts_rollout:
            self._step += 1
            return torch.zeros((), device=self.accelerator.device)
        again = False
        while True:
            failed: Exception | None = None
            try:
                if again:
                    self._redo_accumulated(model)
                return super().training_step(model, inputs, num_items_in_batch)
            except RuntimeError as error:
                if not (ran_out(error) and self._prepared == self._step):  # before, a rollout was being made
                    raise
                failed = error.with_traceback(None)  # whose frames hold activations
            self._halve_pieces(failed)
            again = True

    def _to_lower(self, pieces: bool = False) -> str:
        """What takes less memory in this launch.

        Args:
            pieces: where whole micro-batches do not fit; False: where a single row, or what FSDP reads, does not.
        """
        sharded = is_sharded(self.accelerator)
        fewer = "ppo.per_device_train_batch_size (and raise ppo.gradient_accumulation_steps by as much)"
        less = "ppo.response_length or model.context_length"
        less += "" if sharded else ", or set model.quantization: nf4"
        if sharded:
            return f"{fewer}, {less}"
        return f"ppo.micro_batch_tokens, {less}" if pieces else less

    def _halve_pieces(self, error: Exception) -> None:
        """Memory ran out in an optimizer step: begin it again, in smaller pieces.

        Raises:
            RunError: where that cannot help.
        """
        if self.accelerator.num_processes > 1:
            raise RunError(
                "Memory ran out in the update of one of several processes, which the others' gradients wait for; "
                f"lower {self._to_lower(pieces=True)}. ({first_line(error)})"
            ) from error
        for parameter in self.model.parameters():
            parameter.grad = None
        self._step_sums = None
        make_room()
        self._update.halve(*self._largest_piece, error)
        self._largest_piece = (0, 0)

    def _redo_accumulated(self, model: Any) -> None:
        """The gradients of the optimizer step's earlier micro-batches, which went with the step that is begun again."""
        accumulated = self._step % self.current_gradient_accumulation_steps
        for step in range(self._step - accumulated, self._step):
            batches = [self._micro_batches[i] for i in self._steps[step % self.args.steps_per_generation]]
            with self.compute_loss_context_manager():
                loss = self._compute_loss(model, batches)
            self.accelerator.backward(loss)

    def _compute_loss(self, model: Any, inputs: list[MicroBatch]) -> Tensor:
        """The loss of a step's micro-batches: of the last piece, with the others' gradients already taken.

        A micro-batch is one piece, or, once memory ran out, several of its width, so that the first ratios stay 1.
        """
        if self._step_sums is None:
            self._largest_piece = (0, 0)  # a new optimizer step
        self.step_inputs += inputs
        *others, last = [piece for batch in inputs for piece in self._pieces(batch)]
        known = torch.zeros((), device=self.accelerator.device)
        for batch in others:
            with self.accelerator.no_sync(model):
                loss = self._micro_batch_loss(model, batch)
                self.accelerator.backward(loss)
            known += loss.detach()
        return self._micro_batch_loss(model, last) + known

    def _pieces(self, batch: MicroBatch) -> list[MicroBatch]:
        rows, width = batch.input_ids.shape
        size = self._update.rows(width) or rows
        self._largest_piece = max(self._largest_piece, (min(size, rows), width), key=math.prod)
        if size >= rows:
            return [batch]
        return [rows_of(batch, slice(start, start + size)) for start in range(0, rows, size)]

    def _micro_batch_loss(self, model: Any, batch: MicroBatch) -> Tensor:
        """Sum of a micro-batch's token losses over the rollout's counted tokens per mini-batch."""
        mask, demonstrations = batch.response_mask, batch.demonstrations
        self.warming_up = warming_up = self.rollouts_done < self.args.value_warmup_rollouts
        now = model(**batch.model_inputs(), with_entropy=False, detach_value=warming_up)
        policy, ratio = objectives.policy_loss(
            now["logprobs"], batch.old_logprobs, batch.advantages, self.args.cliprange, batch.importance
        )
        value = objectives.value_loss(
            now["value_estimates"], batch.old_values, batch.returns, self.args.cliprange_value
        )
        # DDP averages gradients over processes, so each process' share is scaled back up to a sum.
        share = self.accelerator.num_processes / batch.tokens_per_mini_batch
        policy_sum, value_sum = (policy.loss * mask).sum(), (value.loss * mask).sum()
        loss = (policy_sum * (0.0 if warming_up else 1.0) + self.args.vf_coef * value_sum) * share
        if demonstrations is not None:
            ptx_sum = -now["ptx_logprobs"].sum()
            ptx = ptx_sum * self.accelerator.num_processes / demonstrations.tokens_per_mini_batch
            loss = loss + (0.0 if warming_up else self.args.ptx_coef) * ptx
        check_loss(loss.detach(), self)
        with torch.no_grad():
            numbers = {
                "loss/policy": policy.loss,
                "loss/value": value.loss,
                "policy/approxkl": objectives.approx_kl(now["logprobs"], batch.old_logprobs),
                "policy/clipfrac": policy.clipped,
                "policy/ratio": ratio,
                "policy/clamped": (now["logprobs"] - batch.old_logprobs).abs() > objectives.LOG_RATIO_LIMIT,
                "val/clipfrac": value.clipped,
                "tokens": mask,
            }
            named = {name: (x * mask).sum() for name, x in numbers.items()}
            if demonstrations is not None:
                named |= {"loss/ptx": ptx_sum, "ptx_tokens": demonstrations.mask.sum()}
            sums = torch.stack([x.detach().float() for x in named.values()])
            self._step_sums = sums if self._step_sums is None else self._step_sums + sums
            self._step_names = list(named)
        return loss

    def policy_parameters(self) -> list[nn.Parameter]:
        """Those that train and are not the value function's."""
        adapter = f".{VALUE}." if self.args.value == "adapter" else None
        return [
            parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and ".value_head." not in f".{name}" and not (adapter and adapter in name)
        ]

    def finish_step(self) -> bool:
        """Keep the optimizer step's sums over tokens, of all processes, for `log`; whether the guard skips the step."""
        if self._step_sums is None:
            return self.guard.rest_is_skipped
        found = self.accelerator.reduce(self._step_sums, reduction="sum").tolist()
        sums = dict(zip(self._step_names, found, strict=True))
        self._step_sums = None
        tokens = sums["tokens"] or 1.0
        skipped = self.guard.skips(sums["policy/ratio"] / tokens, sums["policy/approxkl"] / tokens)
        for name, number in {**sums, "policy/skipped": float(skipped)}.items():
            self._metrics["train"][name].append(number)
        return skipped

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The parent's, which averages over optimizer steps: of one step or several, means over all their tokens."""
        kept = self._metrics["train"]
        for names, counted in ((OVER_TOKENS, "tokens"), (("loss/ptx",), "ptx_tokens")):
            if self.model.training and (counts := kept.pop(counted, None)):
                tokens = sum(counts) or 1.0
                for name in names:
                    kept[name] = [sum(kept[name]) / tokens]
        super().log(logs, start_time)


class _GuardCallback(TrainerCallback):
    """Ends the optimizer step: logs it, and takes away the gradients that are not to be stepped by.

    Those are all where the guard skips the step, and the policy's while the value function warms up: by a gradient of
    zeros AdamW would decay weights, and count steps by which it trusts moments that have seen nothing.
    """

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        if trainer.finish_step():
            without = list(trainer.model.parameters())
        else:
            without = trainer.policy_parameters() if trainer.warming_up else []
        for parameter in without:
            parameter.grad = None  # AdamW passes over it: no momentum, no decay
