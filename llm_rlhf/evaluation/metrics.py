"""The statistics as `evaluate` metrics, without a network.

    from llm_rlhf.evaluation import metrics

    win_rate = metrics.load("win_rate")
    win_rate.add_batch(predictions=[1.2, 0.3], references=[0.7, 0.3])
    win_rate.compute()  # {"win_rate": 0.75, "win_rate_low": ..., "win_rate_high": ..., "win_rate_n": 2, ...}

Each is a thin layer over a function of `llm_rlhf.statistics` or `llm_rlhf.evaluation`: the numbers are those of the
function. Keys begin with the statistic's name, so that metrics combined by `evaluate.combine` do not collide.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import evaluate
import numpy as np
from datasets import Features, Sequence, Value

from llm_rlhf.evaluation.suites.health import distinct_across, health, words
from llm_rlhf.statistics.agreement import Level, cohen_kappa, krippendorff_alpha, raw_agreement
from llm_rlhf.statistics.calibration import brier, calibration_error, fit_temperature, log_loss
from llm_rlhf.statistics.intervals import Interval, mcnemar, paired_bootstrap, paired_proportions, wilson, win_rate
from llm_rlhf.statistics.length_control import length_controlled_win_rate
from llm_rlhf.statistics.ratings import bradley_terry

CITATION = "llm-rlhf, docs/statistics.md: formula and source of each number."
NUMBER, FLAG, TEXT = Value("float64"), Value("bool"), Value("string")
SCORES = "predictions: the policy's scores; references: the other's, on the same prompts."
OVER = "compute(clusters=...): a prompt id each; compute(seed=...)."


def names() -> list[str]:
    """The metrics there are, in alphabetical order."""
    return sorted(METRICS)


def load(name: str, **options: Any) -> evaluate.Metric:
    """The metric of this name.

    Args:
        options: as `evaluate.load` takes them: `keep_in_memory`, `cache_dir`, `num_process`, ...

    Raises:
        ValueError: no metric of that name.
    """
    return Statistic(name, **options)


class Statistic(evaluate.Metric):
    """A metric of METRICS; its name is the `config_name`."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in METRICS:
            raise ValueError(f"There is no metric {self.config_name!r}; there are {', '.join(names())}.")
        known = METRICS[self.config_name]
        return evaluate.MetricInfo(known.description, CITATION, Features(known.columns), known.inputs)

    def _compute(self, **given: Any) -> dict[str, Any]:
        return METRICS[self.config_name].compute(**given)


def numbers(name: str, interval: Interval) -> dict[str, Any]:
    """An interval as `evaluate` returns it."""
    fields = {"": interval.estimate, "_low": interval.low, "_high": interval.high, "_n": interval.n}
    return {f"{name}{key}": value for key, value in fields.items()} | {f"{name}_method": interval.method}


def _win_rate(predictions: Any, references: Any, clusters: Any = None, seed: int = 0) -> dict[str, Any]:
    return numbers("win_rate", win_rate(predictions, references, clusters, seed=seed))


def _paired_difference(predictions: Any, references: Any, clusters: Any = None, seed: int = 0) -> dict[str, Any]:
    return numbers("paired_difference", paired_bootstrap(predictions, references, clusters, seed=seed))


def _proportion(predictions: Any) -> dict[str, Any]:
    flags = np.asarray(predictions, dtype=bool)
    return numbers("proportion", wilson(int(flags.sum()), len(flags)))


def _mcnemar(predictions: Any, references: Any) -> dict[str, Any]:
    a, b = np.asarray(predictions, dtype=bool), np.asarray(references, dtype=bool)
    p = mcnemar(int((a & ~b).sum()), int((b & ~a).sum()))
    return {**numbers("proportion_difference", paired_proportions(a, b)), "mcnemar_p": p}


def _cohen_kappa(predictions: Any, references: Any) -> dict[str, Any]:
    return {
        **numbers("cohen_kappa", cohen_kappa(predictions, references)),
        **numbers("raw_agreement", raw_agreement(predictions, references)),
    }


def _krippendorff_alpha(predictions: Any, level: Level = "nominal", seed: int = 0) -> dict[str, Any]:
    judges = [list(row) for row in zip(*predictions, strict=True)]
    return numbers("krippendorff_alpha", krippendorff_alpha(judges, level, seed=seed))


def _length_controlled_win_rate(
    predictions: Any, prediction_lengths: Any, reference_lengths: Any, clusters: Any = None, seed: int = 0
) -> dict[str, Any]:
    found = length_controlled_win_rate(predictions, prediction_lengths, reference_lengths, clusters, seed)
    return {
        **numbers("length_controlled_win_rate", found.controlled),
        **numbers("raw_win_rate", found.raw),
        "warning": found.warning,
    }


def _bradley_terry(
    first: Any, second: Any, predictions: Any, reference: str, clusters: Any = None, seed: int = 0
) -> dict[str, Any]:
    found = bradley_terry(first, second, predictions, reference, clusters, seed=seed)
    table = [
        {
            "player": row.player,
            **numbers("rating", row.rating),
            "rank": row.rank,
            "rank_low": row.rank_low,
            "rank_high": row.rank_high,
            **numbers("win_rate", row.win_rate),
            "games": row.games,
        }
        for row in found.table
    ]
    return {"ratings": table, "reference": reference}


def _calibration_error(predictions: Any, references: Any, clusters: Any = None, seed: int = 0) -> dict[str, Any]:
    margins = np.subtract(predictions, references)
    found: dict[str, Any] = {"temperature": fit_temperature(margins)}
    for name, measure in (("calibration_error", calibration_error), ("brier", brier), ("log_loss", log_loss)):
        found |= numbers(name, measure(margins, clusters, seed=seed))
    return found


def _reply_health(predictions: Any, clusters: Any = None, seed: int = 0) -> dict[str, Any]:
    replies = [words(text) for text in predictions]
    measured = {**health(replies, clusters=clusters, seed=seed), "distinct_2_across": distinct_across(replies, 2)}
    return {key: value for name, found in measured.items() for key, value in numbers(name, found).items()}


class _Metric(NamedTuple):
    compute: Callable[..., dict[str, Any]]
    columns: dict[str, Any]
    description: str
    inputs: str


METRICS = {
    "win_rate": _Metric(
        _win_rate,
        {"predictions": NUMBER, "references": NUMBER},
        "Share of prompts on which the policy's score is higher, ties counting 1/2; bootstrap over prompts.",
        f"{SCORES} {OVER}",
    ),
    "paired_difference": _Metric(
        _paired_difference,
        {"predictions": NUMBER, "references": NUMBER},
        "Mean of the policy's score less the reference's on the same prompt; paired bootstrap.",
        f"{SCORES} {OVER}",
    ),
    "length_controlled_win_rate": _Metric(
        _length_controlled_win_rate,
        {"predictions": NUMBER, "prediction_lengths": NUMBER, "reference_lengths": NUMBER},
        "Win rate predicted at length difference 0 by a logistic regression, beside the raw one.",
        "predictions: 1 where the policy won, 0 where it lost, 1/2 for a tie, or a probability; "
        f"prediction_lengths, reference_lengths: lengths of the two replies. {OVER}",
    ),
    "bradley_terry": _Metric(
        _bradley_terry,
        {"first": TEXT, "second": TEXT, "predictions": NUMBER},
        "Elo-scale ratings of several policies above a named reference, with intervals and ranks.",
        "first, second: names of the two policies; predictions: 1 where the first won, 0 where it lost, 1/2 for a tie. "
        f"compute(reference=...): the policy rated 0; {OVER}",
    ),
    "proportion": _Metric(
        _proportion,
        {"predictions": FLAG},
        "Share of True, such as a refusal rate, with Wilson's score interval.",
        "predictions: True or False, one a prompt.",
    ),
    "mcnemar": _Metric(
        _mcnemar,
        {"predictions": FLAG, "references": FLAG},
        "Difference of two paired proportions with its interval, and McNemar's exact p-value.",
        "predictions, references: True or False for the policy and the other, on the same prompts.",
    ),
    "cohen_kappa": _Metric(
        _cohen_kappa,
        {"predictions": TEXT, "references": TEXT},
        "Agreement of two judges beyond what their label frequencies would give by chance.",
        "predictions, references: the two judges' labels, an entry an item, None where one gave none.",
    ),
    "krippendorff_alpha": _Metric(
        _krippendorff_alpha,
        {"predictions": Sequence(NUMBER)},
        "Agreement beyond chance of any number of judges, 1 - observed / expected disagreement; bootstrap over units.",
        "predictions: for each unit the judges' labels as numbers, one place a judge, None where it gave none. "
        "compute(level=...): nominal, ordinal or interval; compute(seed=...).",
    ),
    "calibration_error": _Metric(
        _calibration_error,
        {"predictions": NUMBER, "references": NUMBER},
        "Expected calibration error of a reward model's preferences in ten bins, beside Brier score, log-loss and the "
        "temperature that would fit these pairs best.",
        f"predictions: scores of the replies that people preferred; references: scores of the others, by pair. {OVER}",
    ),
    "reply_health": _Metric(
        _reply_health,
        {"predictions": TEXT},
        "Length in words, share of empty and looping replies, distinct n-grams, repetition.",
        f"predictions: replies as text. {OVER}",
    ),
}
