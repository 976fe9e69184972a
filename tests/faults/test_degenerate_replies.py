"""Replies that say nothing or never end: PPO scores them, and every number stays finite."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ppo_helpers import fixed_responses, gradients, make_trainer, rollout

from llm_rlhf.evaluation.refusal_detector import detect

# What eight replies are, by the id that ends a turn.
EMPTY: dict[str, Callable[[int], list[list[int]]]] = {
    "all end at once": lambda eos: [[eos]] * 8,
    "one ends at once": lambda eos: [[eos], *([10 + i, 11, eos] for i in range(7))],
    "all but one end at once": lambda eos: [[10, 11, 12, eos], *[[eos]] * 7],
}
CUT: dict[str, Callable[[int], list[list[int]]]] = {
    "all are cut": lambda eos: [[10 + i, *range(20, 25)] for i in range(8)],
    "all are cut at one token": lambda eos: [[10 + i] for i in range(8)],
    "all but one are cut": lambda eos: [[10, eos], *([10 + i, *range(20, 25)] for i in range(7))],
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"whiten_rewards": True},
    {"score_normalization": "whiten"},
    {"missing_eos_penalty": 0.0, "kl_coef": 0.0},
]


def finite_rollout_and_update(trainer: Any, responses: list[list[int]]) -> Any:
    fixed_responses(trainer, responses)
    (batch,) = rollout(trainer)
    for name in ("old_logprobs", "old_values", "advantages", "returns"):
        assert torch.isfinite(getattr(batch, name)).all(), name
    assert batch.response_mask.sum(1).tolist() == [len(response) for response in responses]
    loss, found = gradients(trainer, [batch])
    assert math.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    return batch


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "defaults")
@pytest.mark.parametrize("how", EMPTY)
def test_fault_53_replies_that_end_at_once_are_scored_with_a_finite_loss(
    base_folder, reward_folder, tokenizer, tmp_path, how: str, options: dict[str, Any]
) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, **options)
    batch = finite_rollout_and_update(trainer, EMPTY[how](tokenizer.eos_token_id))
    assert batch.stopped.all()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "defaults")
@pytest.mark.parametrize("how", CUT)
def test_fault_54_replies_that_are_all_cut_pay_the_penalty_and_stay_finite(
    base_folder, reward_folder, tokenizer, tmp_path, how: str, options: dict[str, Any]
) -> None:
    responses = CUT[how](tokenizer.eos_token_id)
    trainer = make_trainer(base_folder, tmp_path, reward_folder, **options)
    batch = finite_rollout_and_update(trainer, responses)
    assert batch.stopped.tolist() == [response[-1] == tokenizer.eos_token_id for response in responses]


@pytest.mark.slow
@pytest.mark.parametrize("how", [*EMPTY, *CUT])
def test_fault_53_fault_54_a_run_of_such_replies_ends_with_finite_weights(
    base_folder, reward_folder, tokenizer, tmp_path, how: str
) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder)
    fixed_responses(trainer, (EMPTY | CUT)[how](tokenizer.eos_token_id))
    trainer.train()
    assert trainer.state.global_step > 0
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
    logged = [value for line in trainer.state.log_history for value in line.values() if isinstance(value, float)]
    assert logged
    assert all(math.isfinite(value) for value in logged)


@pytest.mark.parametrize("reply", ["", " ", "\n\n"])
def test_fault_53_an_empty_reply_is_no_refusal(reply: str) -> None:
    assert detect("how do i?", reply)[:2] == (False, "empty")
