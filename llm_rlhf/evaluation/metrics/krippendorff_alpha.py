"""Krippendorff's alpha of any number of judges, with gaps."""

from typing import Any

import datasets
import evaluate

from llm_rlhf.evaluation import metrics
from llm_rlhf.statistics.agreement import Level, krippendorff_alpha

LABELS = datasets.Sequence(datasets.Value("float64"))


class KrippendorffAlpha(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return metrics.information(
            "Agreement beyond chance, 1 - observed / expected disagreement; bootstrap over units.",
            "predictions: for each unit the judges' labels as numbers, one place a judge, None where it gave none. "
            "compute(level=...): nominal, ordinal or interval; compute(seed=...).",
            {"predictions": LABELS},
        )

    def _compute(self, predictions: Any, level: Level = "nominal", seed: int = 0) -> dict[str, Any]:
        judges = [list(row) for row in zip(*predictions, strict=True)]
        return metrics.numbers("krippendorff_alpha", krippendorff_alpha(judges, level, seed=seed))
