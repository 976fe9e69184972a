"""Evaluation between rollouts: on prompts kept back, side by side, and the guard that acts on it.

The first one is of the starting policy, before anything is learned, so that there is something to fall from. None of it
changes training's random numbers. Private methods of transformers' Trainer that are overridden: none; `prediction_step`
and `evaluation_loop` are public.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset

from llm_rlhf.models.roles import HELDOUT
from llm_rlhf.ppo.collecting import CollectedRollouts
from llm_rlhf.ppo.config import PPOConfig
from llm_rlhf.ppo.preparation import OVERALL
from llm_rlhf.ppo.preview import PREVIEW, preview, preview_lines
from llm_rlhf.ppo.watch import LEAST_PROMPTS, Row, Watch, by_objective
from llm_rlhf.run_folder import write_json

NUMBER = "number_kept_back"  # the column that says which prompt an evaluation's row is
Refuses = Callable[[Sequence[str], Sequence[str]], Sequence[bool]]


class WatchedEvaluation(CollectedRollouts):
    """The part of PPOTrainer that evaluates."""

    refuses: Refuses | None
    _eval_rows: list[tuple[int, Row]]

    def _watch_over(self, eval_dataset: Any, args: PPOConfig) -> Any:
        """Begin to watch, where there is one list of prompts: returns it with their numbers in it."""
        self._eval_parts, self._eval_rows, self.watch = [], [], None
        if isinstance(eval_dataset, Dataset):
            level = None if args.side_guard == "off" else args.side_guard_level
            self.watch = Watch(Path(args.output_dir), level)
            return eval_dataset.add_column(NUMBER, list(range(len(eval_dataset))))
        return eval_dataset

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """A rollout without an update; its statistics are the evaluation."""
        self._sample_rows(inputs)
        return None, None, None

    def _sample_rows(self, inputs: list[dict[str, Any]]) -> None:
        """A reply to every prompt of a batch, and what is known of it."""
        numbers = [row.get(NUMBER) for row in inputs]
        (batch,) = self._rollout([{name: row[name] for name in row if name != NUMBER} for row in inputs])
        prompts = [_last_words(row["prompt"]) for row in inputs]
        replies = [self._replies[i] for i in batch.rows]
        refused = None if self.refuses is None else self.refuses(prompts, [reply.text for reply in replies])
        heldout = batch.source_scores[HELDOUT].tolist() if HELDOUT in batch.source_scores else None
        scores, paid = batch.raw_scores.tolist(), batch.final_scores.tolist()
        for i, number in enumerate(numbers[: self._dealt(len(inputs))]):  # as in all other statistics
            if number is not None:
                row = Row(
                    objective=str(inputs[i].get("objective") or OVERALL),
                    score=scores[i],
                    heldout=None if heldout is None else heldout[i],
                    refused=None if refused is None else bool(refused[i]),
                    length=len(replies[i].said_ids),
                    paid=paid[i],
                )
                self._eval_rows.append((number, row))

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """The parent's, with the same random numbers every time, and its statistics weighted by their responses."""
        self._eval_parts, self._eval_rows = [], []
        with self._own_random_numbers():
            output = super().evaluation_loop(dataloader, *args, **kwargs)
            parts, rows = self._eval_parts, self._gathered_rows()
            starts = self.is_in_train and self.state.global_step == 0 and self.watch is not None
            if starts and self.args.preview_best_of > 1:
                self._preview(dataloader, rows)
        prefix = kwargs.get("metric_key_prefix", "eval")
        episodes = sum(part["episodes"] for part in parts)
        for name in parts[0]:
            if name != "episodes":
                mean = sum(part[name] * part["episodes"] for part in parts) / episodes
                output.metrics[f"{prefix}_{name.replace('scores/heldout', 'heldout/scores')}"] = mean
        for side, means in by_objective(rows.values()).items():
            output.metrics.update(
                {f"{prefix}_{side}/{name}": mean for name, mean in means.items() if name != "prompts"}
            )
        self._metrics["eval"].clear()
        if self.is_in_train and self.watch is not None:
            self._judge_sides(self.watch, rows)
        return output

    @contextlib.contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Random numbers that are the same at every evaluation; training's go on afterwards as if nothing had been."""
        devices = [self.accelerator.device] if self.accelerator.device.type != "cpu" else []
        with torch.random.fork_rng(devices=devices, device_type=self.accelerator.device.type):
            torch.manual_seed(self.args.seed + self.accelerator.process_index)
            yield

    def _gathered_rows(self) -> dict[int, Row]:
        """The rows of all processes by number."""
        return {number: Row(*row) for number, row in gather_object(self._eval_rows)}

    def _judge_sides(self, watch: Watch, rows: dict[int, Row]) -> None:
        """Compare with the start; say what is new, and stop where `side_guard` says so."""
        first = not watch.lines
        news = watch.see(self.state.global_step, rows, self.evaluations_planned, self.accelerator.is_main_process)
        judged = watch.level is not None
        if first and judged and (few := watch.too_few()):
            told = ", ".join(f"{side} {count}" for side, count in few.items())
            self._say(
                f"  note: too few prompts are kept back to tell whether a side gets worse ({told}; it takes "
                f"{LEAST_PROMPTS}). Raise eval_prompts, or give PPO more prompts of that kind."
            )
        if first and judged and (blind := [side for side, measures in watch.measured.items() if not measures]):
            self._say(
                f"  note: of {', '.join(blind)} prompts nothing but the training reward is known, so that nobody can "
                "tell whether that side gets worse; give a held-out reward model (heldout_adapter; in a recipe, "
                "data.heldout_share)."
            )
        for one in news:
            self._say(f"  {'warning' if one['what'] == 'worse' else 'note'}: {one['text']}")
        if watch.worse and self.args.side_guard == "stop":
            self.control.should_training_stop = True
            self._say(f"  note: side_guard stops PPO at optimizer step {self.state.global_step}.")

    @property
    def evaluations_planned(self) -> int:
        """Evaluations of the whole run, the first one not counted."""
        if self.args.eval_strategy == "steps":
            return max(1, self.state.max_steps // max(1, int(self.args.eval_steps)))
        return max(1, math.ceil(self.args.num_train_epochs))

    def _preview(self, dataloader: Any, rows: dict[int, Row]) -> None:
        """The best of n replies of the starting policy, of which the evaluation has sampled the first."""
        samples = [rows]
        kept, self._eval_parts = self._eval_parts, []
        file, self.samples_file = self.samples_file, None
        try:
            for _ in range(self.args.preview_best_of - 1):
                self._eval_rows = []
                for inputs in dataloader:
                    self._sample_rows(inputs)
                samples.append(self._gathered_rows())
        finally:
            self._eval_parts, self.samples_file = kept, file
        texts = {number: str(self.eval_dataset[number]["prompt"]) for number in rows}
        found = preview(samples, texts)
        if self.accelerator.is_main_process:
            write_json(Path(self.args.output_dir) / PREVIEW, found)
        for line in preview_lines(found):
            self._say(f"  {line}")


def _last_words(prompt: Any) -> str:
    """What the reply answers: the last message of a conversation, or the text itself."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
