"""A proportion with Wilson's interval, such as a refusal rate."""

from typing import Any

import datasets
import evaluate
import numpy as np

from llm_rlhf.evaluation import metrics
from llm_rlhf.statistics.intervals import wilson

FLAG = datasets.Value("bool")


class Proportion(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return metrics.information(
            "Share of True, with Wilson's score interval.",
            "predictions: True or False, one a prompt.",
            {"predictions": FLAG},
        )

    def _compute(self, predictions: Any) -> dict[str, Any]:
        flags = np.asarray(predictions, dtype=bool)
        return metrics.numbers("proportion", wilson(int(flags.sum()), len(flags)))
