"""Best of n, imitated: several replies of the start to each prompt, of which the training reward picks one.

Nothing here is random but the sampling, which is a function of the seed. Layout: B replies, F reward functions and
models of their own.
"""

import asyncio
import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_rlhf.data.checks import prompt_share
from llm_rlhf.data.rows import Prompt
from llm_rlhf.json_lines import read_json_lines
from llm_rlhf.launch import processes
from llm_rlhf.models.base import announce
from llm_rlhf.models.inference import Reply, ReplyCache, ids_to_score, in_batches, sample_replies, score_ids
from llm_rlhf.ppo.guards import check_scores, check_some_scored
from llm_rlhf.ppo.scores import THOUGHT, ScoreSources
from llm_rlhf.recipe.sections import BestOfNOptions
from llm_rlhf.reward.model import RewardModel


def chosen_prompts(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """`limit` of them by a hash, in their order; None: all."""
    by_hash = sorted(range(len(prompts)), key=lambda i: prompt_share(prompts[i].messages, "best of n"))
    return [prompts[i] for i in sorted(by_hash[:limit])]


def pick(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sources: "Sources",
    options: BestOfNOptions,
    cache: ReplyCache,
) -> list[dict[str, Any]]:
    """The best reply to each prompt: a row each with what was picked, its token ids, and the scores of all n.

    Args:
        model: `load_roles` of the start with the reward adapters.
        cache: of the replies, so that an interrupted launch goes on where it stopped.
    """
    n, size = options.n, options.sampling_batch_size
    asked = [prompt for prompt in prompts for _ in range(n)]
    replies = sample_replies(
        model,
        tokenizer,
        [prompt.messages for prompt in asked],
        [],
        response_length=options.response_length,
        temperature=options.temperature,
        seed=sources.seed,
        batch_size=size,
        progress="best_of_n: replies of the start",
        known=cache,
    )
    scores_B = sources.score(model, tokenizer, asked, replies, size)
    if not sources.may_be_silent:
        check_scores(scores_B, [p.messages for p in asked], [reply.text for reply in replies])
    silent = int(scores_B.isnan().sum())
    check_some_scored(len(scores_B) - silent, len(scores_B))
    if silent:
        announce(
            f"{silent} of {len(scores_B)} replies have no score, as no function returned one; none of them is picked."
        )
    stopped_B = torch.tensor([reply.stopped for reply in replies])
    paid_BN = (scores_B - options.missing_eos_penalty * ~stopped_B).view(-1, n)
    paid_BN = paid_BN.masked_fill(paid_BN.isnan(), -math.inf)
    rows = []
    for i, (prompt, paid_N) in enumerate(zip(prompts, paid_BN, strict=True)):
        best = int(paid_N.argmax())
        if paid_N[best] == -math.inf:  # none of them has a score
            continue
        reply = replies[i * n + best]
        rows.append(
            {
                "prompt": prompt.messages,
                "objective": prompt.objective,
                "reply": reply.text,
                "score": float(paid_N[best]),
                "scores": [paid if math.isfinite(paid) else None for paid in paid_N.tolist()],
                "prompt_ids": reply.prompt_ids,
                "reply_ids": reply.ids,
            }
        )
    return rows


class Sources(ScoreSources):
    """What scores a reply, outside of a trainer.

    Args:
        adapters: names of the reward roles that the model carries.
        named: functions (`module:function`), and reward models with a base of their own, by hub id or folder.
        how: the type and quantisation that these are loaded in.
    """

    def __init__(
        self, adapters: dict[str, Any], named: list[str], options: BestOfNOptions, seed: int, **how: Any
    ) -> None:
        super().__init__(adapters, list(named), options)
        self.names += list(named)
        self.is_model += [isinstance(function, str) for function in self.functions]
        self.seed, self.loading = seed, how

    def score(
        self, model: Any, tokenizer: Any, prompts: Sequence[Prompt], replies: Sequence[Reply], batch_size: int
    ) -> Tensor:
        """The score of every reply, shape (B,), float32: what PPO would pay for it before it takes anything off."""
        heard = ids_to_score(tokenizer, [prompt.messages for prompt in prompts], replies)
        by_adapter = {
            name: torch.from_numpy(score_ids(model, name, heard, tokenizer.pad_token_id, batch_size))
            for name in self.adapters
        }
        columns = [self._shared_out(function, prompts, replies) for function in self.functions]
        functions_BF = torch.from_numpy(np.array(columns, dtype=np.float32).reshape(-1, len(replies)).T.copy())
        return self.of_batch(by_adapter, functions_BF).raw

    def _shared_out(self, function: Any, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[float]:
        """What a function or a model says of every reply: each process asks it of as many, each reply once."""

        def ask(parts: Sequence[Sequence[int]]) -> list[list[float]]:
            return [self._of_function(function, [prompts[i] for i in p], [replies[i] for i in p]) for p in parts]

        share = max(1, -(-len(replies) // processes().num_processes))
        shares = [range(start, min(start + share, len(replies))) for start in range(0, len(replies), share)]
        return [score for found in in_batches(shares, ask, 1, len) for score in found]

    def _of_function(self, function: Any, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[float]:
        if isinstance(function, str):
            said = [(prompt.messages, reply.text) for prompt, reply in zip(prompts, replies, strict=True)]
            model = RewardModel.from_pretrained(function, **self.loading)
            shown = processes().is_main_process
            return model.scores_each(said, progress=shown, finished=[r.stopped for r in replies])[:, 0].tolist()
        known: dict[str, Any] = {
            "prompts": [prompt.messages for prompt in prompts],
            "completions": [[{"role": "assistant", "content": reply.text}] for reply in replies],
            "completion_ids": [reply.ids for reply in replies],
            "objective": [prompt.objective for prompt in prompts],
            THOUGHT: [reply.thought for reply in replies],
            "trainer_state": None,
            "log_extra": lambda column, values: None,
            "log_metric": lambda name, value: None,
        }
        found = function(**known)
        return list(asyncio.run(found) if inspect.iscoroutine(found) else found)


def read_picked(path: Path) -> list[dict[str, Any]]:
    """The rows of `picked.jsonl`."""
    return read_json_lines(path)


def sft_rows(picked: Sequence[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """What SFTTrainer takes: the very tokens that were sampled, of which the reply's are trained on."""
    return [
        {
            "input_ids": row["prompt_ids"] + row["reply_ids"],
            "assistant_masks": [0] * len(row["prompt_ids"]) + [1] * len(row["reply_ids"]),
        }
        for row in picked
    ]
