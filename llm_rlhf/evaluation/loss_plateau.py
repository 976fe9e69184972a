"""Did the reward model's training loss leave the plateau where its first steps had put it?"""

import math
from collections.abc import Sequence

import numpy as np

from llm_rlhf.evaluation.reward_checks import CALLED, Check
from llm_rlhf.statistics.intervals import Values, Z, finite_arrays

LEAST_LOSSES = 20  # logged losses under which the shape of a curve is noise
PLATEAU_FALL = 0.05  # nats; a fall that is surely smaller is none
# The least share of what the labels can teach, ln 2 of a coin down to their own entropy. At hard labels it is a loss of
# .60, what is left where three people in ten disagree with a label; those of HH disagree in a quarter to a third.
PLATEAU_LEARNT = 0.13


def plateau_check(
    subject: str, losses: Sequence[float], coin: float = math.log(2), floor: float = 0.0, called: str | None = None
) -> Check:
    """Whether the training loss fell after its first steps; a curve that is flat, and high, is a plateau or noise.

    The first tenth is left out: any model learns something at once. Of the rest, A is the first third and B the last.
    It is called flat where the fall A - B is not shown (its interval by Welch's error reaches 0) and surely less than
    `PLATEAU_FALL`; high where by the end less than `PLATEAU_LEARNT` of what the labels can teach was learnt.

    What it cannot tell: labels with which three people in ten disagree end as high, and a model that learnt all there
    is in its first tenth is as flat. The words say so; accuracy against the rules is what decides.

    Args:
        losses: as logged, each the mean of as many steps, in order.
        coin: the loss of a model that scores everything alike.
        floor: the least loss that these labels allow: their entropy, 0 for hard ones.
        called: what to call the adapter.
    """
    (values,) = finite_arrays("plateau_check", losses=losses) if len(losses) else (np.empty(0),)
    who = called or CALLED.get(subject, f"the adapter {subject}")
    if len(values) < LEAST_LOSSES:
        text = (
            f"Whether the training loss of {who} left its plateau: it was logged {len(values)} times, and only "
            f"{LEAST_LOSSES} make a curve; lower reward.logging_steps, or train longer."
        )
        return Check("leaves_plateau", subject, "all", "not measured", text, {"losses": len(values)})
    rest = values[math.ceil(len(values) / 10) :]
    third = len(rest) // 3
    first, last = rest[:third], rest[-third:]
    fall = float(first.mean() - last.mean())
    half = Z * math.sqrt(first.var(ddof=1) / third + last.var(ddof=1) / third)
    end = float(last.mean())
    learnt = (coin - end) / (coin - floor)
    numbers = {
        "from": float(first.mean()), "to": end, "fall": fall, "low": fall - half, "high": fall + half, "coin": coin,
        "floor": floor, "learnt": learnt, "losses": len(values),
    }  # fmt: skip
    said = (
        f"The training loss of {who} went from {first.mean():.3f} after its first tenth to {end:.3f} in its last third "
        f"(a coin: {coin:.3f})"
    )
    flat = fall - half <= 0 and fall + half < PLATEAU_FALL
    if not flat or learnt >= PLATEAU_LEARNT:
        return Check("leaves_plateau", subject, "all", "passed", f"{said}.", numbers)
    text = (
        f"{said}: it never left its plateau. Either it has learnt little, or people disagree with three labels in ten "
        "and this is all they teach; its accuracy beside the rules tells. Try another reward.learning_rate, or more "
        "steps."
    )
    return Check("leaves_plateau", subject, "all", "warning", text, numbers)


def label_losses(confidences: Values, margins: Values) -> tuple[float, float]:
    """The mean loss of a coin, and one that no model can go below, in nats a pair.

    With every score alike `reward.objectives.pair_losses` is ln(1 + e^margin), whatever the confidence q in the label;
    it is never below the entropy of q, -q ln q - (1 - q) ln(1 - q), which a margin of 0 allows.
    """
    q, m = finite_arrays("label_losses", confidences=confidences, margins=margins)
    sure = (q == 0) | (q == 1)
    p = np.where(sure, 0.5, q)
    entropy = np.where(sure, 0.0, -p * np.log(p) - (1 - p) * np.log(1 - p))
    return float(np.logaddexp(0.0, m).mean()), float(entropy.mean())
