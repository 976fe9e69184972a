"""Fills a store's queue with questions about a run's policy: who answers, what is asked, and by which chance.

1. Prompts that may be asked about (prompts.py), a few times as many as will be asked.
2. Replies of the policies, scored by the run's reward models, become candidates (candidates.py).
3. What was asked before, or stands among the run's own pairs, is no candidate.
4. A strategy draws (feedback/selection.py); the queue takes it as one batch, with all that a manifest needs.
"""

import dataclasses
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import func
from sqlalchemy import select as rows_of

from llm_rlhf.data.checks import key_of, normalised_prompt
from llm_rlhf.data.rows import Conversation
from llm_rlhf.data.splits import Splits
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.evaluation.request import Evaluation
from llm_rlhf.evaluation.rewards import Rewards
from llm_rlhf.evaluation.subjects import Subject, start_of, subject_of
from llm_rlhf.feedback import queue
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.labels import KINDS
from llm_rlhf.feedback.selection import STRATEGIES, Chosen, choose
from llm_rlhf.feedback.settings import settings_of
from llm_rlhf.feedback.tables import Batch, Item
from llm_rlhf.recipe.loading import recipe_of
from llm_rlhf.rounds.candidates import PAIRED, Candidate, Pool, candidates_of
from llm_rlhf.rounds.prompts import askable_prompts
from llm_rlhf.run_folder import read_json, text_digest
from llm_rlhf.runs import data_section

PROMPTS_A_QUESTION = 4  # prompts that are answered for each that will be asked: what a strategy has to choose from
START = "start"  # how the policy that a run's training began from is named


@dataclass
class Selection:
    """What is to be asked.

    Attributes:
        budget: comparisons that people are asked for: questions, times the people each is asked of.
        policies: who answers, as on the command line; none: the run's policy. "start" is what its training began from.
        answers: replies of each policy to each prompt; None: 2 of one policy, 1 of each of several.
        pool: prompts that are answered; None: four times as many as are asked.
    """

    run: Path
    budget: int = 100
    strategy: str = "mixed"
    kind: str = "compare"
    policies: list[str] = field(default_factory=list)
    answers: int | None = None
    prompts: str | None = None
    pool: int | None = None
    people_per_item: int | None = None  # None: as the store's setting
    temperature: float | None = None  # None: as the run sampled in training
    seed: int | None = None  # None: another each time

    def check(self) -> None:
        """RecipeError where it asks for what cannot be, before anything is loaded."""
        if not (self.run / "recipe.yaml").is_file():
            raise RecipeError(f"{self.run} is no run's folder: it has no recipe.yaml.")
        if self.strategy not in STRATEGIES:
            raise RecipeError(f"--strategy is {self.strategy!r}; it is one of {', '.join(STRATEGIES)}.")
        if self.kind not in KINDS or self.kind == "chat":
            kinds = ", ".join(kind for kind in KINDS if kind != "chat")
            raise RecipeError(f"--kind is {self.kind!r}; it is one of {kinds}.")
        if self.strategy in ("disagreement", "margin") and self.kind not in PAIRED:
            raise RecipeError(
                f"--strategy {self.strategy} goes by the difference of two replies, and a {self.kind} task has none; "
                "random, diverse and mixed do with any."
            )
        allowed = KINDS[self.kind].answers
        together = (self.answers or 2) * max(1, len(self.policies))
        if self.kind == "rank" and together not in allowed:
            raise RecipeError(
                f"A ranking is of {allowed.start} to {allowed.stop - 1} replies; --answers makes {together}."
            )
        if self.kind in PAIRED and together < 2:
            raise RecipeError(f"A task to {self.kind} needs two replies to a prompt; --answers makes {together}.")


@dataclass(frozen=True)
class Selected:
    """What became of it."""

    batch: int
    wanted: int  # questions
    asked: int  # questions that are new in the queue
    people: int  # asked of each
    held: int  # of them, those that a lead must look at first
    strategies: dict[str, int]
    candidates: int
    dropped: dict[str, int]

    def text(self, store: str) -> str:
        """What was asked, in words."""
        by = ", ".join(f"{count} {name}" for name, count in sorted(self.strategies.items()))
        lines = [
            f"{self.asked} questions are new in {store} ({by}), each for {self.people} "
            f"{'person' if self.people == 1 else 'people'}, drawn from {self.candidates} candidates."
        ]
        if self.asked < self.wanted:
            lines.append(
                f"{self.wanted} were wanted: there were no more candidates. Raise --answers or --pool, or name other "
                "--prompts."
            )
        lines += [f"left out: {count} {reason}" for reason, count in self.dropped.items()]
        if self.held:
            lines.append(f"{self.held} look like personal data, and wait for a lead.")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def select(asked: Selection, database: Database, details: dict[str, Any] | None = None) -> Selected:
    """Fill the queue.

    Args:
        details: more for the batch's record.

    Raises:
        RecipeError, DataError: where it cannot be done as asked.
    """
    asked.check()
    if asked.seed is None:
        asked = dataclasses.replace(asked, seed=_next_seed(asked.run, database))
    with database.read() as session:
        people = asked.people_per_item or settings_of(session).people_per_item
    number = asked.budget // people
    if not number:
        raise RecipeError(
            f"The budget is {asked.budget}, and each question is asked of {people}: not one can be asked."
        )
    evaluation, subjects = _evaluation(asked)
    assert evaluation.recipe is not None
    assert evaluation.data is not None
    _check_models(asked, evaluation)
    data = data_section(evaluation.recipe, asked.run)
    askable = askable_prompts(evaluation.recipe, evaluation.data, data, asked.prompts, asked.seed or 0)
    taken = askable.prompts[: asked.pool or PROMPTS_A_QUESTION * number]
    answers = asked.answers or (1 if len(subjects) > 1 else 2)
    pool = candidates_of(evaluation, subjects, taken, asked.kind, answers)
    known = asked_before(database) | judged_before(evaluation.data, [c.prompt.messages for c in pool.candidates])
    pool.keep([not (pairs_in(c.prompt.messages, _texts(c)) & known) for c in pool.candidates], "asked or judged before")
    if not pool.candidates:
        raise DataError("All that could be asked was asked or judged before; raise --answers, or name other --prompts.")
    chosen = _choose(asked, pool, number)
    facts = {
        **_record(asked, evaluation, subjects),
        "people_per_item": people,
        "answers": answers,
        "prompts": {"askable": len(askable.prompts), "answered": len(taken), "left_out": dict(askable.left_out)},
        "candidates": len(pool.candidates),
        "dropped": dict(pool.dropped),
        "slice_propensity": chosen.slice_propensity,
        "strategies": dict(Counter(chosen.strategies)),
        **(details or {}),
    }
    with database.write() as session:
        added = queue.add(session, _questions(asked, pool, chosen, people), "select", facts)
    return Selected(
        added.batch,
        number,
        len(added.items),
        people,
        added.held,
        facts["strategies"],
        len(pool.candidates),
        facts["dropped"],
    )


def _next_seed(run: Path, database: Database) -> int:
    with database.read() as session:
        earlier = session.scalar(rows_of(func.count()).select_from(Batch).where(Batch.made_by == "select")) or 0
    return recipe_of(run).seed + int(earlier)


def batch_of(database: Database, **details: Any) -> Batch | None:
    """The first batch of `select` whose record says all of this; None where there is none."""
    with database.read() as session:
        for batch in session.scalars(rows_of(Batch).where(Batch.made_by == "select").order_by(Batch.id)):
            if all(batch.details.get(name) == value for name, value in details.items()):
                return batch
    return None


def asked_before(database: Database) -> set[str]:
    """Every pair of replies that some question of the store has shown, whatever its kind."""
    with database.read() as session:
        found = session.execute(rows_of(Item.prompt, Item.answers)).all()
    return {key for prompt, answers in found for key in pairs_in(prompt, [answer["text"] for answer in answers])}


def judged_before(splits: Splits, prompts: Iterable[Conversation]) -> set[str]:
    """Every pair of replies to these prompts that the run was trained on."""
    wanted = np.array([key_of(normalised_prompt(prompt), "limit") for prompt in prompts], np.uint64)
    found: set[str] = set()
    for rows in (splits.reward_pairs, splits.heldout_pairs):
        for row in rows.select(np.isin(rows.column("prompt"), wanted)):  # type: ignore[attr-defined]
            found |= pairs_in(row.prompt, [row.chosen, row.rejected])
    return found


def pairs_in(prompt: Conversation, texts: Sequence[str]) -> set[str]:
    """A key for each two of the replies to a prompt, in either order; for one reply, or none, one for all together."""
    if len(texts) < 2:
        return {text_digest(json.dumps([prompt, *texts], sort_keys=True))}
    pairs = itertools.combinations(sorted(text.strip() for text in texts), 2)
    return {text_digest(json.dumps([prompt, *pair], sort_keys=True)) for pair in pairs}


def _evaluation(asked: Selection) -> tuple[Evaluation, list[Subject]]:
    """How the policies are asked and what scores them, as the run's own evaluation is; and who answers."""
    recipe, policy = recipe_of(asked.run), subject_of(str(asked.run))
    start = start_of(policy)
    subjects = [start if name == START else subject_of(name) for name in asked.policies] or [policy]
    if any(subject.url is not None for subject in subjects):
        raise RecipeError("An endpoint cannot answer here; ask it by a program, and bring its replies with import.")
    names = [subject.name for subject in subjects]
    subjects = [
        subject if names.count(subject.name) == 1 else _renamed(subject, number)
        for number, subject in enumerate(subjects, start=1)
    ]
    evaluation = Evaluation(policy, start, Path(tempfile.gettempdir()), recipe=recipe).as_the_recipe()
    options = {"temperature": asked.temperature, "seed": asked.seed}
    return evaluation.with_options(options), subjects


def _renamed(subject: Subject, number: int) -> Subject:
    of = subject.run.resolve().name if subject.run else str(number)
    return dataclasses.replace(subject, name=f"{of}-{subject.name}")


def _choose(asked: Selection, pool: Pool, number: int) -> Chosen:
    strategy = asked.strategy
    return choose(
        strategy,
        number,
        len(pool.candidates),
        asked.seed or 0,
        pool.disagreement if strategy in ("disagreement", "mixed") else None,
        pool.margin if strategy in ("margin", "mixed") else None,
        pool.vectors if strategy in ("diverse", "mixed") else None,
    )


def _check_models(asked: Selection, evaluation: Evaluation) -> None:
    """RecipeError where the strategy goes by more reward models than the run has."""
    models = sum(len(folders) for folders in Rewards.of(evaluation).folders.values())
    if asked.strategy == "disagreement" and models < 2:
        raise RecipeError(
            "--strategy disagreement needs two reward models: an ensemble (reward.ensemble), or one that is held out "
            "(data.heldout_share). This run has not; take mixed, margin or random."
        )
    if asked.strategy == "margin" and not models:
        raise RecipeError("--strategy margin needs a reward model, and this run has none; take diverse or random.")


def _questions(asked: Selection, pool: Pool, chosen: Chosen, people: int) -> list[queue.Question]:
    """In an order drawn at random, so that whoever stops early has seen a sample of all."""
    margin, disagreement = pool.margin, pool.disagreement
    found = []
    for place, propensity, strategy in zip(chosen.places, chosen.propensities, chosen.strategies, strict=True):
        candidate = pool.candidates[place]
        prompt = candidate.prompt
        facts: dict[str, Any] = dict(prompt.facts)
        if candidate.scores:
            facts["scores"] = candidate.scores
        if margin is not None:
            facts["margin"] = round(float(margin[place]), 4)
        if disagreement is not None:
            facts["disagreement"] = round(float(disagreement[place]), 4)
        found.append(
            queue.Question(
                asked.kind, prompt.messages, candidate.answers, objective=prompt.objective, wanted=people,
                strategy=strategy, propensity=float(propensity), facts=facts,
                priority=int(text_digest(f"{asked.seed} {candidate.answers}")[:8], 16) / 2**32,
            )
        )  # fmt: skip
    return found


def _texts(candidate: Candidate) -> list[str]:
    return [answer["text"] for answer in candidate.answers]


def _record(asked: Selection, evaluation: Evaluation, subjects: Sequence[Subject]) -> dict[str, Any]:
    """What a manifest must know of it."""
    return {
        "run": str(asked.run),
        "launched": (read_json(asked.run / "manifest.json") or {}).get("launched"),
        "policies": {subject.name: evaluation.identity(subject) for subject in subjects},
        "strategy": asked.strategy,
        "kind": asked.kind,
        "budget": asked.budget,
        "seed": asked.seed,
        "decoding": evaluation.decoding,
        "prompts_file": asked.prompts,
    }
