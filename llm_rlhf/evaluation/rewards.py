"""Reward models in an evaluation: their scores of replies, and how far they can be believed, on labelled pairs.

Two roles: "reward" is what training went by, one model or the mean of several; "heldout" one that training never saw.
A run's own are adapters, read on the one base that its policies are on, by the very tokens that were sampled. Others
are loaded one after the other, and read text.
"""

import contextlib
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError

from llm_rlhf.data.rows import Conversation, Preference, Prompt
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.evaluation.answers import Answers
from llm_rlhf.evaluation.judges import model_identity
from llm_rlhf.evaluation.request import Evaluation
from llm_rlhf.evaluation.subjects import Subject
from llm_rlhf.launch import processes
from llm_rlhf.models.adapter_folders import base_of
from llm_rlhf.models.base import context_limit
from llm_rlhf.models.encoding import encode_prompt, encode_replies
from llm_rlhf.models.fitting import Fitted, fit_preferences
from llm_rlhf.models.inference import check_batch_invariance, ids_to_score, in_batches, score_ids
from llm_rlhf.models.roles import HELDOUT
from llm_rlhf.ppo.scores import training_reward
from llm_rlhf.recipe.sections import ModelSection, Recipe, stage_options
from llm_rlhf.reward.adapters import reward_folders, whole_rewards
from llm_rlhf.reward.model import RewardModel
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.runs import starting_model

ROLES = ("reward", "heldout")
CHECKED, TOLERANCE = 16, 1e-4  # rows that are read alone too; how far a float32 score may move
MOVED = "scores_moved_with_the_batch"
Row: TypeAlias = tuple[Conversation, str, bool]  # a prompt, a reply, and whether it came to its end
PairScores: TypeAlias = dict[str, np.ndarray]  # of the chosen and the rejected reply, (n, 2), by role and by member


class Reader(Protocol):
    """What reads replies for one role: K models, an ensemble where there are several."""

    tokenizer: Any
    max_length: int  # tokens of a prompt and its reply

    moved: float | None  # how far scores moved with their batch; None before any was read

    def of_answers(self, prompts: Sequence[Prompt], answers: Answers) -> np.ndarray:
        """Scores of sampled replies, (rows, K), float32."""
        ...

    def of_pairs(self, pairs: Sequence[Preference]) -> np.ndarray:
        """Scores of the chosen and the rejected reply of every pair, (2 * pairs, K), float32."""
        ...


@dataclass
class Rewards:
    """The reward models of an evaluation.

    Attributes:
        folders: folders or ids by role; several are an ensemble, whose mean counts.
        how: type and quantisation they are loaded in.
        trained: the recipe whose PPO combined the members of "reward" in a way of its own.
        on_the_base: adapters by role and name that are read on the policies' own base.
        identities: what they are, by name; see `identify`.
    """

    folders: dict[str, list[str]]
    how: ModelSection = field(default_factory=ModelSection)
    trained: Recipe | None = None
    on_the_base: dict[str, dict[str, Path]] = field(default_factory=dict)
    identities: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, asked: Evaluation) -> "Rewards":
        """Those that are named; for a role where none is, those of the run."""
        named = {"reward": asked.rewards, "heldout": asked.heldout}
        found = cls({role: list(models) for role, models in named.items()}, asked.how)
        if asked.recipe is None or asked.run is None:
            return found
        run = RunFolder(asked.run, written=False)
        own = {"reward": reward_folders(asked.recipe, run), "heldout": {HELDOUT: run / "reward" / HELDOUT}}
        on_its_base = asked.one_base and asked.policy.base == str(starting_model(asked.recipe, run, before="evaluate"))
        for role, adapters in own.items():
            if not named[role] and (role == "reward" or adapters[HELDOUT].is_dir()):
                found.folders[role] = [str(folder) for folder in adapters.values()]
                if on_its_base and adapters:
                    found.on_the_base[role] = adapters
        if not named["reward"] and own["reward"]:
            found.trained = asked.recipe
        elif not named["reward"]:
            found.folders["reward"] = whole_rewards(asked.recipe)
        return found

    def places(self, policies: Sequence[Subject]) -> list[str | Path | None]:
        """Where all lies that is loaded: these policies, and the reward models with what they stand on."""
        own: list[str | Path | None] = [place for subject in policies for place in (subject.base, subject.adapter)]
        rewards = [folder for folders in self.folders.values() for folder in folders]
        for folder in rewards:
            with contextlib.suppress(ValueError):  # no adapter; or its base is gone, which is told on loading
                own.append(base_of(folder))
        return list(dict.fromkeys([*own, *rewards]))

    def names(self, role: str) -> list[str]:
        """Names of a role's models: their folders', numbered where two are called alike or as a role."""
        names = [Path(folder).name for folder in self.folders[role]]
        return [f"{name}-{i}" if names.count(name) > 1 or name in ROLES else name for i, name in enumerate(names, 1)]

    @property
    def adapters(self) -> dict[str, Path]:
        """Those that are to be loaded beside the policies, by name."""
        return {name: folder for adapters in self.on_the_base.values() for name, folder in adapters.items()}

    def loaded(self, progress: bool = True) -> Iterator[tuple[str, Reader]]:
        """Every other role that has a model, and the model, which is dropped when the next one is asked for.

        Args:
            progress: show a bar while it reads.
        """
        for role, folders in self.folders.items():
            if not folders or role in self.on_the_base:
                continue
            dtype, quantization = self.how.dtype, self.how.quantization
            path = folders[0] if len(folders) == 1 else folders
            with told_of(folders):
                model = RewardModel.from_pretrained(
                    path, dtype=dtype, quantization=quantization, trust_remote_code=self.how.trusted
                )
            self.tell(role, reading=model.reading)
            yield role, ByItself(model, folders, self._exact, progress)
            del model
            gc.collect()
            torch.cuda.empty_cache()

    def beside(
        self, model: Any, tokenizer: Any, prompts: Sequence[Prompt], batch_size: int
    ) -> Iterator[tuple[str, Reader]]:
        """Every role that is read on the policies' base, which `load_roles` gave, checked on some prompts."""
        for role, adapters in self.on_the_base.items():
            self.tell(role, reading="on the policies' base")
            limit = context_limit(self.how, model.config)
            with told_of(self.folders[role]):
                reader = OnTheBase(model, tokenizer, list(adapters), limit, batch_size, prompts[:CHECKED], self._exact)
            yield role, reader

    @property
    def _exact(self) -> bool:
        return self.how.dtype == "float32" and self.how.quantization == "none"

    def identify(self) -> None:
        """Record what the models are, before any is loaded.

        Raises:
            RecipeError: where the held-out model is one that training went by.
        """
        for role, folders in self.folders.items():
            for name, folder in zip(self.names(role), folders, strict=True):
                loaded = {"dtype": self.how.dtype, "quantization": self.how.quantization}
                self.identities[role if len(folders) == 1 else f"{role}/{name}"] = model_identity(folder) | loaded
        self._check_apart()

    def tell(self, role: str, **found: Any) -> None:
        """Add to the identities of a role's models."""
        for known in self._identities(role):
            known.update(found)

    def _identities(self, role: str) -> list[dict[str, Any]]:
        return [known for name, known in self.identities.items() if name.split("/")[0] == role]

    def _check_apart(self) -> None:
        """RecipeError where the held-out model is one that training went by."""
        weights = {name: tuple(sorted(known["weights"].values())) for name, known in self.identities.items()}
        trained = {of: name for name, of in weights.items() if name.split("/")[0] == "reward" and of}
        for name, of in weights.items():
            if name.split("/")[0] == "heldout" and of in trained:
                raise RecipeError(
                    f"The held-out reward model {self.identities[name]['model']} is the one that training went by "
                    f"({self.identities[trained[of]]['model']}): it is no second opinion. Name another with --heldout, "
                    "or none."
                )

    def combined(self, role: str, each: np.ndarray) -> np.ndarray:
        """One score a row, float64: the mean of the members (rows, members), or as the run's PPO combined them."""
        if self.trained is None or role != "reward":
            return each.mean(1).astype(float)
        names = stage_options(self.trained, "reward").adapters
        return training_reward(self.trained, dict(zip(names, each.T, strict=True))).astype(float)


@contextlib.contextmanager
def told_of(folders: Sequence[str], what: str = "Reward model") -> Iterator[None]:
    """What a model's loading or reading raises as a DataError that names it."""
    try:
        yield
    except RecipeError:
        raise
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "size mismatch" not in str(error):
            raise
        named = all(folder in str(error) for folder in folders)
        raise DataError(str(error) if named else f"{what} {', '.join(folders)}: {error}") from None


class ByItself:
    """A reward model with a base of its own, which reads text."""

    def __init__(self, model: RewardModel, folders: Sequence[str], exact: bool, progress: bool = True) -> None:
        self.model, self.folders, self.exact, self.progress = model, folders, exact, progress
        self.tokenizer, self.max_length = model.tokenizer, model.max_length
        self.moved: float | None = None

    def of_answers(self, prompts: Sequence[Prompt], answers: Answers) -> np.ndarray:
        # A policy may sample a NUL, which no text that people send holds and a reward model refuses.
        texts = [text.replace("\0", "\ufffd") for text in answers.texts]
        rows = zip(prompts, texts, answers.stopped, strict=True)
        return self._scores([[(prompt.messages, text, end)] for prompt, text, end in rows])

    def of_pairs(self, pairs: Sequence[Preference]) -> np.ndarray:
        return self._scores([[(pair.prompt, *side) for side in pair.sides] for pair in pairs])

    def _scores(self, groups: Sequence[list[Row]]) -> np.ndarray:
        """The score of every row by each member, (rows, K); the processes of a launch share the groups out.

        A group is what is read together: the replies to one prompt.
        """

        def read(mine: list[list[Row]]) -> list[list[list[float]]]:
            each = self._read(
                [row for group in mine for row in group], progress=self.progress and processes().is_main_process
            )
            ends = np.cumsum([len(group) for group in mine])
            return [part.tolist() for part in np.split(each, ends[:-1])]

        found = in_batches(groups, read, max(len(groups), 1), len)  # one batch a process: the model makes its own
        each = np.array([row for group in found for row in group], np.float32).reshape(-1, len(self.model.members))
        self._check([row for group in groups for row in group][:CHECKED], each[:CHECKED])
        return each

    def _read(self, rows: Sequence[Row], **how: Any) -> np.ndarray:
        said, finished = [(prompt, reply) for prompt, reply, _ in rows], [end for _, _, end in rows]
        return self.model.scores_each(said, finished=finished, **how)

    def _check(self, rows: Sequence[Row], each: np.ndarray) -> None:
        """How far scores move with their batch: those of the first rows read alone, against `each` as they were read.

        Raises:
            DataError: where that is more than rounding: a score that depends on its batch measures the batch.
        """
        if self.moved is not None or not rows:
            return
        self.moved = float(np.abs(self._read(rows, token_budget=1) - each).max())
        if self.exact and self.moved > TOLERANCE:
            raise DataError(
                f"The scores of the reward model {', '.join(self.folders)} move by {self.moved:.2g} with the batch "
                f"(at most {TOLERANCE:g} is rounding): it cannot judge."
            )


class OnTheBase:
    """Reward adapters on the policies' base, which read token ids."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        adapters: list[str],
        max_length: int,
        batch_size: int,
        checked: Sequence[Prompt],
        exact: bool,
    ) -> None:
        self.model, self.tokenizer, self.adapters = model, tokenizer, adapters
        self.max_length, self.batch_size = max_length, batch_size
        rows = [encode_prompt(tokenizer, prompt.messages)[-max_length:] for prompt in checked]
        pad = tokenizer.pad_token_id
        self.moved: float | None = max(check_batch_invariance(model, name, rows, pad, exact) for name in adapters)

    def of_answers(self, prompts: Sequence[Prompt], answers: Answers) -> np.ndarray:
        assert answers.replies is not None
        return self._scores(ids_to_score(self.tokenizer, [prompt.messages for prompt in prompts], answers.replies))

    def of_pairs(self, pairs: Sequence[Preference]) -> np.ndarray:
        both = [(pair.prompt, *side) for pair in pairs for side in pair.sides]
        prompts, replies = [prompt for prompt, _, _ in both], [reply for _, reply, _ in both]
        encoded = encode_replies(self.tokenizer, prompts, replies)
        return self._scores([row.as_said(end).ids for row, (_, _, end) in zip(encoded, both, strict=True)])

    def _scores(self, rows: Sequence[list[int]]) -> np.ndarray:
        pad = self.tokenizer.pad_token_id
        return np.stack([score_ids(self.model, name, rows, pad, self.batch_size) for name in self.adapters], axis=1)


def score(
    rewards: Rewards,
    readers: Iterable[tuple[str, Reader]],
    answered: Sequence[tuple[Sequence[Prompt], Answers]],
    pairs: Mapping[str, Sequence[Preference]],
    of_pairs: dict[str, PairScores],
) -> None:
    """Fill in what every role says of the policies' replies, and of given pairs.

    Args:
        answered: replies with their prompts.
        pairs: by list.
        of_pairs: scores by list; NaN where a pair does not fit into what the model reads.
    """
    for role, reader in readers:
        with told_of(rewards.folders[role]):
            for prompts, answers in answered:
                setattr(answers, role, rewards.combined(role, reader.of_answers(prompts, answers)).tolist())
            for name, of_list in pairs.items():
                if of_list:
                    of_pairs[name] |= _pair_scores(rewards, role, reader, of_list)
        rewards.tell(role, **{MOVED: reader.moved})
        del reader  # before the next one is loaded


def _pair_scores(rewards: Rewards, role: str, reader: Reader, pairs: Sequence[Preference]) -> PairScores:
    """By the role's name and, where it has several members, by theirs."""
    fitting = [fit_preferences(reader.tokenizer, [pair], Fitted(reader.max_length, "")) for pair in pairs]
    there = [i for i, fitted in enumerate(fitting) if fitted]
    each = reader.of_pairs([pair for fitted in fitting for pair in fitted])
    members = rewards.names(role)
    columns = {role: rewards.combined(role, each)}
    if len(members) > 1:
        columns |= dict(zip(members, each.T.astype(float), strict=True))
    found = {name: np.full((len(pairs), 2), np.nan) for name in columns}
    for name, values in columns.items():
        found[name][there] = values.reshape(-1, 2)
    return found
