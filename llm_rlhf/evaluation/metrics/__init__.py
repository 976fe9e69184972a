"""The statistics as `evaluate` modules, loaded from a path and without a network.

    import evaluate
    from llm_rlhf.evaluation import metrics

    win_rate = evaluate.load(metrics.path("win_rate"))
    win_rate.add_batch(predictions=[1.2, 0.3], references=[0.7, 0.3])
    win_rate.compute()  # {"win_rate": 0.75, "win_rate_low": ..., "win_rate_high": ..., "win_rate_n": 2, ...}

Each module is a thin layer over a function of `llm_rlhf.evaluation`: the numbers are those of the function.
`evaluate` copies a module's file elsewhere and reads its imports line by line, one import a line.
"""

from pathlib import Path
from typing import Any

import datasets
import evaluate

from llm_rlhf.statistics.intervals import Interval

FOLDER = Path(__file__).parent
CITATION = "llm-rlhf, docs/statistics.md: formula and source of each number."


def names() -> list[str]:
    """The modules there are, in alphabetical order."""
    return sorted(file.stem for file in FOLDER.glob("*.py") if not file.stem.startswith("_"))


def path(name: str) -> str:
    """What to hand to `evaluate.load`.

    Raises:
        ValueError: no module of that name.
    """
    if name not in names():
        raise ValueError(f"metrics.path: there is no module {name!r}; there are {', '.join(names())}.")
    return str(FOLDER / f"{name}.py")


def information(description: str, inputs: str, features: dict[str, Any]) -> evaluate.MetricInfo:
    """A module's card: what it measures, and its columns."""
    return evaluate.MetricInfo(
        description=description, citation=CITATION, inputs_description=inputs, features=datasets.Features(features)
    )


def numbers(name: str, interval: Interval) -> dict[str, Any]:
    """An interval as `evaluate` returns it; keys begin with the name, so that combined modules do not collide."""
    fields = {"": interval.estimate, "_low": interval.low, "_high": interval.high, "_n": interval.n}
    return {f"{name}{key}": value for key, value in fields.items()} | {f"{name}_method": interval.method}
