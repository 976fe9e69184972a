"""What can be done next, a line each, at the end of every command: only what there is, and would work.

Each function gives pairs of what a command does and the words of its line, or of what is read and where it lies;
`tell` prints those whose command exists.
"""

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from llm_rlhf.cli.app import commands
from llm_rlhf.launch import speaks_for_all
from llm_rlhf.recipe.sections import METHODS

Step: TypeAlias = tuple[str, list[str] | Path]


def tell(steps: Iterable[Step], as_json: bool = False) -> None:
    """Print the steps, on the main process, unless a program reads what is printed."""
    if as_json or not speaks_for_all():
        return
    lines = []
    for what, words in steps:
        if isinstance(words, Path):
            lines.append(f"{what}: {words}")
        elif words[0] in commands():
            lines.append(f"{what}: {shlex.join(['llm-rlhf', *words])}")
    if lines:
        print("\n" + "\n".join(lines), flush=True)


def after_run(folder: Path, asked: Sequence[str], stages: Iterable[str]) -> list[Step]:
    """What a run leads to.

    Args:
        asked: the recipe and its overrides, as they were given.
        stages: that the recipe has.
    """
    missing = [stage for stage in stages if not (folder / stage).is_dir()]
    steps: list[Step] = [(f"Go on with {missing[0]}", ["run", *asked])] if missing else []
    trained = _has_policy(folder)
    if trained or (folder / "sft" / "model").is_dir():
        steps.append(("Talk to it", ["chat", str(folder)]))
    if trained and not missing and not (folder / "report.json").is_file():
        steps.append(("Measure it", ["evaluate", str(folder)]))
    if trained:
        steps += [*_gate(folder), ("Ask people about its answers", ["feedback", "select", str(folder)])]
    return steps + _hand_on(folder)


def _has_policy(run: Path) -> bool:
    return any((run / method / "policy").is_dir() for method in METHODS)


def _hand_on(run: Path) -> list[Step]:
    if not (_has_policy(run) or (run / "sft" / "model").is_dir()):
        return []
    return [("Serve it", ["serve", str(run)]), ("Hand it on", ["export", str(run)])]


def _gate(folder: Path) -> list[Step]:
    """The gate, where its thresholds have something to go by: one side at least was measured."""
    report = folder / "report.json"
    known = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    sides = known.get("headline", {}).get("sides", {}).values()
    measured = any(status != "not measured" for status in sides)
    return [("Pass or stop by its numbers", ["gate", str(folder)])] if measured else []


def after_evaluation(policy: str, reference: str | None, key_variable: str | None, folder: Path) -> list[Step]:
    """What the comparison of a policy with its reference leads to.

    Args:
        folder: of the report.
    """
    key = ["--key-variable", key_variable] if key_variable else []
    return [("Talk to them", ["chat", policy, *([reference] if reference else []), *key]), *_gate(folder)]


def after_gate(folder: Path, passed: bool) -> list[Step]:
    """What a gate leads to: handing on what passed, else the report, which says what to do.

    Args:
        folder: of the report; a run's, or one that `evaluate` wrote, which knows no policy to hand on.
    """
    if passed:
        return _hand_on(folder)
    page = folder / "report.html"
    return [("What to do about it", page)] if page.is_file() else []


def after_rounds(folder: Path, asked: Sequence[str], page: Path, promoted: int | None, store: str | None) -> list[Step]:
    """What rounds lead to.

    Args:
        asked: the recipe and its overrides, as they were given.
        page: the table of rounds.
        promoted: the round that is out.
        store: where people are asked, as far as they are waited for; None: they are not.
    """
    steps: list[Step] = [("Rounds", page)]
    if store is not None:
        steps += [("Let people answer", ["feedback", "serve", store]), ("Then go on", ["run", *asked])]
    if promoted is not None:
        steps.append(("Talk to what is promoted", ["chat", str(folder / f"round-{promoted}")]))
    return steps


def after_select(store: str) -> list[Step]:
    """What a filled queue leads to: people.

    Args:
        store: as it was named: a run, a file or a URL.
    """
    return [("Let people answer", ["feedback", "serve", store])]


def after_export(folder: Path) -> list[Step]:
    """What a folder that others load leads to.

    Args:
        folder: an adapter, or whole weights, which alone can be served as they are.
    """
    whole = not (folder / "adapter_config.json").is_file()
    serving: list[Step] = [("Serve it", ["serve", str(folder)])] if whole else []
    return [("Talk to it", ["chat", str(folder)]), *serving]


def while_serving(url: str, name: str) -> list[Step]:
    """What a server is there for."""
    return [("Talk to it", ["chat", f"{url}#{name}"])]


def after_doctor(broken: bool) -> list[Step]:
    """What a look at the machine leads to, where nothing is broken."""
    quickstart = Path("recipes/quickstart.yaml")  # in a checkout
    steps: list[Step] = [("Run the quickstart", ["run", str(quickstart)])] if quickstart.is_file() else []
    return [] if broken else [*steps, ("Write a recipe for your data", ["init"])]


def after_show(sources: Sequence[str], options: Sequence[str], recipe: str | None) -> list[Step]:
    """What looking at rows leads to: counting them all.

    Args:
        options: of `data show` that `data check` has, too.
    """
    if recipe is not None and not sources:
        return [("Count what is in them", ["data", "check", "--recipe", recipe])]
    return [("Count what is in them", ["data", "check", *sources, *options])]


def after_comparison(runs: Sequence[str]) -> list[Step]:
    """What the comparison of runs leads to: two of them may be talked to beside each other."""
    talking = [run for run in runs if _has_policy(Path(run))]
    return [("Talk to two of them", ["chat", *talking[:2]])] if len(talking) > 1 else []


def after_check(sources: Sequence[str], options: Sequence[str], recipe: str | None, stops: bool) -> list[Step]:
    """What looking at data leads to.

    Args:
        options: of `data check` that `data show` has, too.
        stops: something was found that would stop a run.
    """
    if recipe is not None:
        return [
            ("Look at rows", ["data", "show", "--recipe", recipe]),
            *([] if stops else [("Run it", ["run", recipe])]),
        ]
    steps: list[Step] = [("Look at rows", ["data", "show", *sources, *options])]
    if not stops and not options and len(sources) == 1:
        steps.append(("Write a recipe for it", ["init", "--data", sources[0]]))
    return steps


def after_init(path: Path) -> list[Step]:
    """What a new recipe leads to."""
    recipe = str(path)
    return [
        ("Look at its data", ["data", "check", "--recipe", recipe]),
        ("Look at this machine", ["doctor"]),
        ("Run it", ["run", recipe]),
    ]


def after_recipes(quickstart: Path) -> list[Step]:
    """What the recipes that ship lead to: the one that takes nothing but this machine."""
    return [
        ("Look at this machine", ["doctor"]),
        ("From nothing to a report, in six minutes", ["run", str(quickstart)]),
    ]


def after_chat(subjects: Sequence[Any]) -> list[Step]:
    """What a chat leads to: handing on the last side that is part of a run.

    Args:
        subjects: the sides, as `evaluation.subjects` has them.
    """
    run = next((subject.run for subject in reversed(subjects) if subject.run is not None), None)
    if run is None or not (_has_policy(run) or (run / "sft" / "model").is_dir()):
        return []
    return [("Hand it on", ["export", str(run)])]
