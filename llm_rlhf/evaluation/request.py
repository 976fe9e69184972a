"""What an evaluation is asked for: the policy and its start, the prompts, and the instruments that judge the replies.

A recipe's `evaluate` section and the command line's options both become one `Evaluation`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from llm_rlhf.data.splits import Splits
from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.answers import FACTS
from llm_rlhf.evaluation.judges import model_identity, weight_digests
from llm_rlhf.evaluation.subjects import Subject, method_of
from llm_rlhf.evaluation.suites.snapshot_curve import LEAST_PROMPTS, snapshot_folders
from llm_rlhf.models.base import same_tokens
from llm_rlhf.models.inference import ReplyCache
from llm_rlhf.recipe.loading import UNTRAINED, sampling
from llm_rlhf.recipe.sections import Benchmark, ModelSection, OwnSuite, Recipe, Source
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.runs import splits

T = TypeVar("T")


class Both(NamedTuple, Generic[T]):
    """Something of the policy and of what it is compared with."""

    policy: T
    start: T


RESERVED = (
    "baseline",
    "reward",
    "heldout",
    "prompt",
    "objective",
    "origin",
    *FACTS,
)  # what else a report or replies.jsonl names


def check_names(names: Both[str], members: Iterable[str]) -> None:
    """RecipeError where the policy or its start is called as something else of the report is.

    Args:
        members: names of the reward models.
    """
    if names.policy == names.start:
        raise RecipeError(
            f"The policy and what it is compared with are both called {names.policy!r}; give one another name, by "
            "NAME= before what it is."
        )
    for name in names:
        if name in (*RESERVED, *members):
            raise RecipeError(
                f"A policy is called {name!r}, as one of the report's judges is or a column of the replies; give it "
                "another name, by NAME= before what it is."
            )


@dataclass
class Evaluation:
    """What is asked for. Their labels in the report are the subjects' names.

    Attributes:
        start: what the policy is compared with: what its training started from, unless another is named.
        output: the folder of the report and of the replies behind it.
        prompts: none: the run's own, or those that ship with the project.
        rewards, heldout: reward models, folders or ids; none: the run's.
        recipe: of the run that the policy or its start is part of.
        in_recipe: whether the recipe itself asks, so that errors name its keys, not the command line's options.
    """

    policy: Subject
    start: Subject
    output: Path
    prompts: list[Source] = field(default_factory=list)
    rewards: list[str] = field(default_factory=list)
    heldout: list[str] = field(default_factory=list)
    judge: str | None = None  # local:MODEL, URL#MODEL or people:FILE
    key_variable: str | None = None  # environment variable with the API key of an endpoint that answers
    judge_key_variable: str | None = None  # of one that judges
    limit: int = 300  # prompts of its own
    refusal_limit: int = 300  # those that ship with the project, of each kind
    response_length: int | None = None  # tokens; None: as the run sampled in training, or 128
    temperature: float | None = None  # None: as the run sampled in training, or 1
    batch_size: int = 32
    decoding_step: str = "auto"  # plain, compiled, or compiled where it pays (models/reply_decoding.py)
    resamples: int = 2000
    samples: int = 10
    seed: int = 0
    own: list[OwnSuite] = field(default_factory=list)
    hhh: list[Source] = field(default_factory=list)
    benchmarks: list[Benchmark] = field(default_factory=list)  # public suites
    pairs: list[Source] = field(default_factory=list)  # labelled, to test the reward models on
    perplexity_rows: int = 200  # of a run's held-out pairs
    refusals: bool = True  # ask the prompts that ship with the project too, where the others show no refusals
    snapshot_prompts: int = 0  # of its own prompts that snapshots of the policy answer; under 20: no curve
    best_of_n: int = 0  # replies of the policy's base to each of these; under 2: none
    recipe: Recipe | None = None
    in_recipe: bool = False
    cache: Path | None = None  # None: in the output folder

    def as_the_recipe(self) -> "Evaluation":
        """The same, asked as the run's own evaluation is: as many prompts, sampled in the same way."""
        if self.recipe is None or self.recipe.evaluate is None:
            return self
        section = self.recipe.evaluate
        return replace(
            self, limit=section.prompts, refusal_limit=section.refusal_prompts, batch_size=section.batch_size,
            response_length=section.response_length, temperature=section.temperature, decoding_step=section.decoding,
            resamples=section.resamples, samples=section.samples, perplexity_rows=section.perplexity_rows,
            seed=self.recipe.seed,
        )  # fmt: skip

    def with_options(self, options: dict[str, Any]) -> "Evaluation":
        """The same with these fields, but for those that are None."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})

    @property
    def subjects(self) -> Both[Subject]:
        return Both(self.policy, self.start)

    @property
    def names(self) -> Both[str]:
        """What the report calls them."""
        return Both(self.policy.name, self.start.name)

    @property
    def local(self) -> list[Subject]:
        """Those whose weights are loaded here."""
        return [subject for subject in self.subjects if subject.url is None]

    @property
    def how(self) -> ModelSection:
        """Type and quantisation of the judges' models: those of the policies'."""
        return (self.local or [self.policy])[0].model

    @property
    def one_base(self) -> bool:
        """Whether both are the same model but for their adapters, so that one copy in memory serves them.

        Not where their adapters brought other tokens or templates: each is asked with its own, on embeddings of its
        size.
        """
        if len(self.local) < 2 or self.policy.model != self.start.model:
            return False
        adapters = self.policy.adapter, self.start.adapter
        if adapters not in self._tokens:
            self._tokens[adapters] = same_tokens(self.policy.base, self.policy.model, *adapters)
        return self._tokens[adapters]

    @property
    def run(self) -> Path | None:
        """The run folder whose data and reward models serve where none are named."""
        return self.policy.run or self.start.run

    @cached_property
    def data(self) -> Splits | None:
        """The splits of the run."""
        if self.recipe is None or self.run is None:
            return None
        return splits(self.recipe, RunFolder(self.run, written=False))

    @cached_property
    def decoding(self) -> dict[str, Any]:
        """Replies are sampled as in training unless the request says otherwise."""
        length, temperature = (sampling(self.recipe) if self.recipe is not None else None) or UNTRAINED
        return {
            "response_length": self.response_length or length,
            "temperature": temperature if self.temperature is None else self.temperature,
            "seed": self.seed,
        }

    def identity(self, subject: Subject) -> dict[str, Any]:
        """What tells a policy from others, for the record and for the caches; the weights of a base are read once."""
        if subject.url is not None:
            return {"kind": "endpoint", "url": subject.url, "model": subject.served}
        if subject.base not in self._weights:
            self._weights[subject.base] = weight_digests(subject.base)
        known = model_identity(subject.base, adapter=subject.adapter, weights=self._weights[subject.base])
        return {
            "kind": "model", **known, "dtype": subject.model.dtype, "quantization": subject.model.quantization
        }  # fmt: skip

    @cached_property
    def _weights(self) -> dict[str, dict[str, str]]:
        """SHA-256 of each base's weight files, by base, as far as they were asked for."""
        return {}

    @cached_property
    def _tokens(self) -> dict[tuple[Path | None, Path | None], bool]:
        """Whether two adapters leave their base the same tokens, as far as it was asked for."""
        return {}

    @cached_property
    def identities(self) -> Both[dict[str, Any]]:
        return Both(self.identity(self.policy), self.identity(self.start))

    @property
    def origin(self) -> Subject:
        """The policy's base without its adapter: where its training began. The start, where that is it."""
        after_sft = self.policy.run is not None and (self.policy.run / "sft").is_dir()
        base = replace(self.policy, name="sft" if after_sft else "base", adapter=None)
        return self.start if replace(self.start, name=base.name, run=base.run) == base else base

    @cached_property
    def snapshots(self) -> dict[int, Path]:
        """The snapshots to ask, by optimizer step; none where no curve is asked for."""
        if self.snapshot_prompts < LEAST_PROMPTS or self.policy.run is None or self.policy.adapter is None:
            return {}
        return snapshot_folders(self.policy.run / (method_of(self.policy.run) or "ppo"))

    def replies_of(self, subject: Subject) -> ReplyCache:
        """Where replies are kept of the policy, its start, its origin, or a snapshot of the policy.

        They do not hang on how a step was computed, plain or compiled, but for the last bits of the logits: an
        interrupted evaluation, of which too little is left to compile, keeps them. In bfloat16 those bits make many a
        sampled reply another one, of the same distribution.
        """
        return ReplyCache(self.cache_file(f"{subject.name}.jsonl"), self.identity(subject) | self.decoding)

    def cache_file(self, name: str) -> Path:
        return (self.cache or self.output / "cache") / name

    def key(self, name: str, begins: bool = True) -> str:
        """An option as whoever asks spells it: a recipe key, or one of the command line's.

        Args:
            begins: a sentence, so that it says what it is.
        """
        if not self.in_recipe:
            return f"--{name.replace('_', '-')}"
        return f"Recipe key 'evaluate.{name}'" if begins else f"evaluate.{name}"

    def progress(self, what: str) -> str:
        """What the bar of a long step is called."""
        return f"evaluate: {what.rstrip()}" if self.in_recipe else what.rstrip()
