"""What PPOTrainer refuses to build on: trained outside the adapters, noisy, or decoded otherwise than read."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from model_helpers import random_policy_adapter
from peft import AdaptionPromptConfig, LoraConfig, PrefixTuningConfig, get_peft_model
from ppo_helpers import PROMPTS, fixed_responses, make_trainer, rollout
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from llm_rlhf import PPOConfig, RewardModel, training
from llm_rlhf.models import roles
from llm_rlhf.models.adapters import POLICY
from llm_rlhf.ppo import saving
from llm_rlhf.ppo.preparation import check_distribution

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", **options)


UNSWITCHED = [
    ({"bias": "all"}, "bias 'all'"),
    ({"bias": "lora_only"}, "bias 'lora_only'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
    ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
    ({"layer_replication": [(0, 2), (1, 2)]}, r"layer_replication \[\(0, 2\), \(1, 2\)\]"),
    ({"alora_invocation_tokens": [3]}, r"alora_invocation_tokens \[3\]"),
]


@pytest.mark.parametrize(("options", "named"), UNSWITCHED)
def test_what_would_move_the_reference_is_refused_before_loading(base_folder, tmp_path, options, named) -> None:
    with pytest.raises(ValueError, match=rf"peft_config has {named}: .*the reference .*would move.* Leave it at"):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], lora=lora(**options))


@pytest.mark.parametrize(
    "config",
    [
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        AdaptionPromptConfig(adapter_len=2, adapter_layers=2),
    ],
)
def test_what_lives_outside_the_layers_is_refused(base_folder, tmp_path, config) -> None:
    with pytest.raises(ValueError, match=r"peft_config has peft_type .*it is no part of the base's layers"):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], lora=config)


def test_an_adapter_that_cannot_be_switched_is_refused_wherever_it_comes_from(
    base_folder, tmp_path, reward_folder
) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), lora(bias="all"))
    with pytest.raises(ValueError, match=r"The given model's adapter has bias 'all'"):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], lora=False, model=model)
    shutil.copytree(reward_folder, tmp_path / "biased")
    path = tmp_path / "biased" / "adapter_config.json"
    path.write_text(path.read_text().replace('"bias": "none"', '"bias": "lora_only"'))
    for role in ("reward", "heldout_adapter"):
        roles = {"reward": reward_folder, role: tmp_path / "biased"}
        with pytest.raises(ValueError, match=r"reward adapter at .*biased has bias 'lora_only'.* Merge it"):
            make_trainer(base_folder, tmp_path, **roles)


def test_a_given_peft_model_that_trains_more_than_adapters_is_refused(base_folder, tmp_path) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), lora())
    model.get_base_model().model.norm.requires_grad_(True)
    with pytest.raises(ValueError, match=r"1 parameters train outside the adapters, .*model.norm.weight"):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], lora=False, model=model)


@pytest.mark.parametrize(
    ("target", "message"),
    [("embed_tokens", "on the input embeddings"), ("lm_head", "adapter to `lm_head` is not supported")],  # TRL's own
)
def test_adapters_on_embeddings_are_refused(base_folder, tmp_path, target, message) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=[target, "q_proj"])
    with pytest.raises(ValueError, match=message):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], lora=config)


def noisy(name: str, tokenizer: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(name, vocab_size=len(tokenizer), initializer_range=0.2, pad_token_id=None,
                             bos_token_id=None, eos_token_id=tokenizer.eos_token_id, **options)
    )  # fmt: skip


EXPERTS = {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
NOISY = {
    "mixtral": {**EXPERTS, "router_jitter_noise": 0.3},
    "phimoe": {**EXPERTS, "router_jitter_noise": 0.3, "input_jitter_noise": 0.3},
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "layerdrop": 0.5, "attention_dropout": 0.2},
    "biogpt": {**SIZES, "layerdrop": 0.5},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "layerdrop": 0.5},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_dropout": 0.3,
               "attention_dropout": 0.3},
    "persimmon": {**SIZES, "hidden_dropout": 0.3, "attention_dropout": 0.3},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},  # resid_pdrop .1
}  # fmt: skip


@pytest.mark.parametrize("name", NOISY)
def test_every_rate_of_noise_is_off(name, base_folder, tokenizer, tmp_path) -> None:
    model = noisy(name, tokenizer, **NOISY[name])
    ids = torch.arange(24).view(2, 12) + 10

    def readings(which: Any) -> list[torch.Tensor]:
        found = []
        for seed in range(4):
            torch.manual_seed(seed)
            found.append(which.train()(input_ids=ids).logits)
        return found

    with torch.no_grad():
        evaluated = model.eval()(input_ids=ids).logits
        first, *others = readings(model)
        assert any(not torch.equal(first, other) for other in others)  # there is noise to turn off
        adapters = lora(exclude_modules=".*router")  # PhiMoE's is a Linear that answers with two tensors
        trainer = make_trainer(
            base_folder, tmp_path, None, reward_funcs=[lambda **_: []], model=model, lora=adapters, perturb=False
        )
        first, *others = readings(trainer.model)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-6)  # experts may add rows up in another order
    # Only noise is gone. PhiMoE's margin of shared experts is its jitter too, and at 0 logits move by more than 1.
    torch.testing.assert_close(first, evaluated, rtol=0, atol=1e-5)


def test_an_adapter_on_what_is_no_linear_map_is_named_with_its_remedy(base_folder, tokenizer, tmp_path) -> None:
    model = noisy("phimoe", tokenizer, **EXPERTS)
    with pytest.raises(ValueError, match=r"PhimoeForCausalLM could not read two rows .*exclude_modules=\['router'\]"):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], model=model, lora=lora())


def test_a_failure_of_a_models_own_code_names_it_and_what_was_tried(base_folder, tmp_path, monkeypatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)

    def fails(error: Exception) -> Any:
        def forward(*_: Any, **__: Any) -> None:
            raise error

        return forward

    monkeypatch.setattr(model.model.layers[0].mlp, "forward", fails(KeyError("experts")))
    with pytest.raises(
        ValueError, match=r"LlamaForCausalLM could not read two rows under left padding \(KeyError: 'exp"
    ):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], model=model)
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    monkeypatch.setattr(model.model.layers[0].mlp, "forward", fails(torch.OutOfMemoryError("no room")))
    with pytest.raises(torch.OutOfMemoryError):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], model=model)


class Restless(nn.Module):
    """Noise by a name that nobody knows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        return y + 0.01 * torch.randn_like(y) if self.training else y


def test_noise_by_another_name_is_refused(base_folder, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    model.model.layers[1].mlp = Restless(model.model.layers[1].mlp)
    with pytest.raises(ValueError, match="LlamaForCausalLM reads a row otherwise each time in training mode"):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], model=model)


@pytest.mark.parametrize("answer", [0.0, float("nan")])
def test_decoding_that_is_not_the_forward_is_refused(base_folder, tmp_path, monkeypatch, answer) -> None:
    """A cache that forgets: while decoding, a layer's attention answers nothing, or no number."""
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    attention = model.model.layers[0].self_attn
    whole = attention.forward

    def forgetful(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        attended, weights = whole(hidden_states=hidden_states, **kwargs)
        return (attended * answer, weights) if hidden_states.size(1) == 1 else (attended, weights)

    monkeypatch.setattr(attention, "forward", forgetful)
    with pytest.raises(ValueError, match=r"decodes otherwise than it reads under left padding.*use_vllm"):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], model=model)


def test_half_precision_weights_that_train_whole_are_warned_of(base_folder, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.bfloat16)
    with pytest.warns(
        UserWarning, match="Whole weights of the model train in bfloat16, where most steps of 0.001 are lost"
    ):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], model=model, lora=False, perturb=False)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (DistributedType.DEEPSPEED, {}, "PPO cannot run under DeepSpeed: its engine rounds the heads"),
        (DistributedType.FSDP, {"micro_batch_tokens": 99}, "would wait for ever"),
        (DistributedType.FSDP, {"decoding": "compiled"}, "decoding is 'compiled', but under FSDP"),
        (DistributedType.FSDP, {"merge_for_sampling": True}, "merge_for_sampling is True, but under FSDP"),
        (DistributedType.FSDP, {"keep": "best", "eval_rollouts": 1}, "keep is 'best', which goes back to a snapshot"),
        (DistributedType.FSDP, {"side_guard": "stop"}, "side_guard is 'stop', which goes back to a snapshot"),
    ],
)
def test_what_a_way_of_spreading_cannot_do_is_refused(tmp_path, kind, options, message) -> None:
    args = PPOConfig(str(tmp_path), per_device_train_batch_size=4, bf16=False, **options)
    check_distribution(DistributedType.NO, args)
    with pytest.raises(ValueError, match=message):
        check_distribution(kind, args)


@pytest.mark.slow
def test_weights_that_are_spread_over_processes_are_gathered_by_all_and_written_by_one(
    base_folder, reward_folder, tmp_path, monkeypatch
) -> None:
    trainer = make_trainer(base_folder, tmp_path, reward_folder, value="adapter")
    trainer.save_roles(tmp_path / "whole")
    for module in (training, saving):
        monkeypatch.setattr(module, "is_sharded", lambda *_: True)
    gathered = []
    gather = training.whole_weights
    monkeypatch.setattr(saving, "whole_weights", lambda t: gathered.append(t) or gather(t))
    trainer.save_roles(tmp_path / "gathered")
    assert gathered == [trainer]  # once, though two roles and a head are written
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "gathered" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    monkeypatch.setattr(type(trainer.accelerator), "is_main_process", False)
    trainer.save_policy(tmp_path / "other")
    assert len(gathered) == 2
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="resume_from_checkpoint is set, but a checkpoint cannot be read"):
        trainer.train(resume_from_checkpoint=True)


def test_the_best_of_several_evaluation_sets_is_refused(base_folder, tmp_path) -> None:
    rows = Dataset.from_list([{"prompt": "a"}])
    with pytest.raises(ValueError, match="2 sets of prompts to evaluate on, which may disagree"):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], eval_dataset={"a": rows, "b": rows},
                     keep="best", eval_rollouts=1)  # fmt: skip


def test_without_a_penalty_the_kl_is_still_known_and_limited(base_folder, tmp_path, capsys) -> None:
    """Of a whole model by its folder the parent would load no reference where nothing is paid for leaving it."""
    trainer = make_trainer(
        base_folder, tmp_path, None, model=str(base_folder), lora=False, kl_coef=0.0, perturb=False, total_episodes=32,
        reward_funcs=[lambda completion_ids, **_: [float(ids[0] % 7) for ids in completion_ids]],
        learning_rate=1e-2, kl_limit=1e-4,
    )  # fmt: skip
    assert trainer.args.kl_coef == trainer.args.beta == 0.0
    trainer.train()
    assert trainer.state.global_step < trainer.args.max_steps
    assert "over kl_limit (0.0001)" in capsys.readouterr().out


@pytest.mark.parametrize("tiled", [True, False])
def test_demonstrations_are_read_without_the_sampling_temperature(base_folder, tmp_path, monkeypatch, tiled) -> None:
    if not tiled:
        monkeypatch.setattr(roles, "check_logits", lambda *_: False)  # TRL's fused head
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    trainer = make_trainer(base_folder, tmp_path, None, reward_funcs=[lambda **_: []], model=model, temperature=0.5)
    ids = torch.arange(20, 32)[None]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        found = trainer.model(
            input_ids=ids, attention_mask=mask, response_mask=mask[:, -4:].bool(), ptx_input_ids=ids,
            ptx_attention_mask=mask, ptx_mask=mask,
        )  # fmt: skip
        logits = trainer.model(input_ids=ids).logits[:, :-1]
    chosen = ids[:, 1:, None]
    close = {"rtol": 0, "atol": 1e-5}  # float32 in another kernel
    torch.testing.assert_close(found["ptx_logprobs"], logits.log_softmax(-1).gather(2, chosen).squeeze(2), **close)
    cold = (logits / 0.5).log_softmax(-1).gather(2, chosen).squeeze(2)
    torch.testing.assert_close(found["logprobs"], cold[:, -4:], **close)


@pytest.mark.slow
def test_the_penalty_is_not_steered_while_the_policy_stands_still(base_folder, reward_folder, tmp_path) -> None:
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, value_warmup_rollouts=2, total_episodes=24, perturb=False,
        adaptive_kl_target=1.0, adaptive_kl_horizon=10,
    )  # fmt: skip
    seen = []
    finish = trainer._after_rollout
    trainer._after_rollout = lambda *args: (finish(*args), seen.append(trainer.kl_controller.value))
    trainer.train()
    assert seen[:2] == [0.05, 0.05]
    assert seen[2] < 0.05  # KL 0 against a target of 1


@pytest.mark.parametrize("name", [POLICY, "value", "heldout", "ref"])
def test_a_reward_adapter_may_not_take_another_roles_name(base_folder, reward_folder, tmp_path, name) -> None:
    with pytest.raises(ValueError, match=f"called '{name}', which is the name of another role"):
        make_trainer(base_folder, tmp_path, {name: Path(reward_folder)}, value="adapter")


# ---- reward models of their own ------------------------------------------------------------------------------------


def classifier(base: Path, labels: int) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("language model", "It has 2 labels, and is a language model; a reward model has one"),
        ("three labels", "It has 3 labels; a reward model has one"),
        ("no head", r"Its files lack score\.weight: it has no trained head"),
        ("policy adapter", "holds no score head"),
        ("no template", "has no chat template, and the prompts are messages"),
        ("in memory", r"in reward_funcs\[0\] \(LlamaForSequenceClassification\) has 3 labels; a reward model has one"),
        ("language model in memory", r"\(LlamaForCausalLM\) has 2 labels, and is a language model"),
    ],
)
def test_a_reward_model_without_one_trained_label_is_refused(
    base_folder, reward_folder, tmp_path, tokenizer, what, message
) -> None:
    """TRL would give the language model a random head, and take the first of three labels."""
    folder = tmp_path / "judge"
    given: Any = str(folder)
    if what == "language model":
        given = str(base_folder)
    elif what == "policy adapter":
        random_policy_adapter(base_folder, folder, seed=1, r=2)
    elif what == "no head":
        shutil.copytree(base_folder, folder)
        known = json.loads((folder / "config.json").read_text()) | {"id2label": {"0": "LABEL_0"}, "num_labels": 1}
        (folder / "config.json").write_text(json.dumps(known))
    elif what == "in memory":
        given = classifier(base_folder, 3)
    elif what == "language model in memory":
        given = AutoModelForCausalLM.from_pretrained(base_folder)
    else:
        classifier(base_folder, 3 if what == "three labels" else 1).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if what == "no template":
            (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=message):
        make_trainer(base_folder, tmp_path / "out", None, reward_funcs=[given])


def test_a_reward_model_by_its_folder_scores_as_it_does_by_itself(
    base_folder, reward_folder, tmp_path, tokenizer
) -> None:
    classifier(base_folder, 1).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    alone = torch.tensor(RewardModel.from_pretrained(tmp_path / "judge").score([(prompt, "ok") for prompt in PROMPTS]))
    adapter = RewardModel.from_pretrained(reward_folder).score([(prompt, "ok") for prompt in PROMPTS])
    given_and_expected: list[Any] = [(str(tmp_path / "judge"), alone), (tmp_path / "judge", alone)]
    given_and_expected += [(classifier(base_folder, 1), alone), (str(reward_folder), torch.tensor(adapter))]
    for given, expected in given_and_expected:
        trainer = make_trainer(base_folder, tmp_path / "out", None, reward_funcs=[given])
        fixed_responses(trainer, [[*tokenizer("ok")["input_ids"], tokenizer.eos_token_id]] * 8)
        (batch,) = rollout(trainer)
        torch.testing.assert_close(batch.raw_scores, expected, rtol=0, atol=1e-5)  # padded and not


def test_a_reward_adapter_that_read_other_tokens_is_refused_or_told(
    base_folder, reward_folder, tmp_path, tokenizer
) -> None:
    folder = shutil.copytree(reward_folder, tmp_path / "reward")
    tokenizer.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The reward adapter")
        make_trainer(base_folder, tmp_path / "out", folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}")
    with pytest.warns(UserWarning, match=r"trained with another chat template .*'Who\?<\|eos\|>I.<\|eos\|>' was"):
        make_trainer(base_folder, tmp_path / "out", folder)
    path = folder / "tokenizer.json"
    known = json.loads(path.read_text())
    vocabulary = known["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(known))
    with pytest.raises(ValueError, match=r"another tokenizer than the policy's.* is \d+ to one and \d+ to the other"):
        make_trainer(base_folder, tmp_path / "out", folder)
