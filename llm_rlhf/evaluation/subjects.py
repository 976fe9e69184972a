"""Which policy is evaluated: a run, one of its stages or snapshots, an adapter, a model, or an endpoint.

runs/hh                     the run's policy: its method's where it has one, else the SFT model
runs/hh:sft                 a stage of it: base, sft, ppo (or grpo, rloo, dpo, kto, best_of_n)
runs/hh:step-40             a snapshot of its policy
path/to/adapter             a LoRA adapter of PEFT, on the base it names
path/to/model               a causal language model
Qwen/Qwen2.5-0.5B-Instruct  the same from the hub
http://localhost:8000/v1#m  the model `m` behind an OpenAI-compatible endpoint
tuned=...                   any of these under a name of your own
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from llm_rlhf.errors import RecipeError
from llm_rlhf.models.adapter_folders import base_of
from llm_rlhf.recipe.sections import METHODS, ModelSection, expanded
from llm_rlhf.recipe.values import nearest, read_section
from llm_rlhf.recipe.yaml_text import read_mapping

_NAMED = re.compile(r"^([\w.-]+)=(?=.)(.*)$", re.DOTALL)


@dataclass(frozen=True)
class Subject:
    """A policy and what it takes to load it."""

    name: str  # in the report
    model: ModelSection  # its base, and how it is loaded; of an endpoint, nothing but defaults
    adapter: Path | None = None  # of the policy, on that base; a tokenizer or template in its folder is its own
    url: str | None = None  # of an endpoint
    served: str | None = None  # the model's name there
    run: Path | None = None  # the run folder it is part of

    @property
    def base(self) -> str:
        assert self.model.base is not None
        return self.model.base


def subject_of(text: str, defaults: ModelSection | None = None) -> Subject:
    """The policy that `text` names; see the top of this module.

    Args:
        defaults: how a model is loaded that is not part of a run (a run's recipe says it for its own).

    Raises:
        RecipeError: where it names nothing that can be a policy.
    """
    named = _NAMED.match(text)
    name, text = named.groups() if named else (None, text)
    defaults = defaults or ModelSection()
    if re.match(r"https?://", text):
        url, _, served = text.partition("#")
        if not served:
            raise RecipeError(f"The endpoint {text} lacks the model's name; write {url}#MODEL.")
        return Subject(name or served.rstrip("/").rsplit("/", 1)[-1], defaults, url=url, served=served)
    try:
        return _of_path(text, name, defaults)
    except OSError as error:  # a name that no file can have
        raise RecipeError(f"There is no policy at {text[:80]!r}: {error.strerror}.") from None


def _of_path(text: str, name: str | None, defaults: ModelSection) -> Subject:
    folder = expanded(text)
    if (folder / "recipe.yaml").is_file():  # whose name may hold a colon
        return _of_run(folder, "", name, defaults)
    path, _, stage = text.rpartition(":")
    if path and (expanded(path) / "recipe.yaml").is_file():
        return _of_run(expanded(path), stage, name, defaults)
    if (folder / "adapter_config.json").is_file():
        try:
            base = base_of(folder)
        except ValueError as error:
            raise RecipeError(f"{error} Move both together, or name the base in its adapter_config.json.") from None
        return Subject(name or folder.name, dataclasses.replace(defaults, base=base), adapter=folder)
    if folder.exists() and not (folder / "config.json").is_file():
        raise RecipeError(
            f"{text} holds no recipe.yaml (a run), no adapter_config.json (an adapter) and no config.json (a model), "
            "so it is no policy."
        )
    if not folder.exists() and text.startswith((".", "/", "~")):
        raise RecipeError(f"There is no policy at {text}.")
    return Subject(name or folder.name, dataclasses.replace(defaults, base=str(folder) if folder.exists() else text))


def is_named(text: str) -> bool:
    """Whether it gives the policy a name of its own: NAME=..."""
    return _NAMED.match(text) is not None


def folder_name(policy: tuple[str, Subject], reference: tuple[str | None, Subject]) -> str:
    """The folder of an evaluation: `hh-ppo-sft` within the run `hh`, else `hh-ppo-other-ppo`.

    Args:
        policy, reference: as each was named, None where it follows from the policy, and what that is.
    """
    (_, judged), (_, compared) = policy, reference
    same_run = judged.run is not None and compared.run is not None and judged.run.resolve() == compared.run.resolve()
    return f"{_called(*policy)}-{compared.name if same_run else _called(*reference)}"


def _called(text: str | None, subject: Subject) -> str:
    """What tells it from policies of other runs: the run with the stage; or as the user calls it."""
    if subject.run is None or (text is not None and is_named(text)):
        return subject.name
    return f"{subject.run.resolve().name}-{subject.name}"


def start_of(policy: Subject) -> Subject:
    """What a policy of a run is compared with where nothing else is named: the model that its training started from."""
    assert policy.run is not None
    base = subject_of(f"{policy.run}:base")
    if policy.adapter is None or not (policy.run / "sft").is_dir():
        return base
    return subject_of(f"{policy.run}:sft")


def method_of(run: Path) -> str | None:
    """The method whose stage is done in a run's folder, as its section is called; None where none is."""
    return next((name for name in METHODS if (run / name).is_dir()), None)


def trained_by(policy: Subject) -> str | None:
    """The recipe's section that made a policy of a run, a snapshot too; None for a base, and where nobody knows."""
    if policy.run is None:
        return None
    if policy.adapter is None:
        return "sft" if Path(policy.base) == policy.run / "sft" / "model" else None
    return method_of(policy.run)


def _of_run(run: Path, stage: str, name: str | None, defaults: ModelSection) -> Subject:
    tree = read_mapping(run / "recipe.yaml")
    section = read_section(ModelSection, tree.get("model") or {}, "model.")
    method = method_of(run) or "ppo"
    known = {stage: run / stage for stage in ("sft", method) if (run / stage).is_dir()}
    snapshots = {folder.name: folder for folder in (run / method / "snapshots").glob("step-*")}
    stage = stage or (method if method in known else "sft" if "sft" in known else "base")
    before = run / "world" / "base" if (run / "world").is_dir() else section.base
    start = run / "sft" / "model" if "sft" in known else before
    adapter = None
    if stage in snapshots:
        adapter = snapshots[stage]
    elif stage == method and method in known:
        adapter = run / method / "policy"
    elif stage == "base":
        start = before
    elif stage != "sft" or "sft" not in known:
        raise RecipeError(f"{run} has no {stage!r}.{nearest(stage, ['base', *known, *snapshots])}")
    model = section.made_into(start, run / method / "policy", *snapshots.values())
    trusted = [*model.trusted, *defaults.trusted]
    model = dataclasses.replace(model, trust_remote_code=list(dict.fromkeys(trusted)) or False)
    return Subject(name or stage, model, adapter=adapter, run=run)
