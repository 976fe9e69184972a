"""Best of n: what the reward model gives without any training, and so what PPO has to be measured against.

Of n replies of the reference the one that the training reward likes best is kept. Its distance from the reference is
known without sampling: log k - (k - 1) / k nats for the best of k, of which log k bounds what any choice can reach.
Sources: Stiennon et al. 2020 (2009.01325), appendix G.3, for the distance; Nakano et al. 2021 (2112.09332), appendix I,
for the mean over all choices of k among the n.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_rlhf.statistics.clustered import clustered_difference
from llm_rlhf.statistics.intervals import Array, Labels
from llm_rlhf.statistics.overoptimization import fit_curve, fitted


def distance(k: int) -> float:
    """KL divergence of the best of k from what is sampled, in nats; exact where no two replies are equally good."""
    return math.log(k) - (k - 1) / k


def best_of(k: int, reward: Array, judged: Array) -> Array:
    """What the reply of the highest reward among k is worth on average to a judge, over all choices of k of the n.

    Args:
        k: from 1 to n.
        reward: (prompts, n), what chooses.
        judged: (prompts, n), the judge's scores of the same replies; `reward` itself for its own.

    Returns:
        (prompts,), without the error of one random choice.
    """
    n = reward.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"best_of: k is {k}, but there are {n} replies to a prompt; k goes from 1 to {n}.")
    # Of the C(n, k) choices, C(i - 1, k - 1) have the i-th worst reply as their best.
    weights = np.array([math.comb(i, k - 1) / math.comb(n, k) for i in range(n)])
    worst_first = np.take_along_axis(judged, np.argsort(reward, axis=1, kind="stable"), axis=1)
    means: Array = worst_first @ weights
    return means


def best_of_n(
    scores: Mapping[str, Array],
    policy: Mapping[str, Sequence[float]],
    wordings: Labels | None = None,
) -> dict[str, Any]:
    """The curve of the best of 1, 2, 4 ... n, and the policy against its end, on the same prompts.

    Args:
        scores: (prompts, n) of the reference's replies by name: "reward", which chooses, and the judges.
        policy: of the policy's reply to each prompt, by the same names.
        wordings: of each prompt, whose errors go together; None: each prompt stands alone.

    Returns:
        {"n", "points": [{"k", "kl", "sqrt_kl", NAME ...}], "fits": {NAME: ...}, "policy_over_best": {NAME: interval of
        the policy's score less that of the best of n}, "as_good_as": {NAME: the least k whose best reaches the policy's
        mean, None where no k does}}.
    """
    reward = scores["reward"]
    n = reward.shape[1]
    ks = sorted({2**power for power in range(n.bit_length())} | {n})
    means = {name: {k: best_of(k, reward, judged) for k in range(1, n + 1)} for name, judged in scores.items()}
    d = np.array([distance(k) ** 0.5 for k in ks])
    reached = {
        name: [k for k, values in by_k.items() if values.mean() >= np.mean(policy[name])]
        for name, by_k in means.items()
    }
    alike = np.arange(len(reward)) if wordings is None else wordings
    over = {name: clustered_difference(policy[name], by_k[n], alike) for name, by_k in means.items()}
    return {
        "n": n,
        "points": [
            {"k": k, "kl": distance(k), "sqrt_kl": distance(k) ** 0.5}
            | {name: float(by_k[k].mean()) for name, by_k in means.items()}
            for k in ks
        ],
        "fits": {
            name: None
            if n <= 2
            else fitted(d, fit_curve(d, np.stack([by_k[k] - by_k[1] for k in ks]), "best_of_n", wordings))
            for name, by_k in means.items()
        },
        "policy_over_best": {name: found._asdict() for name, found in over.items()},
        "as_good_as": {name: min(ks_of, default=None) for name, ks_of in reached.items()},
    }
