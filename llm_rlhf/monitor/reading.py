"""What a run's instruments say of a log's replies: reward models, the refusal rule, and the policy's own answers."""

import gc
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from llm_rlhf.data.checks import fit_conversation
from llm_rlhf.data.rows import Conversation, Origin, Prompt
from llm_rlhf.errors import DataError
from llm_rlhf.evaluation.answers import Answers
from llm_rlhf.evaluation.ask import Base
from llm_rlhf.evaluation.refusal_detector import detect_all
from llm_rlhf.evaluation.request import Evaluation
from llm_rlhf.evaluation.rewards import Rewards, told_of
from llm_rlhf.evaluation.subjects import Subject, start_of, subject_of
from llm_rlhf.models.base import context_limit, load_tokenizer
from llm_rlhf.models.encoding import encode_prompt
from llm_rlhf.models.rendering import RefusedByTemplateError
from llm_rlhf.recipe.loading import recipe_of
from llm_rlhf.unchanged import check_unchanged

MEASURES = {"reward": "reward", "heldout": "heldout_reward"}  # by role
Row = tuple[Conversation, str, bool | None]  # a prompt, a reply, and whether it ended by itself (None: unknown)


@dataclass
class Read:
    """What is known of some replies, one entry each; NaN where nothing can be known of one."""

    values: dict[str, np.ndarray] = field(default_factory=dict)  # by measure
    members: np.ndarray | None = None  # by each of several reward models of training, (rows, K)


class Instruments:
    """Those of a run.

    Args:
        rewards, heldout: reward models in the place of the run's own.

    Raises:
        RecipeError: where the run has no policy, or a reward model is none.
    """

    def __init__(self, run: str, rewards: Sequence[str] = (), heldout: Sequence[str] = ()) -> None:
        self.policy: Subject = subject_of(run)
        if self.policy.run is None:
            raise DataError(f"{run} is no run; a monitor holds a log against the report of the run it came from.")
        self.run = Path(self.policy.run)
        self.asked = Evaluation(
            policy=self.policy, start=start_of(self.policy), output=Path(), rewards=list(rewards),
            heldout=list(heldout), recipe=recipe_of(self.run),
        )  # fmt: skip
        self.rewards = Rewards.of(self.asked)
        self.rewards.on_the_base = {}  # a log has texts, which are read by each model itself
        check_unchanged(self.rewards.places([self.policy]))
        self.tokenizer = load_tokenizer(self.policy.base, self.policy.model, self.policy.adapter)

    @property
    def models(self) -> dict[str, list[str]]:
        """The reward models, by measure."""
        return {MEASURES[role]: folders for role, folders in self.rewards.folders.items() if folders}

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """In the policy's tokens, as its tokenizer cuts them, which need not be how they were sampled."""
        return np.array([len(self.tokenizer.encode(text, add_special_tokens=False)) for text in texts], float)

    def read(self, rows: Sequence[Row]) -> Read:
        """Scores, refusals, lengths in tokens, and whether replies ended by themselves."""
        found = Read()
        texts = [text for _, text, _ in rows]
        refusals = detect_all([prompt[-1]["content"] for prompt, _, _ in rows], texts)
        said = np.array([bool(text.strip()) for text in texts])
        found.values["refusal"] = np.array([float(one.refused) for one in refusals])
        found.values["response_length"] = self.lengths(texts)
        ends = np.array([np.nan if ended is None else float(ended) for _, _, ended in rows])
        found.values["eos_rate"] = ends
        places = [int(i) for i in np.flatnonzero(said)]
        prompts = [Prompt(rows[i][0], "overall", Origin("log", i + 1)) for i in places]
        answers = Answers([texts[i] for i in places], [0] * len(places), [rows[i][2] is not False for i in places])
        for role, reader in self.rewards.loaded(progress=len(places) > 500):
            with told_of(self.rewards.folders[role]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of turns that were cut
                each = reader.of_answers(prompts, answers) if len(places) else np.zeros((0, 1), np.float32)
            values = np.full(len(rows), np.nan)
            values[places] = self.rewards.combined(role, each) if len(places) else []
            found.values[MEASURES[role]] = values
            if role == "reward" and each.shape[1] > 1:
                found.members = np.full((len(rows), each.shape[1]), np.nan)
                found.members[places] = each
            del reader
        return found

    def answer(self, prompts: Sequence[Conversation], batch_size: int = 32) -> list[Row | None]:
        """The policy's own replies to these prompts, sampled as its evaluation does; None to what it cannot read."""
        base = Base(self.asked, [self.policy], Rewards({"reward": [], "heldout": []}))
        room = context_limit(self.policy.model, base.model.config) - self.asked.decoding["response_length"]

        fitting = [self._fitted(prompt, room) for prompt in prompts]
        asked = [prompt for prompt in fitting if prompt is not None]
        role = base.roles[self.policy.adapter]
        replies = iter(
            base.sample(
                asked,
                role,
                batch_size=batch_size,
                progress="the policy answers anew" if len(asked) > 200 else None,
            )
        )
        found: list[Row | None] = []
        for whole, prompt in zip(prompts, fitting, strict=True):
            reply = None if prompt is None else next(replies)
            found.append(None if reply is None else (whole, reply.text, reply.stopped))
        del base
        gc.collect()
        torch.cuda.empty_cache()
        return found

    def _fitted(self, prompt: Conversation, room: int) -> Conversation | None:
        """Without its oldest turns, where all of it does not fit, as an evaluation would ask it."""
        try:
            return fit_conversation(prompt, lambda turns: len(encode_prompt(self.tokenizer, turns)), room)
        except RefusedByTemplateError:
            return None
