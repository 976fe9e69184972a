"""How far a reward model's certainty is from how often it is right: ECE, Brier score, log-loss, fitted temperature."""

from typing import Any

import datasets
import evaluate
import numpy as np

from llm_rlhf.evaluation import metrics
from llm_rlhf.statistics.calibration import brier, calibration_error, fit_temperature, log_loss

SCORE = datasets.Value("float64")


class CalibrationError(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return metrics.information(
            "Expected calibration error of a reward model's preferences in ten bins, beside Brier score, log-loss and "
            "the temperature that would fit these pairs best.",
            "predictions: scores of the replies that people preferred; references: scores of the others, pair by pair. "
            "compute(clusters=...): a prompt id each; compute(seed=...).",
            {"predictions": SCORE, "references": SCORE},
        )

    def _compute(self, predictions: Any, references: Any, clusters: Any = None, seed: int = 0) -> dict[str, Any]:
        margins = np.subtract(predictions, references)
        found: dict[str, Any] = {"temperature": fit_temperature(margins)}
        for name, measure in (("calibration_error", calibration_error), ("brier", brier), ("log_loss", log_loss)):
            found |= metrics.numbers(name, measure(margins, clusters, seed=seed))
        return found
