"""Win rate as it would be if both policies' replies were equally long."""

from typing import Any

import datasets
import evaluate

from llm_rlhf.evaluation import metrics
from llm_rlhf.statistics.length_control import length_controlled_win_rate

NUMBER = datasets.Value("float64")


class LengthControlledWinRate(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return metrics.information(
            "Win rate predicted at length difference 0 by a logistic regression, beside the raw one.",
            "predictions: 1 where the policy won, 0 where it lost, 1/2 for a tie, or a probability; "
            "prediction_lengths, reference_lengths: lengths of the two replies. "
            "compute(clusters=...): a prompt id each; compute(seed=...).",
            {"predictions": NUMBER, "prediction_lengths": NUMBER, "reference_lengths": NUMBER},
        )

    def _compute(
        self,
        predictions: Any,
        prediction_lengths: Any,
        reference_lengths: Any,
        clusters: Any = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        found = length_controlled_win_rate(predictions, prediction_lengths, reference_lengths, clusters, seed)
        return {
            **metrics.numbers("length_controlled_win_rate", found.controlled),
            **metrics.numbers("raw_win_rate", found.raw),
            "warning": found.warning,
        }
