"""PPOTrainer: PPO with a per-token KL penalty on TRL's online trainer.

Generation (transformers, continuous batching, vLLM), prompt handling, samplers, reward functions and the distributed
plumbing are TRL's RLOOTrainer. The roles (llm_rlhf/models/roles.py) and the mathematics (objectives.py) are ours:

1. `_rollout` samples a response to every prompt and cuts the rollout into the micro-batches of the update.
2. Each micro-batch is scored once in exactly the shapes the update will use: log-probabilities and values of the
   policy, log-probabilities of the reference, score of the response.
3. Rewards, advantages and returns follow; advantages are whitened over the counted tokens of the whole rollout.
4. `_compute_loss` adds up a micro-batch's clipped policy and value losses, divided by the counted tokens of the
   rollout over the mini-batches: one number for all processes, so that neither their count nor the micro-batch size
   changes the gradient.

Private methods of the parent that are overridden, each guarded by tests/unit/test_trl_contract.py: `_prepare_inputs`,
`_compute_loss`, `_save`. Called: `_generate`, `_calculate_rewards`.

Layout: B rows, P prompt tokens, R response tokens, T both.
"""

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn
from trl import RLOOTrainer

from llm_rlhf.models.roles import (
    POLICY,
    VALUE,
    active_adapters,
    add_reward_role,
    add_role_forward,
    add_value_role,
    recompute_with_same_adapters,
    role_scores,
    scalar_head,
)
from llm_rlhf.ppo import objectives
from llm_rlhf.ppo.config import PPOConfig
from llm_rlhf.ppo.guards import check_loss, check_scores
from llm_rlhf.ppo.rollout import finish_rollout, stopped_by_itself

REWARD = "reward"


class PPOTrainer(RLOOTrainer):
    """Trains a policy by PPO against a reward adapter, reward functions, or both (their scores are added).

    Args:
        model: hub id, folder or model of a causal language model: the base of every role, and the reference.
        reward_adapter: folder of an adapter and score head saved by RewardTrainer on the same base.
        reward_funcs: reward models or functions, as in trl.RLOOTrainer.
        args: PPOConfig.
        train_dataset: rows with a `prompt`, text or messages.
        peft_config: LoRA of the policy; without it the whole model is trained and the reference is a copy of it.
        samples_file: JSON lines of sampled rollouts are appended here (prompt, response, score, KL), some per rollout.

    Everything else is as in trl.RLOOTrainer.

    Raises:
        ValueError: where the pieces do not fit, before anything is trained.
        NonFiniteError: when a score or the loss is not finite; the weights are then as they were.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "ppo", "llm-rlhf"]
    _name = "PPO"
    loss_is_scaled_for_ga = True  # the loss is already divided by the whole mini-batch's counted tokens
    samples_per_rollout = 4

    def __init__(
        self,
        model: Any,
        reward_adapter: str | Path | None = None,
        reward_funcs: Any = None,
        args: PPOConfig | None = None,
        train_dataset: Dataset | None = None,
        samples_file: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            raise ValueError("args is missing; give a PPOConfig with at least an output_dir.")
        reward_funcs = [] if reward_funcs is None else reward_funcs
        if reward_adapter is None and reward_funcs == []:
            raise ValueError("There is nothing to score responses with; give reward_adapter, reward_funcs or both.")
        if args.gradient_checkpointing and args.value == "adapter":
            _checkpoint_with_adapters(args)
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # one joint forward uses every trainable parameter
        if train_dataset is not None and len(train_dataset) * args.num_generations < args.generation_batch_size:
            raise ValueError(
                f"There are {len(train_dataset)} prompts, but one rollout takes "
                f"{args.generation_batch_size // args.num_generations}; lower per_device_train_batch_size or "
                "num_mini_batches, or give more prompts."
            )
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, train_dataset=train_dataset, **kwargs)
        if self._tokenizer.pad_token_id in self.eos_token_ids:
            raise ValueError(
                f"The pad token ({self._tokenizer.pad_token!r}) is also a stop token, so that stopping could not be "
                "told from padding; give the tokenizer a pad token of its own."
            )
        self.has_reward_adapter = reward_adapter is not None
        self._add_roles(reward_adapter)
        turn_off_dropout(self.model)
        self.samples_file = Path(samples_file) if samples_file is not None else None
        self._micro_batches: list[dict[str, Tensor]] = []
        self._order: list[int] = []

    def _add_roles(self, reward_adapter: str | Path | None) -> None:
        base = self._base()
        if not is_peft_model(self.model) and (reward_adapter is not None or self.args.value == "adapter"):
            raise ValueError("A reward or value adapter needs a policy adapter on the same base; give a peft_config.")
        if reward_adapter is not None:
            add_reward_role(self.model, reward_adapter, REWARD)
        if is_peft_model(self.model):
            add_value_role(self.model, self.args.value, reward_adapter, REWARD if self.has_reward_adapter else None)
            self.model.set_requires_grad(POLICY, requires_grad=True)
        else:
            base.value_head = scalar_head(base.config.get_text_config().hidden_size).to(base.device)
        add_role_forward(base)
        if self.ref_model is not None:
            add_role_forward(self.accelerator.unwrap_model(self.ref_model))

    def _base(self) -> Any:
        return self.model.get_base_model() if is_peft_model(self.model) else self.model

    # ---- the rollout -------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The next micro-batch; a new rollout when the last one has been used for all its epochs.

        Micro-batches are formed once per rollout: log-probabilities depend on the padded width (by 1e-6 in fp32, by up
        to 0.1 in bf16), so the first ratio is exactly 1 only in the shapes that the old ones were computed in. Each
        epoch after the first goes through them in another order, which also regroups them into mini-batches.
        """
        if not self.model.training:
            return self._rollout(generation_batch)[0]
        steps = self.args.steps_per_generation
        if self._step % (steps * self.num_iterations) == 0 or not self._micro_batches:
            self._micro_batches = self._rollout(generation_batch)
            self._order = list(range(steps))
        elif self._step % steps == 0:
            generator = torch.Generator().manual_seed(self.args.seed + self._step)  # the same on every process
            self._order = torch.randperm(steps, generator=generator).tolist()
        return self._micro_batches[self._order[self._step % steps]]

    @torch.no_grad()
    def _rollout(self, inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Sample, score and turn into micro-batches that hold everything the update needs."""
        prompts = [row["prompt"] for row in inputs]
        with active_adapters(self._base(), [POLICY]):
            prompt_ids, response_ids, responses = self._generate(prompts)
        extra_scores = self._function_scores(inputs, prompts, responses, response_ids)
        count = self.args.steps_per_generation if self.model.training else 1
        if len(prompts) % count:
            raise ValueError(f"A rollout of {len(prompts)} responses does not split into {count} micro-batches.")
        size = len(prompts) // count
        batches = []
        for start in range(0, len(prompts), size):
            rows = slice(start, start + size)
            batch = self._pad(prompt_ids[rows], response_ids[rows])
            batch |= self._score(batch, extra_scores[rows])
            batches.append(batch)
        scores = torch.cat([b["scores"] for b in batches])
        check_scores(scores, prompts, responses)
        metrics = finish_rollout(batches, self.args, self._total)
        mode = "train" if self.model.training else "eval"
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        self._record(prompts, responses, scores, torch.cat([b["sequence_kl"] for b in batches]))
        return batches

    def _pad(self, prompt_ids: list[list[int]], response_ids: list[list[int]]) -> dict[str, Tensor]:
        """Left-padded prompts joined to right-padded responses, no wider than the longest of each."""
        P = max(len(ids) for ids in prompt_ids)
        R = max(len(ids) for ids in response_ids)
        pad = self._tokenizer.pad_token_id
        ids = [
            [pad] * (P - len(p)) + list(p) + list(r) + [pad] * (R - len(r))
            for p, r in zip(prompt_ids, response_ids, strict=True)
        ]
        mask = [
            [0] * (P - len(p)) + [1] * (len(p) + len(r)) + [0] * (R - len(r))
            for p, r in zip(prompt_ids, response_ids, strict=True)
        ]
        device = self.accelerator.device
        attention_mask = torch.tensor(mask, device=device)
        return {
            "input_ids": torch.tensor(ids, device=device),
            "attention_mask": attention_mask,
            "response_mask": attention_mask[:, P:].bool(),
        }

    def _score(self, batch: dict[str, Tensor], extra_scores_B: Tensor) -> dict[str, Tensor]:
        """What the rollout's weights say of one micro-batch: old log-probabilities and values, reference, scores."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "response_mask")}
        with self.accelerator.autocast():
            policy = self.model(**inputs)
            if is_peft_model(self.model):
                with active_adapters(self._base(), []):
                    reference = self.model(**inputs, with_value=False)
            else:
                reference = (self.ref_model or self.model)(**inputs, with_value=False)
            scores = extra_scores_B.clone()
            if self.has_reward_adapter:
                scores += role_scores(self.model, REWARD, batch["input_ids"], batch["attention_mask"])
        if self.reward_clip_range:
            scores = scores.clamp(*self.reward_clip_range)
        stopped = stopped_by_itself(batch["input_ids"], batch["response_mask"], self.eos_token_ids)
        return {
            "old_logprobs": policy["logprobs"],
            "old_values": policy["value_estimates"],
            "ref_logprobs": reference["logprobs"],
            "entropies": policy["entropies"],
            "scores": scores,
            "stopped": stopped,
        }

    def _function_scores(self, inputs: list[Any], prompts: list[Any], responses: list[Any], ids: list[Any]) -> Tensor:
        """Weighted sum of the reward functions' scores, shape (rows of this process,)."""
        if not self.reward_funcs:
            return torch.zeros(len(prompts), device=self.accelerator.device)
        gathered = self._calculate_rewards(inputs, prompts, responses, ids) * self.reward_weights.to(
            self.accelerator.device
        )
        start = self.accelerator.process_index * len(prompts)
        return gathered[start : start + len(prompts)].sum(1)

    # ---- the update --------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Sum of a micro-batch's token losses over the rollout's counted tokens per mini-batch."""
        mask = inputs["response_mask"]
        now = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], response_mask=mask)
        policy, ratio = objectives.policy_loss(
            now["logprobs"], inputs["old_logprobs"], inputs["advantages"], self.args.cliprange
        )
        value = objectives.value_loss(
            now["value_estimates"], inputs["old_values"], inputs["returns"], self.args.cliprange_value
        )
        # DDP averages gradients over processes, so each process' share is scaled back up to a sum.
        share = self.accelerator.num_processes / inputs["tokens_per_mini_batch"]
        policy_sum, value_sum = (policy.loss * mask).sum(), (value.loss * mask).sum()
        loss = (policy_sum + self.args.vf_coef * value_sum) * share
        check_loss(loss.detach(), "ppo", self.state.global_step)
        with torch.no_grad():
            moved = objectives.approx_kl(now["logprobs"], inputs["old_logprobs"])
            self._log_token_means(
                share * self.args.gradient_accumulation_steps,
                mask,
                {
                    "loss/policy": policy.loss,
                    "loss/value": value.loss,
                    "policy/approxkl": moved,
                    "policy/clipfrac": policy.clipped,
                    "policy/entropy": now["entropies"],
                    "policy/ratio": ratio,
                    "val/clipfrac": value.clipped,
                },
            )
        return loss

    def _log_token_means(self, share: Tensor, mask: Tensor, values: dict[str, Tensor]) -> None:
        """Means over counted tokens. Averaged by the parent's `log` over the micro-batches, they add up exactly."""
        sums = torch.stack([(value * mask).sum().float() for value in values.values()]) * share
        means = self.accelerator.reduce(sums, reduction="mean").tolist()
        mode = "train" if self.model.training else "eval"
        for name, mean in zip(values, means, strict=True):
            self._metrics[mode][name].append(mean)

    def _total(self, x: Tensor) -> Tensor:
        return self.accelerator.reduce(x, reduction="sum")

    # ---- records and files -------------------------------------------------------------------------------------

    def _record(self, prompts: list[Any], responses: list[Any], scores: Tensor, kls: Tensor) -> None:
        """Sampled rollouts for the parent's completion table and for `samples_file`."""
        rows = zip(prompts, responses, scores.tolist(), kls.tolist(), strict=True)
        rows = gather_object(list(rows))
        for prompt, response, score, _ in rows:
            self._logs["prompt"].append(prompt)
            self._logs["completion"].append(response)
            self._logs["rewards"]["score"].append(score)
            self._logs["advantages"].append(score)
        if self.samples_file is None or not self.accelerator.is_main_process or not self.model.training:
            return
        with self.samples_file.open("a", encoding="utf-8") as file:
            for prompt, response, score, kl in rows[: self.samples_per_rollout]:
                row = {"step": self.state.global_step, "prompt": prompt, "response": response, "score": score, "kl": kl}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def save_roles(self, folder: str | Path) -> None:
        """Write `policy/`, what any PEFT user loads on the base, and `value/`: its head, and its adapter if any."""
        if not self.accelerator.is_main_process:
            return
        folder = Path(folder)
        model = self.accelerator.unwrap_model(self.model)
        if is_peft_model(model):
            model.save_pretrained(folder / "policy", selected_adapters=[POLICY])
        else:
            model.save_pretrained(folder / "policy")
        value = folder / "value"
        value.mkdir(parents=True, exist_ok=True)
        if self.args.value == "adapter":
            model.save_pretrained(value, selected_adapters=[VALUE])
        save_file(
            {"weight": self._base().value_head.weight.detach().cpu().contiguous()}, value / "value_head.safetensors"
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The parent would write every adapter and lose the value head."""
        self.save_roles(output_dir or self.args.output_dir)

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        if resume_from_checkpoint:
            raise ValueError("PPO cannot yet be resumed inside training; start it again from its beginning.")
        return super().train(**kwargs)


def turn_off_dropout(model: Any) -> None:
    """Every dropout to 0: modules, LoRA's, and the rates that attention layers keep as plain numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _checkpoint_with_adapters(args: PPOConfig) -> None:
    """Recompute checkpointed activations under the adapters of their forward (only possible without reentrance)."""
    kwargs = dict(args.gradient_checkpointing_kwargs or {})
    if kwargs.get("use_reentrant"):
        raise ValueError(
            "value: adapter with reentrant gradient checkpointing would recompute the value's activations with the "
            "policy's adapter; use value: shared, or gradient_checkpointing_kwargs: {use_reentrant: false}."
        )
    kwargs |= {"use_reentrant": False, "context_fn": recompute_with_same_adapters}
    args.gradient_checkpointing_kwargs = kwargs
    if hasattr(args, "activation_checkpointing_kwargs"):  # transformers' newer name for the same
        args.activation_checkpointing_kwargs = kwargs
