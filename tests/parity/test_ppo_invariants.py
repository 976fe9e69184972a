"""What a correct PPO holds to, one test an invariant, on tiny models."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_helpers import random_reward_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import load_peft_weights
from ppo_helpers import (
    PROMPTS,
    fixed_responses,
    gradients,
    make_trainer,
    responses_of,
    rollout,
    watch_approx_kl,
    zero_values,
)
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from llm_rlhf.models.adapters import active_adapters
from llm_rlhf.models.roles import role_scores
from llm_rlhf.ppo import collecting
from llm_rlhf.ppo.kl import KLController
from llm_rlhf.ppo.objectives import (
    generalised_advantages,
    importance_weights,
    policy_loss,
    value_loss,
)
from llm_rlhf.ppo.rollout import MicroBatch, PaddedRows, stopped_by_itself
from llm_rlhf.ppo.sampling import Sampled
from llm_rlhf.ppo.soundness import turn_off_noise
from llm_rlhf.ppo.trainer import PPOTrainer

# `shared` is the default, which every test has that does not say: said, it waits for `make test`.
both_values = pytest.mark.parametrize("value", [pytest.param("shared", marks=pytest.mark.slow), "adapter"])


def last_counted(mask: torch.Tensor) -> torch.Tensor:
    """True at each row's last counted token; the tests' own, so that a wrong one in the code is seen."""
    last = torch.zeros_like(mask)
    last[torch.arange(len(mask)), mask.sum(1) - 1] = True
    return last


@pytest.fixture
def eos(tokenizer) -> int:
    return tokenizer.eos_token_id


@both_values
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_invariant_01_first_ratio_is_exactly_one(base_folder, reward_folder, tmp_path, value, dtype) -> None:
    bf16 = dtype == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=getattr(torch, dtype))
    options = {"num_mini_batches": 2, "gradient_accumulation_steps": 2, "num_ppo_epochs": 2, "total_episodes": 24}
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, model=model, value=value, bf16=bf16, use_cpu=True,
        per_device_train_batch_size=2, **options,
    )  # fmt: skip
    seen = watch_approx_kl(trainer)
    trainer.train()
    steps = 4  # micro-batches an epoch: 2 mini-batches of 2
    assert len(seen) == 3 * 2 * steps
    for rollout_start in range(0, len(seen), 2 * steps):
        first_mini_batch = seen[rollout_start : rollout_start + 2]
        assert first_mini_batch == [0.0, 0.0]
        # Later ones must have moved: old log-probabilities are the rollout's, not the update's own.
        assert all(moved > 0 for moved in seen[rollout_start + 2 : rollout_start + 2 * steps])


def test_invariant_02_kl_to_the_reference_is_zero_before_the_first_update(
    base_folder, reward_folder, tmp_path, eos
) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, perturb=False)
    fixed_responses(trainer, responses_of(eos))
    (batch,) = rollout(trainer)
    assert torch.equal(batch.old_logprobs, batch.ref_logprobs)
    assert batch.sequence_kl.tolist() == [0.0] * 8


def test_invariant_02_with_adapters_off_the_logits_are_the_bases(base_folder, reward_folder, tmp_path) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, value="adapter")
    rollout(trainer)  # on CPUs it samples from merged matrices, which must leave no trace
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    ids = torch.randint(10, 200, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), active_adapters(trainer.model, []):
        off = trainer.model(input_ids=ids).logits
        assert torch.equal(off, base(input_ids=ids).logits)
    with torch.no_grad():
        assert not torch.equal(trainer.model(input_ids=ids).logits, off)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_invariant_03_log_probabilities_are_fp32_log_softmax_over_temperature(
    base_folder, reward_folder, tmp_path, eos, temperature
) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, temperature=temperature)
    fixed_responses(trainer, responses_of(eos))
    (batch,) = rollout(trainer)
    for which, adapters in (("old_logprobs", ["default"]), ("ref_logprobs", [])):
        for row in range(8):
            counted = batch.attention_mask[row].bool()
            ids = batch.input_ids[row][counted]
            with torch.no_grad(), active_adapters(trainer.model, adapters):
                logits = trainer.model(input_ids=ids[None]).logits[0].float() / temperature
            n = int(batch.response_mask[row].sum())
            expected = logits.log_softmax(-1)[:-1].gather(1, ids[1:, None]).squeeze(1)[-n:]
            found = getattr(batch, which)[row][batch.response_mask[row]]
            # One row alone against a padded batch: 1e-5 is the fp32 noise of another width.
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert getattr(batch, which)[~batch.response_mask].abs().sum() == 0


def test_invariant_03_biased_sampling_is_warned_of(tmp_path) -> None:
    from llm_rlhf.ppo.config import PPOConfig

    with pytest.warns(UserWarning, match="ratios are biased"):
        PPOConfig(output_dir=str(tmp_path), bf16=False, top_p=0.9)


def test_invariant_04_no_dropout_in_modules_or_lora(tokenizer) -> None:
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64,
        resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.5, target_modules=["c_attn", "c_proj"])
    policy = get_peft_model(model, lora).train()
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    ids = torch.randint(10, 200, (2, 9))
    assert not torch.equal(
        policy(input_ids=ids).logits, policy(input_ids=ids).logits
    )  # it does drop, until told not to
    turn_off_noise(policy)
    assert torch.equal(policy(input_ids=ids).logits, policy(input_ids=ids).logits)


def test_invariant_04_attention_dropout_kept_as_a_number_is_off_too(base_folder, reward_folder, tmp_path, eos) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32, attention_dropout=0.5)
    trainer = make_trainer(base_folder, tmp_path, reward_folder, model=model)
    fixed_responses(trainer, responses_of(eos))
    assert torch.equal(rollout(trainer)[0].old_logprobs, rollout(trainer)[0].old_logprobs)


def test_invariant_05_eos_is_a_counted_token_and_stopping_is_trained(base_folder, reward_folder, tmp_path, eos) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder)
    fixed_responses(trainer, responses_of(eos))
    (batch,) = rollout(trainer)
    R = batch.response_mask.size(1)
    is_eos = (batch.input_ids[:, -R:] == eos) & batch.response_mask
    assert is_eos.sum() == 4
    assert torch.equal(is_eos, last_counted(batch.response_mask) & batch.stopped[:, None])
    assert (batch.advantages[is_eos] != 0).all()
    # Only the EOS tokens in the loss: the policy must still get a gradient.
    _, found = gradients(trainer, [replace(batch, response_mask=is_eos)])
    assert all(g.abs().sum() > 0 for name, g in found.items() if ".default." in name)


def test_invariant_05_a_pad_token_that_is_eos_is_replaced(base_folder, reward_folder, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    tokenizer.pad_token = tokenizer.eos_token
    folder = tmp_path / "same"
    AutoModelForCausalLM.from_pretrained(base_folder).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    trainer = make_trainer(folder, tmp_path, reward_folder)
    assert trainer.processing_class.pad_token_id not in trainer.eos_token_ids
    assert trainer.processing_class.pad_token == "<|pad|>"  # the vocabulary has one: nothing is added
    assert len(trainer.processing_class) == trainer.base_model().get_input_embeddings().num_embeddings


@pytest.mark.parametrize("given", ["folder", "model"])
def test_invariant_05_a_pad_token_that_stops_is_replaced(base_folder, reward_folder, tmp_path, given) -> None:
    """As Qwen2.5-Instruct ships: its pad is not its EOS, but its generation config names both as ends of a reply."""
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    pad = tokenizer.pad_token_id
    model.generation_config.eos_token_id = [model.config.eos_token_id, pad]
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    more = {"model": AutoModelForCausalLM.from_pretrained(tmp_path / "base")} if given == "model" else {}
    trainer = make_trainer(tmp_path / "base", tmp_path, reward_folder, **more)
    assert trainer.eos_token_ids == [model.config.eos_token_id, pad]
    assert trainer.processing_class.pad_token_id not in trainer.eos_token_ids


def test_invariant_06_learned_positions_do_not_see_left_padding(tmp_path, tokenizer, base_folder) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64, eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )  # fmt: skip
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    trainer = make_trainer(
        base_folder, tmp_path, None, model=GPT2LMHeadModel(config), lora=lora, reward_funcs=[no_score]
    )
    fixed_responses(trainer, responses_of(tokenizer.eos_token_id))
    (batch,) = rollout(trainer)
    padding = (batch.attention_mask == 0).sum(1)
    assert padding.max() > 5  # prompts of different length: some rows are padded on the left
    for row in range(8):
        counted = batch.attention_mask[row].bool()
        n = int(batch.response_mask[row].sum())
        with torch.no_grad():
            alone = trainer.model(
                input_ids=batch.input_ids[row][counted][None],
                attention_mask=torch.ones(1, int(counted.sum()), dtype=torch.long),
                response_mask=torch.ones(1, n, dtype=torch.bool),
            )
        found = batch.old_logprobs[row][batch.response_mask[row]]
        torch.testing.assert_close(found, alone["logprobs"][0], rtol=0, atol=1e-5)  # fp32 noise of another width


def no_score(prompts, completions, **kwargs) -> list[float]:
    return [0.0] * len(prompts)


def test_invariant_06_generate_is_given_a_left_padded_mask_and_no_positions(
    base_folder, reward_folder, tmp_path, monkeypatch
) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder)
    given = {}
    generate = type(trainer.model).generate

    def note(self, *args, **kwargs):
        given.update(kwargs)
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(trainer.model), "generate", note)
    rollout(trainer)
    assert "position_ids" not in given
    mask = given["attention_mask"]
    assert mask[:, -1].all()  # nothing on the right
    assert not mask[:, 0].all()  # padding on the left
    assert (mask.diff(dim=1) >= 0).all()


def test_invariant_07_reward_reads_exactly_prompt_and_response(base_folder, reward_folder, tmp_path, eos) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder)
    responses = responses_of(eos)
    fixed_responses(trainer, responses)
    (batch,) = rollout(trainer)
    alone = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    alone = PeftModel.from_pretrained(alone, reward_folder).eval()
    tokenizer = trainer.processing_class
    for row, response in enumerate(responses):
        prompt = [{"role": "user", "content": PROMPTS[row]}]
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        with torch.no_grad():
            expected = alone(input_ids=torch.tensor([ids + response])).logits[0, 0]
        # The same weights read as two classes of model, one row against a padded batch: fp32 noise.
        assert batch.scores[row].item() == pytest.approx(expected.item(), abs=1e-5)


def test_invariant_07_the_score_lands_on_the_last_counted_token_itself(
    base_folder, reward_folder, tmp_path, eos
) -> None:
    # No discount, no values, no KL: the return of every counted token is the score alone, and TD(0) shows where it is.
    trainer = make_trainer(base_folder, tmp_path, reward_folder, kl_coef=0.0, lam=0.0, missing_eos_penalty=0.0)
    zero_values(trainer)
    fixed_responses(trainer, responses_of(eos))
    (batch,) = rollout(trainer)
    last = last_counted(batch.response_mask)
    torch.testing.assert_close(batch.returns, last * batch.scores[:, None], rtol=0, atol=0)


@pytest.mark.parametrize("stop", ["eos", "second stop token"])
def test_invariant_08_missing_eos_is_punished_for_no_stop_token(
    base_folder, reward_folder, tmp_path, eos, stop
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    model.generation_config.eos_token_id = [eos, 77]
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, model=model, kl_coef=0.0, missing_eos_penalty=5.0, lam=1.0
    )
    zero_values(trainer)
    ending = eos if stop == "eos" else 77
    fixed_responses(trainer, [[20, 30, ending] if row < 4 else [20, 30, 40] for row in range(8)])
    (batch,) = rollout(trainer)
    assert batch.stopped.tolist() == [True] * 4 + [False] * 4
    penalty = batch.scores - batch.returns[:, 0]
    torch.testing.assert_close(penalty, torch.tensor([0.0] * 4 + [5.0] * 4), rtol=0, atol=1e-6)  # fp32 subtraction


def test_invariant_08_a_stop_token_inside_a_response_does_not_count_as_its_end() -> None:
    ids = torch.tensor([[9, 5, 1, 5], [9, 1, 5, 1], [9, 5, 1, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]]).bool()
    assert stopped_by_itself(ids, mask, [1]).tolist() == [False, True, True]


def test_invariant_09_reward_is_score_less_beta_kl_per_token(base_folder, reward_folder, tmp_path, eos) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, kl_coef=0.3, lam=0.0, missing_eos_penalty=0.0)
    zero_values(trainer)
    fixed_responses(trainer, responses_of(eos))
    (batch,) = rollout(trainer)
    # lambda 0 and values 0: the return of a token is its own reward.
    kl = batch.old_logprobs - batch.ref_logprobs
    expected = -0.3 * kl * batch.response_mask + batch.scores[:, None] * last_counted(batch.response_mask)
    assert kl[batch.response_mask].abs().min() > 0
    torch.testing.assert_close(batch.returns, expected, rtol=0, atol=1e-6)  # fp32, another order of operations


# ---- gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
@both_values
def test_every_trainable_tensor_gets_its_gradient(
    base_folder, reward_folder, tmp_path, eos, value, checkpointed
) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, value=value, gradient_checkpointing=checkpointed)
    if checkpointed:
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    fixed_responses(trainer, responses_of(eos))
    batches = rollout(trainer)
    _, found = gradients(trainer, batches)
    assert all(g.abs().sum() > 0 for g in found.values()), [n for n, g in found.items() if g.abs().sum() == 0]
    policy = [n for n in found if ".default." in n]
    assert len(policy) == 2 * 7 * 2  # A and B of seven linear layers in two blocks
    assert len([n for n in found if ".value." in n]) == (len(policy) if value == "adapter" else 0)
    assert not any(".reward." in n or "score_heads" in n for n in found)
    expected = _separate_gradients(trainer, batches)
    for name, gradient in found.items():
        # The same sums in another order (and, checkpointed, computed twice): fp32 noise.
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def _separate_gradients(trainer: PPOTrainer, batches: list[MicroBatch]) -> dict[str, torch.Tensor]:
    """An independent reference: PEFT's own set_adapter, full logits, one backward for each loss, no checkpointing."""
    from llm_rlhf.models.roles import position_ids

    trainer.model.gradient_checkpointing_disable()
    model, base, args = trainer.model, trainer.base_model(), trainer.args
    found: dict[str, torch.Tensor] = {}

    def add() -> None:
        for name, p in model.named_parameters():
            if p.grad is not None:
                found[name] = found.get(name, 0) + p.grad
                p.grad = None

    model.zero_grad(set_to_none=True)
    for batch in batches:
        ids, mask, response = batch.input_ids, batch.attention_mask, batch.response_mask
        R = response.size(1)
        tokens = batch.tokens_per_mini_batch

        def states(ids=ids, mask=mask, R=R) -> torch.Tensor:
            hidden = base.model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask)).last_hidden_state
            return hidden[:, -R - 1 : -1]

        model.set_adapter("default")
        logprobs = base.lm_head(states()).float().log_softmax(-1).gather(2, ids[:, -R:, None]).squeeze(2)
        ratio = (logprobs - batch.old_logprobs).exp()
        worse = torch.max(-batch.advantages * ratio, -batch.advantages * ratio.clamp(0.8, 1.2))
        (worse[response].sum() / tokens).backward()
        add()
        if args.value == "adapter":
            model.set_adapter("value")
        value = base.value_head(states()).squeeze(2)
        old = batch.old_values
        near = torch.max(torch.min(value, old + 0.2), old - 0.2)
        errors = torch.max((value - batch.returns) ** 2, (near - batch.returns) ** 2)
        (args.vf_coef * 0.5 * errors[response].sum() / tokens).backward()
        add()
    return found


@pytest.mark.slow
@both_values
def test_invariant_12_fault_39_gradient_does_not_depend_on_the_micro_batch(
    base_folder, reward_folder, tmp_path, eos, value
) -> None:
    found = []
    for size in (8, 2, 1):
        trainer = make_trainer(
            base_folder, tmp_path, reward_folder, value=value, per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
        )  # fmt: skip
        fixed_responses(trainer, responses_of(eos))
        batches = rollout(trainer)
        assert len(batches) == 8 // size
        found.append(gradients(trainer, batches))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        for name, expected in found[0][1].items():
            # Other padded widths move log-probabilities by up to 7e-6 in fp32; gradients here are of order 0.1.
            torch.testing.assert_close(gradient[name], expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_invariant_12_gradient_does_not_depend_on_the_token_budget(base_folder, reward_folder, tmp_path, eos) -> None:
    found = []
    for budget in (None, 60, 1):
        trainer = make_trainer(base_folder, tmp_path, reward_folder, micro_batch_tokens=budget, num_ppo_epochs=1)
        fixed_responses(trainer, responses_of(eos))
        parts = trainer._prepare_inputs([{"prompt": [{"role": "user", "content": p}]} for p in PROMPTS])
        sizes = [part.input_ids.numel() for part in parts]
        rows = [len(part.rows) for part in parts]
        assert sum(rows) == 8
        if budget == 60:
            assert 1 < len(parts) < 8
            assert all(size <= 60 or count == 1 for size, count in zip(sizes, rows, strict=True))
        assert budget != 1 or rows == [1] * 8
        found.append(gradients(trainer, parts, together=True))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        for name, expected in found[0][1].items():
            # Other padded widths move log-probabilities by up to 7e-6 in fp32; gradients here are of order 0.1.
            torch.testing.assert_close(gradient[name], expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_invariant_14_with_a_token_budget_every_row_is_used_once_an_epoch(base_folder, reward_folder, tmp_path) -> None:
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, per_device_train_batch_size=4, num_mini_batches=2, num_ppo_epochs=3,
        total_episodes=16, micro_batch_tokens=40,
    )  # fmt: skip
    steps: list[list[int]] = []
    compute = trainer._compute_loss

    def note(model, inputs):
        steps.append([row for part in inputs for row in part.rows])
        return compute(model, inputs)

    trainer._compute_loss = note
    trainer.train()
    assert trainer.state.global_step == len(steps) == 2 * 3 * 2
    for start in range(0, len(steps), 2):
        assert sorted(steps[start] + steps[start + 1]) == list(range(8))
    assert {frozenset(step) for step in steps[:2]} == {frozenset(range(4)), frozenset(range(4, 8))}
    assert steps[:2] != steps[2:4]


@pytest.mark.slow
def test_gradient_does_not_depend_on_the_tokenizers_padding_side(base_folder, reward_folder, tmp_path, eos) -> None:
    found = []
    for side in ("left", "right"):
        trainer = make_trainer(base_folder, tmp_path, reward_folder)
        trainer.processing_class.padding_side = side
        torch.manual_seed(5)
        found.append(gradients(trainer, rollout(trainer)))  # sampled, not given: generate is told the side too
    assert found[0][0] == found[1][0]
    assert all(torch.equal(g, found[1][1][n]) for n, g in found[0][1].items())


@pytest.mark.slow
@both_values
def test_gradient_does_not_depend_on_the_order_or_number_of_adapters(
    base_folder, reward_folder, tmp_path, eos, value
) -> None:
    second = random_reward_adapter(base_folder, tmp_path / "second", seed=7)
    found: list[tuple[float, dict[str, torch.Tensor]]] = []
    first: dict[str, torch.Tensor] = {}
    for adapters in (
        {"one": reward_folder},
        {"one": reward_folder, "two": second},
        {"two": second, "one": reward_folder},
    ):
        weights = [1.0 if name == "one" else 0.0 for name in adapters]
        trainer = make_trainer(base_folder, tmp_path, adapters, value=value, reward_weights=weights)
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:  # the value starts from the first reward adapter, which is another one here
                parameter.data.copy_(first.setdefault(name, parameter.detach().clone()))
        fixed_responses(trainer, responses_of(eos))
        found.append(gradients(trainer, rollout(trainer)))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        for name, expected in found[0][1].items():
            torch.testing.assert_close(gradient[name], expected, rtol=1e-5, atol=1e-7, msg=name)  # 0 * two is added


def test_a_reward_adapter_named_like_a_layer_is_refused(base_folder, reward_folder, tmp_path) -> None:
    with pytest.raises(ValueError, match="call it otherwise"):
        make_trainer(base_folder, tmp_path, {"mlp": reward_folder})


def test_scores_do_not_depend_on_padding(base_folder, reward_folder, tmp_path) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder)
    ids = torch.randint(10, 200, (1, 9), generator=torch.Generator().manual_seed(1))
    scores = []
    for left, right in ((0, 0), (5, 0), (0, 5), (3, 2)):
        pad = trainer.processing_class.pad_token_id
        padded = torch.cat([torch.full((1, left), pad), ids, torch.full((1, right), pad)], 1)
        mask = torch.cat([torch.zeros(1, left), torch.ones(1, 9), torch.zeros(1, right)], 1).long()
        scores.append(role_scores(trainer.model, "reward", padded, mask).item())
    assert scores == pytest.approx([scores[0]] * 4, abs=1e-5)  # fp32 noise of another width


def test_bad_scores_stop_the_run_before_the_weights_change(base_folder, tmp_path) -> None:
    from llm_rlhf.errors import RunError

    def sometimes_nan(prompts, completions, **kwargs):
        return [float("nan") if i == 3 else 1.0 for i in range(len(prompts))]

    trainer = make_trainer(base_folder, tmp_path, None, reward_funcs=[sometimes_nan])
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    with pytest.raises(RunError, match=r"sometimes_nan returned nan for row 3 of 8"):
        trainer.train()
    assert all(torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())


@pytest.mark.slow
def test_training_twice_with_one_seed_is_bit_identical(base_folder, reward_folder, tmp_path) -> None:
    saved = []
    for attempt in ("one", "two"):
        trainer = make_trainer(base_folder, tmp_path / attempt, reward_folder, perturb=False, num_mini_batches=2,
                               per_device_train_batch_size=4)  # fmt: skip
        trainer.train()
        trainer.save_roles(tmp_path / attempt)
        saved.append(sorted(Path(tmp_path / attempt).rglob("*.safetensors")))
    assert [p.name for p in saved[0]] == ["adapter_model.safetensors", "value_head.safetensors"]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*saved, strict=True))


# ---- invariants of the run as a whole ------------------------------------------------------------------------------


def test_invariant_10_adaptive_controller_by_hand() -> None:
    """Ziegler et al. 2019, section 2.2: target 6, horizon 10000, rollouts of 64."""
    controller = KLController(0.2, 6.0, 10000)
    controller.update(6.6, 64)  # error 0.1
    assert controller.value == pytest.approx(0.2 * (1 + 0.1 * 64 / 10000), rel=1e-12)  # float64
    controller = KLController(0.2, 6.0, 10000)
    controller.update(60.0, 64)  # error 9, clipped to 0.2
    assert controller.value == pytest.approx(0.2 * (1 + 0.2 * 64 / 10000), rel=1e-12)
    controller.update(0.0, 64)  # error -1, clipped to -0.2
    assert controller.value == pytest.approx(0.2 * (1 + 0.2 * 64 / 10000) * (1 - 0.2 * 64 / 10000), rel=1e-12)


def test_invariant_10_a_rollouts_kl_steers_the_next_one(base_folder, reward_folder, tmp_path, eos) -> None:
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, kl_coef=0.3, adaptive_kl_target=0.5, adaptive_kl_horizon=80, lam=0.0
    )
    zero_values(trainer)
    fixed_responses(trainer, responses_of(eos))
    (batch,) = rollout(trainer)
    kl = batch.sequence_kl.mean().item()
    assert batch.returns[0, 0].item() == pytest.approx(
        -0.3 * batch.sequence_kl[0].item() + batch.scores[0].item(), abs=1e-6
    )  # the first response is one token long and stopped; this rollout still pays the first coefficient
    expected = 0.3 * (1 + min(max(kl / 0.5 - 1, -0.2), 0.2) * 8 / 80)
    assert trainer.kl_controller.value == pytest.approx(expected, rel=1e-6)  # an fp32 mean
    (batch,) = rollout(trainer)
    assert batch.returns[0, 0].item() == pytest.approx(
        -expected * batch.sequence_kl[0].item() + batch.scores[0].item(), abs=1e-6
    )


def test_invariant_10_the_coefficient_is_fixed_without_a_target(base_folder, reward_folder, tmp_path, eos) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, kl_coef=0.3)
    fixed_responses(trainer, responses_of(eos))
    rollout(trainer)
    assert trainer.kl_controller.value == 0.3


def test_invariant_11_running_scale_and_clip(base_folder, reward_folder, tmp_path, eos) -> None:
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, score_normalization="whiten", reward_clip_range=(-1.0, 1.0)
    )
    far = torch.tensor([5.0, 7.0])
    assert trainer._normalised(far, ["overall"] * 2).tolist() == [5.0, 7.0]  # no scale yet, by which a limit would be
    fixed_responses(trainer, responses_of(eos))
    (first,) = rollout(trainer)
    raw = first.raw_scores
    expected = ((raw - raw.mean()) / raw.std()).clamp(-1, 1)
    assert (expected.abs() == 1).any()
    assert (expected.abs() < 1).any()
    torch.testing.assert_close(first.scores, expected, rtol=1e-5, atol=1e-6)  # double against fp32 moments
    fixed_responses(trainer, responses_of(eos, start=3))
    (second,) = rollout(trainer)
    both = torch.cat([raw, second.raw_scores])
    expected = ((second.raw_scores - both.mean()) / both.std()).clamp(-1, 1)
    torch.testing.assert_close(second.scores, expected, rtol=1e-5, atol=1e-6)  # double against fp32 moments


def test_invariant_11_scale_keeps_the_mean(base_folder, reward_folder, tmp_path, eos) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, score_normalization="scale")
    fixed_responses(trainer, responses_of(eos))
    (batch,) = rollout(trainer)
    torch.testing.assert_close(batch.scores, batch.raw_scores / batch.raw_scores.std(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_invariant_11_scores_are_centred_on_reference_samples(base_folder, reward_folder, tmp_path, eos) -> None:
    normalised = tmp_path / "normalised"
    shutil.copytree(reward_folder, normalised)
    (normalised / "normalisation.json").write_text(json.dumps({"mean": 0.7, "deviation": 2.5}))
    raw = []
    for folder in (reward_folder, normalised):
        trainer = make_trainer(base_folder, tmp_path, folder, value="adapter", perturb=False)
        fixed_responses(trainer, responses_of(eos))
        (batch,) = rollout(trainer)
        raw.append(batch.raw_scores)
        base = trainer.base_model()  # the value function starts from the same head, its shift included
        assert all(
            torch.equal(a, b)
            for a, b in zip(base.value_head.parameters(), base.score_heads["reward"].parameters(), strict=True)
        )
    torch.testing.assert_close(raw[1], (raw[0] - 0.7) / 2.5, rtol=0, atol=1e-6)  # fp32, another order


def test_invariant_12_advantages_are_white_over_the_whole_rollout(base_folder, reward_folder, tmp_path, eos) -> None:
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        num_mini_batches=2,
    )  # fmt: skip
    assert (trainer.args.gamma, trainer.args.lam) == (1.0, 0.95)
    fixed_responses(trainer, responses_of(eos))
    batches = rollout(trainer)
    assert len(batches) == 4
    counted = torch.cat([b.advantages[b.response_mask] for b in batches])
    assert counted.mean().item() == pytest.approx(0, abs=1e-6)  # fp32 mean
    assert counted.var().item() == pytest.approx(1, abs=1e-5)  # fp32; 1e-8 is added to it before the root
    own = [b.advantages[b.response_mask].mean().abs().item() for b in batches]
    assert min(own) > 1e-3  # not each micro-batch by itself
    tokens = sum(int(b.response_mask.sum()) for b in batches)
    assert all(b.tokens_per_mini_batch.item() == tokens / 2 for b in batches)
    for batch in batches:  # the value after the end is zero: the last delta is score - value alone
        last = last_counted(batch.response_mask)
        final = batch.scores - (~batch.stopped) * 1.0
        kl = batch.old_logprobs - batch.ref_logprobs
        # The same sum in another order, in fp32.
        torch.testing.assert_close(batch.returns[last], final - 0.05 * kl[last], rtol=0, atol=1e-6)


def test_invariant_12_advantages_by_hand() -> None:
    """gamma 0.5, lambda 0.8, three tokens of which the last does not count.

    delta_1 = 4 + 0 - 3 = 1, delta_0 = 1 + 0.5 * 3 - 2 = 0.5; A_1 = 1, A_0 = 0.5 + 0.4 * 1 = 0.9; returns A + V.
    """
    rewards, values = torch.tensor([[1.0, 4.0, 9.0]]), torch.tensor([[2.0, 3.0, 7.0]])
    found = generalised_advantages(rewards, values, torch.tensor([[True, True, False]]), gamma=0.5, lam=0.8)
    torch.testing.assert_close(found.advantages, torch.tensor([[0.9, 1.0, 0.0]]))
    torch.testing.assert_close(found.returns, torch.tensor([[2.9, 4.0, 0.0]]))


def test_invariant_13_clipped_value_loss_by_hand() -> None:
    """Old value 1, clip 0.2, return 2: a value of 1.5 counts as 1.2, whose error .8 is larger than .5."""
    loss = value_loss(torch.tensor([[1.5, 0.5]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 2.0]]), 0.2)
    torch.testing.assert_close(loss.loss, torch.tensor([[0.8**2 / 2, 1.5**2 / 2]]))  # below: the unclipped 1.5
    assert loss.clipped.tolist() == [[True, False]]


def test_clipped_surrogate_by_hand() -> None:
    """Ratio 1.5, clip 0.2: a good token gains 1.2 times its advantage, a bad one loses 1.5 times its own."""
    loss, ratio = policy_loss(torch.tensor([[1.5, 1.5]]).log(), torch.zeros(1, 2), torch.tensor([[2.0, -2.0]]), 0.2)
    torch.testing.assert_close(loss.loss, torch.tensor([[-2.4, 3.0]]))
    torch.testing.assert_close(ratio, torch.tensor([[1.5, 1.5]]))


def test_invariant_13_value_starts_from_the_reward_adapter_and_head(base_folder, reward_folder, tmp_path, eos) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, value="adapter", perturb=False)
    weights = dict(trainer.model.named_parameters())
    value = [name for name in weights if ".value." in name]
    assert len(value) == 2 * 7 * 2
    assert all(torch.equal(weights[n], weights[n.replace(".value.", ".reward.")]) for n in value)
    base = trainer.base_model()
    assert torch.equal(base.value_head.weight, base.score_heads["reward"].weight)
    assert all(weights[n].requires_grad for n in value)


def test_invariant_13_shared_value_starts_at_zero(base_folder, reward_folder, tmp_path) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, value="shared", perturb=False)
    assert trainer.base_model().value_head.weight.abs().sum() == 0


@both_values
def test_invariant_13_in_the_critics_warm_up_the_policy_stays(base_folder, reward_folder, tmp_path, value) -> None:
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, value=value, value_warmup_rollouts=1, total_episodes=8, num_ppo_epochs=2,
        weight_decay=0.1,
    )  # fmt: skip
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    moved = {n for n, p in before.items() if not torch.equal(p, after[n])}
    assert not any(".default." in n for n in moved)
    assert any("value_head" in n for n in moved)
    assert any(".value." in n for n in moved) == (value == "adapter")


@both_values
def test_invariant_13_the_warming_critic_asks_nothing_of_the_policy(
    base_folder, reward_folder, tmp_path, value
) -> None:
    """Not even a gradient that is taken away later: it would count where gradients are clipped together."""
    trainer = make_trainer(base_folder, tmp_path, reward_folder, value=value, value_warmup_rollouts=1)
    _, found = gradients(trainer, rollout(trainer))
    assert not any(gradient.any() for name, gradient in found.items() if ".default." in name)
    assert any(gradient.any() for name, gradient in found.items() if "value_head" in name)


@pytest.mark.slow
def test_invariant_13_after_the_warm_up_the_policy_learns(base_folder, reward_folder, tmp_path) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, value_warmup_rollouts=1, total_episodes=16)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if ".default." in n}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert all(not torch.equal(p, after[n]) for n, p in before.items())
    taken = {n: int(trainer.optimizer.state[p]["step"]) for n, p in after.items() if p.requires_grad}
    (of_policy,) = {steps for n, steps in taken.items() if ".default." in n}
    assert (
        0 < 2 * of_policy == taken["base_model.model.value_head.weight"]
    )  # half of the rollouts are the value's alone


def longer(completions: list, **kwargs) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


def test_invariant_13_a_whole_model_stays_in_the_critics_warm_up(base_folder, tmp_path) -> None:
    trainer = make_trainer(
        base_folder, tmp_path, None, lora=False, reward_funcs=[longer], value_warmup_rollouts=1, total_episodes=8,
        weight_decay=0.1, perturb=False,
    )  # fmt: skip
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert {n for n, p in before.items() if not torch.equal(p, after[n])} == {"value_head.weight", "value_head.bias"}


@pytest.mark.slow
def test_invariant_13_explained_variance_is_logged(base_folder, reward_folder, tmp_path) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder)
    trainer.train()
    logged = [line for line in trainer.state.log_history if "val/explained_variance" in line]
    assert len(logged) == 2
    assert all(line["val/explained_variance"] <= 1 for line in logged)


@pytest.mark.slow
def test_invariant_14_mini_batches_are_reshuffled_and_steps_are_epochs_times_mini_batches(
    base_folder, reward_folder, tmp_path
) -> None:
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, per_device_train_batch_size=1, gradient_accumulation_steps=2,
        num_mini_batches=4, num_ppo_epochs=3, total_episodes=16,
    )  # fmt: skip
    used: list[tuple[int, ...]] = []
    compute = trainer._compute_loss

    def note(model, inputs):
        used.append(tuple(row for part in inputs for row in part.rows))
        return compute(model, inputs)

    trainer._compute_loss = note
    trainer.train()
    assert trainer.state.global_step == 2 * 3 * 4  # rollouts x epochs x mini-batches
    assert len(used) == 2 * 3 * 8
    epochs = [used[i : i + 8] for i in range(0, len(used), 8)]
    assert all(sorted(epoch) == [(i,) for i in range(8)] for epoch in epochs)  # every row once an epoch
    assert epochs[0] != epochs[1] != epochs[2]
    pairs = [{frozenset(epoch[i : i + 2]) for i in range(0, 8, 2)} for epoch in epochs[:3]]
    assert pairs[0] != pairs[1] != pairs[2]  # regrouped into other mini-batches, not only reordered


def test_invariant_15_gradients_are_clipped_and_adams_epsilon_is_1e_5(base_folder, reward_folder, tmp_path) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder)
    assert trainer.args.max_grad_norm == 1.0
    trainer.create_optimizer()
    assert type(trainer.optimizer).__name__ == "AdamW"
    assert all(group["eps"] == 1e-5 for group in trainer.optimizer.param_groups)


def trainable(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def test_invariant_15_a_step_beyond_the_ratio_limit_is_skipped(base_folder, reward_folder, tmp_path) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, ratio_limit=0.5, weight_decay=0.1)
    before = trainable(trainer)
    trainer.train()  # the mean ratio is about 1: over this limit in every step
    assert all(torch.equal(p, before[n]) for n, p in trainable(trainer).items())  # no gradient, decay or momentum
    assert all(line["policy/skipped"] == 1 for line in trainer.state.log_history if "policy/skipped" in line)


@pytest.mark.slow
def test_invariant_15_beyond_the_updates_kl_limit_the_rest_of_the_rollout_is_skipped(
    base_folder, reward_folder, tmp_path
) -> None:
    options = {
        "per_device_train_batch_size": 4, "num_mini_batches": 2, "num_ppo_epochs": 3, "total_episodes": 16,
        "learning_rate": 0.05,
    }  # fmt: skip
    trainer = make_trainer(base_folder, tmp_path, reward_folder, update_kl_limit=1e-8, **options)
    seen = watch_approx_kl(trainer)
    trainer.train()
    # Of each rollout's 6 steps the first is taken (KL 0), the second is over the limit, the others are not computed.
    assert len(seen) == 2 * 2
    assert (seen[0], seen[2]) == (0.0, 0.0)
    assert min(seen[1], seen[3]) > 1e-8
    assert trainer.state.global_step == 12


def test_invariant_15_fault_29_training_stops_before_it_learns_from_a_rollout_beyond_the_kl_limit(
    base_folder, reward_folder, tmp_path, capsys
) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, kl_limit=1e-6)
    fixed_responses(trainer, responses_of(trainer.processing_class.eos_token_id))
    before = trainable(trainer)
    kl = rollout(trainer)[0].sequence_kl.mean().item()
    assert kl > 1e-6  # the perturbed policy is away from its reference
    trainer.control.should_training_stop = trainer.guard.rest_is_skipped = False
    trainer.train()
    assert all(torch.equal(p, before[n]) for n, p in trainable(trainer).items())
    assert trainer.state.global_step < trainer.state.max_steps
    assert "over kl_limit" in capsys.readouterr().out


def test_invariant_16_truncated_importance_weights_by_hand() -> None:
    old = torch.tensor([[-1.0, -2.0, -3.0]])
    engine = torch.tensor([[-1.5, -1.0, -9.0]])
    mask = torch.tensor([[True, True, False]])
    weights = importance_weights(old, engine, mask, cap=1.5)
    expected = [[1.5, 0.36787944117144233, 1.0]]  # exp(.5) = 1.65 is capped, exp(-1), and 1 where nothing counts
    assert weights.tolist() == [pytest.approx(expected[0], rel=1e-6)]  # fp32 exp


def test_invariant_16_an_engines_log_probabilities_weigh_the_policy_loss_and_are_logged(
    base_folder, reward_folder, tmp_path, eos
) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, importance_cap=1.2)
    fixed_responses(trainer, responses_of(eos))
    (plain,) = rollout(trainer)
    assert plain.importance is None
    loss, _ = gradients(trainer, [plain])
    shift_B = torch.tensor([0.3, 0.1] * 4)  # not the same everywhere: whitened advantages add up to 0
    generate = trainer._generate

    def generate_elsewhere(prompts):
        answer = generate(prompts)
        rows = (plain.old_logprobs - shift_B[:, None]).tolist()
        trainer._sampled = Sampled([row[: len(r)] for row, r in zip(rows, answer[1], strict=True)])
        return answer

    trainer._generate = generate_elsewhere
    (batch,) = rollout(trainer)
    mask = batch.response_mask
    expected = shift_B.exp().clamp(max=1.2)[:, None].expand(mask.shape)  # exp(.3) is 1.35, exp(.1) 1.11
    torch.testing.assert_close(batch.importance[mask], expected[mask], rtol=1e-5, atol=0)  # fp32 differences
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert logged["sampling/importance"] == pytest.approx(expected[mask].mean().item(), rel=1e-5)
    assert logged["sampling/logprob_difference"] == pytest.approx(
        shift_B[:, None].expand(mask.shape)[mask].mean().item(), rel=1e-4
    )
    # The first ratio is 1: a token's policy loss is minus its advantage, times its weight; the value's loss has none.
    more = -(plain.advantages * (expected - 1) * mask).sum() / plain.tokens_per_mini_batch
    weighted, _ = gradients(trainer, [batch])
    assert abs(more.item()) > 1e-3
    assert weighted - loss == pytest.approx(more.item(), abs=1e-5)  # fp32 difference of losses


@pytest.mark.slow
def test_invariant_17_padding_changes_no_statistic(base_folder, reward_folder, tmp_path, eos) -> None:
    found = []
    for padded in (False, True):
        trainer = make_trainer(base_folder, tmp_path, reward_folder)
        fixed_responses(trainer, responses_of(eos))
        if padded:
            pad = collecting.pad_rows

            def wider(prompts, responses, pad_token_id, device, pad=pad):
                longest = max(len(r) for r in responses) + 3
                rows = pad([*prompts, prompts[0]], [*responses, [eos] * longest], pad_token_id, device)
                return PaddedRows(*(x[:-1] for x in vars(rows).values()))

            collecting.pad_rows = wider
        try:
            (batch,) = rollout(trainer)
        finally:
            if padded:
                collecting.pad_rows = pad
        trainer._step_sums = None
        gradients(trainer, [batch])
        trainer.finish_step()
        found.append((batch.input_ids.size(1), {n: v[-1] for n, v in trainer._metrics["train"].items()}))
    (narrow, one), (wide, other) = found
    assert wide == narrow + 3
    for name, value in one.items():
        if "time" not in name:
            # Another padded width moves fp32 log-probabilities by up to 7e-6; sums over a response by some more.
            assert other[name] == pytest.approx(value, abs=1e-4), name


@pytest.mark.slow
@both_values
def test_invariant_18_policy_and_value_survive_save_and_load(base_folder, reward_folder, tmp_path, value, eos) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, value=value)
    fixed_responses(trainer, responses_of(eos))
    (expected,) = rollout(trainer)
    trainer.save_roles(tmp_path / "saved")
    other = make_trainer(base_folder, tmp_path, reward_folder, value=value, perturb=False)
    fixed_responses(other, responses_of(eos))
    assert not torch.equal(rollout(other)[0].old_values, expected.old_values)
    still_trainable = {n for n, p in other.model.named_parameters() if p.requires_grad}
    other.load_roles(tmp_path / "saved")
    (found,) = rollout(other)
    for name in ("old_logprobs", "old_values", "ref_logprobs", "raw_scores"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert {n for n, p in other.model.named_parameters() if p.requires_grad} == still_trainable


def test_invariant_18_a_reward_head_is_the_one_in_the_file(base_folder, reward_folder, tmp_path) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder)
    (saved,) = (w for n, w in load_peft_weights(str(reward_folder), device="cpu").items() if n.endswith("score.weight"))
    assert torch.equal(trainer.base_model().score_heads["reward"].weight, saved)


def test_invariant_18_the_policy_is_read_by_plain_peft(base_folder, reward_folder, tmp_path) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder)
    trainer.save_roles(tmp_path / "saved")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / "saved" / "policy")
    ids = torch.randint(10, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    trainer.model.eval()
    with torch.no_grad():
        assert torch.equal(plain.eval()(input_ids=ids).logits, trainer.model(input_ids=ids).logits)
