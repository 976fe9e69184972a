"""Divides the rows of a recipe's data section among the stages, so that nothing evaluated on was trained on.

1. Every preference pair falls to evaluation, the held-out judge or the reward model by the hash of its first user turn.
   The first user turn, not the whole prompt: conversations are often cut into several rows, one a turn, and the prompt
   of one row then holds the reply that another is asked for. Rows with the same opening stay together.
2. `from: preferences` gives training stages the pairs of the training side and evaluation those of the other.
3. Whatever training would take from elsewhere is checked against the openings of all evaluation pairs and prompts;
   rows that share one are removed and counted as leaks.
"""

from dataclasses import dataclass, fields
from typing import Any

from llm_rlhf.data.checks import DataError, SetAside, opening, openings, prompt_share, without_openings
from llm_rlhf.data.rows import Demonstration, Preference, Prompt
from llm_rlhf.data.sources import load_demonstrations, load_preferences, load_prompts
from llm_rlhf.recipe import DataSection


@dataclass
class Splits:
    """The rows each stage works on. A conversation's opening is on one side only: training or evaluation."""

    reward_pairs: list[Preference]  # train the reward model
    judge_pairs: list[Preference]  # train the held-out judge, which PPO never sees
    evaluation_pairs: list[Preference]  # how often a reward model agrees with people
    demonstrations: list[Demonstration]
    prompts: list[Prompt]  # what PPO samples replies to
    evaluation_prompts: list[Prompt]
    counts: dict[str, Any]  # plain values: rows read, kept and set aside by kind, sizes of splits, leaks removed


def load_splits(data: DataSection) -> tuple[Splits, list[SetAside]]:
    """Read all sources and divide them; also the rows set aside on the way, for the quarantine file.

    Raises:
        DataError: when a source cannot be used or a split that is asked for is empty.
    """
    preferences = load_preferences(data.preferences)
    reward_pairs, judge_pairs, evaluation_pairs = divide_pairs(preferences.rows, data.held_out, data.judge_share)
    training_pairs = reward_pairs + judge_pairs
    pair_splits = {"reward_pairs": reward_pairs, "judge_pairs": judge_pairs, "evaluation_pairs": evaluation_pairs}
    _refuse_empty(data, {name: len(pairs) for name, pairs in pair_splits.items()})

    evaluation_prompts = load_prompts(data.evaluation_prompts, evaluation_pairs)
    demonstrations = load_demonstrations(data.demonstrations, training_pairs)
    prompts = load_prompts(data.prompts, training_pairs)

    held = openings(evaluation_pairs) | openings(evaluation_prompts.rows)
    splits = Splits(
        reward_pairs=without_openings(reward_pairs, held),
        judge_pairs=without_openings(judge_pairs, held),
        evaluation_pairs=evaluation_pairs,
        demonstrations=without_openings(demonstrations.rows, held),
        prompts=without_openings(prompts.rows, held),
        evaluation_prompts=evaluation_prompts.rows,
        counts={},
    )
    splits.counts = {
        "preferences": preferences.counts(),
        "demonstrations": demonstrations.counts(),
        "prompts": prompts.counts(),
        "evaluation_prompts": evaluation_prompts.counts(),
        "splits": {f.name: len(getattr(splits, f.name)) for f in fields(Splits) if f.name != "counts"},
        "leaks_removed": {
            "reward_pairs": len(reward_pairs) - len(splits.reward_pairs),
            "judge_pairs": len(judge_pairs) - len(splits.judge_pairs),
            "demonstrations": len(demonstrations.rows) - len(splits.demonstrations),
            "prompts": len(prompts.rows) - len(splits.prompts),
        },
    }
    _refuse_empty(data, splits.counts["splits"], splits.counts["leaks_removed"])
    set_aside = (preferences, demonstrations, prompts, evaluation_prompts)
    return splits, [item for loaded in set_aside for item in loaded.set_aside]


def divide_pairs(
    pairs: list[Preference], held_out: float, judge_share: float
) -> tuple[list[Preference], list[Preference], list[Preference]]:
    """Pairs for the reward model, the judge and evaluation, by the share of their first user turn.

    Shares below `held_out` are for evaluation; of the rest, the lower `judge_share` for the judge.
    """
    reward: list[Preference] = []
    judge: list[Preference] = []
    evaluation: list[Preference] = []
    judge_below = held_out + (1 - held_out) * judge_share
    for pair in pairs:
        share = prompt_share(opening(pair.prompt), "split")
        (evaluation if share < held_out else judge if share < judge_below else reward).append(pair)
    return reward, judge, evaluation


def _refuse_empty(data: DataSection, sizes: dict[str, int], leaks: dict[str, int] | None = None) -> None:
    """DataError for a split that the section asks for and that came out empty, with the key to change."""
    pairs_read = bool(data.preferences)
    reused = any(source.from_ == "preferences" for source in data.evaluation_prompts)
    held_out = f"'data.held_out' ({data.held_out})"
    judge_share = f"'data.judge_share' ({data.judge_share})"
    needed = {
        "evaluation_pairs": (pairs_read and (data.held_out > 0 or reused), f"raise {held_out}"),
        "reward_pairs": (pairs_read, f"lower {judge_share} or {held_out}"),
        "judge_pairs": (pairs_read and data.judge_share > 0, f"raise {judge_share}, set it to 0, or lower {held_out}"),
        "demonstrations": (bool(data.demonstrations), "name another source in 'data.demonstrations'"),
        "prompts": (bool(data.prompts), "name another source in 'data.prompts'"),
        "evaluation_prompts": (bool(data.evaluation_prompts), "name another source in 'data.evaluation_prompts'"),
    }
    for name, (is_needed, remedy) in needed.items():
        if is_needed and sizes.get(name) == 0:
            leaked = (leaks or {}).get(name, 0)
            why = f" after {leaked} rows that share a first user turn with evaluation were removed" if leaked else ""
            raise DataError(f"The split {name} is empty{why}; {remedy}, or add rows to the sources.")
