"""Every causal class of transformers under PPO's joint call: exact, refused with a reason, or listed and warned of.

causal_families.py holds the table and builds the models. The steps between a model and its first rollout are those of
PPOTrainer, called one by one, since a trainer of each would take longer than the models do; refusals come from the
trainer itself.
"""

import re
import warnings
from pathlib import Path
from typing import Any

import causal_families
import pytest
import torch
from causal_families import DEVIATES, EXACT, EXCLUDED, NOT_BUILT, VOCABULARY, refused, tiny
from peft import LoraConfig, get_peft_model
from ppo_helpers import make_trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from trl.trainer.utils import add_fused_lm_head

from llm_rlhf.models.roles import add_role_forward, add_value_role
from llm_rlhf.ppo import soundness

# In nats. The same sums in another order, float32, on logits of a few units: up to 2e-5 was measured.
CLOSE = 1e-4
TEMPERATURE = 0.7
RESPONSE = 4
# Longer than every window, chunk and budget; one is longer than the 64 tokens that gated delta nets read at a time.
ROWS = [[5 + (7 * i) % 250 for i in range(72)], [40, 41, 42, 43, 44, 45, 46], [5 + (11 * i) % 250 for i in range(31)]]
everything = pytest.mark.slow


def test_every_causal_class_has_one_verdict() -> None:
    known = [*EXACT, *DEVIATES, *refused(), *NOT_BUILT]
    assert sorted(known) == sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_the_page_lists_every_verdict() -> None:
    page = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text(encoding="utf-8")
    assert causal_families.page_table() in page  # python tests/parity/causal_families.py prints it


def lora(name: str) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", exclude_modules=EXCLUDED.get(name)
    )


def policy_of(name: str) -> tuple[Any, set[str]]:
    """A tiny policy whose adapter does something, and the adapter's tensors that no gradient reaches."""
    torch.manual_seed(0)
    policy = get_peft_model(tiny(name), lora(name))
    policy.train()(input_ids=torch.tensor(ROWS[:1]), use_cache=False).logits.sum().backward()
    untrained = set()
    for key, parameter in policy.named_parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                untrained.add(key)  # B stays zero
            else:
                parameter.data.add_(torch.randn_like(parameter) * 0.05)
    policy.zero_grad()
    return policy.eval(), untrained


@torch.no_grad()
def each_alone(model: Any) -> torch.Tensor:
    """What the model as it was built gives to the last tokens of every row by itself."""
    found = []
    for row in ROWS:
        ids = torch.tensor([row])
        logprobs = (model(input_ids=ids, use_cache=False).logits[0].float() / TEMPERATURE).log_softmax(-1)
        found.append(logprobs[:-1].gather(1, ids[0, 1:, None])[-RESPONSE:, 0])
    return torch.stack(found)


def prepared(policy: Any, monkeypatch: pytest.MonkeyPatch) -> float:
    """What PPOTrainer does to a model before the first rollout; how far decoding is off, in nats a token."""
    decoding = []
    check = soundness.check_decoding
    monkeypatch.setattr(soundness, "check_decoding", lambda model: decoding.append(check(model)))
    base = policy.get_base_model()
    add_fused_lm_head(base, temperature=TEMPERATURE)
    soundness.check_embeddings(base)
    add_value_role(policy, "shared", None, None)
    add_role_forward(base, TEMPERATURE)
    soundness.settle(policy, learning_rate=1e-5, generates=True)
    return decoding[0]


@torch.no_grad()
def joint_call(policy: Any) -> torch.Tensor:
    width = max(map(len, ROWS))
    ids = torch.tensor([[1] * (width - len(row)) + row for row in ROWS])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ROWS])
    response_mask = torch.ones(len(ROWS), RESPONSE, dtype=torch.bool)
    return policy(input_ids=ids, attention_mask=mask, response_mask=response_mask)["logprobs"]


@everything
@pytest.mark.parametrize("name", [*EXACT, *DEVIATES])
def test_the_joint_call_reads_padded_rows_as_the_plain_model_reads_each_alone(name, monkeypatch) -> None:
    policy, untrained = policy_of(name)
    expected = each_alone(policy)
    assert expected.std() > 0.3  # rows and tokens are told apart
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        decoding = prepared(policy, monkeypatch)
    for training in (False, True):
        torch.testing.assert_close(joint_call(policy.train(training)), expected, rtol=0, atol=CLOSE)
    warned = [str(w.message) for w in said if "decodes a little otherwise than it reads" in str(w.message)]
    assert len(warned) == (name in DEVIATES)
    if name in DEVIATES:
        assert DEVIATES[name] / 3 < decoding < DEVIATES[name] * 3
    else:
        assert decoding < CLOSE
    pattern = causal_families.untrained(name)
    assert bool(untrained) == (pattern is not None), untrained
    assert [key for key in untrained if not re.search(pattern, key)] == []


@everything
@pytest.mark.parametrize("name", refused())
def test_what_would_come_out_wrong_is_refused_by_the_trainer(name, base_folder, tmp_path, tokenizer) -> None:
    assert len(tokenizer) <= VOCABULARY
    policy = tiny(name)
    with pytest.raises(ValueError, match=refused()[name]) as told:
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], model=policy, lora=lora(name))
    assert type(policy).__name__ in str(told.value)


@everything
@pytest.mark.parametrize("name", NOT_BUILT)
def test_what_is_not_tried_cannot_be_built(name) -> None:
    if causal_families.missing_library(name):
        pytest.skip("The library that it wants is here.")
    with pytest.raises(Exception, match=NOT_BUILT[name][1]):
        tiny(name)
