"""Length, repetition, loops and variety of replies."""

from typing import Any

import datasets
import evaluate

from llm_rlhf.evaluation import metrics
from llm_rlhf.evaluation.suites.health import distinct_across, health, words

TEXT = datasets.Value("string")


class ReplyHealth(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return metrics.information(
            "Length in words, share of empty and looping replies, distinct n-grams, repetition.",
            "predictions: replies as text. compute(clusters=...): a prompt id each; compute(seed=...).",
            {"predictions": TEXT},
        )

    def _compute(self, predictions: Any, clusters: Any = None, seed: int = 0) -> dict[str, Any]:
        replies = [words(text) for text in predictions]
        measured = {**health(replies, clusters=clusters, seed=seed), "distinct_2_across": distinct_across(replies, 2)}
        return {key: value for name, found in measured.items() for key, value in metrics.numbers(name, found).items()}
