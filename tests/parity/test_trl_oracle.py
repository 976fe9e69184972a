"""Our mathematics against numbers recorded from trl 1.12.0's PPOTrainer (record_trl_oracle.py), in float64.

For full-length responses everything is equal as it stands. After an early EOS we differ on purpose:

- The score lands on the EOS token itself. TRL puts it one past: gamma * lam then discounts it once more, and the value
  it is compared with was read behind the response. With gamma = lam = 1 the two agree on every counted token.
- Values end with the response. TRL keeps one more, which enters the value loss, and rewards are whitened over it.

The same functions of ours, given that one position more, equal TRL's numbers; this is what `aligned` means below.
Differences of record, aligned in passing or not reached here:

- TRL averages the approximate KL over padding too; ours over counted tokens.
- TRL averages each micro-batch by itself; we divide by the mini-batch's counted tokens, so that gradients do not depend
  on how it is cut up. The cases here have one micro-batch, where the two are one.
- TRL whitens on each process alone; we whiten over all of them.
- TRL ends a response at the first pad token, so that with pad = EOS it never counts one; we refuse that pad token.
- TRL asks for `tokenizer.eos_token_id` before it spares a response `missing_eos_penalty`; any stop token does for us.
- TRL pays k3 where it is asked to; ours refuses it, so that its rewards alone are compared.
- TRL divides logits by temperature + 1e-7, we by the temperature. Here both start from log-probabilities.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_rlhf.ppo import objectives
from llm_rlhf.ppo.config import PPOConfig
from llm_rlhf.ppo.rollout import MicroBatch, ScoredRows, finish_rollout

RECORD = json.loads(Path(__file__).with_name("oracle_trl_1_12.json").read_text())
SETTINGS = RECORD["settings"]
# Some tens of float64 operations in another order, on numbers of order 1 to 10, leave about 1e-14; a wrong formula
# leaves more than 1e-3.
TOLERANCE = 1e-12


def cases(lengths: str, **wanted: Any) -> Any:
    found = [c for c in RECORD["cases"] if c["lengths"] == lengths and all(c[k] == v for k, v in wanted.items())]
    names = ("kl_estimator", "gamma", "lam", "whiten_rewards")
    return pytest.mark.parametrize("case", found, ids=["-".join(str(c[k]) for k in names) for c in found])


def tensors(record: dict[str, Any]) -> dict[str, Tensor]:
    """Recorded numbers as float64 tensors, masks as boolean ones."""
    masks = {name: torch.tensor(record[name]) for name in ("response_mask", "stopped") if name in record}
    numbers = {name: v for name, v in record.items() if name not in masks and isinstance(v, list | float)}
    return masks | {name: torch.tensor(v, dtype=torch.float64) for name, v in numbers.items()}


def assert_same(found: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=TOLERANCE, msg=lambda text: f"{what}: {text}")


def finished(inputs: dict[str, Tensor], case: dict[str, Any], folder: Path) -> MicroBatch:
    """The recorded rollout after `finish_rollout`, as the trainer would hold it."""
    options = {name: case[name] for name in ("kl_estimator", "gamma", "lam", "whiten_rewards")}
    args = PPOConfig(output_dir=str(folder), bf16=False, use_cpu=True, num_mini_batches=1, **SETTINGS, **options)
    mask = inputs["response_mask"]
    scored = ScoredRows(
        input_ids=mask.long(), attention_mask=mask.long(), response_mask=mask, rows=list(range(len(mask))),  # no text
        old_logprobs=inputs["old_logprobs"], ref_logprobs=inputs["ref_logprobs"], old_values=inputs["old_values"],
        entropies=torch.zeros_like(inputs["old_logprobs"]), stopped=inputs["stopped"], raw_scores=inputs["scores"],
        source_scores={},
    )  # fmt: skip
    (batch,) = finish_rollout([scored], [inputs["scores"]], args, args.kl_coef, lambda x: x)
    return batch


def check_policy_loss(inputs: dict[str, Tensor], advantages: Tensor, expected: dict[str, Tensor]) -> None:
    mask = inputs["response_mask"]
    policy, _ = objectives.policy_loss(
        inputs["new_logprobs"], inputs["old_logprobs"], advantages, SETTINGS["cliprange"]
    )
    assert policy.clipped[mask].any()
    assert_same((policy.loss * mask).sum() / mask.sum(), expected["policy_loss"], "policy loss")
    moved = objectives.approx_kl(inputs["new_logprobs"], inputs["old_logprobs"])
    assert_same((moved * mask).sum() / mask.numel(), expected["approx_kl"], "approximate KL, over padding as in TRL")


def check_value_loss(inputs: dict[str, Tensor], returns: Tensor, mask: Tensor, expected: dict[str, Tensor]) -> None:
    value = objectives.value_loss(inputs["new_values"], inputs["old_values"], returns, SETTINGS["cliprange_value"])
    assert value.clipped[mask].any()
    assert_same((value.loss * mask).sum() / mask.sum(), expected["value_loss"], "value loss")


@cases("full", kl_estimator="k1")
def test_full_length_responses_give_trls_numbers(case: dict[str, Any], tmp_path: Path) -> None:
    inputs, expected = tensors(RECORD["inputs"]["full"]), tensors(case)
    assert inputs["response_mask"].all()
    batch = finished(inputs, case, tmp_path)
    assert_same(batch.advantages, expected["advantages"], "advantages")
    assert_same(batch.returns, expected["returns"], "returns")
    check_policy_loss(inputs, batch.advantages, expected)
    check_value_loss(inputs, batch.returns, inputs["response_mask"], expected)


@cases("full", whiten_rewards=False)
def test_full_length_rewards_are_trls(case: dict[str, Any]) -> None:
    inputs = tensors(RECORD["inputs"]["full"])
    assert_same(rewards_of(inputs, case, inputs["response_mask"]), tensors(case)["rewards"], "rewards")


def rewards_of(inputs: dict[str, Tensor], case: dict[str, Any], score_mask: Tensor) -> Tensor:
    """Rewards with the score on the last position of `score_mask`."""
    kl = objectives.kl_estimate(inputs["old_logprobs"], inputs["ref_logprobs"], case["kl_estimator"])
    scores = inputs["scores"] - SETTINGS["missing_eos_penalty"] * ~inputs["stopped"]
    return objectives.token_rewards(scores, kl * inputs["response_mask"], score_mask, SETTINGS["kl_coef"])


@cases("early_eos")
def test_early_eos_gives_trls_numbers_once_aligned(case: dict[str, Any], tmp_path: Path) -> None:
    inputs, expected = tensors(RECORD["inputs"]["early_eos"]), tensors(case)
    mask = inputs["response_mask"]
    one_more = torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], dim=1)  # TRL's ~padding_mask_p1
    rewards = rewards_of(inputs, case, one_more)
    if case["whiten_rewards"]:
        rewards = objectives.whiten(rewards, objectives.masked_moments([rewards], [one_more]), one_more, False)
    assert_same(rewards, expected["rewards"], "rewards")
    estimate = objectives.generalised_advantages(rewards, inputs["old_values"], one_more, case["gamma"], case["lam"])
    advantages = estimate.advantages
    advantages = objectives.whiten(advantages, objectives.masked_moments([advantages], [mask]), mask)
    assert_same(advantages, expected["advantages"], "advantages")
    assert_same(estimate.returns, expected["returns"], "returns")
    check_policy_loss(inputs, advantages, expected)
    check_value_loss(inputs, estimate.returns, one_more, expected)
    if case["gamma"] * case["lam"] < 1 and case["kl_estimator"] == "k1":
        ours = finished(inputs, case, tmp_path).advantages
        assert (ours - advantages).abs().max() > 1e-2  # the difference is there


@cases("early_eos", gamma=1.0, lam=1.0, kl_estimator="k1")
def test_early_eos_without_discount_needs_no_alignment(case: dict[str, Any], tmp_path: Path) -> None:
    inputs, expected = tensors(RECORD["inputs"]["early_eos"]), tensors(case)
    batch = finished(inputs, case, tmp_path)
    mask = inputs["response_mask"]
    assert_same(batch.advantages, expected["advantages"], "advantages")
    assert_same(batch.returns * mask, expected["returns"] * mask, "returns")
