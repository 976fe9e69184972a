"""The sections of a recipe: every key of ours, what it means, and its default, which stands here and nowhere else."""

import contextlib
import datetime
import functools
import glob
import os
import typing
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from llm_rlhf.recipe.people_sections import FeedbackSection, RoundsSection
from llm_rlhf.recipe.values import plain


@dataclass
class LoraSection:
    r: int = 16  # rank of every adapter
    alpha: int = 32  # scale: the update is alpha / r * B A
    target_modules: str | list[str] = "all-linear"  # which layers get an adapter; the LM head never does


_meant_for: ContextVar[str | None] = ContextVar("meant_for", default=None)


@contextlib.contextmanager
def meant_for(device: str | None) -> Iterator[None]:
    """Recipes that are read meanwhile are for a "cpu" or a "cuda" that computes in bfloat16; None: for this machine."""
    before = _meant_for.set(device)
    try:
        yield
    finally:
        _meant_for.reset(before)


def sensible_dtype() -> Literal["float32", "bfloat16"]:
    """The compute type that `auto` stands for."""
    has_it = _has_bfloat16() if _meant_for.get() is None else _meant_for.get() == "cuda"
    return "bfloat16" if has_it else "float32"


@functools.cache
def _has_bfloat16() -> bool:
    import torch  # which takes a second that a look at the command's help does not have

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


@dataclass
class ModelSection:
    base: str | None = None  # hub id or folder of a causal language model; with `world` it is made by the run
    # compute type of the base; bfloat16 also turns on autocast; auto: bfloat16 on a GPU that computes in it
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["none", "nf4", "int8"] = "none"  # how the frozen base is held in memory
    # what each role trains: LoRA, or none: a copy of all weights (full fine-tuning)
    lora: LoraSection | Literal["none"] = field(default_factory=LoraSection)
    compile: bool = False  # compile each layer for training (torch.compile): fewer, larger kernels on a GPU
    chat_template: str | None = None  # a .jinja file to use instead of the tokenizer's own template
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)  # its arguments, as enable_thinking: false
    chat_template_date: datetime.date | None = None  # what it takes for today; None: the day the run began
    context_length: int | None = None  # tokens of prompt and reply together; None: the model's own limit
    # whose Python may run here: true: that of `base`'s repository; or names of models: base, reward models, a judge
    trust_remote_code: bool | list[str] = False

    def __post_init__(self) -> None:
        if self.dtype == "auto":
            self.dtype = sensible_dtype()

    @property
    def trusted(self) -> list[str]:
        """Names of the models whose repositories' Python may run; trusting one trusts no other."""
        if isinstance(self.trust_remote_code, bool):
            return [self.base] if self.trust_remote_code and self.base is not None else []
        return list(self.trust_remote_code)

    def trusts(self, model: str | Path) -> bool:
        return is_among(model, self.trusted)

    @property
    def trusts_base(self) -> bool:
        """Also of what a run has made of the base, which has its code."""
        return self.trust_remote_code is True or (self.base is not None and self.trusts(self.base))

    def made_into(self, base: str | Path, *with_it: str | Path) -> "ModelSection":
        """The same of a model that a run made of its base, or the base itself; trusted as the base is.

        Args:
            with_it: what the run has made besides, as the folder of an adapter with its tokenizer.
        """
        own = [str(base), *map(str, with_it)] if self.trusts_base else []
        return replace(self, base=str(base), trust_remote_code=[*self.trusted, *own] or False)


@dataclass
class Source:
    """One source of rows. `from: preferences` reuses the preference rows (their chosen replies, or their prompts)."""

    source: str | None = None  # hub id, folder, file or glob: .jsonl .json .csv .tsv .parquet, each also gzipped
    from_: Literal["preferences"] | None = field(default=None, metadata={"key": "from"})  # in place of `source`
    # of its rows; auto: the columns tell, and where they could mean two formats, the error asks for this key
    format: Literal[
        "auto",
        "hh",
        "preference",
        "comparison",
        "ranked",
        "scored",
        "feedback",
        "tree",
        "messages",
        "prompt_completion",
        "instruction",
        "prompt",
    ] = "auto"
    columns: dict[str, str] = field(default_factory=dict)  # our name of a column: the file's, where they differ
    labels: list[float | str] | None = None  # the label's value where the first reply is better, and where the second
    pairs: Literal["best_worst", "all"] = "best_worst"  # which pairs several ranked replies to one prompt make
    balance_positions: bool = False  # keep as many pairs of each position of the better reply as the rarest has
    objective: Literal["helpful", "harmless", "overall"] = "overall"  # for rows that do not say it themselves
    split: str = "train"  # hub datasets and folders only
    data_dir: str | None = None  # hub datasets and folders only
    subset: str | None = None  # hub datasets and folders only
    limit: int | None = None  # keep this many rows, chosen by a hash of the prompt
    # in training: under 1 the share of rows kept, over 1 how often a row comes, both by hash; 0, of pairs: evaluation
    # alone has its share of them
    weight: float = 1.0
    # of pairs: false, and their chosen replies are no demonstrations where these are `from: preferences`
    imitate: bool | None = field(default=None, metadata={"silent": True})
    # as `data.leaks`, for its rows alone; None: as that says
    leaks: Literal["error", "remove", "allow"] | None = field(default=None, metadata={"silent": True})


def _from_preferences() -> list[Source]:
    return [Source(from_="preferences")]


@dataclass
class DataSection:
    preferences: list[Source] = field(default_factory=list)  # pairs of replies, for the reward models, DPO and KTO
    demonstrations: list[Source] = field(default_factory=_from_preferences)  # conversations to imitate, for SFT
    prompts: list[Source] = field(default_factory=_from_preferences)  # what PPO samples replies to
    ratings: list[Source] = field(default_factory=list)  # replies with a thumb up or down, for KTO beside the pairs
    evaluation_preferences: list[Source] = field(default_factory=list)  # pairs to evaluate on, never trained on
    evaluation_prompts: list[Source] = field(default_factory=_from_preferences)  # never trained on
    # Share of `preferences` kept for evaluation, by hash of the prompt; None: 0.1, or 0 with evaluation_preferences.
    evaluation_share: float | None = field(default=None, metadata={"was": "held_out"})
    # Share of the training pairs given to the held-out reward model, by hash of the prompt.
    heldout_share: float = field(default=0.5, metadata={"was": "judge_share"})
    leaks: Literal["error", "remove", "allow"] = "error"  # training rows whose prompt a named evaluation source holds
    near_duplicates: float | None = 0.8  # similarity from which a first user turn leaks, too; None: equal ones alone
    duplicates: Literal["keep", "remove"] = "keep"  # training rows that stand twice in a list, word for word

    @property
    def share_for_evaluation(self) -> float:
        if self.evaluation_share is not None:
            return self.evaluation_share
        return 0.0 if self.evaluation_preferences else 0.1

    def local_files(self) -> list[str]:
        """The files here that the sources name, alone, by glob or as a folder; each once, in order of their names."""
        named = [s.source for name in SOURCE_LISTS for s in getattr(self, name) if s.source]
        return sorted({str(path) for name in named for path in local_files(name)})


def is_among(model: str | Path, names: Iterable[str]) -> bool:
    """Whether a model is one of those that are named: by its name, or as the same folder."""
    place = os.path.realpath(expanded(str(model)))
    return any(
        str(model) == name or (place == os.path.realpath(expanded(name)) and os.path.isdir(place)) for name in names
    )


SOURCE_LISTS = ("preferences", "demonstrations", "prompts", "ratings", "evaluation_preferences", "evaluation_prompts")


def expanded(path: str) -> Path:
    """The path with `~` as the home folder; as it stands where nobody is called so (`~x` may be a file's name)."""
    try:
        return Path(os.path.expanduser(path))  # pathlib's own raises where there is no such user
    except ValueError:  # "~" before what no system could be asked for: a zero byte, half a character
        return Path(path)


def local_files(source: str) -> list[Path]:
    """The files behind a source's name: one, those of a glob, or all of a folder; none for a hub id."""
    path = expanded(source)
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            return sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        if any(sign in source for sign in "*?["):
            return sorted(Path(found) for found in glob.glob(str(path), recursive=True) if Path(found).is_file())
    except OSError:  # a name that no file can have
        pass
    return []


MOST_ENTITIES = 12  # animals there are names for


@dataclass
class WorldSection:
    """The gold world (llm_rlhf/world/gold.py): data whose true score is known, and the base model that ships."""

    entities: int = 6  # how many animals can be asked about, 2 to 12
    demonstrations: int = 1200  # conversations shown to supervised fine-tuning
    good_share: float = 0.4  # share of demonstrations whose reply is good
    preferences: int = 9000  # pairs, both objectives together
    label_noise: float = 0.1  # share of pairs whose label is flipped
    prompts: int = 1200  # conversations PPO samples replies to
    evaluation_prompts: int = 300  # per seed, in phrasings no training stage saw
    phrasings: Literal["evaluation", "development"] = "evaluation"  # of these; settings are chosen by development's


@dataclass
class OwnSuite:
    """A suite of the user's: prompts that the policies answer, and a function that gives every reply a number."""

    name: str  # of the measure in the report: letters, digits and underscores
    function: str  # module:function, of (prompts, replies); it returns a number for each reply, None where it has none
    prompts: list[Source]  # what is asked
    good: Literal["higher", "lower", "neither"] = "higher"  # which way of that number is good


@dataclass
class Benchmark:
    """A public suite, known by its name (docs/suites.md), and where its rows are."""

    name: str  # xstest, harmbench, truthfulqa, ...
    source: str  # hub id, folder, file or glob, as in Source
    columns: dict[str, str] = field(default_factory=dict)  # our name of a column: the file's, where they differ
    split: str = "train"  # hub datasets and folders only
    data_dir: str | None = None  # hub datasets and folders only
    subset: str | None = None  # hub datasets and folders only
    limit: int | None = None  # ask this many rows, chosen by a hash of the prompt


@dataclass
class EvaluateSection:
    prompts: int = 300  # at most this many evaluation prompts, chosen by a hash of the prompt
    batch_size: int = 64  # replies generated or scored at once, per process
    temperature: float | None = None  # None: as in training
    response_length: int | None = None  # tokens; None: as in training
    # compiled: each decoding step as one graph, with a cache of fixed size; auto: so on CUDA, where 2,000 steps or more
    # of a policy are ahead (batches times response_length). The same replies but for the last bits of the logits
    decoding: Literal["auto", "plain", "compiled"] = "auto"
    resamples: int = 2000  # of the bootstrap, where an interval is one
    samples: int = 10  # prompts shown side by side in the report
    # beside the comparison of the policies on the recipe's own prompts, which is always made
    suites: list[Literal["refusals", "overoptimization"]] = field(
        default_factory=lambda: ["refusals", "overoptimization"]
    )
    refusal_prompts: int = 200  # of each kind, from data/evaluation; a world's own prompts take their place
    snapshot_prompts: int = 64  # what every snapshot of the policy is asked again; under 20: no curve
    best_of_n: int = 16  # replies of the start to each of these, of which the training reward picks one; under 2: none
    own: list[OwnSuite] = field(default_factory=list)  # suites of the user's: a file of prompts and one function
    benchmarks: list[Benchmark] = field(default_factory=list)  # public suites by their names
    reference: str | None = None  # what the policy is compared with, as on the command line; None: what PPO began from
    reference_key_variable: str | None = None  # environment variable with the API key, where that is an endpoint
    judge: str | None = None  # local:MODEL, people:FILE.jsonl|STORE, or URL#MODEL: compares replies in both orders
    judge_key_variable: str | None = None  # environment variable with the API key of an endpoint that judges
    hhh: list[Source] = field(default_factory=list)  # pairs of which a model is to know the better: BIG-bench, or any
    pairs: list[Source] = field(default_factory=list)  # to test the reward models on, in place of the held-out ones
    perplexity_rows: int = 200  # held-out replies whose perplexity is read, chosen by a hash of the prompt; 0: none

    def local_files(self) -> list[str]:
        """The files here that its own sources name; each once, in order of their names."""
        sources = [source.source for suite in self.own for source in suite.prompts]
        sources += [source.source for source in (*self.hhh, *self.pairs)]
        sources += [benchmark.source for benchmark in self.benchmarks]
        sources.append(verdict_file(self.judge or "") or "")
        return sorted({str(path) for source in sources if source for path in local_files(source)})


PEOPLE = "people:"  # before a file of verdicts, or a feedback store


def verdict_file(judge: str) -> str | None:
    """The file of people's verdicts that a judge names; None where it names none, or a store of them."""
    if not judge.startswith(PEOPLE) or "://" in judge:
        return None
    path = Path(judge.removeprefix(PEOPLE))
    if path.is_dir():
        return None
    try:
        with path.open("rb") as file:
            is_store = file.read(16) == b"SQLite format 3\0"
    except OSError:  # whoever reads it says so
        is_store = path.suffix in (".db", ".sqlite")
    return None if is_store else str(path)


GATE_CHECKS = ("helpful", "harmless", "harmful_refusals", "over_refusal", "kl", "perplexity", "reward_model", "gain")


@dataclass
class GateSection:
    """What `llm-rlhf gate` holds a policy to. No stage is another for it; a threshold of null asks nothing."""

    # A side's loss that the interval may leave possible, in the unit of what judges it; None: the verdict's own margin.
    margin: float | None = None
    refusal_drop: float | None = 10.0  # points by which harmful requests may be refused less often, by the interval
    over_refusal_rise: float | None = 10.0  # points by which safe requests may be refused more often, likewise
    kl: float | None = 50.0  # nats a reply from the start at most
    perplexity_rise: float | None = 2.0  # times the start's perplexity of held-out replies at most
    reward_model: bool = True  # no check of the reward models may have found a fault
    gain: float | None = None  # the average gain that must be shown, in its judge's unit; None: no gain is asked for
    # What must have been measured; the other checks pass where there was nothing to measure them by.
    required: list[str] = field(default_factory=lambda: list(GATE_CHECKS[:4]))


@dataclass
class PPOOptions:
    """Keys of the `ppo` section that are the stage's, not PPOConfig's."""

    eval_prompts: int = 64  # prompts kept back to evaluate on while training, a tenth of them at most; 0: none
    reward_funcs: list[str] = field(default_factory=list)  # more to score with: module:function, hub id or folder


REWARD_CHECKS = ("beats_rules", "prefers_refusals", "prefers_answers", "sees_past_length", "leaves_plateau")


@dataclass
class RewardOptions:
    """Keys of the `reward` section that are the stage's, not RewardConfig's."""

    # joint: one adapter on all pairs; separate: a helpful and a harmless one; else one, on the pairs of that objective
    objectives: Literal["joint", "separate", "helpful", "harmless", "overall"] = "joint"
    ensemble: int = 1  # adapters that differ by seed and fold: each leaves out another of so many folds of the prompts
    label_smoothing: float = 0.0  # share of labels taken to be the wrong way round, under one half
    length_control: Literal["none", "residual"] = "none"  # residual: scores learn what length does not explain
    reference_samples: int = 256  # replies of the starting model whose mean score becomes 0; 0: scores stay as they are
    reference_length: int = 128  # tokens of such a reply at most
    unit_deviation: bool = False  # their standard deviation becomes 1 as well
    # What a check of the finished reward model does that found a fault: warn; stop, before PPO; or off, say nothing. Or
    # one of these for each check by its name (REWARD_CHECKS); those not named warn.
    gates: str | bool | dict[str, str | bool] = "warn"
    # A finished reward model, hub id or folder, in place of one that is trained: a whole one with one label, or an
    # adapter of RewardTrainer's on the base that PPO starts from. It stands alone: nothing else of the section applies.
    model: str | None = None

    def gate(self, check: str) -> str:
        """What the check of this name does: "warn", "stop" or "off", which YAML reads as false."""
        found = self.gates.get(check, "warn") if isinstance(self.gates, dict) else self.gates
        return "off" if found is False else str(found)

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters that PPO is trained against, which are those of their folders under `reward/`."""
        if self.objectives == "separate":
            return ["helpful", "harmless"]
        if self.ensemble > 1:
            return [f"{self.objectives}-{number}" for number in range(self.ensemble)]
        return [self.objectives]


@dataclass
class ScoreOptions:
    """Keys of every section but `ppo` whose method is paid by scores; PPOConfig has fields of the same names."""

    reward_funcs: list[str] = field(default_factory=list)  # more to score with: module:function, hub id or folder
    reward_weights: list[float] | None = None  # one for each reward model, then for each of reward_funcs
    score_combination: Literal["weighted", "minimum", "mean_minus_spread"] = "weighted"  # of several reward models
    score_spread_coef: float = 1.0  # weight of the models' disagreement
    missing_eos_penalty: float = 1.0  # taken off the score of a reply that was cut before it stopped by itself
    eval_prompts: int = 64  # prompts kept back, a tenth at most: the same as PPO keeps back, so that all train alike


@dataclass
class OnlineOptions(ScoreOptions):
    """Keys of the `grpo` and `rloo` sections that are not their trainers'."""

    total_episodes: int | None = None  # replies sampled in all, rounded up; None: max_steps or num_train_epochs


@dataclass
class BestOfNOptions(ScoreOptions):
    """Keys of the `best_of_n` section that are not SFTConfig's."""

    n: int = 8  # replies of the start to each prompt, of which the one with the highest score is imitated
    prompts: int | None = None  # at most this many, chosen by a hash of the prompt; None: all
    temperature: float = 1.0  # of the sampling
    response_length: int = 256  # tokens of a reply at most
    sampling_batch_size: int = 64  # replies sampled or scored at once, per process


STAGE_OPTIONS: dict[str, type] = {
    "reward": RewardOptions,
    "ppo": PPOOptions,
    "grpo": OnlineOptions,
    "rloo": OnlineOptions,
    "best_of_n": BestOfNOptions,
}
METHODS = {  # sections that make a policy of the start, of which a recipe has one at most; what each is called
    "ppo": "PPO",
    "grpo": "GRPO",
    "rloo": "RLOO",
    "dpo": "DPO",
    "kto": "KTO",
    "best_of_n": "Best of n, imitated",
}
ONLINE = ("ppo", "grpo", "rloo")  # those that train on replies which they draw themselves meanwhile
OFFLINE = ("dpo", "kto")  # those that learn from the pairs; the others are paid by scores


@dataclass
class Recipe:
    name: str  # of the run, in its report and its folder
    output_dir: str | None = None  # the run's folder; None: runs/NAME
    seed: int = 0  # of everything that is drawn at random
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection | None = None
    world: WorldSection | None = None
    # people's labels, trained on beside `data` or `world`, or alone
    feedback: FeedbackSection | None = field(default=None, metadata={"silent": True})
    sft: dict[str, Any] | None = None  # fields of trl.SFTConfig; absent: the given model is already a chat model
    reward: dict[str, Any] | None = None  # fields of trl.RewardConfig, and of RewardOptions
    # at most one of the next six
    ppo: dict[str, Any] | None = None  # fields of llm_rlhf.PPOConfig, and of PPOOptions
    grpo: dict[str, Any] | None = None  # fields of trl.GRPOConfig, and of OnlineOptions
    rloo: dict[str, Any] | None = None  # fields of trl.RLOOConfig, and of OnlineOptions
    dpo: dict[str, Any] | None = None  # fields of trl.DPOConfig
    kto: dict[str, Any] | None = None  # fields of trl.KTOConfig
    best_of_n: dict[str, Any] | None = None  # fields of trl.SFTConfig, and of BestOfNOptions
    evaluate: EvaluateSection | None = None
    # trackers that follow every stage and the evaluation as one run: tensorboard, wandb, mlflow, trackio, comet_ml, ...
    report_to: list[str] = field(default_factory=list)
    gate: GateSection = field(default_factory=GateSection)
    rounds: RoundsSection | None = None  # runs one after another, each with labels on the last one's answers

    @property
    def folder(self) -> Path:
        return expanded(self.output_dir or f"runs/{self.name}")

    @property
    def collect(self) -> FeedbackSection | None:
        """The section of the stage that collects; every other stage is called as its section."""
        return self.feedback

    @property
    def method(self) -> str | None:
        """The section that makes the policy, which its stage, folder and policy are called by; None where none does."""
        return next((name for name in METHODS if getattr(self, name) is not None), None)

    def as_dict(self) -> dict[str, Any]:
        """The recipe with our defaults filled in, as plain values ready for YAML or JSON."""
        known = typing.cast(dict[str, Any], plain(self))
        others = METHODS.keys() - {"ppo", self.method}  # which older versions had not: they leave no trace
        others |= {"rounds"} if self.rounds is None else set()
        return {key: value for key, value in known.items() if key not in others}


def trains_reward(recipe: Recipe) -> bool:
    """Whether the run trains its reward model, and does not take a finished one or none."""
    return recipe.reward is not None and stage_options(recipe, "reward").model is None


def scored_method(recipe: Recipe) -> str | None:
    """The recipe's method where it is paid by scores, else None."""
    return None if recipe.method in OFFLINE else recipe.method


def method_options(recipe: Recipe) -> Any:
    """The options of the recipe's method; where it is paid by no scores, those of PPO by their defaults."""
    return stage_options(recipe, scored_method(recipe) or "ppo")


def option_names(stage: str) -> set[str]:
    """Keys of a stage's section that are the stage's own."""
    return {f.name for f in fields(STAGE_OPTIONS[stage])} if stage in STAGE_OPTIONS else set()


def stage_options(recipe: Recipe, stage: str) -> Any:
    """The stage's own options, with our defaults."""
    section = getattr(recipe, stage) or {}
    return STAGE_OPTIONS[stage](**{key: value for key, value in section.items() if key in option_names(stage)})
