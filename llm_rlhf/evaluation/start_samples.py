"""Replies of the starting model to prompts of the training pairs: what scores are normalised and checked on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm_rlhf.data.checks import prompt_share
from llm_rlhf.data.rows import Preference, Prompt
from llm_rlhf.errors import DataError
from llm_rlhf.evaluation.refusal_detector import detect_all
from llm_rlhf.evaluation.suites.reward_accuracy import OBJECTIVES
from llm_rlhf.models.base import context_limit
from llm_rlhf.models.fitting import Fitted, fit_prompts
from llm_rlhf.models.inference import Reply, ids_to_score, sample_replies, score_ids
from llm_rlhf.recipe.sections import Recipe, stage_options


@dataclass
class StartSamples:
    """One sampled reply to each prompt, with what is known of it.

    The first `counted` are a sample of the prompts as they come, chosen by a hash; after them stand more of objectives
    that are rare among those, so that each has enough to be looked at by itself.
    """

    prompts: list[Prompt]
    replies: list[Reply]
    counted: int
    refused: list[bool]  # by the refusal detector
    scores: dict[str, np.ndarray] = field(default_factory=dict)  # by adapter, as trained; float64

    def rows_of(self, objective: str) -> list[int]:
        """Row numbers of the replies to prompts of this objective."""
        return [i for i, prompt in enumerate(self.prompts) if prompt.objective == objective]


def sample_start(
    recipe: Recipe, model: Any, tokenizer: Any, names: Sequence[str], pairs: Sequence[Preference]
) -> StartSamples | None:
    """Sample the replies and score them with every adapter; None where the recipe wants none.

    Raises:
        DataError: where fewer than two prompts leave room for a reply.
    """
    options = stage_options(recipe, "reward")
    if not options.reference_samples:
        return None
    room = context_limit(recipe.model, model.config) - options.reference_length
    asked = [Prompt(pair.prompt, pair.objective, pair.origin) for pair in pairs]
    account = Fitted(room, "reference prompts")
    fitting = fit_prompts(tokenizer, asked, account) if room > 0 else []
    if len(fitting) < 2:
        raise DataError(nowhere_to_reply(options.reference_length, account))
    prompts, counted = choose_prompts(fitting, options.reference_samples)
    replies = sample_replies(
        model,
        tokenizer,
        [prompt.messages for prompt in prompts],
        [],
        response_length=options.reference_length,
        temperature=1.0,
        seed=recipe.seed,
        progress="reward: reference replies",
    )
    found = detect_all([prompt.messages[-1]["content"] for prompt in prompts], [reply.text for reply in replies])
    samples = StartSamples(prompts, replies, counted, [refusal.refused for refusal in found])
    rows = ids_to_score(tokenizer, [prompt.messages for prompt in prompts], replies)
    for name in names:
        samples.scores[name] = score_ids(model, name, rows, tokenizer.pad_token_id).astype(float)
    return samples


def nowhere_to_reply(reference_length: int, account: Fitted) -> str:
    """What to say where fewer than two prompts leave room for a reply."""
    return (
        f"The mean score of reference replies takes two prompts of training pairs that leave room for replies of "
        f"{reference_length} tokens, and there {'is one' if account.kept else 'is none'}; lower "
        f"reward.reference_length, set reward.reference_samples to 0, or add pairs.{account.objection}"
    )


def choose_prompts(prompts: Sequence[Prompt], samples: int) -> tuple[list[Prompt], int]:
    """`samples` of the prompts by a hash, then more of each objective that has fewer than half as many among them.

    Returns:
        The prompts, and how many stand before the additional ones.
    """
    by_share = sorted(prompts, key=lambda prompt: prompt_share(prompt.messages, "reference"))
    first, rest = by_share[:samples], by_share[samples:]
    chosen = list(first)
    for objective in OBJECTIVES:
        wanted = samples // 2 - sum(prompt.objective == objective for prompt in first)
        chosen += [prompt for prompt in rest if prompt.objective == objective][: max(wanted, 0)]
    return chosen, len(first)
