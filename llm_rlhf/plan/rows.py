"""How many rows each stage takes, how long the longest is, and how many steps that makes; cut as the stages cut.

Of long lists some rows are measured: the longest by letters, which decide about memory, and others at even distances,
by which the rest is estimated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llm_rlhf.data.rows import Preference, Prompt
from llm_rlhf.data.splits import Splits
from llm_rlhf.errors import DataError
from llm_rlhf.evaluation.suites.refusals import shipped_prompts
from llm_rlhf.methods.prompts import keep_back, no_room
from llm_rlhf.models.encoding import encode_prompt, encode_reply, encode_whole_replies
from llm_rlhf.models.fitting import Fitted, fit_demonstrations, fit_preferences, fit_prompts
from llm_rlhf.recipe.loading import UNTRAINED, sampling, steps_for
from llm_rlhf.recipe.sections import OFFLINE, ONLINE, Recipe, method_options, stage_options
from llm_rlhf.stages.sft import none_fits

MEASURED = 1000  # rows of a list whose tokens are counted: half the longest, half at even distances


@dataclass(frozen=True)
class Measured:
    """Rows of one list that fit, in tokens. Estimated where not all of the list was measured."""

    rows: int
    longest: int
    tokens: int
    exact: bool = True


def measured(
    rows: Sequence[Any], fit: Callable[[list[Any], Fitted], Sequence[Any]], length: Callable[[Any], int], limit: int
) -> Measured:
    """What the rows come to that fit into the limit.

    Args:
        fit: one of models/fitting.py, of some rows.
        length: tokens of what `fit` returned of one.
    """
    account = Fitted(limit, "rows")
    if len(rows) <= MEASURED:
        lengths = [length(row) for row in fit(list(rows), account)]
        return Measured(len(lengths), max(lengths, default=0), sum(lengths))
    letters = [len(str(row)) for row in rows]
    by_letters = sorted(range(len(rows)), key=letters.__getitem__, reverse=True)
    long = [length(row) for row in fit([rows[i] for i in by_letters[: MEASURED // 2]], account)]
    spread = [rows[number * len(rows) // (MEASURED // 2)] for number in range(MEASURED // 2)]
    lengths = [length(row) for row in fit(spread, account)]
    share = len(rows) / len(spread)
    return Measured(round(len(lengths) * share), max([*long, *lengths], default=0), round(sum(lengths) * share), False)


@dataclass(frozen=True)
class Lists:
    """The lists that a recipe's stages take, measured; None where the recipe has no stage for it."""

    sft: Measured | None = None
    reward: dict[str, Measured] | None = None  # by adapter, the held-out one's with them
    pairs: Measured | None = None  # of DPO and KTO
    prompts: Measured | None = None  # that the method trains on
    kept_back: Measured | None = None  # of these, that PPO evaluates on
    demonstrations: Measured | None = None  # that PPO mixes in
    evaluation_prompts: Measured | None = None
    evaluation_pairs: Measured | None = None


class Measuring:
    """Measures a recipe's lists with its tokenizer.

    Args:
        context: tokens that prompt and reply may take together.
    """

    def __init__(self, recipe: Recipe, tokenizer: Any, context: int, configs: dict[str, Any]) -> None:
        self.recipe, self.tokenizer, self.context, self.configs = recipe, tokenizer, context, configs

    def lists(self, splits: Splits, adapters: dict[str, Sequence[Preference]]) -> Lists:
        """All of them.

        Args:
            adapters: the pairs of every reward adapter that is trained.
        """
        recipe, configs, method = self.recipe, self.configs, self.recipe.method
        known: dict[str, Any] = {}
        if "sft" in configs:
            known["sft"] = self.demonstrations(splits.demonstrations, self._limit("sft"))
            if not known["sft"].rows:
                raise DataError(none_fits(Fitted(self._limit("sft"), "demonstrations")))
        if "reward" in configs:
            limit = self._limit("reward")
            known["reward"] = {name: self.pairs(rows, limit) for name, rows in adapters.items()}
        if method in OFFLINE and method in configs:
            known["pairs"] = self.pairs(splits.reward_pairs, self._limit(str(method)), whole=True)
        elif method in configs:
            known["prompts"], known["kept_back"] = self._prompts(splits)
            if getattr(configs[str(method)], "ptx_coef", 0):
                known["demonstrations"] = self.demonstrations(splits.demonstrations, self.context)
        if recipe.evaluate is not None and method is not None:
            room = self.context - (recipe.evaluate.response_length or (sampling(recipe) or UNTRAINED)[0])
            asked = [*splits.evaluation_prompts]
            if "refusals" in recipe.evaluate.suites:
                asked += shipped_prompts(recipe.evaluate.refusal_prompts)
            known["evaluation_prompts"] = self.prompts(asked, room)
        if len(splits.evaluation_pairs):
            known["evaluation_pairs"] = self.pairs(splits.evaluation_pairs, self.context)
        return Lists(**known)

    def demonstrations(self, rows: Sequence[Any], limit: int) -> Measured:
        def fit(some: list[Any], account: Fitted) -> Sequence[Any]:
            return fit_demonstrations(self.tokenizer, some, account)

        return measured(rows, fit, lambda example: len(example["input_ids"]), limit)

    def pairs(self, rows: Sequence[Preference], limit: int, whole: bool = False) -> Measured:
        """Of each pair the longer reply behind its prompt; `whole`: with its thought, as a policy says it."""

        def fit(some: list[Any], account: Fitted) -> Sequence[Any]:
            how = {"encode": encode_whole_replies} if whole else {}
            return fit_preferences(self.tokenizer, some, account, **how)

        def length(pair: Preference) -> int:
            if whole:
                both = encode_whole_replies(self.tokenizer, [pair.prompt] * 2, [pair.chosen, pair.rejected])
                return max(len(each.ids) for each in both)
            return max(
                len(encode_reply(self.tokenizer, pair.prompt, text).ids) for text in (pair.chosen, pair.rejected)
            )

        return measured(rows, fit, length, limit)

    def prompts(self, rows: Sequence[Prompt], room: int) -> Measured:
        def fit(some: list[Any], account: Fitted) -> Sequence[Any]:
            return fit_prompts(self.tokenizer, some, account)

        return measured(rows, fit, lambda prompt: len(encode_prompt(self.tokenizer, prompt.messages)), room)

    def _prompts(self, splits: Splits) -> tuple[Measured, Measured]:
        """The prompts to train on, and those kept back."""
        recipe = self.recipe
        room = self.context - (sampling(recipe) or UNTRAINED)[0]
        trained, kept = keep_back(splits.prompts, method_options(recipe).eval_prompts)
        found = self.prompts(trained, room)
        if not found.rows:
            raise DataError(no_room(recipe, Fitted(room, "prompts")))
        return found, self.prompts(kept, room)

    def _limit(self, stage: str) -> int:
        return min(self.configs[stage].max_length or 2**30, self.context)


def optimizer_steps(recipe: Recipe, stage: str, config: Any, rows: int, processes: int) -> int:
    """Optimizer steps of a stage's trainer over so many rows."""
    if config.max_steps > 0:
        return int(config.max_steps)
    if stage in ONLINE:
        if stage != "ppo" and (episodes := stage_options(recipe, stage).total_episodes) is not None:
            return steps_for(config, episodes, rows)
        rollouts = rows // (config.generation_batch_size // config.num_generations)
        steps = rollouts * config.steps_per_generation * config.num_iterations // config.gradient_accumulation_steps
        return math.ceil(steps * config.num_train_epochs)
    batches = math.ceil(rows / (config.per_device_train_batch_size * processes))
    return math.ceil(math.ceil(batches / config.gradient_accumulation_steps) * config.num_train_epochs)
