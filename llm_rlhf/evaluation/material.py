"""What the policies are asked and given to read, cut to what every one of them has room for, with an account of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from llm_rlhf.data.big_bench import load_comparisons
from llm_rlhf.data.checks import SetAside, prompt_share
from llm_rlhf.data.rows import Preference, Prompt
from llm_rlhf.data.sources import Loaded, load_preferences, load_prompts
from llm_rlhf.data.splits import seen_in_training
from llm_rlhf.data.storage import Rows
from llm_rlhf.errors import DataError
from llm_rlhf.evaluation.answers import rows_digest
from llm_rlhf.evaluation.endpoints import Endpoint, tell_of_silence
from llm_rlhf.evaluation.judges.naming import check_judge, find_judge
from llm_rlhf.evaluation.request import Both, Evaluation, check_names
from llm_rlhf.evaluation.subjects import Subject, is_named, subject_of
from llm_rlhf.evaluation.suites.benchmarks.answering import fit_choices
from llm_rlhf.evaluation.suites.benchmarks.loading import check_benchmarks, load_benchmark
from llm_rlhf.evaluation.suites.benchmarks.registry import BENCHMARKS
from llm_rlhf.evaluation.suites.benchmarks.rows import Choices
from llm_rlhf.evaluation.suites.own import check_suites, suite_function, suite_prompts
from llm_rlhf.evaluation.suites.perplexity import demonstrations_of
from llm_rlhf.evaluation.suites.refusals import shipped_prompts
from llm_rlhf.models.base import context_limit, load_tokenizer
from llm_rlhf.models.finding import find_config
from llm_rlhf.models.fitting import Fitted, fit_preferences, fit_prompts
from llm_rlhf.recipe.sections import ModelSection, Recipe, Source, stage_options
from llm_rlhf.run_folder import text_digest

OWN = ""  # the list of the evaluation's own prompts; others are named by their suites
REFUSALS = "refusals"  # that of the prompts that ship with the project, where the own ones tell nothing of refusals

Row = TypeVar("Row", Prompt, Preference, Choices)


@dataclass
class Material:
    """Lists of rows, and what became of the rows they were made of."""

    prompts: dict[str, list[Prompt]]  # by list
    choices: dict[str, list[Choices]] = field(default_factory=dict)  # likewise: given replies that the policies read
    candidates: dict[str, list[Choices]] = field(default_factory=dict)  # likewise, that the reward models score
    hhh: list[Preference] = field(default_factory=list)  # pairs of which the policies are to know the better
    demonstrations: list[Preference] = field(default_factory=list)  # pairs whose chosen replies are read
    pairs: list[Preference] = field(default_factory=list)  # labelled ones, that reward models are tested on
    counts: dict[str, Any] = field(default_factory=dict)  # of rows read, cut and set aside
    set_aside: list[SetAside] = field(default_factory=list)
    accounts: list[Fitted] = field(default_factory=list)  # of what was cut
    templates: dict[str, str] = field(default_factory=dict)  # SHA-256 of chat templates, by what the report calls them

    def digests(self) -> dict[str, str]:
        """SHA-256 of what was asked and read, by list, and of the templates it was put into."""
        lists: dict[str, Sequence[Any]] = {f"prompts {name}".strip(): rows for name, rows in self.prompts.items()}
        lists |= self.choices | self.candidates
        lists |= {"hhh": self.hhh, "held-out replies": self.demonstrations, "pairs": self.pairs}
        return {name: rows_digest(rows) for name, rows in lists.items() if rows} | self.templates


def what(name: str) -> str:
    """What the account calls a list of prompts."""
    return {OWN: "evaluation prompts", REFUSALS: "refusal prompts"}.get(name, f"prompts of {name}")


def gather(asked: Evaluation) -> Material:
    """All that is asked of the policies and given to them to read.

    Raises:
        DataError: where a source holds nothing, or no row leaves a policy room for its reply.
    """
    material = Material({})
    material.prompts[OWN], limit = _own_prompts(asked, material)
    if asked.refusals and not any("kind" in prompt.facts for prompt in material.prompts[OWN]):
        material.prompts[REFUSALS] = shipped_prompts(asked.refusal_limit)
    for suite in asked.own:
        suite_function(suite)
        loaded = suite_prompts(suite)
        material.prompts[suite.name] = list(loaded.rows)
        material.counts[what(suite.name)] = loaded.counts()
        material.set_aside += loaded.set_aside
    for benchmark in asked.benchmarks:
        of_suite = load_benchmark(benchmark, asked.key("benchmarks"))
        kind = BENCHMARKS[benchmark.name].kind
        lists: dict[str, dict[str, Any]] = {"refusals": material.prompts, "choices": material.choices}
        lists.get(kind, material.candidates)[benchmark.name] = of_suite.rows
        material.counts[what(benchmark.name)] = of_suite.counts()
        material.set_aside += of_suite.set_aside
    if asked.hhh:
        comparisons = load_comparisons(asked.hhh)
        material.hhh = comparisons.pairs
        material.counts["hhh"] = comparisons.counts()
        material.set_aside += comparisons.set_aside
    if asked.pairs:
        pairs = load_pairs(asked.pairs, asked.key("pairs"))
        material.pairs = list(pairs.rows)
        material.counts["pairs"] = pairs.counts()
        material.set_aside += pairs.set_aside
    if asked.data is not None and len(asked.local) == 2:  # an endpoint tells no log-probabilities of given replies
        material.demonstrations = demonstrations_of(asked.data.evaluation_pairs, asked.perplexity_rows)
    if asked.data is not None:
        rows: dict[str, Sequence[Any]] = {what(name): prompts for name, prompts in material.prompts.items()}
        given = material.choices | material.candidates
        rows |= {what(name): [row.as_prompt for row in of_suite] for name, of_suite in given.items()}
        for name, of_list in (rows | {"hhh": material.hhh, "pairs": material.pairs}).items():
            if "read" in material.counts.get(name, {}):
                material.counts[name]["seen_in_training"] = seen_in_training(asked.data, of_list)
    for subject in asked.local[: 1 if asked.one_base else 2]:
        _fit(asked, subject, material)
    own = material.prompts[OWN]
    chosen = sorted(range(len(own)), key=lambda i: prompt_share(own[i].messages))[:limit]
    material.prompts[OWN] = [own[i] for i in sorted(chosen)]
    return material


def _own_prompts(asked: Evaluation, material: Material) -> tuple[list[Prompt], int | None]:
    """The prompts of the sources named, else of the run's evaluation, else those that ship with the project.

    Also how many of them are to be taken; None: all. What was read of named sources and set aside goes into the
    material's account.
    """
    if asked.prompts:
        loaded = load_prompts(asked.prompts, Rows())
        material.counts[what(OWN)] = loaded.counts()
        material.set_aside += loaded.set_aside
        if not len(loaded.rows):
            read = loaded.counts()["read"]
            raise DataError(f"{asked.key('prompts')}: no prompt is left of {read} rows; look at their format.")
        return list(loaded.rows), asked.limit
    if asked.data is not None:
        return list(asked.data.evaluation_prompts), asked.limit
    return shipped_prompts(asked.refusal_limit), None


def _fit(asked: Evaluation, subject: Subject, material: Material) -> None:
    """Cut every list to what the subject's base has room for, in place."""
    named = f"The policy {subject.name!r}:"
    config = find_config(subject.base, subject.model, named)
    tokenizer = load_tokenizer(subject.base, subject.model, subject.adapter)
    limit, length = context_limit(subject.model, config), asked.decoding["response_length"]
    where = "" if asked.one_base else f" in {subject.name}"
    if limit <= length:
        raise DataError(
            f"A reply of {length} tokens leaves no room for a prompt in the context of {subject.name}, of {limit}; "
            f"lower {asked.key('response_length', begins=False)}."
        )

    def fitted(fit: Any, rows: list[Row], account: Fitted, counted: str, rule: str) -> list[Row]:
        if not rows:
            return rows
        found: list[Row] = fit(tokenizer, rows, account)
        if not found:
            raise DataError(f"None of {len(rows)} {account.what} {rule}.{account.objection}")
        read = {} if where else material.counts.get(counted, {})
        material.counts[f"{counted}{where}"] = read | {"fitted": account.counts()} if read else account.counts()
        material.accounts.append(account)
        return found

    lower = f"lower {asked.key('response_length', begins=False)}, or give shorter ones"
    short = f"leaves room for a reply of {length} tokens; {lower}"
    for name, rows in material.prompts.items():
        account = Fitted(limit - length, f"{what(name)}{where}")
        material.prompts[name] = fitted(fit_prompts, rows, account, what(name), short)
    small = f"fits the context of {subject.name}, of {limit} tokens"
    account = Fitted(limit, f"pairs of hhh{where}")
    material.hhh = fitted(fit_preferences, material.hhh, account, "hhh", small)
    for name, choices in material.choices.items():
        account = Fitted(limit, f"{what(name)}{where}")
        material.choices[name] = fitted(fit_choices, choices, account, what(name), small)
    account = Fitted(limit, f"held-out replies{where}")
    material.demonstrations = fitted(fit_preferences, material.demonstrations, account, "perplexity", small)
    template = "chat template" if asked.one_base else f"chat template of {subject.name}"
    material.templates[template] = text_digest(tokenizer.chat_template)


def load_pairs(sources: list[Source], key: str) -> Loaded[Preference]:
    """Labelled pairs to test reward models on; DataError where there are none."""
    loaded = load_preferences(sources)
    if not len(loaded.rows):
        raise DataError(f"{key}: no pair is left of {loaded.counts()['read']} rows; look at what is set aside.")
    return loaded


def reference_of(recipe: Recipe) -> Subject | None:
    """What `evaluate.reference` names; a run is called by its folder's name where it has no other.

    It is loaded in the recipe's type and quantisation; the recipe's template and context are its own model's.
    """
    assert recipe.evaluate is not None
    text = recipe.evaluate.reference
    if text is None:
        return None
    model = recipe.model
    how = ModelSection(dtype=model.dtype, quantization=model.quantization, trust_remote_code=model.trusted)
    found = subject_of(text, how)
    if found.run is None or is_named(text):
        return found
    _, _, stage = text.partition(":")
    return replace(found, name=f"{found.run.name}-{stage}" if stage else found.run.name)


def check_section(recipe: Recipe) -> None:
    """Read and look up all that a recipe's `evaluate` names, before anything is trained.

    Raises:
        RecipeError, DataError: where the evaluation could not be made.
    """
    section = recipe.evaluate
    assert section is not None
    check_suites(section.own)
    load_comparisons(section.hhh)
    check_benchmarks(section.benchmarks, "Recipe key 'evaluate.benchmarks'")
    for benchmark in section.benchmarks:
        load_benchmark(benchmark, "Recipe key 'evaluate.benchmarks'")
    if section.pairs:
        load_pairs(section.pairs, "Recipe key 'evaluate.pairs'")
    if section.judge is not None:
        check_judge(section.judge, section.judge_key_variable, "Recipe key 'evaluate.judge':")
        find_judge(section.judge, "Recipe key 'evaluate.judge':")
        tell_of_silence(section.judge, "evaluate.judge")
    reference = reference_of(recipe)
    if reference is None:
        return
    check_names(Both(str(recipe.method), reference.name), stage_options(recipe, "reward").adapters)
    if reference.url is None:
        find_config(reference.base, reference.model, "Recipe key 'evaluate.reference':")
    elif reference.served is not None:
        Endpoint(reference.url, reference.served, section.reference_key_variable)
        tell_of_silence(reference.url, "evaluate.reference")
