"""A quantised base under PPO: gradients are those of the weights it stands for, and its adapters stay in float32."""

import pytest
import torch
from model_helpers import dequantized, quantized, random_reward_adapter, wide_llama
from peft import LoraConfig, get_peft_model
from ppo_helpers import fixed_responses, gradients, make_trainer, responses_of, rollout

from llm_rlhf import RewardModel
from llm_rlhf.models.encoding import encode_reply
from llm_rlhf.models.inference import load_roles, score_ids
from llm_rlhf.ppo.vllm import policy_weights
from llm_rlhf.recipe.sections import ModelSection


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory, tokenizer):
    return wide_llama(tmp_path_factory.mktemp("wide"), tokenizer)


def score(completions, **kwargs):
    return [float(len(c[0]["content"])) for c in completions]


@pytest.mark.slow
@pytest.mark.parametrize("value", [pytest.param("shared", marks=pytest.mark.slow), "adapter"])
def test_nf4_gradients_equal_those_of_the_dequantized_model_after_sampling(
    wide_base, tmp_path, tokenizer, value
) -> None:
    found, weights = [], None
    for model in (quantized(wide_base, "nf4"), dequantized(wide_base, "nf4")):
        trainer = make_trainer(wide_base, tmp_path, None, model=model, reward_funcs=[score], value=value)
        own = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        weights = weights or own
        for name, parameter in own.items():  # TRL rounds the first adapters on a quantised base to bfloat16
            parameter.data.copy_(weights[name].data)
        rollout(trainer)  # a real one first: sampling must leave the weights as they are
        fixed_responses(trainer, responses_of(tokenizer.eos_token_id))
        found.append(gradients(trainer, rollout(trainer)))
    (loss, one), (other_loss, other) = found
    assert loss == pytest.approx(other_loss, abs=1e-5)
    for name, gradient in other.items():
        # The product with a dequantised block is taken in another order: fp32 noise on gradients of order 0.1.
        torch.testing.assert_close(one[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_adapters_on_a_quantized_base_are_float32_and_small_steps_move_them(wide_base, tmp_path, kind) -> None:
    trainer = make_trainer(
        wide_base, tmp_path, None, model=quantized(wide_base, kind), reward_funcs=[score], learning_rate=1e-6
    )
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in before.values()} == {torch.float32}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert all(not torch.equal(p, after[n]) for n, p in before.items())


def test_the_reference_of_a_given_adapter_on_nf4_is_that_very_adapter(wide_base, tmp_path, tokenizer) -> None:
    model = get_peft_model(
        quantized(wide_base, "nf4"), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    given = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}
    trainer = make_trainer(wide_base, tmp_path, None, model=model, reward_funcs=[score], lora=False, perturb=False)
    fixed_responses(trainer, responses_of(tokenizer.eos_token_id))
    (batch,) = rollout(trainer)
    assert torch.equal(batch.old_logprobs, batch.ref_logprobs)
    kept = dict(trainer.model.named_parameters())
    assert all(torch.equal(kept[name], weight) for name, weight in given.items())


def test_four_bit_weights_are_not_repacked_on_cpus(wide_base) -> None:
    layers = [m for m in quantized(wide_base, "nf4").modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert len(layers) == 2 * 7
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_vllm_is_sent_what_a_quantized_base_stands_for(wide_base, tmp_path) -> None:
    trainer = make_trainer(wide_base, tmp_path, None, model=quantized(wide_base, "nf4"), reward_funcs=[score])
    plain = dequantized(wide_base, "nf4")
    sent = dict(policy_weights(trainer.model))
    sent = {n: w for n, w in sent.items() if not n.startswith(("value_head", "score_heads"))}
    plain.load_state_dict({n: w.float() for n, w in sent.items()})
    ids = torch.randint(10, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            plain.eval()(input_ids=ids).logits, trainer.model(input_ids=ids).logits, rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_reward_model_on_a_quantized_base_scores_as_in_ppo(wide_base, tmp_path, tokenizer, kind) -> None:
    adapter = random_reward_adapter(wide_base, tmp_path / "reward")
    section = ModelSection(base=str(wide_base), quantization=kind)
    asked = [("tell me", "yes"), ("tell me", "no, not now"), ("what", "x" * 40)]
    ids = [encode_reply(tokenizer, [{"role": "user", "content": p}], r).ids for p, r in asked]
    roles = load_roles(wide_base, section, tokenizer, {"judge": adapter})
    expected = score_ids(roles, "judge", ids, tokenizer.pad_token_id)
    found = RewardModel.from_pretrained(adapter, quantization=kind).score(asked)
    # int8 rounds activations by the largest of their batch, and batches differ here.
    assert found == pytest.approx(expected, abs=1e-4 if kind == "nf4" else 0.05)
    assert expected.std() > 0.1
