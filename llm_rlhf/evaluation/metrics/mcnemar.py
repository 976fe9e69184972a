"""McNemar's exact test that two policies say yes equally often on the same prompts."""

from typing import Any

import datasets
import evaluate
import numpy as np

from llm_rlhf.evaluation import metrics
from llm_rlhf.statistics.intervals import mcnemar, paired_proportions

FLAG = datasets.Value("bool")


class Mcnemar(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return metrics.information(
            "Difference of two paired proportions with its interval, and McNemar's exact p-value.",
            "predictions, references: True or False for the policy and the other, on the same prompts.",
            {"predictions": FLAG, "references": FLAG},
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        a, b = np.asarray(predictions, dtype=bool), np.asarray(references, dtype=bool)
        p = mcnemar(int((a & ~b).sum()), int((b & ~a).sum()))
        return {**metrics.numbers("proportion_difference", paired_proportions(a, b)), "mcnemar_p": p}
