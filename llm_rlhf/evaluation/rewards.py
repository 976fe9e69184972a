"""Reward models in `llm-rlhf evaluate`: their scores of replies, and how far they can be believed, on labelled pairs.

Two roles: "reward" is what training went by, one model or the mean of several; "heldout" one that training never saw.
"""

import contextlib
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from llm_rlhf.data.checks import write_quarantine
from llm_rlhf.data.rows import Conversation, Preference, Prompt
from llm_rlhf.data.sources import Loaded, load_preferences
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.evaluation.answers import Answers, rows_digest
from llm_rlhf.evaluation.judges import model_identity
from llm_rlhf.evaluation.report.alarms import account_lines
from llm_rlhf.evaluation.report.assembly import assemble
from llm_rlhf.evaluation.report.measures import Entry
from llm_rlhf.evaluation.report.reward_sections import judge_estimates
from llm_rlhf.evaluation.report.schema import write_report
from llm_rlhf.evaluation.suites.reward_accuracy import reward_report
from llm_rlhf.launch import processes
from llm_rlhf.models.fitting import Fitted, fit_preferences
from llm_rlhf.models.inference import in_batches
from llm_rlhf.models.roles import HELDOUT
from llm_rlhf.ppo.scores import training_reward
from llm_rlhf.recipe.sections import ModelSection, Recipe, Source, stage_options
from llm_rlhf.reward.model import RewardModel
from llm_rlhf.run_folder import move_to_archive, read_json, writable

ROLES = ("reward", "heldout")
CHECKED, TOLERANCE = 16, 1e-4  # rows that are read alone too; how far a float32 score may move
WRITTEN = ("report.*", "replies*.jsonl", "judge.json", "set_aside.jsonl")  # files of a report
MOVED = "scores_moved_with_the_batch"
Row: TypeAlias = tuple[Conversation, str, bool]  # a prompt, a reply, and whether it came to its end


@dataclass
class Rewards:
    """The reward models of an evaluation, loaded one after the other.

    Attributes:
        folders: folders or ids by role; several are an ensemble, whose mean counts.
        how: type and quantisation they are loaded in.
        trained: the recipe whose PPO combined the members of "reward" in a way of its own.
        identities: what was loaded, by its name; filled as they are.
    """

    folders: dict[str, list[str]]
    how: ModelSection = field(default_factory=ModelSection)
    trained: Recipe | None = None
    identities: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, named: Mapping[str, list[str]], how: ModelSection, recipe: Recipe | None = None, run: Path | None = None
    ) -> "Rewards":
        """Those that are named; for a role where none is, those of the run."""
        folders = {role: list(named[role]) for role in ROLES}
        if recipe is None or recipe.reward is None or run is None:
            return cls(folders, how)
        if not named["heldout"] and (run / "reward" / HELDOUT).is_dir():
            folders["heldout"] = [str(run / "reward" / HELDOUT)]
        if named["reward"]:
            return cls(folders, how)
        folders["reward"] = [str(run / "reward" / name) for name in stage_options(recipe, "reward").adapters]
        return cls(folders, how, recipe)

    def names(self, role: str) -> list[str]:
        """Names of a role's models: their folders', numbered where two are called alike or as a role."""
        names = [Path(folder).name for folder in self.folders[role]]
        return [f"{name}-{i}" if names.count(name) > 1 or name in ROLES else name for i, name in enumerate(names, 1)]

    def loaded(self) -> Iterator[tuple[str, RewardModel]]:
        """Every role that has a model, and the model, which is dropped when the next one is asked for."""
        for role, folders in self.folders.items():
            if not folders:
                continue
            dtype, quantization = self.how.dtype, self.how.quantization
            path = folders[0] if len(folders) == 1 else folders
            with told_of(folders):
                model = RewardModel.from_pretrained(path, dtype=dtype, quantization=quantization)
            for name, folder in zip(self.names(role), folders, strict=True):
                of = role if len(folders) == 1 else f"{role}/{name}"
                loaded = {"dtype": dtype, "quantization": quantization, "reading": model.reading}
                self.identities[of] = model_identity(folder) | loaded
            self._check_apart()
            yield role, model
            del model
            gc.collect()
            torch.cuda.empty_cache()

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

    def checked(self, role: str, model: RewardModel, rows: Sequence[Row], each: np.ndarray) -> None:
        """Record how far scores move with their batch: those of some rows read alone, against `each` as they were read.

        Raises:
            DataError: where that is more than rounding: a score that depends on its batch measures the batch.
        """
        mine = [known for name, known in self.identities.items() if name.split("/")[0] == role]
        if not rows or MOVED in mine[0]:
            return
        moved = float(np.abs(_read(model, rows, token_budget=1) - each).max())
        if self.how.dtype == "float32" and self.how.quantization == "none" and moved > TOLERANCE:
            raise DataError(
                f"The scores of the reward model {', '.join(self.folders[role])} move by {moved:.2g} with the batch "
                f"(at most {TOLERANCE:g} is rounding): it cannot judge."
            )
        for known in mine:
            known[MOVED] = moved

    def combined(self, role: str, each: np.ndarray) -> np.ndarray:
        """One score a row, float64: the mean of the members (rows, members), or as the run's PPO combined them."""
        if self.trained is None or role != "reward":
            return each.mean(1).astype(float)
        names = stage_options(self.trained, "reward").adapters
        return training_reward(self.trained, dict(zip(names, each.T, strict=True))).astype(float)


def check_output(folder: Path) -> None:
    """RecipeError, RunFolderError where no report may, or can, be written into the folder."""
    if (folder / "recipe.yaml").is_file() or (folder / "manifest.json").is_file():
        raise RecipeError(f"--output {folder} is a run or a part of one, whose own files stand there; name another.")
    writable(folder)


def archive_report(folder: Path) -> None:
    """Make room for a report: an earlier one, and the replies behind it, go to the folder's archive."""
    move_to_archive(folder, sorted({path.name for pattern in WRITTEN for path in folder.glob(pattern)}))


@contextlib.contextmanager
def told_of(folders: Sequence[str]) -> Iterator[None]:
    """A ValueError of the reward model's as a DataError that names it."""
    try:
        yield
    except ValueError as error:
        named = all(folder in str(error) for folder in folders)
        raise DataError(str(error) if named else f"Reward model {', '.join(folders)}: {error}") from None


def score(
    rewards: Rewards,
    prompts: Sequence[Prompt],
    answers: Mapping[str, Answers],
    pairs: Mapping[str, Sequence[Preference]],
) -> dict[str, dict[str, np.ndarray]]:
    """Fill in the scores of the policies' replies, each model loaded once for all.

    Returns:
        Scores of the chosen and the rejected reply of each pair, (n, 2), by list and by role; of an ensemble also by
        its members' names. NaN where a pair does not fit into what the model reads.
    """
    of_pairs: dict[str, dict[str, np.ndarray]] = {name: {} for name in pairs}
    for role, model in rewards.loaded():
        with told_of(rewards.folders[role]):
            for given in answers.values():
                # A policy may sample a NUL, which no text that people send holds and a reward model refuses.
                texts = [text.replace("\0", "\ufffd") for text in given.texts]
                rows = [(p.messages, text, end) for p, text, end in zip(prompts, texts, given.stopped, strict=True)]
                each = _scores_each(model, [[row] for row in rows])
                rewards.checked(role, model, rows[:CHECKED], each[:CHECKED])
                setattr(given, role, rewards.combined(role, each).tolist())
            for name, of_list in pairs.items():
                if of_list:
                    of_pairs[name] |= _pair_scores(rewards, role, model, of_list)
        del model  # before the next one is loaded
    return of_pairs


def _read(model: RewardModel, rows: Sequence[Row], **how: Any) -> np.ndarray:
    said, finished = [(prompt, reply) for prompt, reply, _ in rows], [end for _, _, end in rows]
    return model.scores_each(said, finished=finished, **how)


def _scores_each(model: RewardModel, groups: Sequence[list[Row]]) -> np.ndarray:
    """The score of every row by each member, (rows, members); the processes of a launch share the groups out.

    A group is what is read together: the replies to one prompt.
    """

    def read(mine: list[list[Row]]) -> list[list[list[float]]]:
        each = _read(model, [row for group in mine for row in group], progress=processes().is_main_process)
        ends = np.cumsum([len(group) for group in mine])
        return [part.tolist() for part in np.split(each, ends[:-1])]

    found = in_batches(groups, read, max(len(groups), 1), len)  # one batch for each process: the model makes its own
    return np.array([row for group in found for row in group], np.float32).reshape(-1, len(model.members))


def _pair_scores(rewards: Rewards, role: str, model: RewardModel, pairs: Sequence[Preference]) -> dict[str, np.ndarray]:
    """(n, 2) by the role's name and, where it has several members, by theirs."""
    fitting = [fit_preferences(model.tokenizer, [pair], Fitted(model.max_length, "")) for pair in pairs]
    there = [i for i, fitted in enumerate(fitting) if fitted]
    both = [[(p.prompt, reply, True) for reply in (p.chosen, p.rejected)] for i in there for p in fitting[i]]
    each = _scores_each(model, both)
    rewards.checked(role, model, [row for group in both for row in group][:CHECKED], each[:CHECKED])
    members = rewards.names(role)
    columns = {role: rewards.combined(role, each)}
    if len(members) > 1:
        columns |= dict(zip(members, each.T.astype(float), strict=True))
    found = {name: np.full((len(pairs), 2), np.nan) for name in columns}
    for name, values in columns.items():
        found[name][there] = values.reshape(-1, 2)
    return found


def preferences(
    rewards: Rewards, pairs: Sequence[Preference], scores: Mapping[str, np.ndarray], resamples: int, seed: int
) -> tuple[list[Entry], dict[str, Any], dict[str, int]]:
    """How far the reward models can be believed, on labelled pairs that all of them can read.

    Returns:
        Estimates (accuracy, calibration, habits), the report's `reward_model`, and how many pairs were kept.
    """
    read = np.flatnonzero(~np.isnan(np.stack([both[:, 0] for both in scores.values()])).any(axis=0)).tolist()
    counts = {"kept": len(read), "too_long": len(pairs) - len(read)}
    if not len(read):
        raise DataError(f"None of {len(pairs)} pairs of --pairs fits into what the reward models read.")
    ensembles = {role: rewards.names(role) for role in ROLES if len(rewards.folders[role]) > 1}
    by_name = {name: (both[read, 0], both[read, 1]) for name, both in scores.items()}
    found = reward_report([pairs[i] for i in read], by_name, ensembles, resamples=resamples, seed=seed)
    return *as_sections(found), counts


def of_the_run(rewards: Rewards, run: Path | None) -> tuple[list[Entry], dict[str, Any]]:
    """What the run's reward stage measured on its held-out pairs, where the reward model is the run's own."""
    path = run / "reward" / "accuracy.json" if run is not None else None
    if rewards.trained is None or path is None or not path.is_file():
        return [], {"calibration": {}, "agreement": None}
    return as_sections(read_json(path))


def as_sections(found: dict[str, Any]) -> tuple[list[Entry], dict[str, Any]]:
    """What `reward_report` found, as the report has it: estimates, and its `reward_model`."""
    calibration = {name: known for name, known in found["calibration"].items() if known is not None}
    return judge_estimates(found), {"calibration": calibration, "agreement": found["ensembles"].get("reward")}


def load_pairs(sources: list[Source]) -> Loaded[Preference]:
    """The labelled pairs of `--pairs`; DataError where there are none."""
    loaded = load_preferences(sources)
    if not len(loaded.rows):
        raise DataError(f"--pairs: no pair is left of {loaded.counts()['read']} rows; look at what is set aside.")
    return loaded


def evaluate_rewards(
    rewards: Rewards, sources: list[Source], output: Path, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """The report of reward models without a policy: report.html, report.md and report.json in `output`.

    Raises:
        RecipeError, DataError: where it cannot be done as asked.
    """
    started = time.time()
    check_output(output)
    if not rewards.folders["reward"]:
        raise RecipeError("Without a policy there is nothing to evaluate but a reward model; name one: --reward MODEL.")
    loaded = load_pairs(sources)
    pairs = list(loaded.rows)
    scores = score(rewards, [], {}, {"pairs": pairs})["pairs"]
    entries, of_rewards, fitted = preferences(rewards, pairs, scores, resamples, seed)
    report = assemble(
        name=f"{', '.join(Path(folder).name for folder in rewards.folders['reward'])} on labelled pairs",
        recipe="none",
        base=", ".join(rewards.folders["reward"]),
        seconds={"evaluate": round(time.time() - started, 3)},
        estimates=entries,
        reward_model=of_rewards,
        data={"pairs": loaded.counts() | {"fitted": fitted}},
        provenance={
            "recipe": {"pairs": [source.source for source in sources]},
            "seed": seed,
            "decoding": {},
            "instruments": rewards.identities,
            "hashes": {"pairs": rows_digest(pairs)},
        },
    )
    report["alarms"] += account_lines(report["data"])
    if processes().is_main_process:
        archive_report(output)
        write_report(report, output)
        if loaded.set_aside:
            write_quarantine(loaded.set_aside, output / "set_aside.jsonl")
    return report
