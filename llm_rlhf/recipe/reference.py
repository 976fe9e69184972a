"""docs/recipe-keys.md: every key of a recipe with its type, default and meaning, read from the classes that have them.

    python -m llm_rlhf.recipe.reference > docs/recipe-keys.md

Of our own sections the meaning is the comment at the field, of our trainers' classes their help text. The keys of TRL
and transformers are listed with their defaults; what they mean stands in those projects' pages.
"""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Literal

import yaml

from llm_rlhf.recipe.loading import DECIDED_ELSEWHERE, TRAINER_CONFIGS, config_class_of, run_defaults
from llm_rlhf.recipe.sections import METHODS, STAGE_OPTIONS, Benchmark, OwnSuite, Recipe, Source
from llm_rlhf.recipe.values import plain, words_in

EXPLAINED = {  # pages that say what a section's keys do
    "data": "data.md",
    "reward": "reward-models.md",
    "ppo": "ppo.md",
    **{method: "methods.md" for method in METHODS if method != "ppo"},
    "evaluate": "evaluation.md",
    "gate": "gate.md",
}
LISTED = {  # records that stand in lists: what they are called there, and the heading under which their keys are
    Source: ("sources", "A source"),
    OwnSuite: ("suites", "A suite of your own"),
    Benchmark: ("public suites", "A public suite"),
}
TOLD_BY_THE_RUN = ("use_cpu", "reward_weights")  # the machine decides it, the number of adapters does
TRL = "https://huggingface.co/docs/trl"
TRANSFORMERS = "https://huggingface.co/docs/transformers"
OPENING = """\
# Every recipe key

Written by `python -m llm_rlhf.recipe.reference > docs/recipe-keys.md`; what it says stands in the classes of
`llm_rlhf/recipe/sections.py` and `llm_rlhf/ppo/config.py`. [recipes.md](recipes.md) says how a recipe is written and
run. An unknown key, a wrong type and a contradiction are refused before anything is loaded, with the nearest key named.
Any key can be set on the command line: `ppo.kl_coef=0.1`, `data.preferences.0.limit=1000`.

## The recipe itself

A section that is absent is a stage that is skipped.
"""
INHERITED = f"""\
## Keys of TRL and transformers

What they mean is told by TRL ([SFTConfig]({TRL}/sft_trainer#trl.SFTConfig),
[RewardConfig]({TRL}/reward_trainer#trl.RewardConfig), [RLOOConfig]({TRL}/rloo_trainer#trl.RLOOConfig)) and by
transformers ([TrainingArguments]({TRANSFORMERS}/main_classes/trainer#transformers.TrainingArguments)). A dash: this
stage has no such key.
"""
DECIDED = """\
### Decided elsewhere

These keys of the same classes cannot be set in a stage's section:

| key | what decides it |
|---|---|
"""


@dataclasses.dataclass
class Row:
    """A line of a table: a key, its type in words, its default as YAML (None: it must be given) and its meaning."""

    key: str
    kind: str
    default: str | None
    meaning: str = ""


def reference() -> str:
    """The page as Markdown."""
    hints = typing.get_type_hints(Recipe)
    parts = [OPENING, table(own_rows(Recipe))]
    for name in (field.name for field in dataclasses.fields(Recipe)):
        if name in TRAINER_CONFIGS:
            parts += [f"## {name}\n", stage_opening(name), table(stage_rows(name))]
        elif found := section_in(hints[name]):
            explained = f"[{EXPLAINED[name]}]({EXPLAINED[name]}) says what they do.\n" if name in EXPLAINED else ""
            parts += [f"## {name}\n", explained, table(own_rows(found, f"{name}."))]
    parts.append("## Records in lists\n")
    for record, (_, title) in LISTED.items():
        parts += [f"### {title}\n", f"{first_paragraph(record)}\n", table(own_rows(record))]
    parts += [INHERITED, *inherited(), DECIDED + "\n".join(f"| `{k}` | {by} |" for k, by in DECIDED_ELSEWHERE.items())]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def table(rows: list[Row]) -> str:
    head = "| key | type | default | meaning |\n|---|---|---|---|\n"
    lines = "".join(
        f"| `{row.key}` | {row.kind} | {'must be given' if row.default is None else row.default} | {row.meaning} |\n"
        for row in rows
    )
    return head + lines if rows else ""


def own_rows(section: type, prefix: str = "") -> list[Row]:
    """The keys of one of our dataclasses and of the sections in it; of Recipe, those that are no sections."""
    hints, meanings, rows = typing.get_type_hints(section), comments(section), []
    for field in dataclasses.fields(section):
        key, inner = prefix + field.metadata.get("key", field.name), section_in(hints[field.name])
        if inner is not None and (instead := words_in(hints[field.name])):
            told = f"{' '.join(f'`{word}`' for word in instead)} or mapping"
            rows.append(Row(key, told, "the keys below", escaped(meanings[field.name])))
        if inner is not None:
            rows += own_rows(inner, f"{key}.") if section is not Recipe else []
            continue
        meaning = meanings[field.name].replace("None:", "`null`:")
        if "was" in field.metadata:
            meaning += f" (was called `{field.metadata['was']}`)"
        rows.append(Row(key, words(hints[field.name]), default_of(field), escaped(meaning)))
    return rows


def section_in(hint: Any) -> type | None:
    """The dataclass that a field holds, alone or beside None."""
    parts = () if typing.get_origin(hint) is list else (hint, *typing.get_args(hint))
    return next((part for part in parts if isinstance(part, type) and dataclasses.is_dataclass(part)), None)


def stage_opening(stage: str) -> str:
    """Where the keys of a trained stage come from, and what a run sets of them where the recipe says nothing."""
    own = f"These, which [{EXPLAINED[stage]}]({EXPLAINED[stage]}) explains, and the" if stage in EXPLAINED else "The"
    recipe = Recipe("any", reward={})
    if stage in METHODS:
        setattr(recipe, stage, {})
    defaults = run_defaults(recipe, stage)
    told = ", ".join(f"`{key}: {as_yaml(value)}`" for key, value in defaults.items() if key not in TOLD_BY_THE_RUN)
    return (
        f"{own} keys of [TRL's and transformers' classes](#keys-of-trl-and-transformers). Where nothing is said, a run "
        f"sets {told}.\n"
    )


def stage_rows(stage: str) -> list[Row]:
    """The stage's own keys, and the fields that our configuration class of its trainer has, in their order."""
    rows = own_rows(STAGE_OPTIONS[stage], f"{stage}.") if stage in STAGE_OPTIONS else []
    config = config_class_of(stage)
    hints, fields = typing.get_type_hints(config), {field.name: field for field in dataclasses.fields(config)}
    return rows + [
        Row(f"{stage}.{name}", words(hints[name]), default_of(fields[name]), escaped(fields[name].metadata["help"]))
        for name in ours(config)
    ]


def ours(config: type) -> list[str]:
    """The fields that the class itself has, where it is one of ours."""
    return list(inspect.get_annotations(config)) if config.__module__.startswith("llm_rlhf.") else []


def inherited() -> Iterator[str]:
    """A folded table of the keys that stages take over from TRL and transformers, with their defaults."""
    configs = {stage: config_class_of(stage) for stage in TRAINER_CONFIGS}
    own = {stage: ours(config) for stage, config in configs.items()}
    fields = {stage: {f.name: f for f in dataclasses.fields(config) if f.init} for stage, config in configs.items()}
    hints = {name: hint for config in configs.values() for name, hint in typing.get_type_hints(config).items()}
    names = {name for stage in configs for name in fields[stage] if name not in own[stage]} - DECIDED_ELSEWHERE.keys()
    releases = f"trl {version('trl')} and transformers {version('transformers')}"
    yield f"<details>\n<summary>The {len(names)} keys of {releases}</summary>\n"
    yield f"| key | type | {' | '.join(configs)} |\n|---|---|{'---|' * len(configs)}"
    for name in sorted(names):
        cells = [f"`{name}`", words(hints[name])]
        for stage in configs:
            if name in own[stage]:
                cells.append(f"[above](#{stage})")
            else:
                cells.append(str(default_of(fields[stage][name])) if name in fields[stage] else "–")
        yield f"| {' | '.join(cells)} |"
    yield "\n</details>\n"


def comments(section: type) -> dict[str, str]:
    """What the comments at each field of a record say, and at those that it inherits."""
    found: dict[str, str] = {}
    for each in reversed(section.__mro__):
        if each is section or dataclasses.is_dataclass(each):
            found |= _own_comments(each)
    return found


def _own_comments(section: type) -> dict[str, str]:
    """Those above a field, and the one behind it."""
    source = textwrap.dedent(inspect.getsource(section))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    found, before = {}, definition.lineno
    for node in definition.body:
        end = node.end_lineno or node.lineno
        if isinstance(node, ast.AnnAssign):
            lines = [said[line] for line in range(before + 1, end + 1) if line in said]
            found[ast.unparse(node.target)] = " ".join(lines)
        before = end
    return found


def first_paragraph(section: type) -> str:
    return inspect.cleandoc(section.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def words(hint: Any) -> str:
    """A type as a reader of YAML would call it."""
    options, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(option) for option in options))
    if origin is Literal:
        return " ".join(f"`{option}`" for option in options)
    if origin is list:
        return f"list of {words(options[0])}" if options else "list"
    if hint in LISTED:
        called, title = LISTED[hint]
        return f"[{called}](#{title.lower().replace(' ', '-')})"
    if origin is dict or hint is dict:
        return "mapping"
    if hint is type(None):
        return "null"
    known = {str: "text", int: "integer", float: "number", bool: "true/false", Any: "anything"}
    return known.get(hint) or str(getattr(hint, "__name__", hint))


def default_of(field: "dataclasses.Field[Any]") -> str | None:
    """The default as YAML in a code span; None where there is none."""
    if field.default_factory is not dataclasses.MISSING:
        return f"`{as_yaml(field.default_factory())}`"
    return None if field.default is dataclasses.MISSING else f"`{as_yaml(field.default)}`"


def as_yaml(value: Any) -> str:
    """A value in YAML's flow style; of one of our records what differs from its defaults."""
    if isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
        whole = [plain(item) for item in value]
        usual = [plain(type(item)()) for item in value]
        value = [{k: v for k, v in item.items() if v != own[k]} for item, own in zip(whole, usual, strict=True)]
    value = getattr(value, "value", value)
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def escaped(text: str) -> str:
    """A text as a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")


if __name__ == "__main__":
    print(reference(), end="")
