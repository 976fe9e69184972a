"""Cohen's kappa of two judges, beside their raw agreement."""

from typing import Any

import datasets
import evaluate

from llm_rlhf.evaluation import metrics
from llm_rlhf.statistics.agreement import cohen_kappa, raw_agreement

LABEL = datasets.Value("string")


class CohenKappa(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return metrics.information(
            "Agreement of two judges beyond what their label frequencies would give by chance.",
            "predictions, references: the two judges' labels, an entry an item, None where one gave none.",
            {"predictions": LABEL, "references": LABEL},
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return {
            **metrics.numbers("cohen_kappa", cohen_kappa(predictions, references)),
            **metrics.numbers("raw_agreement", raw_agreement(predictions, references)),
        }
