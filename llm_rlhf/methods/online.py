"""Learning from scored replies without a value function: GRPO and RLOO, TRL's trainers with this project's scores.

1. Prompts are encoded, and replies are sampled, as PPO's are: from the policy's own distribution, nothing else.
2. A reply is scored as PPO scores it: by reward adapters on the same base in memory, and what `reward_funcs` add; a
   thought before it is heard by nobody. A reply cut before it stopped loses `missing_eos_penalty`. Dropout is off, of
   the base and of every adapter, whatever `disable_dropout` says: one reply has one score, and one probability.
3. What TRL makes of the scores is TRL's: advantages within the replies to one prompt, KL, clipping, the loss.

Private methods of TRL's trainers that are overridden or called, guarded by tests/methods/test_methods_contract.py:
`_calculate_rewards`, `_generate_single_turn`, `_tokenize_prompts`, `_get_train_sampler`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.utils import RepeatSampler

from llm_rlhf import interruption
from llm_rlhf.models.adapter_training import TrainedAdapter
from llm_rlhf.models.adapters import POLICY
from llm_rlhf.models.base import announce
from llm_rlhf.models.decoding import plain_decoding
from llm_rlhf.models.encoding import encode_prompts
from llm_rlhf.models.halving import HalvesRollouts
from llm_rlhf.models.inference import ids_to_score, reply_of, right_padded
from llm_rlhf.models.memory import Portion
from llm_rlhf.models.roles import add_reward_role, answer_scores, role_scores
from llm_rlhf.ppo.guards import check_scores, check_some_scored, neutral_where_silent, told_of_silent
from llm_rlhf.ppo.preparation import SeededSampler
from llm_rlhf.ppo.sampling import own_sampler
from llm_rlhf.ppo.scores import THOUGHT, ScoreSources
from llm_rlhf.ppo.soundness import turn_off_noise
from llm_rlhf.recipe.loading import steps_per_rollout
from llm_rlhf.recipe.sections import OnlineOptions
from llm_rlhf.stopping import stop_if_asked
from llm_rlhf.training import is_sharded


class ScoredReplies(HalvesRollouts, TrainedAdapter):
    """Mixed into GRPOTrainer and RLOOTrainer.

    Args:
        adapters: folders of reward adapters on the base that the policy starts from, by name.
        functions: models of their own and Python functions, as PPOTrainer's `reward_funcs`.
        tokenizers: of the models among them.
        options: how the scores of several become one, and what a reply cut off loses.

    Everything else is as in TRL's trainer.
    """

    args: Any
    reward_funcs: list[Any]
    reward_func_names: list[str]
    eos_token_ids: list[int]
    _tokenizer: Any
    add_callback: Any
    num_generations: int
    num_generations_eval: int
    _metrics: Any
    _told_of_silent = False  # that some replies have no score

    def __init__(
        self,
        adapters: dict[str, Path],
        functions: list[Any],
        tokenizers: list[Any],
        options: OnlineOptions,
        train_dataset: Dataset,
        **kwargs: Any,
    ) -> None:
        self.scores = ScoreSources(adapters, functions, options)
        self.missing_eos_penalty = options.missing_eos_penalty
        self.scores.check_signatures([*train_dataset.column_names, THOUGHT])
        super().__init__(
            reward_funcs=self.scores.functions or [_nothing],
            reward_processing_classes=tokenizers or None,
            train_dataset=train_dataset,
            **kwargs,
        )
        self.scores.bind(self.reward_funcs if functions else [], self.reward_func_names if functions else [])
        self._function_names = self.reward_func_names
        self.reward_func_names, self.reward_weights = ["score"], torch.ones(1)  # what `_calculate_rewards` returns
        for name, folder in adapters.items():
            add_reward_role(self.model, folder, name)
        base = self.model.get_base_model()
        answer_scores(base)
        turn_off_noise(base)  # TRL samples and scores in training mode
        # TRL has no importance weights for what another sampler drew, but for vLLM
        self._sampler = own_sampler(self.args, self.accelerator, base, POLICY, may_round=False)
        alone = not is_sharded(self.accelerator)  # else every process must make as many forwards
        self._sampling = Portion(f"sampling for {self.stage_name}", self._pieces.lower, halves=alone)
        self._scoring = Portion(f"scoring for {self.stage_name}", self._pieces.lower, halves=alone)
        self.add_callback(_BetweenRollouts())

    @property
    def checkpoint_every(self) -> int:
        """Optimizer steps after which a rollout is used up: a checkpoint holds none."""
        return steps_per_rollout(self.args)

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """The parent applies the template itself; here, conversations are encoded as every stage encodes them."""
        return encode_prompts(self._tokenizer, prompts), None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        """The parent's, from the policy's own distribution, by the loop that PPO samples by; in parts that fit."""
        width = max(len(ids) for ids in prompt_ids) + self.args.max_completion_length
        parts = self._sampling.run(lambda part: self._generate_part(part, *args, **kwargs), prompt_ids, width)
        stop_if_asked(self.accelerator)  # before what was broken off is taken for replies
        if not isinstance(parts[0], tuple):  # RLOO's ids; GRPO's have more beside them
            return [ids for part in parts for ids in part]
        return tuple(
            None if column[0] is None else [row for rows in column for row in rows]
            for column in zip(*parts, strict=True)
        )

    def _generate_part(self, *args: Any, **kwargs: Any) -> Any:
        own = self._sampler
        how = plain_decoding(self.model.get_base_model()) if own is None else own(seed=self.state.global_step)
        with interruption.broken_off_at_once(self.accelerator.num_processes == 1), how:
            return super()._generate_single_turn(*args, **kwargs)  # type: ignore[misc]

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> Tensor:
        """The score of every reply of all processes, shape (rows, 1)."""
        with interruption.broken_off_at_once(self.accelerator.num_processes == 1):
            scores_B = self.score(inputs, prompts, completions, completion_ids_list)
        stop_if_asked(self.accelerator)
        if not self.scores.may_be_silent:
            check_scores(scores_B, prompts, completions)
        paid_B = self._paid(scores_B, completion_ids_list)
        return (self._without_silence(paid_B) if self.scores.may_be_silent else paid_B).unsqueeze(1)

    def _paid(self, scores_B: Tensor, ids: list[Any]) -> Tensor:
        """Less what is taken off replies that were cut, those of all processes."""
        stopped = torch.tensor([of_reply[-1] in self.eos_token_ids for of_reply in ids], device=scores_B.device)
        return gather(scores_B - self.missing_eos_penalty * ~stopped)

    def _without_silence(self, paid_B: Tensor) -> Tensor:
        """Those of all processes, the replies to one prompt beside each other; see `neutral_where_silent`."""
        silent, rows = int(paid_B.isnan().sum()), len(paid_B)
        check_some_scored(rows - silent, rows)
        mode, group = ("train", self.num_generations) if self.model.training else ("eval", self.num_generations_eval)
        self._metrics[mode]["objective/unscored"].append(silent / rows)
        if silent and not self._told_of_silent:
            self._told_of_silent = True
            announce(told_of_silent(silent, rows))
        return neutral_where_silent(paid_B.view(-1, group)).flatten()

    @torch.no_grad()
    def score(self, inputs: list[dict[str, Any]], prompts: list[Any], texts: list[Any], ids: list[list[int]]) -> Tensor:
        """Scores of this process's replies, shape (B,), as PPO scores them, before what is taken off.

        Args:
            inputs: rows of the data set, which Python functions get by name.
            texts: the replies as messages.
            ids: their tokens, with the one that stopped them.
        """
        tokenizer, device = self._tokenizer, self.accelerator.device
        rows = zip(encode_prompts(tokenizer, prompts), ids, strict=True)
        replies = [reply_of(tokenizer, *row, self.eos_token_ids) for row in rows]
        if any(reply.start for reply in replies):
            texts = [[{"role": "assistant", "content": reply.text}] for reply in replies]
        functions_BF = torch.zeros(len(replies), 0, device=device)
        if self.scores.functions:
            inputs = [row | {THOUGHT: reply.thought} for row, reply in zip(inputs, replies, strict=True)]
            functions_BF = self._by_functions(inputs, prompts, texts, ids)
        heard, size = ids_to_score(tokenizer, prompts, replies), self.args.per_device_train_batch_size
        by_adapter = {}
        for name in self.scores.adapters:

            def scores_of(part: Sequence[list[int]], name: str = name) -> Tensor:
                with self.accelerator.autocast():
                    return role_scores(self.model, name, *right_padded(part, tokenizer.pad_token_id, device))

            width = max(len(ids) for ids in heard)
            by_adapter[name] = torch.cat(self._scoring.run(scores_of, heard, width, most=size))
        return self.scores.of_batch(by_adapter, functions_BF).raw

    def _by_functions(self, inputs: list[Any], prompts: list[Any], texts: list[Any], ids: list[Any]) -> Tensor:
        """Unweighted scores of `reward_funcs` for this process's rows, shape (rows, functions), by TRL's own code."""
        returned = self.reward_func_names
        self.reward_func_names = self._function_names
        try:
            gathered: Tensor = super()._calculate_rewards(inputs, prompts, texts, ids)  # type: ignore[misc]
        finally:
            self.reward_func_names = returned
        start = self.accelerator.process_index * len(prompts)
        return gathered[start : start + len(prompts)]

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        """The parent's sampler draws each pass from where the last one left its generator; a resumed run could not."""
        sampler = super()._get_train_sampler(dataset)  # type: ignore[misc]
        return SeededSampler(sampler) if isinstance(sampler, RepeatSampler) else sampler


class ScoredGRPOTrainer(ScoredReplies, GRPOTrainer):
    """GRPO (Shao et al. 2024, arXiv:2402.03300) with `ScoredReplies`."""

    stage_name = "grpo"

    def inseparable(self) -> str | None:
        if self._entropy_bonus_enabled or self.top_entropy_quantile < 1.0:
            return "grpo's entropy bonus and top_entropy_quantile are of the whole micro-batch"
        return super().inseparable()

    def adds_up(self, num_items_in_batch: Any) -> bool:
        return self.loss_type in ("cispo", "dapo", "vespo")

    def weight_of(self, inputs: dict[str, Any]) -> float:
        """Of bnpo, counted tokens; else rows."""
        if self.loss_type == "bnpo":
            return float(inputs["completion_mask"].sum())
        return super().weight_of(inputs)


class ScoredRLOOTrainer(ScoredReplies, RLOOTrainer):
    """RLOO (Ahmadian et al. 2024, arXiv:2402.14740) with `ScoredReplies`."""

    stage_name = "rloo"


class _BetweenRollouts(TrainerCallback):
    """Moves checkpoints to steps at which a rollout is used up: TRL keeps none, and would sample it anew."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        steps = steps_per_rollout(args)
        state.save_steps = math.ceil(state.save_steps / steps) * steps


def _nothing(completions: list[Any], **kwargs: Any) -> list[float]:
    """In the place of functions, of which TRL wants one at least; never called."""
    return [0.0] * len(completions)
