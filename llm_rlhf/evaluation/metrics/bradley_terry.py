"""Bradley-Terry ratings of several policies from comparisons two at a time, on the Elo scale."""

from typing import Any

import datasets
import evaluate

from llm_rlhf.evaluation import metrics
from llm_rlhf.statistics.ratings import bradley_terry

NAME = datasets.Value("string")
OUTCOME = datasets.Value("float64")


class BradleyTerry(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return metrics.information(
            "Elo-scale ratings above a named reference, with intervals and ranks.",
            "first, second: names of the two policies; predictions: 1 where the first won, 0 where it lost, 1/2 for "
            "a tie. compute(reference=...): the policy rated 0; compute(clusters=...): a prompt id each; "
            "compute(seed=...).",
            {"first": NAME, "second": NAME, "predictions": OUTCOME},
        )

    def _compute(
        self, first: Any, second: Any, predictions: Any, reference: str, clusters: Any = None, seed: int = 0
    ) -> dict[str, Any]:
        found = bradley_terry(first, second, predictions, reference, clusters, seed=seed)
        table = [
            {
                "player": row.player,
                **metrics.numbers("rating", row.rating),
                "rank": row.rank,
                "rank_low": row.rank_low,
                "rank_high": row.rank_high,
                **metrics.numbers("win_rate", row.win_rate),
                "games": row.games,
            }
            for row in found.table
        ]
        return {"ratings": table, "reference": reference}
