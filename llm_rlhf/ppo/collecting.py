"""Making a rollout: responses are sampled, scored in the update's own shapes, recorded, and turned into micro-batches.

Private methods of RLOOTrainer that are called, guarded by tests/ppo/test_trl_contract.py: `_generate`,
`_calculate_rewards`.

Layout: B rows, F reward functions and models of their own.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object, is_peft_model
from torch import Tensor
from trl.data_utils import is_conversational

from llm_rlhf import interruption
from llm_rlhf.models.adapters import POLICY, active_adapters
from llm_rlhf.models.base import announce
from llm_rlhf.models.inference import Reply, ids_to_score, reply_of, right_padded
from llm_rlhf.models.memory import Portion
from llm_rlhf.models.roles import HELDOUT, role_scores
from llm_rlhf.models.thoughts import KEY
from llm_rlhf.ppo import objectives
from llm_rlhf.ppo.alarms import TrainingAlarms
from llm_rlhf.ppo.generation import GeneratedResponses
from llm_rlhf.ppo.guards import StepGuard, check_scores, check_some_scored, told_of_silent
from llm_rlhf.ppo.preparation import OVERALL
from llm_rlhf.ppo.rollout import (
    Demonstrations,
    MicroBatch,
    PaddedRows,
    ScoredRows,
    draw_demonstrations,
    finish_rollout,
    micro_batch_rows,
    pad_rows,
    pad_tokens,
    rollout_statistics,
    rows_of,
    rows_together,
    stopped_by_itself,
)
from llm_rlhf.ppo.scores import THOUGHT, ScoreSources
from llm_rlhf.progress import tell
from llm_rlhf.stopping import stop_if_asked
from llm_rlhf.training import append_line, is_sharded


class CollectedRollouts(GeneratedResponses):
    """The part of PPOTrainer that makes rollouts, for the update and for evaluation."""

    samples_per_rollout = 4
    scores: ScoreSources
    guard: StepGuard
    alarms: TrainingAlarms
    has_heldout: bool
    reference_adapters: list[str]
    _replies: list[Reply]  # the newest rollout's, of this process
    _heard_ids: list[list[int]] | None  # its prompts and replies as reward models read them; None: as sampled
    _micro_batch_tokens: int | None  # that a micro-batch holds at most; None: it has a fixed number of rows
    _told_of_silent = False  # that some responses have no score
    _longest_demonstration: int  # of those that are learned beside the rollout, in tokens; 0: none are
    _scoring: Portion  # what goes through the model at once while a rollout is scored
    _steps: list[list[int]]  # micro-batches of each step of this epoch, by number
    _eval_parts: list[dict[str, float]]  # statistics of an evaluation's rollouts

    @property
    def rollouts_done(self) -> int:
        """Rollouts that have been used up; the one in use is not counted."""
        return self._step // (self.args.steps_per_generation * self.num_iterations)

    @torch.no_grad()
    def _rollout(self, inputs: list[dict[str, Any]]) -> list[MicroBatch]:
        """Sample, score and turn into micro-batches that hold everything the update needs.

        `inputs` are rows of the data set, dictionaries because TRL's reward functions get their columns by name.

        Raises:
            Terminated: where SIGTERM is to stop the training; several processes do it together, at its sync points.
        """
        with interruption.broken_off_at_once(self.accelerator.num_processes == 1):
            return self._make_rollout(inputs)

    def _make_rollout(self, inputs: list[dict[str, Any]]) -> list[MicroBatch]:
        training = self.model.training
        prompts = [row["prompt"] for row in inputs]
        sides = [str(row.get("objective") or OVERALL) for row in inputs]
        self._sampled = None
        with active_adapters(self.base_model(), [POLICY]):
            prompt_ids, response_ids, responses = self._generate(prompts)
        inputs, responses = self._read(inputs, prompt_ids, response_ids, responses)
        function_scores = self._function_scores(inputs, prompts, responses, response_ids)
        if training:
            steps = micro_batch_rows(
                [len(ids) for ids in prompt_ids],
                [len(ids) for ids in response_ids],
                self.args.num_mini_batches,
                self.args.gradient_accumulation_steps,
                self._micro_batch_tokens,
                self._longest_demonstration,
            )
            together = [rows for step in steps for rows in step]
            numbers = iter(range(len(together)))
            self._steps = [[next(numbers) for _ in step] for step in steps]
        else:
            together = [list(range(len(prompts)))]
        scored = []
        spread = is_sharded(self.accelerator)  # where every process must make as many forwards
        for rows in together:
            if interruption.asked() and not spread:
                break
            padded = pad_rows(
                [prompt_ids[i] for i in rows],
                [response_ids[i] for i in rows],
                self._tokenizer.pad_token_id,
                self.accelerator.device,
            )
            scored.append(self._score_in_portions(padded, function_scores[rows], rows))
        stop_if_asked(self.accelerator)
        order = [i for rows in together for i in rows]
        prompts, responses = [prompts[i] for i in order], [self._shown(i, responses[i]) for i in order]
        scores = torch.cat([b.raw_scores for b in scored])
        if self.scores.may_be_silent:
            scored = self._without_silence(scored)
        heard = [place for place, score in enumerate(scores.tolist()) if not math.isnan(score)]
        scores = torch.cat([b.raw_scores for b in scored])
        check_scores(scores, prompts, responses)
        if training:
            self.score_moments.update(scores[heard], [sides[order[place]] for place in heard], self._total)
        paid = [self._normalised(batch.raw_scores, [sides[i] for i in batch.rows]) for batch in scored]
        kl_coef = self.kl_controller.value
        demonstrations = self._demonstrations(scored) if training else None
        batches = finish_rollout(scored, paid, self.args, kl_coef, self._total, demonstrations)
        counted = batches if training else [rows_of(batch, slice(self._dealt(len(inputs)))) for batch in batches]
        metrics = rollout_statistics(counted, kl_coef, self._total)
        self._record(prompts, responses, scores, torch.cat([b.sequence_kl for b in batches]))
        if training:
            self._after_rollout(metrics)
        else:
            self._eval_parts.append(metrics)
        return batches

    def _dealt(self, rows: int) -> int:
        """How many of this process's rows of an evaluation's batch are its own, the others being there to fill it up.

        accelerate fills the last batches of several processes with rows from the beginning, which have been counted.
        """
        dealing, world = self.accelerator.gradient_state, self.accelerator.num_processes
        if world == 1 or not dealing.end_of_dataloader:
            return rows
        asked = len(dealing.active_dataloader.dataset) * self.num_generations_eval
        return min(max((asked % (rows * world) or rows * world) - self.accelerator.process_index * rows, 0), rows)

    def _read(
        self, inputs: list[dict[str, Any]], prompt_ids: Any, response_ids: Any, responses: list[Any]
    ) -> tuple[list[dict[str, Any]], list[Any]]:
        """Tell thoughts from replies (`_replies`): a thought is sampled and learned, and nobody judges it.

        Returns:
            The rows, with the thoughts in a column of its own where prompts are messages, and the responses without.
        """
        prompts, stops, tokenizer = [row["prompt"] for row in inputs], self.eos_token_ids, self._tokenizer
        self._heard_ids = None
        if not is_conversational(inputs[0]):
            rows = zip(prompt_ids, response_ids, responses, strict=True)
            self._replies = [Reply(of_prompt, ids, text.strip(), ids[-1] in stops) for of_prompt, ids, text in rows]
            return inputs, responses
        self._replies = [reply_of(tokenizer, *row, stops) for row in zip(prompt_ids, response_ids, strict=True)]
        inputs = [row | {THOUGHT: reply.thought} for row, reply in zip(inputs, self._replies, strict=True)]
        if any(reply.start for reply in self._replies):
            self._heard_ids = ids_to_score(tokenizer, prompts, self._replies)
            responses = [[{"role": "assistant", "content": reply.text}] for reply in self._replies]
        return inputs, responses

    def _shown(self, row: int, response: Any) -> Any:
        """A response as it is recorded: with its thought."""
        thought = self._replies[row].thought
        return [{**response[0], KEY: thought}] if thought else response

    def _without_silence(self, batches: list[ScoredRows]) -> list[ScoredRows]:
        """With the mean score of the rollout, over all processes, where functions alone score and all returned None."""
        raw = torch.cat([batch.raw_scores for batch in batches])
        rows, silent = int(self._total(torch.ones_like(raw).sum())), int(self._total(raw.isnan().sum()))
        check_some_scored(rows - silent, rows)
        mean = self._total(raw.nansum()) / (rows - silent)
        if self.model.training:
            self._metrics["train"]["objective/unscored"].append(silent / rows)
        if silent and not self._told_of_silent:
            self._told_of_silent = True
            announce(told_of_silent(silent, rows))
        return [replace(b, raw_scores=torch.where(b.raw_scores.isnan(), mean, b.raw_scores)) for b in batches]

    def _demonstrations(self, batches: list[ScoredRows]) -> list[Demonstrations] | None:
        """What is to be imitated beside each micro-batch, another draw for each rollout and process."""
        if not self.args.ptx_coef:
            return None
        seed = (self.args.seed * 1_000_003 + self.rollouts_done) * 1_009 + self.accelerator.process_index
        return draw_demonstrations(
            batches, self.ptx_dataset, self._tokenizer.pad_token_id, seed, self.args.num_mini_batches, self._total
        )

    def _after_rollout(self, metrics: dict[str, float]) -> None:
        """Log, steer the KL's coefficient, stop where the KL is beyond its limit."""
        episodes = int(metrics.pop("episodes"))
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)
        kl = metrics["objective/kl"]
        if self.rollouts_done >= self.args.value_warmup_rollouts:  # before, the policy stands still
            self.kl_controller.update(kl, episodes)
        self._raise_alarms(metrics)
        if self.args.kl_limit is not None and kl > self.args.kl_limit:
            self.alarms.kl_over(self.state.global_step, kl, self.args.kl_limit)
            self._write_alarms()
            self._stop_before_learning()
            self._say(
                f"  note: PPO stops at step {self.state.global_step}: the rollout's KL to the reference, {kl:.3g} nats "
                f"per response, is over kl_limit ({self.args.kl_limit:g}). The policy is the one before this rollout.",
            )

    def _raise_alarms(self, metrics: dict[str, float]) -> None:
        """Tell what begins to be wrong with values or entropy, and what no longer is; stop where that is asked for."""
        news = self.alarms.see(self.state.global_step, metrics)
        for one in news:
            self._say(f"  {'warning' if one['began'] else 'note'}: {one['text']}")
        if news:
            self._write_alarms()
        if any(one["began"] for one in news) and self.args.alarm_action == "stop":
            self._stop_before_learning()
            self._say(
                f"  note: alarm_action stops PPO at optimizer step {self.state.global_step}. The policy is the one "
                "before this rollout.",
            )

    def _stop_before_learning(self) -> None:
        """End training with the weights that made this rollout."""
        self.guard.rest_is_skipped = self.control.should_training_stop = True

    def _write_alarms(self) -> None:
        if self.accelerator.is_main_process:
            self.alarms.write()

    def _score_in_portions(self, padded: PaddedRows, function_scores_BF: Tensor, rows: list[int]) -> ScoredRows:
        def score(places: Sequence[int]) -> ScoredRows:
            part = slice(places[0], places[-1] + 1)
            return self._score(rows_of(padded, part), function_scores_BF[part], rows[part])

        return rows_together(self._scoring.run(score, range(len(rows)), padded.input_ids.size(1)))

    def _score(self, padded: PaddedRows, function_scores_BF: Tensor, rows: list[int]) -> ScoredRows:
        """What the rollout's weights say of one micro-batch: old log-probabilities and values, reference, scores."""
        inputs, mask, sampled = padded.model_inputs(), padded.response_mask, self._sampled
        with self.accelerator.autocast():
            if sampled is not None and sampled.values is not None:
                assert sampled.entropies is not None
                seen = (sampled.logprobs, sampled.entropies, sampled.values)
                old_logprobs, entropies, old_values = (pad_tokens([row_of[i] for i in rows], mask) for row_of in seen)
            else:
                policy = self.model(**inputs)
                old_logprobs, entropies, old_values = policy["logprobs"], policy["entropies"], policy["value_estimates"]
            if is_peft_model(self.model):
                with active_adapters(self.base_model(), self.reference_adapters):
                    reference = self.model(**inputs, with_value=False, with_entropy=False)
            else:
                reference = (self.ref_model or self.model)(**inputs, with_value=False, with_entropy=False)
            judges = [*self.scores.adapters, *([HELDOUT] if self.has_heldout and not self.model.training else [])]
            heard = padded.input_ids, padded.attention_mask
            if self._heard_ids is not None:
                heard = right_padded([self._heard_ids[i] for i in rows], self._tokenizer.pad_token_id, mask.device)
            adapter_scores = {name: role_scores(self.model, name, *heard) for name in judges}
        heldout = {HELDOUT: adapter_scores.pop(HELDOUT)} if HELDOUT in adapter_scores else {}
        scores = self.scores.of_batch(adapter_scores, function_scores_BF)
        engine_logprobs = importance = None
        if sampled is not None and sampled.values is None:  # another engine's kernels sampled
            engine_logprobs = pad_tokens([sampled.logprobs[i] for i in rows], mask)
            importance = objectives.importance_weights(old_logprobs, engine_logprobs, mask, self.args.importance_cap)
        return ScoredRows(
            **vars(padded),
            rows=rows,
            stopped=stopped_by_itself(padded.input_ids, mask, self.eos_token_ids),
            old_logprobs=old_logprobs,
            old_values=old_values,
            entropies=entropies,
            ref_logprobs=reference["logprobs"],
            raw_scores=scores.raw,
            source_scores=heldout | scores.by_source,
            engine_logprobs=engine_logprobs,
            importance=importance,
        )

    def _function_scores(self, inputs: list[Any], prompts: list[Any], responses: list[Any], ids: list[Any]) -> Tensor:
        """Unweighted scores of `reward_funcs` for this process's rows, shape (rows, functions)."""
        if not self.reward_funcs:
            return torch.zeros(len(prompts), 0, device=self.accelerator.device)
        gathered: Tensor = self._calculate_rewards(inputs, prompts, responses, ids)
        start = self.accelerator.process_index * len(prompts)
        return gathered[start : start + len(prompts)]

    def _normalised(self, scores_B: Tensor, sides_B: list[str]) -> Tensor:
        """Scores as PPO pays them; before the first rollout, where they have no scale yet, as they are."""
        if self.args.score_normalization != "none":
            if not self.score_moments.known:
                return scores_B
            scores_B = self.score_moments.normalised(scores_B, sides_B, self.args.score_normalization)
        return scores_B.clamp(*self.reward_clip_range) if self.reward_clip_range else scores_B

    def _say(self, line: str) -> None:
        """Print once, above the progress line."""
        if self.accelerator.is_main_process:
            tell(line)

    def _total(self, x: Tensor) -> Tensor:
        return self.accelerator.reduce(x, reduction="sum")

    def _record(self, prompts: list[Any], responses: list[Any], scores: Tensor, kls: Tensor) -> None:
        """Sampled rollouts for the parent's completion table and for `samples_file`."""
        rows = gather_object(list(zip(prompts, responses, scores.tolist(), kls.tolist(), strict=True)))
        for prompt, response, score, _ in rows:
            self._logs["prompt"].append(prompt)
            self._logs["completion"].append(response)
            self._logs["rewards"]["score"].append(score)
            self._logs["advantages"].append(score)
        if self.samples_file is None or not self.accelerator.is_main_process:
            return
        split = "train" if self.model.training else "eval"
        step = self.state.global_step + (split == "train")  # a rollout belongs to the steps that learn from it
        for prompt, response, score, kl in rows[: self.samples_per_rollout]:
            row = {"step": step, "split": split, "prompt": prompt, "response": response, "score": score, "kl": kl}
            append_line(self.samples_file, row)
