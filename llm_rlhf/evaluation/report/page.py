"""The report as its reader meets it: one view of the dictionary, printed by two templates.

A section that this run cannot fill becomes a sentence that says what was not measured and why it matters; it never
disappears without a word.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llm_rlhf.evaluation.report import reward_sections, sections
from llm_rlhf.evaluation.report.benchmark_section import benchmarks
from llm_rlhf.evaluation.report.curve_section import curves
from llm_rlhf.evaluation.report.distance_section import distance
from llm_rlhf.evaluation.report.labels import by_role, start_called, subject_label
from llm_rlhf.evaluation.report.measures import Entry, is_difference, measure_of, with_own
from llm_rlhf.evaluation.report.numbers import (
    NARROW,
    alike,
    interval_text,
    number,
    value_text,
)
from llm_rlhf.evaluation.report.people_section import people
from llm_rlhf.evaluation.report.verdict import has_policy
from llm_rlhf.evaluation.report.watch_section import watch_section

MISSING = {
    "plane": "no policy was scored on helpful and on harmful prompts apart, so a gain on one that costs the other "
    "would not show",
    "outcomes": "no policy was scored, so there is nothing to compare",
    "win_rate": "no win rate: a mean can rise through a few prompts alone",
    "training": "no curve of the PPO stage was recorded, so nobody can see whether it had settled",
    "accuracy": "no accuracy of the reward model on held-out pairs, so its scores are worth nobody knows what",
    "calibration": "no calibration of the reward model, so nobody knows what a difference of its scores is worth",
    "heldout": "no second reward model, so the one PPO was trained to please is also its judge",
    "scary": "no safe-but-scary prompts in this recipe, so a policy that refuses whatever sounds dangerous would go "
    "unnoticed",
    "refusals": "no refusals were counted",
    "distance": "no snapshots of the policy were asked again, or fewer than 20 prompts, so over-optimisation on the "
    "way would not show",
    "perplexity": "no held-out replies were read, so a policy that lost its language elsewhere would go unnoticed",
    "samples": "no replies were kept, so the numbers cannot be checked by reading",
}

MACHINE = (
    "The same machine and versions give the same bits. Another CPU rounds otherwise, and training parts from this one "
    "after some steps: it is another draw of the same distribution, like another seed."
)


def render_html(report: dict[str, Any]) -> str:
    """The page: one self-contained HTML file."""
    return templates(escape=True).get_template("report.html.jinja").render(view(report))


def render_markdown(report: dict[str, Any]) -> str:
    """The same in Markdown, for a model card."""
    return templates(escape=False).get_template("report.md.jinja").render(view(report))


def view(report: dict[str, Any]) -> dict[str, Any]:
    """Everything the templates print, section by section."""
    estimates = report["estimates"]
    with start_called(report), with_own(report["own"]), by_role(estimates) as roles, alike(estimates):
        return _view(_in_roles(report, roles))


def _in_roles(report: dict[str, Any], roles: dict[str, str]) -> dict[str, Any]:
    """The report with the policy's and its reference's names replaced by their roles."""

    def role(name: str | None) -> str | None:
        return None if name is None else roles.get(name, name)

    estimates = [{**e, "subject": role(e["subject"]), "reference": role(e["reference"])} for e in report["estimates"]]
    samples = [
        {**sample, "replies": {role(name): reply for name, reply in sample["replies"].items()}}
        for sample in report["samples"]
    ]
    return {**report, "estimates": estimates, "samples": samples}


def _view(report: dict[str, Any]) -> dict[str, Any]:
    estimates: list[Entry] = report["estimates"]
    found = {
        "hero": sections.hero(report),
        "verdict": [_verdict_line(line, report["headline"]) for line in report["verdict"]],
        "plane": sections.plane(estimates),
        "outcomes": sections.outcomes(estimates),
        "wins": sections.wins(estimates),
        "judge": sections.judge(report["provenance"]["instruments"].get("judge")),
        "price": sections.price(estimates),
        "hhh": sections.hhh(estimates),
        "curves": curves(report["curves"], subject_label(_origin(report))),
        "accuracy": reward_sections.accuracy(estimates),
        "length": reward_sections.length(estimates),
        "matrix": reward_sections.matrix(estimates),
        "calibration": reward_sections.calibration(report["reward_model"]["calibration"]),
        "doubt": reward_sections.doubt(report["reward_model"]["agreement"]),
        "refusals": sections.refusals(estimates),
        "benchmarks": benchmarks(estimates, report.get("benchmarks", {})),
        "distance": distance(report["overoptimization"]),
        "watch": watch_section(report["curves"].get("ppo", []), report.get("watch", {})),
        "table": [_table_row(e) for e in estimates],
    }
    return {
        **found,
        "report": {"next": [], **report},
        "run": report["run"],
        "seconds": [(stage, duration(s)) for stage, s in report["run"]["seconds"].items()],
        "total": duration(sum(report["run"]["seconds"].values())),
        "samples": [_sample(sample) for sample in report["samples"]],
        "missing": MISSING,
        "has_policy": has_policy(estimates),
        "named_pairs": "pairs" in report["data"],
        "people": people(report.get("feedback")),
        "unmeasured": _unmeasured(report, found),
        "provenance": report["provenance"],
        "machine": MACHINE if "machine" in report["provenance"] else None,
        "machines": _machines(report["provenance"]),
    }


def _origin(report: dict[str, Any]) -> str:
    """What training began from, as the report names it."""
    known = (report["overoptimization"] or {}).get("start")
    return str(known or ("sft" if report["provenance"]["recipe"].get("sft") is not None else "base"))


def _machines(provenance: dict[str, Any]) -> list[str]:
    """A line for the machine that evaluated, and one for each stage that another one made."""
    known = [("", provenance.get("machine", {}))]
    known += [(f"{stage} was made on: ", there) for stage, there in provenance.get("elsewhere", {}).items()]
    return [
        start + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in there.items()) for start, there in known
    ]


def _verdict_line(line: str, headline: dict[str, Any]) -> dict[str, str]:
    """`Topic: judgement. Rest` taken apart, so that the page can colour the judgement; other text stays whole."""
    topic, colon, rest = line.partition(": ")
    word, _, text = rest.partition(". ")
    known = {**sections.TONES, "higher": "flat", "lower": "flat", "measured": "flat", "not measured": "none"}
    known[headline["word"]] = headline["tone"]
    if not colon or word not in known:
        return {"topic": "", "word": "", "text": line, "tone": "none"}
    return {"topic": topic, "word": word, "text": text, "tone": known[word]}


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    replies = [
        {
            "subject": subject_label(subject),
            "kind": sections.kind_of(subject),
            "text": reply["text"],
            "scores": [
                (judge, "not scored" if score is None else number(score, "score"))
                for judge, score in reply["scores"].items()
            ],
        }
        for subject, reply in sample["replies"].items()
    ]
    return {**sample, "replies": replies}


def _table_row(entry: Entry) -> dict[str, Any]:
    return {
        **entry,
        "subject": subject_label(entry["subject"]),
        "reference": None if entry["reference"] is None else subject_label(entry["reference"]),
        "label": measure_of(entry["name"]).label + (" change" if is_difference(entry) else ""),
        "value": value_text(entry),
        "interval": interval_text(entry),
    }


def _unmeasured(report: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What this run did not measure, each with why that matters; of a run without a policy, what a judge needs."""
    if not has_policy(report["estimates"]):
        return [MISSING[key] for key in ("accuracy", "calibration") if not found[key]]
    names = {e["name"] for e in report["estimates"]}
    absent = {
        "plane": found["plane"] is None,
        "outcomes": not found["outcomes"],
        "win_rate": found["wins"] is None,
        "heldout": "heldout_reward" not in names,
        "accuracy": found["accuracy"] is None,
        "calibration": found["calibration"] is None,
        "refusals": found["refusals"] is None,
        "scary": found["refusals"] is not None and not found["refusals"]["scary"],
        "training": not found["curves"]["first"],
        "distance": found["distance"] is None,
        "perplexity": "perplexity" not in names,
        "samples": not report["samples"],
    }
    return [MISSING[key] for key, is_absent in absent.items() if is_absent]


def duration(seconds: float) -> str:
    """Seconds as a person says them: `20 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f}{NARROW}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NARROW}s"
    if whole < 3600:
        return f"{whole // 60}{NARROW}min {whole % 60}{NARROW}s"
    return f"{whole // 3600}{NARROW}h {whole % 3600 // 60}{NARROW}min"


def fence(text: str) -> str:
    """`text` as a Markdown code block that its own backticks cannot close."""
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}text\n{text}\n{ticks}"


def cell(text: str) -> str:
    """`text` on one line of a Markdown table, with what Markdown or HTML would act on made plain."""
    for mark in "\\`*_[]|":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.replace("<", "&lt;").split())


def as_yaml(value: Any) -> str:
    """Nested dictionaries as YAML, for reading; report.json holds the exact values."""
    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, allow_unicode=True, width=100).rstrip()


def templates(escape: bool) -> Environment:
    """The templates beside this module; `escape` for HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(fence=fence, cell=cell, yaml=as_yaml)
    return environment
