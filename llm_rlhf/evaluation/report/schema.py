"""One record in, one report out: report.json, report.md and report.html in the run's folder.

The page is self-contained: no request to the network, charts drawn as SVG here, readable from a file. report.json is a
`Report`, below; docs/report.schema.json says the same as JSON Schema (`python -m llm_rlhf.evaluation.report.schema`).

Schema 1 had no headline, and its intervals took prompts of one wording for independent: `compare` refuses its reports
rather than put them beside newer ones.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from llm_rlhf.evaluation.report.headline import Tone
from llm_rlhf.evaluation.report.page import render_html, render_markdown
from llm_rlhf.recipe.sections import METHODS
from llm_rlhf.redaction import redacted, redacted_strings
from llm_rlhf.run_folder import write_text

SCHEMA = 2
CURVES = ("sft", "reward", "heldout", *METHODS)


class _Record(BaseModel):
    """Exactly these keys, each of exactly its type; numbers are finite, and None where a value is not known."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Run(_Record):
    name: str
    recipe: str
    """Path of the recipe; "none" where there is none."""
    base: str
    """The model that training started from; of an endpoint, its address."""
    device: str
    processes: int
    seconds: dict[str, float]
    """By stage."""


class Headline(_Record):
    """Made by `verdict.headline(report)` from the estimates."""

    word: str
    tone: Tone
    text: str
    """One line: the word in capitals, then both sides."""
    sides: dict[str, Any]
    """What was found of "helpful" and of "harmless"."""
    margins: list[str]
    """By how much a side may not have lost, by instrument."""


class NextStep(_Record):
    """Made by `next_steps(report)` from the other fields."""

    rule: str
    """Of findings.py or reward_findings.py; "onward" where none found anything."""
    finding: str
    """What is the matter, with its number."""
    remedy: str
    """What answers it, with the recipe key."""


class Estimate(_Record):
    """One number with its interval. Levels have no reference; paired differences and win rates name it."""

    name: str
    """See MEASURES in measures.py; or a suite of the user's own, NAME and NAME_gain."""
    subject: str
    reference: str | None
    split: str
    estimate: float
    low: float | None
    high: float | None
    n: int = Field(ge=1)
    method: str
    clusters: int | None
    """How many wordings, or families of a public suite, the prompts have; None where no two share one."""

    @model_validator(mode="after")
    def _is_an_interval(self) -> "Estimate":
        low, high = self.low, self.high
        if (low is None) != (high is None) or (low is not None and high is not None and low > high):
            raise ValueError(f"has the interval [{low}, {high}]; give low <= high, or None for both")
        return self


class Calibration(_Record):
    """What `calibrate` found of a reward model, and more of it; without a temperature it says why."""

    model_config = ConfigDict(extra="allow")

    temperature: float | None = None
    no_temperature: str | None = None
    curve_before: list[Any]

    @model_validator(mode="after")
    def _knows_why(self) -> "Calibration":
        if self.temperature is None and not self.no_temperature:
            raise ValueError("has neither a temperature nor no_temperature, the reason")
        return self


class RewardModel(_Record):
    calibration: dict[str, Calibration]
    """By "reward", "heldout" or the name of one of several adapters."""
    agreement: dict[str, Any] | None
    """What `ensemble_agreement` found; None where there is no ensemble."""


class OwnSuite(_Record):
    """A suite of the user's own."""

    function: str
    """module:function"""
    good: Literal["higher", "lower", "neither"]
    unit: Literal["score", "share"]
    prompts: int
    not_scored: dict[str, int]
    """By subject."""


class Benchmark(_Record):
    """A public suite. Its estimates are those whose split is its name, or NAME/CATEGORY."""

    source: str
    kind: Literal["refusals", "choices", "scores"]
    """What was asked: replies of the policies, log-probabilities of given replies, or reward models' scores of them."""
    rows: int
    families: str
    """What rows are clustered by, where several families are measured together."""


class Watched(_Record):
    """What PPO foresaw and saw of each side, where it did."""

    guard: dict[str, Any] = {}
    """What `Watch.write_summary` wrote."""
    preview: dict[str, Any] = {}
    """What `preview` found before training."""
    training: dict[str, Any] = {}
    """What `TrainingAlarms.write` wrote: `news`, and what is `raised` at the end."""


class Message(_Record):
    role: str
    content: str


class Reply(_Record):
    text: str
    scores: dict[str, float | None]
    """By judge."""


class Sample(_Record):
    """A prompt with every policy's reply."""

    prompt: list[Message]
    objective: str
    kind: str | None
    """None where the prompt is of no special kind."""
    chosen_by: str
    replies: dict[str, Reply]
    """By subject."""


class Feedback(_Record):
    """Whose labels a run was trained on, from the card of what it collected."""

    export: str
    """By which the store knows which labels these were."""
    created: str
    store: str
    people: int
    simulated_people: int
    """Programs that answered in people's place."""
    imported_people: int
    """Whose labels came into the store in a file."""
    labels: int
    labels_by_kind: dict[str, int]
    decisions: int
    """Items that a lead settled."""
    items: int
    guidelines_versions: list[int]
    consent_versions: list[int]
    rows: dict[str, int]
    """By file."""
    strategies: dict[str, int]
    """Items by the rule that selected them."""


class Provenance(_Record):
    recipe: dict[str, Any]
    versions: dict[str, Any]
    seed: int
    decoding: dict[str, Any]
    instruments: dict[str, Any]
    """What measured, and its version: "refusal_detector", "judge", and each reward model."""
    hashes: dict[str, Any]
    git: str
    machine: dict[str, Any] = {}
    """The CPU and how it computes."""
    elsewhere: dict[str, Any] = {}
    """The stages that another machine made, and it."""
    computed: dict[str, dict[str, str]] = {}
    """Of each stage that trained and the evaluation, "attention", and where it sampled "sampled_from" and "decoding".
    Several are joined by "and"."""


class Report(_Record):
    """What report.json holds. A list or dictionary may be empty unless it says otherwise."""

    schema_: int = Field(alias="schema")
    run: Run
    headline: Headline
    verdict: list[str] = Field(min_length=4, max_length=4)
    """Plain text, made by `verdict_lines(report)` from the estimates."""
    estimates: list[Estimate] = Field(min_length=1)
    """Each (name, subject, reference, split) once."""
    reward_model: RewardModel
    own: dict[str, OwnSuite]
    benchmarks: dict[str, Benchmark] = {}
    """By name."""
    overoptimization: dict[str, Any] | None
    """What `snapshot_curve` found, None without snapshots; "start": what training began from; "best_of_n"."""
    alarms: list[str]
    """Sentences, the gravest first."""
    next: list[NextStep] = []
    """What to do next, the gravest first; empty in reports of earlier versions."""
    watch: Watched = Watched()
    curves: dict[str, list[dict[str, float | None]]]
    """By "sft", "reward" or "reward/NAME", "heldout", "ppo" (any method): "step" and metrics as in metrics.jsonl."""
    samples: list[Sample]
    data: dict[str, Any]
    """Counts: nested dictionaries whose leaves are ints."""
    provenance: Provenance
    feedback: Feedback | None = None
    """None where nothing was collected from people."""

    @field_validator("schema_")
    @classmethod
    def _is_this_one(cls, schema: int) -> int:
        if schema != SCHEMA:
            raise ValueError(f"this version writes schema {SCHEMA}")
        return schema

    @field_validator("estimates")
    @classmethod
    def _each_once(cls, estimates: list[Estimate]) -> list[Estimate]:
        seen: dict[tuple[Any, ...], int] = {}
        for i, entry in enumerate(estimates):
            what = (entry.name, entry.subject, entry.reference, entry.split)
            if what in seen:
                raise ValueError(f"the entry {i} repeats the entry {seen[what]}: {what}; each may appear once")
            seen[what] = i
        return estimates

    @field_validator("data")
    @classmethod
    def _are_counts(cls, data: dict[str, Any]) -> dict[str, Any]:
        _check_counts(data, "data")
        return data

    @field_validator("curves")
    @classmethod
    def _are_of_stages(cls, curves: dict[str, Any]) -> dict[str, Any]:
        for stage, points in curves.items():
            if stage not in CURVES and not stage.startswith("reward/"):
                raise ValueError(f"{stage!r} is no stage; it takes {', '.join(CURVES)} and reward/NAME")
            if missing := [i for i, point in enumerate(points) if "step" not in point]:
                raise ValueError(f"the point {missing[0]} of {stage} has no step")
        return curves


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Check `report`, then write report.json, report.md and report.html into `folder`.

    Each file appears whole or not at all, and the same dictionary gives the same bytes.
    """
    check_report(report)
    texts = {
        "report.json": json.dumps(redacted_strings(report), ensure_ascii=False, indent=1, allow_nan=False) + "\n",
        "report.md": render_markdown(report),
        "report.html": render_html(report),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, redacted(text))


def check_report(report: dict[str, Any]) -> None:
    """Raise ValueError, naming the first place, where `report` is no `Report`."""
    _check_numbers(report, "report")
    try:
        Report.model_validate(report)
    except ValidationError as error:
        first = error.errors()[0]
        place = "report" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
        found = "" if first["type"] == "missing" else f" is {_short(first['input'])}"
        raise ValueError(f"{place}{found}: {first['msg'].removeprefix('Value error, ')}.") from None


def json_schema() -> str:
    """The JSON Schema of report.json, as docs/report.schema.json holds it."""
    return json.dumps(Report.model_json_schema(by_alias=True), indent=1) + "\n"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_counts(counts: Any, where: str) -> None:
    if isinstance(counts, dict):
        for key, inner in counts.items():
            _check_counts(inner, f"{where}.{key}")
    elif not isinstance(counts, int) or isinstance(counts, bool):
        raise ValueError(f"{where} is {counts!r}; a count must be an int")


def _check_numbers(value: Any, where: str) -> None:
    """Only what JSON can hold: strings, finite numbers, booleans, None, lists and dictionaries with string keys."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}; keys must be strings.")
            _check_numbers(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            _check_numbers(inner, f"{where}[{i}]")
    elif isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(
                f"{where} holds half a surrogate pair, which UTF-8 cannot write; decode with errors='replace'."
            )
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; a number must be finite. Write None where it is not known.")
    elif not (value is None or isinstance(value, int | float)):
        raise ValueError(f"{where} is of type {type(value).__name__}, which JSON cannot hold; convert it first.")


if __name__ == "__main__":
    print(json_schema(), end="")
