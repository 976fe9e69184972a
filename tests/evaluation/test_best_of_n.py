"""Best of n: the estimator by hand and against every choice, its distance, and the comparison with a policy."""

import itertools
import math

import numpy as np
import pytest

from llm_rlhf.evaluation.suites.best_of_n import best_of, best_of_n, distance


def test_the_best_of_two_of_three_by_hand() -> None:
    """Rewards 3, 1, 2: the choices {3,1}, {3,2}, {1,2} keep replies 0, 0, 2, which the judge gives 9, 9 and 6."""
    reward, judged = np.array([[3.0, 1.0, 2.0]]), np.array([[9.0, 0.0, 6.0]])
    assert best_of(1, reward, judged) == pytest.approx([5.0])
    assert best_of(2, reward, judged) == pytest.approx([8.0])
    assert best_of(3, reward, judged) == pytest.approx([9.0])


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
def test_the_same_as_the_mean_over_every_choice(k: int) -> None:
    rng = np.random.default_rng(k)
    reward, judged = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    expected = [
        np.mean([judged[p][max(chosen, key=lambda i: reward[p][i])] for chosen in itertools.combinations(range(6), k)])
        for p in range(4)
    ]
    assert best_of(k, reward, judged) == pytest.approx(expected, abs=1e-12)  # float64, sums of another order


def test_its_distance_is_that_of_the_best_among_many_outcomes() -> None:
    """A distribution of 2,000 equally likely rewards: the best of k is i with ((i+1)/N)^k - (i/N)^k."""
    N = 2000
    for k in (1, 2, 8):
        chances = ((np.arange(N) + 1) / N) ** k - (np.arange(N) / N) ** k
        exact = float(np.sum(chances * np.log(np.maximum(chances, 1e-300) * N)))
        assert distance(k) == pytest.approx(exact, abs=2e-3)  # of N outcomes, not of a continuum
    assert distance(1) == 0.0


def test_the_policy_stands_where_it_was_planted() -> None:
    """Normal rewards, half of which the judge sees: the best of k has the mean of an order statistic."""
    rng = np.random.default_rng(0)
    prompts, n = 400, 16
    reward = rng.normal(size=(prompts, n))
    judged = 0.5 * reward + rng.normal(size=(prompts, n)) * 0.5
    order_means = {1: 0.0, 2: 0.5642, 4: 1.0294, 8: 1.4236, 16: 1.7660}  # of the largest of k standard normals
    policy = {"reward": (rng.normal(size=prompts) * 0.1 + 1.0).tolist(), "gold": [-0.1] * prompts}
    found = best_of_n({"reward": reward, "gold": judged}, policy)
    assert [point["k"] for point in found["points"]] == [1, 2, 4, 8, 16]
    for point in found["points"]:
        # 400 prompts of 16 draws: 3.5 standard errors of a mean whose deviation is at most 1 / sqrt(400 * 16 / k).
        assert point["reward"] == pytest.approx(order_means[point["k"]], abs=3.5 * math.sqrt(point["k"] / 6400))
        assert point["gold"] == pytest.approx(order_means[point["k"]] / 2, abs=3.5 * math.sqrt(point["k"] / 6400))
    assert found["as_good_as"] == {"reward": 4, "gold": 1}
    over = found["policy_over_best"]
    assert over["reward"]["low"] < 1.0 - 1.766 < over["reward"]["high"]
    assert over["gold"]["high"] < 0
    assert found["fits"]["reward"]["form"] == "best_of_n"
    heights = [height for _, height in found["fits"]["reward"]["curve"]]
    assert heights[0] == 0
    assert heights[-1] == pytest.approx(1.766, abs=0.15)  # the form fits order statistics closely, not exactly


def test_a_k_beyond_the_replies_is_refused() -> None:
    with pytest.raises(ValueError, match="k is 4, but there are 3 replies"):
        best_of(4, np.zeros((1, 3)), np.zeros((1, 3)))
