"""Win rate of a policy's scores over a reference's on the same prompts, ties 1/2."""

from typing import Any

import datasets
import evaluate

from llm_rlhf.evaluation import metrics
from llm_rlhf.statistics.intervals import win_rate

SCORE = datasets.Value("float64")


class WinRate(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return metrics.information(
            "Share of prompts on which the policy's score is higher, ties counting 1/2; bootstrap over prompts.",
            "predictions: the policy's scores; references: the other's, on the same prompts. "
            "compute(clusters=...): a prompt id each; compute(seed=...).",
            {"predictions": SCORE, "references": SCORE},
        )

    def _compute(self, predictions: Any, references: Any, clusters: Any = None, seed: int = 0) -> dict[str, Any]:
        return metrics.numbers("win_rate", win_rate(predictions, references, clusters, seed=seed))
