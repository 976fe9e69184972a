"""One score of several sources, in the order they were given: adapters first, then functions and models mixed."""

from typing import Any

import pytest
import torch
from torch import nn

from llm_rlhf.ppo.config import PPOConfig
from llm_rlhf.ppo.scores import ScoreSources


def brevity(completions: list[str], **kwargs: Any) -> list[float]:
    return [-float(len(text)) for text in completions]


@pytest.mark.parametrize(
    ("how", "weights", "expected"),
    [
        ("weighted", [2.0, 3.0, 5.0], [2 * 1 + 5 * 100 + 3 * 10, 2 * 2 + 5 * 200 + 3 * 20]),
        ("minimum", None, [1 + 10, 2 + 20]),  # of the models; the function is added to it
        ("mean_minus_spread", None, [50.5 - 0.5 * 49.5 + 10, 101 - 0.5 * 99 + 20]),
    ],
)
def test_a_function_that_stands_before_a_model_keeps_its_weight(tmp_path, how, weights, expected) -> None:
    args = PPOConfig(
        str(tmp_path), per_device_train_batch_size=4, bf16=False, reward_weights=weights,
        score_combination=how, score_spread_coef=0.5,
    )  # fmt: skip
    sources = ScoreSources({"helpful": "an/adapter"}, [brevity, "a/model"], args)
    with sources.parent_weights(args):
        assert args.reward_weights == (weights and weights[1:])  # those of the sources that the parent knows
    assert args.reward_weights == weights
    sources.bind([brevity, nn.Linear(1, 1)], ["brevity", "model"])
    found = sources.of_batch({"helpful": torch.tensor([1.0, 2.0])}, torch.tensor([[10.0, 100.0], [20.0, 200.0]]))
    assert found.raw.tolist() == expected
    assert found.by_source["helpful"].tolist() == [1, 2]
    assert found.by_source["brevity"].tolist() == [10, 20]
    assert found.by_source["model"].tolist() == [100, 200]
    assert found.by_source["spread"].tolist() == [49.5, 99]  # of the two models alone
