"""What the policies of `llm-rlhf evaluate` answer, and how probable they find replies that are given to them.

Policies on one base are asked of one copy of it in memory. Sampled replies are kept in the output folder's `cache/`.
"""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from llm_rlhf.data.checks import SetAside
from llm_rlhf.data.rows import Preference, Prompt
from llm_rlhf.errors import DataError
from llm_rlhf.evaluation.answers import Answers, rows_digest
from llm_rlhf.evaluation.chat_wire import Answer
from llm_rlhf.evaluation.endpoints import Endpoint
from llm_rlhf.evaluation.judges import model_identity
from llm_rlhf.evaluation.subjects import Subject
from llm_rlhf.evaluation.suites.hhh import PairLogprobs, pair_logprobs
from llm_rlhf.evaluation.suites.perplexity import Losses, read_replies
from llm_rlhf.models.base import context_limit, load_tokenizer
from llm_rlhf.models.fitting import Fitted, fit_preferences, fit_prompts
from llm_rlhf.models.inference import ReplyCache, load_roles, reply_logprobs, sample_replies
from llm_rlhf.models.roles import POLICY
from llm_rlhf.recipe.loading import load_recipe, trainer_config
from llm_rlhf.recipe.sections import OwnSuite, Recipe, Source
from llm_rlhf.run_folder import text_digest

OWN = ""  # the list of the evaluation's own prompts; others are named by their suites
REFUSALS = "refusals"  # that of the prompts that ship with the project, where the own ones tell nothing of refusals


@dataclass
class Evaluation:
    """What is asked for; the command's options."""

    policy: Subject
    reference: Subject
    output: Path
    prompts: list[Source] = field(default_factory=list)  # none: the run's own, or those that ship with the project
    rewards: list[str] = field(default_factory=list)  # folders or ids; none: the run's
    heldout: list[str] = field(default_factory=list)
    judge: str | None = None  # local:MODEL, URL#MODEL or people:FILE
    key_variable: str | None = None  # environment variable with the API key of an endpoint
    limit: int = 300  # prompts of each kind
    response_length: int | None = None  # tokens; None: as the run sampled in training, or 128
    temperature: float | None = None  # None: as the run sampled in training, or 1
    batch_size: int = 32
    resamples: int = 2000
    samples: int = 10
    seed: int = 0
    own: list[OwnSuite] = field(default_factory=list)
    hhh: list[Source] = field(default_factory=list)
    pairs: list[Source] = field(default_factory=list)  # labelled, to test the reward models on
    perplexity_rows: int = 200  # of a run's held-out pairs
    refusals: bool = True  # ask the prompts that ship with the project too, where the others show no refusals

    @property
    def run(self) -> Path | None:
        """The run folder whose data and reward models serve where none are named."""
        return self.policy.run or self.reference.run

    @cached_property
    def recipe(self) -> Recipe | None:
        return load_recipe(self.run / "recipe.yaml", [f"output_dir={self.run}"]) if self.run else None

    @cached_property
    def decoding(self) -> dict[str, Any]:
        """Replies are sampled as in training unless the request says otherwise."""
        length, temperature = 128, 1.0
        if self.recipe is not None and self.recipe.ppo is not None:
            trained = trainer_config(self.recipe, "ppo", self.recipe.folder / "ppo")
            length, temperature = trained.response_length, trained.temperature
        return {
            "response_length": self.response_length or length,
            "temperature": temperature if self.temperature is None else self.temperature,
            "seed": self.seed,
        }

    @cached_property
    def identities(self) -> dict[str, dict[str, Any]]:
        """What tells the policy and its reference from others; reads their weights, so it is asked once."""
        return {"policy": identity(self.policy), "reference": identity(self.reference)}

    @property
    def subjects(self) -> list[Subject]:
        return [self.policy, self.reference]


@dataclass
class Material:
    """What the policies are asked, and what is given to them to read."""

    prompts: dict[str, list[Prompt]]  # by list
    hhh: list[Preference]  # pairs of which the policies are to know the better
    demonstrations: list[Preference]  # pairs whose chosen replies are read
    pairs: list[Preference] = field(default_factory=list)  # labelled ones, that reward models are tested on
    counts: dict[str, Any] = field(default_factory=dict)  # of rows read, cut and set aside
    set_aside: list[SetAside] = field(default_factory=list)

    templates: dict[str, str] = field(default_factory=dict)  # SHA-256 of the policies' chat templates, by policy

    def digests(self) -> dict[str, str]:
        """SHA-256 of what was asked and read, by list, and of the templates it was put into."""
        lists: dict[str, Sequence[Any]] = {f"prompts {name}".strip(): rows for name, rows in self.prompts.items()}
        lists |= {"hhh": self.hhh, "held-out replies": self.demonstrations, "pairs": self.pairs}
        templates = {f"chat template of {name}": digest for name, digest in self.templates.items()}
        return {name: rows_digest(rows) for name, rows in lists.items() if rows} | templates


@dataclass
class Found:
    """What came of it, by policy; endpoints answer and read nothing."""

    answers: dict[str, dict[str, Answers]]  # by list and policy
    hhh: dict[str, PairLogprobs] = field(default_factory=dict)
    losses: dict[str, Losses] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what a reader must know of how it was asked


def ask(asked: Evaluation, material: Material) -> tuple[Material, Found]:
    """The material that every policy has room for, and what the policies made of it."""
    local = [subject for subject in asked.subjects if subject.url is None]
    for subject in local:
        material = _fitted(asked, subject, material)
    together = [prompt for prompts in material.prompts.values() for prompt in prompts]
    answers: dict[str, Answers] = {}
    found = Found({})
    for subject in asked.subjects:
        if subject.url is not None:
            answers[subject.name], note = _ask_endpoint(asked, subject, together)
            found.notes += note
    for _, group in groupby(local, key=lambda subject: repr(subject.model)):
        answers |= _ask_base(asked, list(group), together, material, found)
        gc.collect()
    if len(local) < len(asked.subjects):  # the endpoint's tokens are not known: all are counted in words
        answers = {name: given.in_words() for name, given in answers.items()}
    start = 0
    for name, prompts in material.prompts.items():
        rows = slice(start, start + len(prompts))
        found.answers[name] = {subject.name: _part(answers[subject.name], rows) for subject in asked.subjects}
        start = rows.stop
    return material, found


def _part(answers: Answers, rows: slice) -> Answers:
    lists = {f.name: getattr(answers, f.name) for f in fields(Answers)}
    return replace(answers, **{name: values[rows] for name, values in lists.items() if values is not None})


def _fitted(asked: Evaluation, subject: Subject, material: Material) -> Material:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(subject.base, trust_remote_code=subject.model.trust_remote_code)
    limit = context_limit(subject.model, config)
    length = asked.decoding["response_length"]
    if limit <= length:
        raise DataError(
            f"A reply of {length} tokens leaves no room for a prompt in the context of {subject.name}; lower "
            "--response-length."
        )
    tokenizer = load_tokenizer(subject.base, subject.model)
    prompts, counts = {}, dict(material.counts)
    for name, rows in material.prompts.items():
        account = Fitted(limit - length, f"prompts {name}".strip())
        prompts[name] = fit_prompts(tokenizer, rows, account)
        counts[f"{account.what} in {subject.name}"] = account.counts()
        if not prompts[name]:
            of = f" of the suite '{name}'" if name else ""
            raise DataError(f"No prompt{of} leaves {subject.name} room for a reply of {length} tokens.")
    read: dict[str, list[Preference]] = {}
    for name in ("hhh", "demonstrations"):
        given: list[Preference] = getattr(material, name)
        account = Fitted(limit, {"hhh": "pairs of hhh", "demonstrations": "held-out replies"}[name])
        read[name] = fit_preferences(tokenizer, given, account)
        if given:
            counts[f"{account.what} in {subject.name}"] = account.counts()
        if given and not read[name]:
            raise DataError(f"None of {len(given)} {account.what} fits the context of {subject.name}.")
    templates = material.templates | {subject.name: text_digest(tokenizer.chat_template)}
    return replace(
        material,
        prompts=prompts,
        hhh=read["hhh"],
        demonstrations=read["demonstrations"],
        counts=counts,
        templates=templates,
    )


def _ask_base(
    asked: Evaluation, subjects: list[Subject], prompts: list[Prompt], material: Material, found: Found
) -> dict[str, Answers]:
    """Policies on one base in memory, each by its own adapter or none. What they read is added to `found`."""
    first = subjects[0]
    tokenizer = load_tokenizer(first.base, first.model)
    adapters = [subject.adapter for subject in subjects if subject.adapter is not None]
    temperature = asked.decoding["temperature"] or 1.0
    try:
        model = load_roles(first.base, first.model, tokenizer, {}, adapters[0] if adapters else None, temperature)
    except (SafetensorError, OSError, ValueError) as error:
        folders = " or ".join(str(path) for path in (first.base, *adapters[:1]))
        raise DataError(f"The policy {first.name} cannot be loaded from {folders}: {error}") from None
    roles: dict[Path | None, list[str]] = {None: []}
    for number, adapter in enumerate(adapters):
        roles.setdefault(adapter, [POLICY] if number == 0 else [f"policy{number}"])
        if number and adapter != adapters[0]:
            model.load_adapter(str(adapter), adapter_name=f"policy{number}")
    model.requires_grad_(False).eval()
    answers = {}
    for subject in subjects:
        role = roles[subject.adapter]
        whose = asked.identities["policy" if subject is asked.policy else "reference"]
        known = ReplyCache(asked.output / "cache" / f"{subject.name}.jsonl", whose | asked.decoding)
        replies = sample_replies(
            model, tokenizer, [p.messages for p in prompts], role, **asked.decoding, batch_size=asked.batch_size,
            progress=f"{subject.name} answers", known=known,
        )  # fmt: skip
        answers[subject.name] = Answers.of(replies)
        sampled = asked.decoding["temperature"] > 0  # else the replies are no sample, and their log ratio no divergence
        if role and sampled and subject is asked.policy and asked.reference.model == subject.model:
            base_role = roles[asked.reference.adapter]
            own, reference = (
                reply_logprobs(model, names, replies, tokenizer.pad_token_id, asked.batch_size)
                for names in (role, base_role)
            )
            answers[subject.name].sequence_kl = np.subtract(own, reference).tolist()
        if material.hhh:
            found.hhh[subject.name] = pair_logprobs(model, tokenizer, role, material.hhh, asked.batch_size)
        if rows := material.demonstrations:
            texts = [row.prompt for row in rows], [row.chosen for row in rows]
            found.losses[subject.name] = read_replies(model, tokenizer, role, *texts, asked.batch_size)
    return answers


def _ask_endpoint(asked: Evaluation, subject: Subject, prompts: list[Prompt]) -> tuple[Answers, list[str]]:
    """The replies, and a note where some were kept from an earlier request: the model may be another one by now."""
    assert subject.url is not None
    assert subject.served is not None
    cache = asked.output / "cache" / f"{subject.name}-endpoint.jsonl"
    endpoint = Endpoint(subject.url, subject.served, asked.key_variable, cache=cache)
    given = endpoint.answers(
        [p.messages for p in prompts], max_tokens=asked.decoding["response_length"],
        temperature=asked.decoding["temperature"], seed=asked.seed, progress=f"{subject.name} answers", most_failures=0,
    )  # fmt: skip
    texts = [answer.text if isinstance(answer, Answer) else "" for answer in given]
    stopped = [isinstance(answer, Answer) and answer.stopped for answer in given]
    kept = sum(isinstance(answer, Answer) and answer.cached for answer in given)
    note = (
        f"{kept} of {len(given)} replies of {subject.name} were kept from an earlier request ({cache}); if the server "
        "has another model under this name now, delete that file and ask again."
    )
    lengths = [len(text.split()) for text in texts]
    return Answers(texts=texts, lengths=lengths, stopped=stopped), [note] if kept else []


def identity(subject: Subject) -> dict[str, Any]:
    """What tells this policy from others, for the record and for the caches."""
    if subject.url is not None:
        return {"kind": "endpoint", "url": subject.url, "model": subject.served}
    return {
        "kind": "model",
        **model_identity(subject.base, adapter=subject.adapter),
        "dtype": subject.model.dtype,
        "quantization": subject.model.quantization,
    }


def same_tokens(losses: Mapping[str, Losses]) -> bool:
    """Whether all policies split the replies into the same tokens."""
    first, *others = (given.tokens for given in losses.values())
    return all(tokens == first for tokens in others)
