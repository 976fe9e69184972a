"""What `llm-rlhf data check` finds: sources, or a recipe's whole data section as its run will read it.

1. The rows are read as a run reads them; what is set aside is counted by reason, with row numbers.
2. llm_rlhf/audit/counts.py counts what is in them.
3. With a model or a recipe, lengths are measured in tokens by the functions that the stages cut with.
4. Training and evaluation are compared: the same prompt, the same first user turn, one that is nearly the same.
5. What is worth a person's attention becomes a sentence with what to do; a finding that would stop a run is marked.

llm_rlhf/audit/text.py prints it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_rlhf.audit.counts import Account, Listed, opening_text, quantiles
from llm_rlhf.data.checks import SetAside, key_of, normalised_prompt, prompt_of
from llm_rlhf.data.formats.recognition import SERVES
from llm_rlhf.data.near_duplicates import near_matches
from llm_rlhf.data.rows import Demonstration, Preference, Prompt, Rating
from llm_rlhf.data.sources import Loaded, load_demonstrations, load_preferences, load_prompts, load_ratings
from llm_rlhf.data.splits import TRAINING, load_splits
from llm_rlhf.data.storage import Rows
from llm_rlhf.errors import DataError
from llm_rlhf.progress import bar
from llm_rlhf.recipe.loading import length_key, sampling, trainer_config
from llm_rlhf.recipe.sections import OFFLINE, ModelSection, Recipe, Source

EVALUATION = ("evaluation_pairs", "evaluation_prompts")
AnyRow = Preference | Rating | Demonstration | Prompt


MODELS_CONTEXT, CONTEXT_LESS = "the model's context", "the context less "  # limits that no key sets by itself


@dataclass
class Lengths:
    """Tokens of some rows of a list as one stage takes them, against its limit."""

    what: str  # the list of rows
    limit_name: str  # the recipe key that sets the limit, or the model's context
    limit: int | None
    measured: int  # rows measured, spread evenly over the list
    of: int
    tokens: dict[str, int]  # median, 95th percentile, maximum: prompt and the longer reply, or the prompt alone
    cut: int = 0  # of the measured: lost their oldest turns
    too_long: int = 0  # of the measured: do not fit even with their last user turn alone
    refused: int = 0  # of the measured: the chat template has an objection to them
    objection: str = ""  # what it says of the first
    examples: int = 0  # what the measured come to in SFT, where that is another number
    turns_too_long: int = 0  # turns with an example of their own that does not fit
    thoughts: int = 0  # of the measured: a reply begins with a thought
    thoughts_trained: bool = False  # whether those are trained on


@dataclass
class Shared:
    """Rows to train on that evaluation holds too."""

    same_prompt: Listed = field(default_factory=Listed)
    same_opening: Listed = field(default_factory=Listed)
    near_opening: Listed = field(default_factory=Listed)


@dataclass
class DataCheck:
    names: list[str]
    reading: dict[str, dict[str, Any]] = field(default_factory=dict)  # the loader's account, by list
    formats: dict[str, str] = field(default_factory=dict)
    set_aside: list[SetAside] = field(default_factory=list)
    lists: dict[str, Account] = field(default_factory=dict)
    lengths: list[Lengths] = field(default_factory=list)
    template: list[str] = field(default_factory=list)  # what the chat template does that may not be expected
    splits: dict[str, int] = field(default_factory=dict)
    shared: Shared | None = None  # None: there was nothing to compare with
    leaks_allowed: bool = False
    duplicates_removed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema": 1,
            "names": self.names,
            "formats": self.formats,
            "reading": self.reading,
            "lists": {name: account.as_dict() for name, account in self.lists.items()},
            "lengths": [dataclasses.asdict(lengths) for lengths in self.lengths],
            "template": self.template,
            "splits": self.splits,
            "shared": {name: listed.as_dict() for name, listed in vars(self.shared).items()} if self.shared else None,
        }


def check_sources(
    sources: list[Source], against: list[Source], serve_as: str | None, near: float | None, tokens: "Tokens | None"
) -> DataCheck:
    """Sources by themselves, and, with `against`, compared with sources of evaluation.

    Args:
        serve_as: preferences, demonstrations, prompts or ratings; None: the first that the formats can serve as.
        near: similarity of near-duplicates; None: not looked for.
    """
    check = DataCheck([source.source or "" for source in sources])
    kind, loaded = load_as(sources, serve_as)
    _keep_reading(check, kind, loaded)
    check.lists[kind] = _account(loaded.rows, kind, near)
    if tokens is not None:
        check.lengths.append(tokens.measure(loaded.rows, kind, tokens.limit_name, tokens.limit))
        check.template = tokens.template()
    if against:
        evaluation = load_prompts(against, Rows())
        _keep_reading(check, "evaluation", evaluation)
        check.shared = _shared([(kind, loaded.rows)], [("evaluation", evaluation.rows)], near)
    return check


def check_recipe(recipe: Recipe, near: float | None, sample: int) -> DataCheck:
    """A recipe's data section: every list with its limits, the splits, and what they share."""
    data = recipe.data
    assert data is not None, "a recipe without data section was refused"
    check = DataCheck([recipe.name])
    # Leaks are counted here by the same rules, and shown with their rows, instead of ending the check at the first.
    splits, check.set_aside = load_splits(dataclasses.replace(data, leaks="allow", near_duplicates=None))
    check.reading = {name: counts for name, counts in splits.counts.items() if "read" in counts}
    check.splits = splits.counts["splits"]
    check.leaks_allowed = data.leaks != "error"
    check.duplicates_removed = data.duplicates == "remove"
    pairs = [*_nonempty(splits, "reward_pairs", "heldout_pairs", "evaluation_pairs")]
    if pairs:
        check.lists["preferences"] = _account(_chained(rows for _, rows in pairs), "preferences", near)
    for name in ("ratings", "demonstrations", "prompts"):
        reused = getattr(data, name)
        if len(getattr(splits, name)) and any(source.from_ is None for source in reused):
            check.lists[name] = _account(getattr(splits, name), name, near)
    if recipe.model.base is not None:
        tokens = Tokens(recipe.model, sample)
        check.lengths, check.template = _recipe_lengths(recipe, splits, tokens), tokens.template()
    evaluation = [*_nonempty(splits, *EVALUATION)]
    if evaluation:
        check.shared = _shared([*_nonempty(splits, *TRAINING)], evaluation, near)
    return check


class Tokens:
    """Measures rows in tokens with one tokenizer, on a sample of at most `sample` rows (0: all)."""

    def __init__(self, section: ModelSection, sample: int, limit: int | None = None) -> None:
        from llm_rlhf.models.base import load_tokenizer

        assert section.base is not None
        self.tokenizer = load_tokenizer(section.base, section)
        self.sample = sample
        self.limit_name, self.limit = "--max-length", limit
        if limit is None:
            self.limit_name, self.limit = MODELS_CONTEXT, _context(section)

    def measure(self, rows: Sequence[Any], what: str, limit_name: str, limit: int | None) -> Lengths:
        """Lengths as encoded by the stages; rows over the limit are cut by the stages' own functions, and counted."""
        from llm_rlhf.models.fitting import Fitted, fit_demonstrations, fit_preferences, fit_prompts, fit_ratings
        from llm_rlhf.models.rendering import RefusedByTemplateError

        fits: dict[type, Callable[..., Any]] = {
            Preference: fit_preferences, Rating: fit_ratings, Demonstration: fit_demonstrations, Prompt: fit_prompts
        }  # fmt: skip
        chosen = _spread(rows, self.sample)
        account = Fitted(2**31 if limit is None else limit, what)
        lengths = []
        for row in _progress(chosen, f"tokens of {what}"):
            fits[type(row)](self.tokenizer, [row], account)
            with contextlib.suppress(RefusedByTemplateError):  # counted just now
                lengths.append(self._length(row))
        tokens = quantiles(lengths)
        return Lengths(
            what, limit_name, limit, len(chosen), len(rows), tokens, account.cut, len(account.set_aside),
            len(account.refused), account.objection.strip(),
            account.examples if account.examples != account.kept else 0, account.turns_too_long,
            sum(map(self._thinks, chosen)), self._trains_thoughts and isinstance(chosen[0], Demonstration),
        )  # fmt: skip

    @property
    def _trains_thoughts(self) -> bool:
        from llm_rlhf.models.encoding import encode_turn

        ask = [{"role": "user", "content": "a"}]
        plain, thinking = ({"role": "assistant", "content": text} for text in ("b", "<think>c</think>b"))
        return encode_turn(self.tokenizer, ask, thinking) != encode_turn(self.tokenizer, ask, plain)

    def _thinks(self, row: AnyRow) -> bool:
        from llm_rlhf.models.thoughts import thought_marks, thought_of

        if isinstance(row, Prompt):
            return False
        if isinstance(row, Preference):
            turns = [{"role": "assistant", "content": text} for text in (row.chosen, row.rejected)]
        elif isinstance(row, Rating):
            turns = [{"role": "assistant", "content": row.reply}]
        else:
            turns = [turn for turn in row.messages if turn["role"] == "assistant"]
        return any(thought_of(turn, thought_marks(self.tokenizer)) for turn in turns)

    def template(self) -> list[str]:
        """What the chat template does that a person may not expect, a sentence each."""
        from llm_rlhf.models.rendering import RefusedByTemplateError
        from llm_rlhf.models.template_facts import template_facts

        try:
            return template_facts(self.tokenizer).sentences()
        except RefusedByTemplateError as error:
            return [f"it refuses a question, a reply and another question: {error}"]

    def _length(self, row: AnyRow) -> int:
        from llm_rlhf.models.encoding import encode_prompt, encode_reply, encode_turn

        if isinstance(row, Prompt):
            return len(encode_prompt(self.tokenizer, row.messages))
        if isinstance(row, Demonstration):
            return len(encode_turn(self.tokenizer, row.messages[:-1], row.messages[-1]).ids)
        if isinstance(row, Rating):
            return len(encode_turn(self.tokenizer, row.prompt, {"role": "assistant", "content": row.reply}).ids)
        return max(len(encode_reply(self.tokenizer, row.prompt, text).ids) for text in (row.chosen, row.rejected))


def _recipe_lengths(recipe: Recipe, splits: Any, tokens: Tokens) -> list[Lengths]:
    """The lists against the limits of the stages that read them, as the stages compute these."""
    context = tokens.limit
    found = []
    read = {"sft": ("demonstrations",), "reward": ("reward_pairs", "evaluation_pairs")}
    read |= dict.fromkeys(OFFLINE, ("reward_pairs", "ratings"))
    for stage, lists in read.items():
        if getattr(recipe, stage) is not None:
            longest = trainer_config(recipe, stage, recipe.folder / stage).max_length
            name, limit = f"{stage}.max_length", longest
            if context is not None and (longest is None or context < longest):
                name, limit = MODELS_CONTEXT if recipe.model.context_length is None else "model.context_length", context
            found += [tokens.measure(rows, what, name, limit) for what, rows in _nonempty(splits, *lists)]
    if (sampled := sampling(recipe)) and context is not None:
        room = context - sampled[0]
        name = f"{CONTEXT_LESS}{recipe.method}.{length_key(recipe)}"
        found += [tokens.measure(rows, what, name, room) for what, rows in _nonempty(splits, "prompts")]
    return found


def _context(section: ModelSection) -> int | None:
    """The tokens a model takes; None for a tokenizer without a model."""
    from transformers import AutoConfig

    from llm_rlhf.models.base import context_limit

    try:
        config = AutoConfig.from_pretrained(section.base, trust_remote_code=section.trusts_base)
    except (OSError, ValueError):
        return section.context_length
    return context_limit(section, config)


def load_as(sources: list[Source], serve_as: str | None) -> tuple[str, Loaded[Any]]:
    """The rows as the first kind that all the formats can serve as, and which that is."""
    if serve_as is None:
        # The last kind takes every format, so that its error is about something else.
        for kind in SERVES:
            try:
                return kind, _load(sources, kind)
            except DataError as error:
                if kind == "prompts" or "cannot serve as" not in str(error):
                    raise
    assert serve_as is not None
    return serve_as, _load(sources, serve_as)


def _load(sources: list[Source], kind: str) -> Loaded[Any]:
    if kind == "preferences":
        return load_preferences(sources)
    if kind == "ratings":
        return load_ratings(sources)
    return load_demonstrations(sources, Rows()) if kind == "demonstrations" else load_prompts(sources, Rows())


def _keep_reading(check: DataCheck, name: str, loaded: Loaded[Any]) -> None:
    check.reading[name] = loaded.counts()
    check.formats |= loaded.formats
    check.set_aside += loaded.set_aside


def _account(rows: Iterable[AnyRow], what: str, near: float | None) -> Account:
    account = Account()
    for row in _progress(rows, f"reading {what}"):
        account.add(row)
    if near is not None:
        with bar(total=len(account.openings), desc="near-duplicates", leave=False) as compared:
            account.find_near_duplicates(near, compared.update)
    return account


def _shared(
    training: list[tuple[str, Sequence[AnyRow]]], evaluation: list[tuple[str, Sequence[AnyRow]]], near: float | None
) -> Shared:
    """Rows of `training` that ask what a row of `evaluation` asks; each counts once, under the first that holds."""
    prompts: dict[int, str] = {}
    openings: dict[str, str] = {}
    for _, rows in evaluation:
        for row in rows:
            asked = prompt_of(row)
            prompts.setdefault(key_of(normalised_prompt(asked), "prompt"), str(row.origin))
            openings.setdefault(opening_text(asked), str(row.origin))
    shared = Shared()
    others: dict[str, list[tuple[Any, str]]] = {}
    for name, rows in training:
        for row in _progress(rows, f"comparing {name} with evaluation"):
            asked = prompt_of(row)
            same = prompts.get(key_of(normalised_prompt(asked), "prompt"))
            text = opening_text(asked)
            if same is not None:
                shared.same_prompt.add(row.origin, f"{name}, as {same}")
            elif text in openings:
                shared.same_opening.add(row.origin, f"{name}, as {openings[text]}")
            else:
                others.setdefault(text, []).append((row.origin, name))
    if near is not None:
        texts, asked_texts = list(others), list(openings)
        for first, second, similarity in near_matches(texts, asked_texts, near):
            for origin, name in others[texts[first]]:
                shared.near_opening.add(origin, f"{name}, {similarity:.2f} like {openings[asked_texts[second]]}")
    return shared


def _nonempty(splits: Any, *names: str) -> Iterable[tuple[str, Sequence[Any]]]:
    return ((name, getattr(splits, name)) for name in names if len(getattr(splits, name)))


def _chained(lists: Iterable[Sequence[AnyRow]]) -> Iterable[AnyRow]:
    return (row for rows in lists for row in rows)


def _spread(rows: Sequence[Any], at_most: int) -> Sequence[Any]:
    """At most so many rows, at even distances; 0 for all."""
    if not at_most or len(rows) <= at_most:
        return rows
    return [rows[number * len(rows) // at_most] for number in range(at_most)]


def _progress(rows: Iterable[Any], what: str) -> Iterable[Any]:
    """The rows, with a bar while they are gone through."""
    return bar(rows, desc=what, leave=False)
