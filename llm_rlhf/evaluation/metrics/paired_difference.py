"""Mean difference of a policy's scores and a reference's on the same prompts."""

from typing import Any

import datasets
import evaluate

from llm_rlhf.evaluation import metrics
from llm_rlhf.statistics.intervals import paired_bootstrap

SCORE = datasets.Value("float64")


class PairedDifference(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return metrics.information(
            "Mean of the policy's score less the reference's on the same prompt; paired bootstrap.",
            "predictions: the policy's scores; references: the other's, on the same prompts. "
            "compute(clusters=...): a prompt id each; compute(seed=...).",
            {"predictions": SCORE, "references": SCORE},
        )

    def _compute(self, predictions: Any, references: Any, clusters: Any = None, seed: int = 0) -> dict[str, Any]:
        return metrics.numbers("paired_difference", paired_bootstrap(predictions, references, clusters, seed=seed))
