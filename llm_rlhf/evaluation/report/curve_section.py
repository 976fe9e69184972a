"""The page's curves of training, as each stage logged them: some large, the others in a fold."""

from typing import Any

from llm_rlhf.evaluation.report import charts
from llm_rlhf.evaluation.report.sections import kind_of
from llm_rlhf.evaluation.report.watch_section import CURVES as BY_OBJECTIVE
from llm_rlhf.recipe.sections import METHODS

CURVES: list[tuple[str, str, str, str]] = [
    ("ppo", "objective/scores", "Reward-model score", "Mean score of the sampled replies; what PPO tries to raise."),
    ("ppo", "objective/kl", "KL from {start}", "Nats per reply; how far the policy has moved to get there."),
    (
        "ppo",
        "eval_heldout/scores",
        "Held-out reward in training",
        "Mean score by the model PPO never trains against. Falling while the other rises is over-optimisation.",
    ),
    ("ppo", "response_length", "Reply length", "Tokens. Watch for a score that rises only because replies grow."),
    ("ppo", "objective/entropy", "Entropy", "Nats per token. A collapse towards 0 means the same reply to everything."),
    ("ppo", "val/explained_variance", "Explained variance", "How well the value model predicts returns; 1 is perfect."),
    *(
        row
        for stage in ("grpo", "rloo")
        for row in (
            (stage, "reward", "Reward-model score", "Mean score of the sampled replies, cut ones less the penalty."),
            (stage, "kl", "KL from the start", "Nats per token; how far the policy has moved to get there."),
            (
                stage,
                "completions/mean_length",
                "Reply length",
                "Tokens. A score may rise with length alone.",
            ),
            (stage, "entropy", "Entropy", "Nats per token. A collapse towards 0: the same reply to everything."),
        )
    ),
    (
        "dpo",
        "rewards/accuracies",
        "Pairs told apart",
        "Share whose chosen reply gained on the other.",
    ),
    (
        "dpo",
        "logps/chosen",
        "Chosen replies",
        "Their mean log-probability; it may fall, and the others' more.",
    ),
    ("kto", "rewards/margins", "Margin", "Mean gain of desirable replies over undesirable ones, in nats times beta."),
    ("kto", "kl", "KL from the start", "KTO's own estimate, by replies to other prompts; in nats."),
    ("best_of_n", "loss", "Loss", "Nats per token on the picked replies."),
    ("sft", "loss", "SFT loss", "Nats per token on the demonstrations."),
    (
        "reward",
        "accuracy",
        "Reward-model accuracy in training",
        "Share of training pairs ranked as people ranked them.",
    ),
    ("reward", "loss", "Reward-model loss", "Nats per pair; a coin scores 0.693."),
    ("heldout", "accuracy", "Held-out model accuracy in training", "The same for the second reward model."),
]
FIRST_CURVES = 2  # shown large; the rest wait in a fold

UNNAMED = {"step", "episode", "epoch", "time"}  # places on the x axis, not curves


def curves(curves: dict[str, list[dict[str, Any]]], start: str) -> dict[str, Any]:
    """The charts shown first, the others, and every further metric under its own name.

    Args:
        start: what training began from, in words.
    """
    charts_made, told = [], set()
    for stage, metric, called, meaning in CURVES:
        points, label = curves.get(stage, []), called.format(start=start)
        drawn = _chart(points, stage, metric, label)
        told.add((stage, metric))
        if drawn is not None:
            charts_made.append({"label": label, "meaning": meaning, "svg": drawn, "stage": stage, "x": _x_of(points)})
    more = []
    for stage, points in curves.items():
        for metric in dict.fromkeys(key for point in points for key in point):
            if (stage, metric) not in told and metric not in UNNAMED and metric not in BY_OBJECTIVE:
                drawn = _chart(points, stage, metric, metric)
                if drawn is not None:
                    more.append(
                        {"label": f"{stage}: {metric}", "meaning": "", "svg": drawn, "stage": stage, "x": _x_of(points)}
                    )
    first = [c for c in charts_made if c["stage"] in METHODS][:FIRST_CURVES]
    return {"first": first, "others": [c for c in charts_made if c not in first], "more": more}


def _chart(points: list[dict[str, Any]], stage: str, metric: str, label: str) -> Any:
    share = metric.endswith("accuracy")
    return charts.line_chart(points, metric, _x_of(points), kind_of(stage), label, 100 if share else 1)


def _x_of(points: list[dict[str, Any]]) -> str:
    return "episode" if points and all(p.get("episode") is not None for p in points) else "step"
