"""What is exported: the policy, the run around it, and in which form it can be handed on.

An adapter can be handed on where its base is on the hub: SFT's adapter and the policy's as one. Where the base is a
folder of this machine, an adapter would load nowhere else, and whole weights are.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.subjects import Subject, is_named, method_of, subject_of
from llm_rlhf.json_lines import read_json_lines
from llm_rlhf.models.adapter_folders import base_of, is_hub_id, recorded_base
from llm_rlhf.models.base import base_tokens, lasting_template, load_tokenizer
from llm_rlhf.models.composing import copies_of_the_base, why_not
from llm_rlhf.models.decoding import sampling_config
from llm_rlhf.models.finding import find_config
from llm_rlhf.recipe.loading import recipe_of, sampling
from llm_rlhf.recipe.sections import ModelSection, Recipe
from llm_rlhf.run_folder import read_json
from llm_rlhf.unchanged import check_unchanged


@dataclass
class Source:
    """A policy that has weights here, and what is known of it."""

    text: str  # as it was named
    subject: Subject
    recipe: Recipe | None = None  # of the run that it is part of
    base: str = ""  # what training began from: a hub id or a folder
    adapters: list[Path] = field(default_factory=list)  # on that base, each trained on top of those before

    @property
    def stage(self) -> str | None:
        """Of its run: its method (ppo, dpo, ...), sft, or a snapshot's name; None where it is part of none."""
        run, adapter = self.subject.run, self.subject.adapter
        if run is None:
            return None
        if adapter is None:
            return "sft"
        return self.method if adapter == run / str(self.method) / "policy" else adapter.name

    @property
    def method(self) -> str | None:
        """The section that made its run's policy; None where none did."""
        return None if self.subject.run is None else method_of(self.subject.run)

    @property
    def is_policy(self) -> bool:
        """Whether it is what its run's method left: neither SFT's model nor a snapshot."""
        return self.method is not None and self.stage == self.method

    @property
    def unfinished(self) -> str | None:
        """The method of its recipe that has left no policy, where a run is named and not its SFT model."""
        named = is_named(self.text) or self.text.endswith(":sft")
        return None if self.recipe is None or self.method is not None or named else self.recipe.method

    @property
    def name(self) -> str:
        """What the export is called: the run, with the stage where it is not the last; or as the user calls it."""
        if self.subject.run is None or is_named(self.text):
            return self.subject.name
        own = self.subject.run.resolve().name
        return own if self.is_policy else f"{own}-{self.stage}"

    @property
    def section(self) -> ModelSection:
        """How its weights are loaded: as its run does, else in the type that they are kept in."""
        if self.subject.run is not None:
            return self.subject.model
        config = AutoConfig.from_pretrained(self.subject.base, trust_remote_code=self.subject.model.trusts_base)
        dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
        return dataclasses.replace(self.subject.model, dtype=dtype)  # type: ignore[arg-type]

    @property
    def base_is_here(self) -> bool:
        """Whether the base is, or was, a folder of this machine."""
        return Path(self.base).is_dir() or not is_hub_id(self.base)

    @property
    def in_a_world(self) -> bool:
        return self.recipe is not None and self.recipe.world is not None

    @cached_property
    def tokenizer(self) -> Any:
        """As it was trained with: its template holds the run's day."""
        return load_tokenizer(self.subject.base, self.section, self.subject.adapter)

    @cached_property
    def template(self) -> str:
        """The template that is handed on: with the recipe's arguments, and with a clock where the base's has one."""
        asks = None if self.subject.run is None else lasting_template(self.base, self.section)
        return str(asks or self.tokenizer.get_chat_template())

    @cached_property
    def sampling(self) -> GenerationConfig:
        """Where the policy stops, and how it was sampled in training."""
        run, adapter, base = self.subject.run, self.subject.adapter, self.subject.base
        for folder in [adapter or Path(base)] if run is None else [adapter, run / str(self.method) / "policy"]:
            if folder is not None and (folder / "generation_config.json").is_file():
                return GenerationConfig.from_pretrained(folder)
        try:
            named = GenerationConfig.from_pretrained(base).eos_token_id
        except OSError:  # the base says nothing
            named = None
        stops = [self.tokenizer.eos_token_id, *([named] if isinstance(named, int) else named or [])]
        drawn = {}
        if self.recipe is not None and (trained := sampling(self.recipe)) is not None:
            drawn["temperature"] = trained[1]
        pad, bos = self.tokenizer.pad_token_id, self.tokenizer.bos_token_id
        return sampling_config(list(dict.fromkeys(stops)), pad, bos, **drawn)

    @cached_property
    def report(self) -> dict[str, Any] | None:
        """The report of its run, where there is one that compares it with what it began from."""
        found = None if self.subject.run is None else read_json(self.subject.run / "report.json")
        if found is None or self.stage not in {entry["subject"] for entry in found["estimates"]}:
            return None
        return dict(found)

    @cached_property
    def replies(self) -> list[dict[str, Any]]:
        """Prompts of the run's evaluation with the policy's own replies; none where nothing was evaluated."""
        path = None if self.subject.run is None else self.subject.run / "evaluate" / "replies.jsonl"
        if path is None or not path.is_file():
            return []
        rows = read_json_lines(path)
        return [
            {"prompt": row["prompt"], **row[self.stage]} for row in rows if row.get(self.stage or "", {}).get("reply")
        ]


def source_of(text: str, trust_remote_code: Sequence[str] = ()) -> Source:
    """What `text` names, as `subject_of` reads it, with the run around it.

    Args:
        trust_remote_code: models whose repositories' Python may run here.

    Raises:
        RecipeError: where it names nothing that has weights, or nothing that was trained.
        RunFolderError: where its files are not those that the run wrote.
    """
    subject = subject_of(text, ModelSection(trust_remote_code=list(trust_remote_code) or False))
    if subject.url is not None:
        raise RecipeError(f"{text} is an endpoint, whose weights are elsewhere; name a run, an adapter or a model.")
    if subject.run is None:
        find_config(subject.base, subject.model, "The model")
        adapters = [] if subject.adapter is None else [subject.adapter]
        return Source(text, subject, base=subject.base, adapters=adapters)
    run = subject.run
    recipe = recipe_of(run)
    if subject.adapter is None and subject.base != str(run / "sft" / "model"):
        raise RecipeError(f"{text} is the base that the run began from; nothing of it was trained here.")
    check_unchanged([subject.base, subject.adapter, run / "sft" / "adapter" if (run / "sft").is_dir() else None])
    adapters = [run / "sft" / "adapter"] if (run / "sft").is_dir() else []
    adapters += [] if subject.adapter is None else [subject.adapter]
    try:
        base = base_of(adapters[0])
    except ValueError:  # it is gone, and what was trained from it may be there all the same
        base = recorded_base(adapters[0])
    return Source(text, subject, recipe, base, adapters)


def why_no_adapter(source: Source) -> str | None:
    """Why the policy cannot be one adapter on a base of the hub, in words; None where it can."""
    for adapter in source.adapters:
        if reason := why_not(adapter):
            return f"the adapter {adapter} is more than LoRA on linear layers: {reason}"
    if any(copies_of_the_base(adapter) for adapter in source.adapters):
        own = base_tokens(source.base, source.section).get_vocab()
        new = sorted(source.tokenizer.get_vocab().keys() - own.keys() - {source.tokenizer.pad_token})
        if new:
            return f"its vocabulary has tokens that {source.base} has not ({', '.join(new[:5])})"
    return None
