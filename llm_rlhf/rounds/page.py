"""The table of rounds, for a terminal and as a page: what each was trained on, how it did, and which is out."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llm_rlhf.evaluation.report import page as report_page
from llm_rlhf.evaluation.report.measures import Entry
from llm_rlhf.evaluation.report.numbers import interval_text, value_text
from llm_rlhf.feedback.snapshot import in_words
from llm_rlhf.run_folder import write_text

PAGE = "rounds.html"
SCORES = ("gold_score", "heldout_reward")  # of a policy: the best judge there is
GAINS = ("gold_gain", "heldout_reward_gain")  # of one over another
JUDGES = {"gold_score": "the true score", "heldout_reward": "the held-out reward model of its own round"}
NONE = "\u2013"
LIMITS = {  # checks whose interval decides, and the key that says how much may be lost; gain: some has to be shown
    "helpful": "gate.margin",
    "harmless": "gate.margin",
    "harmful_refusals": "gate.refusal_drop",
    "over_refusal": "gate.over_refusal_rise",
    "reward_on_old_data": "rounds.reward_drop",
    "gain": None,
}


def write_page(table: dict[str, Any], folder: Path) -> None:
    """Write rounds.html into the folder of the rounds."""
    here, report = Path(__file__).parent, Path(report_page.__file__).parent
    environment = Environment(
        loader=FileSystemLoader([here, report]), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    template = environment.get_template("rounds.html.jinja")
    write_text(folder / PAGE, template.render(table=table, rows=rows_of(table), headline=headline(table)))


def rows_of(table: dict[str, Any]) -> list[dict[str, Any]]:
    """What is shown of each round, in words."""
    rows = []
    for record in table["rounds"]:
        number = record["round"]
        gates = record["gates"]
        failed = [line for line in gates if not line["passed"]]
        card = record.get("labels", {})
        rows.append(
            {
                "round": number,
                "run": record["run"],
                "is_out": table["promoted"] == number,
                "promoted": record["promoted"],
                "labels": card.get("labels", 0),
                "card": card,
                "said": in_words(card) if card else "",
                "asked": _asked(card.get("batches", [])),
                "agreement": _agreement(record.get("agreement", {})),
                "score": _shown(_best(record["policy"], SCORES)),
                "judge": JUDGES.get((_best(record["policy"], SCORES) or {"name": ""})["name"], ""),
                "over_start": _shown(_best(record["start"], GAINS)),
                "over_previous": _shown(_best(record["gains"].get(str(number - 1), []), GAINS)),
                "over_first": _shown(_best(record["gains"].get("1", []), GAINS)),
                "passed": len(gates) - len(failed),
                "gates": gates,
                "failed": list(dict.fromkeys(line["check"] for line in failed)),
                "mixture": record.get("mixture", []),
                "compared_with": (record["parent"] or {}).get("compared_with"),
            }
        )
    return rows


def headline(table: dict[str, Any]) -> str:
    """Which round is out, and whether the newest one failed because too little was asked to know, in words."""
    number = table["promoted"]
    told = "No round has passed its gates so far, so that none is promoted."
    if number is not None:
        told = f"Round {number} is promoted: {table['rounds'][number - 1]['run']}."
    return f"{told}{_undecided(table['rounds'][-1])}" if table["rounds"] else told


def _undecided(record: dict[str, Any]) -> str:
    """What to do where no gate that a round failed shows a loss, only an interval that leaves one open; else empty."""
    failed = [line for line in record["gates"] if not line["passed"]]
    if not failed or any(line["check"] not in LIMITS or line["low"] is None for line in failed):
        return ""
    if any(line["low"] > 0 or line["high"] < 0 for line in failed):
        return ""
    keys = list(dict.fromkeys(key for line in failed if (key := LIMITS[line["check"]])))
    told = (
        f" Nothing that round {record['round']} failed is shown to be lost: its intervals leave it open. More prompts "
        "to evaluate on narrow them"
    )
    return f"{told}; how much may be lost is set by {', '.join(keys)}." if keys else f"{told}."


def text_of(table: dict[str, Any]) -> str:
    """The table for a terminal."""
    head = ("round", "labels", "score", "over the start", "over the previous", "over the first", "gates")
    lines = [head]
    for row in rows_of(table):
        mark = "*" if row["is_out"] else ""
        passed = f"{row['passed']} of {len(row['gates'])}"
        lines.append(
            (
                f"{row['round']}{mark}", f"{row['labels']:,}", row["score"], row["over_start"], row["over_previous"],
                row["over_first"], passed + (f", not {', '.join(row['failed'])}" if row["failed"] else ""),
            )
        )  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    told = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*told, "", headline(table)])


def _asked(batches: Sequence[dict[str, Any]]) -> list[str]:
    """The questions behind the labels: what was asked about each round, and all others by where they came from."""
    lines, others = [], Counter[str]()
    for batch in batches:
        if (about := batch["details"].get("round")) is None:
            others[batch["made_by"]] += batch["items"]
        else:
            drawn = ", ".join(f"{count} {name}" for name, count in batch["strategies"].items())
            lines.append(f"asked about round {about}, and labelled: {batch['items']} ({drawn})")
    told = ", ".join(f"{count} {name}" for name, count in sorted(others.items()))
    return [*lines, f"other questions that were labelled: {told}"] if others else lines


def _agreement(found: dict[str, Any]) -> str:
    """How often the round before's reward model agreed with people, in words; empty where nobody said."""

    def share(known: dict[str, Any]) -> str:
        if known["low"] is None:
            return f"{100 * known['estimate']:.0f} %"
        return f"{100 * known['estimate']:.0f} % [{100 * known['low']:.0f}, {100 * known['high']:.0f}]"

    told = [f"of all that could be asked {share(found['all'])}, n = {found['all']['n']}"] if "all" in found else []
    if "slice" in found and found["slice"]["n"] != found.get("all", {}).get("n"):  # else all were drawn uniformly
        told.append(f"of the uniform slice alone {share(found['slice'])}, n = {found['slice']['n']}")
    if not told:
        return ""
    return f"round {found['about']}'s reward model agreed with people on its policy's pairs: {'; '.join(told)}"


def _best(estimates: list[Entry], names: tuple[str, ...]) -> Entry | None:
    """The first of these that is there, of all prompts."""
    known = {entry["name"]: entry for entry in reversed(estimates) if entry["split"] == "all"}
    return next((known[name] for name in names if name in known), None)


def _shown(entry: Entry | None) -> str:
    return NONE if entry is None else f"{value_text(entry)} {interval_text(entry)}"
