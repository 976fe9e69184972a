"""The prompts that a method samples replies to: those that leave room for one, less some that are kept back.

PPO evaluates on those kept back; the other methods leave them alone, so that all train on the same prompts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from llm_rlhf.data.checks import prompt_share
from llm_rlhf.data.rows import Prompt
from llm_rlhf.errors import DataError
from llm_rlhf.models.fitting import Fitted, fit_prompts
from llm_rlhf.recipe.loading import UNTRAINED, length_key, sampling
from llm_rlhf.recipe.sections import Recipe, method_options
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.runs import splits


def training_prompts(
    recipe: Recipe, run_folder: RunFolder, folder: Path, tokenizer: Any, room: int
) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to train on, and those kept back; their account is written into `folder`.

    Args:
        room: tokens that a prompt may take: the context less the longest reply.

    Raises:
        DataError: where none leaves room for a reply.
    """
    account = Fitted(room, "prompts")
    prompts = fit_prompts(tokenizer, splits(recipe, run_folder).prompts, account) if room > 0 else []
    if not prompts:
        raise DataError(no_room(recipe, account))
    if run_folder.state.is_main_process:
        write_accounts(folder, account)
    return keep_back(prompts, method_options(recipe).eval_prompts)


def write_accounts(folder: Path, *accounts: Fitted) -> None:
    """The accounts in place of what an interrupted launch wrote of them."""
    for name in ("lengths.json", "too_long.jsonl", "refused_by_template.jsonl"):
        (folder / name).unlink(missing_ok=True)
    for account in accounts:
        account.write(folder)


def no_room(recipe: Recipe, account: Fitted) -> str:
    """What to say where no prompt fits into the account's limit, the context less the response."""
    response_length, _ = sampling(recipe) or UNTRAINED
    return (
        f"No prompt leaves room for {recipe.method}.{length_key(recipe)} ({response_length}) in the model's context "
        f"({account.limit + response_length} tokens); lower it.{account.objection}"
    )


def number_kept_back(prompts: int, count: int) -> int:
    """How many of so many prompts are kept back where `count` are asked for."""
    return min(count, prompts // 10)


def keep_back(prompts: Sequence[Prompt], count: int) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to train on, and those to evaluate on: `count`, a tenth of all at most, by a hash of the prompt.

    Each objective gives equally many, but a tenth of its own at most; the others make up for one that has fewer.
    """
    by_hash = sorted(range(len(prompts)), key=lambda i: prompt_share(prompts[i].messages, "kept back"))
    groups: dict[str, list[int]] = {}
    for i in by_hash:
        groups.setdefault(prompts[i].objective, []).append(i)
    missing = number_kept_back(len(prompts), count)
    chosen: set[int] = set()
    smallest_first = sorted(groups.values(), key=len)
    for done, group in enumerate(smallest_first):
        share = min(missing // (len(smallest_first) - done), len(group) // 10)
        chosen.update(group[:share])
        missing -= share
    rest = [i for i in by_hash if i not in chosen]  # what rounding down has left
    chosen.update(rest[:missing])
    return [p for i, p in enumerate(prompts) if i not in chosen], [prompts[i] for i in sorted(chosen)]


def as_dataset(prompts: Sequence[Prompt]) -> Dataset:
    return Dataset.from_list([{"prompt": prompt.messages, "objective": prompt.objective} for prompt in prompts])
