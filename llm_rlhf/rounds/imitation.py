"""A reward learned from demonstrations: what somebody wrote is preferred to what the policy says to the same prompt.

Over rounds, each with the newest policy's samples, a reward model trained on such pairs learns what tells people's
replies from the policy's own, and a policy trained against it comes to say what the demonstrations say: inverse
reinforcement learning, of which SFT alone is the step before the first.

Sources: Li et al. 2024, Getting more juice out of the SFT data: reward learning from human demonstration improves SFT
for LLM alignment (arXiv:2405.17888), algorithm 1; Chen et al. 2024, SPIN (arXiv:2401.01335), for samples of each round.
"""

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from llm_rlhf.ahead import check_rows, look_ahead
from llm_rlhf.data.checks import opening, prompt_share
from llm_rlhf.data.rows import Demonstration, Preference, Prompt, mark_of_cut
from llm_rlhf.data.splits import Splits, sides_of
from llm_rlhf.errors import DataError
from llm_rlhf.evaluation.ask import Base
from llm_rlhf.evaluation.request import Evaluation
from llm_rlhf.evaluation.rewards import Rewards
from llm_rlhf.evaluation.subjects import start_of, subject_of
from llm_rlhf.models.base import context_limit
from llm_rlhf.models.fitting import Fitted, fit_prompts
from llm_rlhf.models.inference import Reply
from llm_rlhf.pipeline import STAGES
from llm_rlhf.recipe.loading import recipe_of
from llm_rlhf.recipe.sections import DataSection, Recipe
from llm_rlhf.run_folder import RunFolder, write_text
from llm_rlhf.runs import data_section, read_data, splits


def check_ahead(first: Recipe) -> None:
    """What would end the first round, told before SFT alone is trained.

    Raises:
        RecipeError, DataError: from the recipe, files of models and, but of a world, whose are enough, rows.
    """
    stages = [stage for stage in STAGES if getattr(first, stage) is not None]
    with tempfile.TemporaryDirectory() as folder:
        ahead = look_ahead(first, RunFolder(folder), stages)
        if first.world is None and first.feedback is None:
            found, _ = read_data(first, RunFolder(folder))
            check_rows(ahead, foreseen(found, data_section(first, Path(folder))))


def write_imitation_pairs(
    run: Path, file: Path, seed: int = 0, response_length: int | None = None, for_evaluation: bool = False
) -> int:
    """Pairs of a run's demonstrations and its policy's samples, as rows of format `preference`; how many.

    Samples that say what was demonstrated make none.

    Args:
        run: whose latest policy is sampled, the SFT model where no method has made one.
        response_length: tokens of a sample at most; None: as the run's method samples, or 128.
        for_evaluation: whether pairs come of demonstrations too that fall to evaluation by the hash that divides pairs.
            Beside other pairs they must not: what these are evaluated on would change from round to round.

    Raises:
        DataError: where no pair comes of it.
    """
    policy = subject_of(str(run))
    asked = Evaluation(policy, start_of(policy), Path(tempfile.gettempdir()), recipe=recipe_of(run)).as_the_recipe()
    asked = asked.with_options({"seed": seed, "response_length": response_length})
    folder, recipe = RunFolder(run, written=False), recipe_of(run)
    share = 0.0 if for_evaluation else data_section(recipe, folder).share_for_evaluation
    written = demonstrated(splits(recipe, folder).demonstrations, share)
    base = Base(asked, [policy], Rewards({"reward": [], "heldout": []}, asked.how))
    room = context_limit(policy.model, base.model.config) - asked.decoding["response_length"]
    fitting = (
        fit_prompts(base.tokenizer, [prompt for prompt, _ in written.values()], Fitted(room, "prompts"))
        if room > 0
        else []
    )
    messages, role = [prompt.messages for prompt in fitting], base.roles[policy.adapter]
    sampled = base.sample(messages, role, progress=f"{policy.name} answers")
    lines = [
        json.dumps(row, ensure_ascii=False)
        for prompt, reply in zip(fitting, sampled, strict=True)
        if (row := pair_of(prompt, written.get(str(prompt.messages)), reply)) is not None
    ]
    if not lines:
        raise DataError(f"No demonstration of {run} makes a pair with what {policy.name} says to its prompt.")
    write_text(file, "\n".join(lines) + "\n")
    return len(lines)


def demonstrated(rows: Iterable[Demonstration], evaluation_share: float) -> dict[str, tuple[Prompt, str]]:
    """Prompts with what was written to them, by the prompt's text; the first where a prompt comes twice.

    Args:
        evaluation_share: of the openings, by hash, whose pairs would fall to evaluation, and which are left out.
    """
    found: dict[str, tuple[Prompt, str]] = {}
    for row in rows:
        prompt, reply = row.messages[:-1], row.messages[-1]["content"]
        if prompt and prompt[-1]["role"] == "user" and prompt_share(opening(prompt), "split") >= evaluation_share:
            found.setdefault(str(prompt), (Prompt(prompt, "overall", row.origin), reply))
    return found


def foreseen(found: Splits, data: DataSection) -> Splits:
    """The splits of a first round that imitates, before anything was sampled: demonstrations stand for both replies.

    They are as many as the pairs will be at most (where they weigh 1), and as long as a policy's that has learned.
    """
    own = len(found.reward_pairs) + len(found.heldout_pairs) > 0
    known = demonstrated(found.demonstrations, data.share_for_evaluation if own else 0.0).values()
    pairs = [Preference(prompt.messages, reply, reply, prompt.objective, prompt.origin) for prompt, reply in known]
    shares = np.array([prompt_share(opening(pair.prompt), "split") for pair in pairs])
    found = dataclasses.replace(found)
    for name, mask in sides_of(shares, data.share_for_evaluation, data.heldout_share).items():
        setattr(found, name, [*getattr(found, name), *itertools.compress(pairs, mask)])
    return found


def pair_of(prompt: Prompt, demonstration: tuple[Prompt, str] | None, said: Reply) -> dict[str, Any] | None:
    """The row of a pair; None where both say the same, one says nothing, or the prompt had to be cut."""
    written = "" if demonstration is None else demonstration[1].strip()
    if not written or not said.text.strip() or said.text.strip() == written:
        return None
    return {
        "prompt": prompt.messages,
        "chosen": [{"role": "assistant", "content": written}],
        "rejected": [{"role": "assistant", "content": said.text.strip()}],
        **mark_of_cut(said.stopped, "rejected_stopped"),
        "objective": prompt.objective,
    }
