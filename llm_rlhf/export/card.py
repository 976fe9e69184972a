"""The model card: what is known of a policy, from the files of its run, and nothing that is not.

Metadata is written by the hub's own classes. Numbers come with interval, n and what measured them, as in the report.
Paths of this machine and secrets stay here: files are named by their last part, and what looks like a key goes.
"""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub import EvalResult, HfApi, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llm_rlhf.evaluation.report.measures import contest, is_difference, measure_of
from llm_rlhf.evaluation.report.page import as_yaml, cell, fence, view
from llm_rlhf.evaluation.report.people_section import people
from llm_rlhf.export.fidelity import Difference
from llm_rlhf.export.source import Source
from llm_rlhf.models.adapter_folders import is_hub_id
from llm_rlhf.models.finding import SECONDS
from llm_rlhf.recipe.sections import METHODS, ONLINE, SOURCE_LISTS, Recipe, expanded
from llm_rlhf.redaction import MARK, redacted, redacted_tree
from llm_rlhf.run_folder import MANIFEST, read_json

OURS = "apache-2.0"  # of the gold world
_IN_THE_INDEX = ("gold_gain", "gold_helpful_gain", "gold_harmless_gain", "heldout_reward_gain",
                 "heldout_helpful_gain", "heldout_harmless_gain", "win_rate", "refusal_harmful_change",
                 "over_refusal_change")  # fmt: skip


def model_card(
    source: Source, kind: str, name: str, notes: list[str], difference: Difference | None, licence: str | None = None
) -> str:
    """README.md of an export.

    Args:
        kind: "adapter" or "model".
        name: how it is loaded: its id on the hub, or its folder's name.
        licence: of the base; None: the hub is asked.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(cell=cell, fence=fence, yaml=as_yaml)
    hub_base = None if source.base_is_here or source.in_a_world else source.base
    licence = licence or (OURS if source.in_a_world else licence_of(hub_base))
    report = source.report if source.is_policy or source.stage == "sft" else None
    seen = None if report is None else view(report)
    text = environment.get_template("model_card.md.jinja").render(
        metadata=_metadata(source, kind, hub_base, licence, report if source.is_policy else None).to_yaml(),
        source=source,
        kind=kind,
        name=name,
        notes=notes,
        difference=difference,
        hub_base=hub_base,
        base_name="the base model of a small language world" if source.in_a_world else plain(source.base),
        licence=licence,
        report=report if source.is_policy else None,
        rows=[] if report is None or seen is None else _rows(source, report, seen["table"]),
        machine=None if seen is None else "; ".join(seen["machines"]),
        judges=[] if report is None else judges_of(report),
        data=data_of(source.recipe),
        people=_people(source),
        counts=_counts(source),
        recipe=None if source.recipe is None else shown(source.recipe.as_dict()),
        trained_with=_trained_with(source),
        stops=[source.tokenizer.convert_ids_to_tokens(i) for i in _ids(source.sampling.eos_token_id)],
        stage=_stages(source),
        method=METHODS.get(source.method or ""),
        sampled=source.stage != "sft" and source.method in ONLINE,
        here="" if is_hub_id(name) and "/" in name else "  # this folder: where it lies from where you are",
    )
    return without_secrets(text)


def licence_of(base: str | None) -> str | None:
    """The licence that the hub tells of a model, asked once; None where it is not known or nobody answers."""
    if base is None:
        return None
    try:
        known = HfApi().model_info(base, timeout=SECONDS).card_data
    except Exception:  # offline, gone, gated: it is then not known here
        return None
    found = None if known is None else known.to_dict().get("license")
    return found if isinstance(found, str) else None


def _stages(source: Source) -> str:
    """What it was trained by, in words."""
    fine_tuned = "supervised fine-tuning"
    if source.stage == "sft":
        return fine_tuned
    method = METHODS.get(source.method or "", "an adapter")
    if source.method == "best_of_n":  # the one that is no name
        method = "imitation of the best of n replies"
    trained = method if source.is_policy else f"{method}, as it was at {source.stage}"
    return f"{fine_tuned} and {trained}" if source.recipe is not None and source.recipe.sft is not None else trained


def judges_of(report: dict[str, Any]) -> list[str]:
    """What judged, in words."""
    known = report["provenance"]["instruments"]
    names = {entry["name"] for entry in report["estimates"]}
    if any(name.startswith("gold_") for name in names):
        lines = ["gold score and refusals: by the rules of the world, which no model saw"]
    else:
        lines = [f"refusals: the refusal detector, version {known['refusal_detector']}"]
    if any(name.startswith("heldout") for name in names):
        lines.append("held-out reward: a second reward model, of other pairs, that training never saw")
    if known.get("judge"):
        lines.append(f"comparisons: {plain(str(known['judge'].get('model') or known['judge']['kind']))}")
    return lines


def _people(source: Source) -> str:
    """How many people and labels its run has collected; empty where none."""
    run = source.subject.run
    known = {} if run is None else read_json(run / MANIFEST) or {}
    found = people(known.get("feedback"))
    return "" if found is None else str(found["head"])


def data_of(recipe: Recipe | None) -> list[dict[str, str]]:
    """A row for every source of the recipe: which list it is in, its name, its form and what it is about."""
    if recipe is None or recipe.data is None:
        return []
    rows = []
    for of_list in SOURCE_LISTS:
        for one in getattr(recipe.data, of_list):
            name = plain(one.source or f"the rows of {one.from_}")
            part = ", ".join(str(value) for value in (one.data_dir, one.subset, one.split) if value)
            where = f"hub, {part}" if one.source and _on_hub(one.source) else "file" if one.source else ""
            limit = f", at most {one.limit:,}" if one.limit else ""
            rows.append({"list": of_list.replace("_", " "), "name": name, "where": where + limit,
                         "objective": one.objective})  # fmt: skip
    return rows


def shown(value: Any, key: str = "") -> Any:
    """A recipe's plain values without what is of this machine, or secret."""
    if isinstance(value, dict):
        kept = {k: v for k, v in redacted_tree(value).items() if k != "output_dir" and v != MARK}
        return {k: shown(v, k) for k, v in kept.items()}
    if isinstance(value, list):
        return [shown(item, key) for item in value]
    return plain(value) if isinstance(value, str) else value


def plain(name: str) -> str:
    """A name without the folder it lies in on this machine, and without who asks for it where it is an address."""
    judge, colon, rest = name.partition(":")
    if judge in ("local", "people") and colon:
        return f"{judge}:{plain(rest)}"
    if "://" in name:
        parts = urlsplit(name)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
    there = expanded(name)
    try:
        here = there.is_absolute() or name.startswith((".", "~")) or there.exists()
    except OSError:  # a text that no file can be called
        here = False
    return there.name if here else name


def without_secrets(text: str) -> str:
    """The card without tokens and keys, and without the home and the working folder of whoever made it."""
    text = redacted(text)
    for place in {str(Path.cwd()), str(Path.home())} - {"/"}:
        text = re.sub(rf"{re.escape(place)}(?=[/\s\"'`,;)]|$)", "...", text)
    return text


def _on_hub(source: str) -> bool:
    return is_hub_id(source) and "/" in source and not Path(source).exists() and not Path(source).suffix.startswith(
        (".json", ".csv", ".tsv", ".parquet", ".gz")
    )  # fmt: skip


def _metadata(
    source: Source, kind: str, hub_base: str | None, licence: str | None, report: dict[str, Any] | None
) -> ModelCardData:
    datasets = [] if source.recipe is None or source.recipe.data is None else [
        one.source for of_list in SOURCE_LISTS for one in getattr(source.recipe.data, of_list)
        if one.source and _on_hub(one.source)
    ]  # fmt: skip
    results = [] if report is None else _results(source, report)
    return ModelCardData(
        base_model=hub_base,
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=[
            "llm-rlhf",
            "rlhf",
            *([source.method.replace("_", "-")] if source.method and source.stage != "sft" else []),
            *(["lora"] if kind == "adapter" else []),
        ],
        datasets=list(dict.fromkeys(datasets)) or None,
        license=licence,
        model_name=source.name if results else None,
        eval_results=results or None,
    )


def _results(source: Source, report: dict[str, Any]) -> list[EvalResult]:
    """The hub's index of results: paired differences over what training began from, on the run's own prompts."""
    found = []
    for entry in report["estimates"]:
        if entry["name"] in _IN_THE_INDEX and entry["subject"] == source.stage:
            what = measure_of(entry["name"]).label + (" change" if is_difference(entry) else "")
            interval = "no interval"
            if entry["low"] is not None:
                interval = f"95 % interval [{entry['low']:.3g}, {entry['high']:.3g}]"
            found.append(EvalResult(
                task_type="text-generation",
                dataset_type="held-out",
                dataset_name="held-out prompts of the run",
                dataset_split=entry["split"],
                metric_type=entry["name"],
                metric_name=f"{what} against {entry['reference']}, {interval}, n = {entry['n']}",
                metric_value=round(float(entry["estimate"]), 4),
            ))  # fmt: skip
    return found


def _rows(source: Source, report: dict[str, Any], table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was measured of the policy and of what it began from; of an SFT model its levels, as the next stage's
    differences are not its own. What was measured of reward models is in the report."""
    pairs = list(zip(report["estimates"], table, strict=True))
    if source.is_policy:
        both = contest(report["estimates"])
        return [row for entry, row in pairs if entry["subject"] in both]
    return [row for entry, row in pairs if entry["subject"] == source.stage and entry["reference"] is None]


def _counts(source: Source) -> list[tuple[str, int, int]]:
    """By list of rows: how many were read, and how many were kept."""
    run = source.subject.run
    known = read_json(run / "data" / "counts.json") if run is not None else None
    lists = {name: found for name, found in (known or {}).items() if isinstance(found, dict) and "read" in found}
    return [(name.replace("_", " "), found["read"], found["kept"]) for name, found in lists.items()]


def _trained_with(source: Source) -> dict[str, Any]:
    """What the run's own manifest says of versions, processes and the code, and of the files of data it read."""
    run = source.subject.run
    known = (read_json(run / "manifest.json") if run is not None else None) or {}
    stage = (read_json(run / "sft" / "manifest.json") or read_json(run / str(source.method) / "manifest.json")
             if run is not None else None) or {}  # fmt: skip
    files = {plain(name): digest for name, digest in stage.get("inputs", {}).get("data_files", {}).items()}
    if source.in_a_world and run is not None:
        world = read_json(run / "world" / "manifest.json") or {"files": {}}
        files = {n: f["sha256"] for n, f in world["files"].items() if n.endswith(".jsonl")}
    return {"versions": known.get("versions", {}), "files": files, "git": known.get("git")}


def _ids(token: int | list[int] | None) -> list[int]:
    return [] if token is None else [token] if isinstance(token, int) else token
