"""Adapters that hold more than LoRA: whole copies of modules, rows of embeddings. They are switched like the rest."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from model_helpers import random_reward_adapter
from peft import LoraConfig, PeftModel, PeftModelForSequenceClassification, get_peft_model
from ppo_helpers import PROMPTS, make_trainer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.trainer.utils import add_fused_lm_head

from llm_rlhf import RewardModel
from llm_rlhf.models import roles
from llm_rlhf.models.adapters import POLICY, active_adapters, load_beside
from llm_rlhf.models.base import make_room_for
from llm_rlhf.models.roles import HELDOUT, VALUE, add_reward_role, hidden_states, role_scores
from llm_rlhf.models.sampler import PolicySampler
from llm_rlhf.ppo.soundness import check_trainable

IDS = torch.arange(24).view(2, 12) * 7 % 250 + 5
MASK = torch.ones_like(IDS)
MORE = {
    "head": {"modules_to_save": ["lm_head"]},
    "embeddings": {"modules_to_save": ["embed_tokens"]},
    "norms": {"modules_to_save": ["input_layernorm", "norm"]},
    "tokens": {"trainable_token_indices": [3, 40, 47]},
}


def lora(more: str, task: str = "CAUSAL_LM") -> LoraConfig:
    return LoraConfig(task_type=task, r=4, target_modules=["q_proj", "down_proj"], **MORE[more])


@pytest.fixture(params=["tied", "untied"])
def either_base(request, base_folder, tmp_path) -> Path:
    """The tiny Llama, once more with a head of its own."""
    if request.param == "tied":
        return base_folder
    folder = tmp_path / "untied"
    shutil.copytree(base_folder, folder)
    model = AutoModelForCausalLM.from_pretrained(base_folder, tie_word_embeddings=False)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 0.1)
    model.save_pretrained(folder)
    return folder


def logprobs(model: Any, adapters: list[str]) -> torch.Tensor:
    """By the joint call, as PPO reads them."""
    with torch.no_grad(), active_adapters(model, adapters):
        return model(input_ids=IDS, attention_mask=MASK, response_mask=MASK[:, 6:].bool())["logprobs"]


def perturb(model: Any) -> None:
    """Give what trains weights that do something."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def check_all_trains_in_switches(policy: Any) -> None:
    policy.get_base_model().value_head = torch.nn.Linear(32, 1)
    check_trainable(policy)


def own_logprobs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=IDS).logits[:, 5:-1].log_softmax(-1)
    return logits.gather(2, IDS[:, 6:, None]).squeeze(2)


def length(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


@pytest.mark.slow
@pytest.mark.parametrize("more", MORE)
def test_a_training_leaves_the_reference_and_moves_what_it_should(either_base, tmp_path, reward_folder, more) -> None:
    options = {"perturb": False, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(either_base, tmp_path / "out", reward_folder, lora=lora(more), **options)
    base = trainer.base_model()
    reference, scores = logprobs(base, []), role_scores(trainer.model, "reward", IDS, MASK)
    start = AutoModelForCausalLM.from_pretrained(either_base)
    torch.testing.assert_close(reference, own_logprobs(start), rtol=0, atol=1e-5)  # another kernel's rounding
    assert torch.equal(reference, logprobs(base, [POLICY]))  # a fresh adapter adds nothing
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert torch.equal(logprobs(base, []), reference)
    assert torch.equal(role_scores(trainer.model, "reward", IDS, MASK), scores)
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert any("modules_to_save" in name or "token" in name for name in moved)
    policy = logprobs(base, [POLICY])
    trainer.save_roles(tmp_path / "roles")
    plain = PeftModel.from_pretrained(start, tmp_path / "roles" / "policy")
    torch.testing.assert_close(own_logprobs(plain), policy, rtol=0, atol=1e-5)
    again = make_trainer(either_base, tmp_path / "again", reward_folder, lora=lora(more), **options)
    again.load_roles(tmp_path / "roles")
    assert torch.equal(logprobs(again.base_model(), [POLICY]), policy)
    assert torch.equal(logprobs(again.base_model(), []), reference)


@pytest.mark.slow
@pytest.mark.parametrize("more", MORE)
def test_a_resumed_training_ends_as_one_that_was_not(base_folder, tmp_path, reward_folder, more) -> None:
    options = {"perturb": False, "save_strategy": "steps", "save_steps": 1, "lora": lora(more), "value": "adapter"}
    whole = make_trainer(base_folder, tmp_path / "out", reward_folder, **options)
    whole.train()
    assert not whole.state.global_step < 2
    shutil.rmtree(tmp_path / "out" / f"checkpoint-{whole.state.global_step}")
    resumed = make_trainer(base_folder, tmp_path / "out", reward_folder, **options)
    resumed.train(resume_from_checkpoint=True)
    for (name, one), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("more", MORE)
def test_what_is_sampled_from_is_the_policy(base_folder, more) -> None:
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), lora(more)).eval()
    reference = own_logprobs(policy)
    perturb(policy)
    base = policy.get_base_model()
    expected = own_logprobs(policy)
    assert (expected - reference).abs().max() > 0.01
    sampler = PolicySampler(base, torch.float32, 1.0, "default", may_round=False)
    sampled_from = base if sampler.copy is None else sampler.copy.model  # tokens that are trained are not merged
    with sampler(seed=0):
        torch.testing.assert_close(own_logprobs(sampled_from), expected, rtol=0, atol=1e-5)  # a sum in another order
    with active_adapters(base, []):
        assert torch.equal(own_logprobs(base), reference)


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("more", MORE)
def test_log_probabilities_and_their_gradients_are_those_of_the_plain_logits(
    either_base, more, tiled, monkeypatch
) -> None:
    """By our own head and by TRL's fused one, which both read the weight of the output embeddings past its forward."""
    if not tiled:
        monkeypatch.setattr(roles, "check_logits", lambda *_: False)
    causal = AutoModelForCausalLM.from_pretrained(either_base)
    add_fused_lm_head(causal)
    policy = get_peft_model(causal, lora(more))
    perturb(policy)
    gradients = {}
    for way in ("plain", "joint"):
        if way == "plain":
            found = policy(input_ids=IDS).logits[:, 5:-1].log_softmax(-1).gather(2, IDS[:, 6:, None]).squeeze(2)
        else:
            roles.add_role_forward(causal)
            joint = causal(input_ids=IDS, attention_mask=MASK, response_mask=MASK[:, 6:].bool(), with_value=False)
            torch.testing.assert_close(joint["logprobs"], found, rtol=0, atol=1e-5)
            found = joint["logprobs"]
        policy.zero_grad(set_to_none=True)
        found.sum().backward()
        gradients[way] = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    assert any("modules_to_save" in name or "token_adapter" in name for name in gradients["plain"])
    assert gradients["plain"].keys() == gradients["joint"].keys()
    for name, gradient in gradients["plain"].items():
        torch.testing.assert_close(gradients["joint"][name], gradient, rtol=1e-4, atol=1e-4)  # sums of 100 in float32


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["mlp"]},  # LoRA's layers within the copied module
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": {"embed_tokens": [3]}, "modules_to_save": ["norm"]},
    ],
    ids=str,
)
def test_copies_within_copies_and_tied_ones_are_switched(either_base, tmp_path, options) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"], **options)
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(either_base), config).eval()
    reference = own_logprobs(AutoModelForCausalLM.from_pretrained(either_base))
    perturb(policy)
    expected, base = own_logprobs(policy), policy.get_base_model()
    assert (expected - reference).abs().max() > 0.01
    for adapters, logits in (([], reference), ([POLICY], expected), ([], reference)):
        with active_adapters(base, adapters):
            assert torch.equal(own_logprobs(base), logits)
    check_all_trains_in_switches(policy)


@pytest.mark.slow
@pytest.mark.parametrize("more", MORE)
def test_a_given_model_goes_on_from_a_copy_of_its_adapter(base_folder, tmp_path, reward_folder, more) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), lora(more)).eval()
    perturb(model)
    start = own_logprobs(model)
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, model=model, lora=False, perturb=False, learning_rate=1e-2
    )
    base = trainer.base_model()
    for adapters in (trainer.reference_adapters, [POLICY]):
        torch.testing.assert_close(logprobs(base, adapters), start, rtol=0, atol=1e-5)
    reference = logprobs(base, trainer.reference_adapters)
    trainer.train()
    assert torch.equal(logprobs(base, trainer.reference_adapters), reference)
    assert not torch.equal(logprobs(base, [POLICY]), reference)


@pytest.mark.parametrize("more", MORE)
def test_a_bfloat16_base_is_sampled_and_read(base_folder, tmp_path, reward_folder, more) -> None:
    """Copies of modules train in float32, where small steps are not lost, and compute as what they stand for."""
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.bfloat16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer(
            base_folder, tmp_path, reward_folder, model=model, lora=lora(more), perturb=False, bf16=False
        )
    assert not any("Whole weights of the model train in bfloat16" in str(w.message) for w in caught)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    trainer._rollout([{"prompt": [{"role": "user", "content": p}]} for p in PROMPTS])


def test_a_pad_token_without_a_row_is_refused_where_the_adapter_holds_the_embeddings(base_folder, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    policy = get_peft_model(model, lora("embeddings"))
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    make_room_for(tokenizer, policy.get_base_model())  # there is room
    tokenizer.add_tokens(["<|new|>"])
    with pytest.raises(ValueError, match=r"has 262 tokens and the model 261 rows .* grow the model's before"):
        make_room_for(tokenizer, policy.get_base_model())


@pytest.mark.parametrize("more", MORE)
def test_a_reward_adapter_scores_as_peft_says_and_touches_nobody_else(either_base, tmp_path, more) -> None:
    if more == "head":
        pytest.skip("a sequence classifier has no lm_head")
    folder = tmp_path / "reward"
    torch.manual_seed(1)
    classifier = AutoModelForSequenceClassification.from_pretrained(either_base, num_labels=1)
    config = lora(more, "SEQ_CLS")
    config.modules_to_save = [*(config.modules_to_save or []), "score"]
    model = get_peft_model(classifier, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(folder)
    plain = PeftModelForSequenceClassification.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(either_base, num_labels=1), folder
    ).eval()
    with torch.no_grad():
        expected = plain(input_ids=IDS, attention_mask=MASK).logits[:, 0]
    causal = AutoModelForCausalLM.from_pretrained(either_base)
    base = own_logprobs(causal.eval())
    policy_lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    policy = get_peft_model(causal, policy_lora)
    add_reward_role(policy, folder, "reward")
    assert torch.equal(own_logprobs(policy.eval()), base)  # the policy's adapter is fresh, and the one that is on
    torch.testing.assert_close(role_scores(policy, "reward", IDS, MASK), expected, rtol=0, atol=1e-5)
    assert torch.equal(own_logprobs(policy), base)
    assert not any(p.requires_grad for name, p in policy.named_parameters() if ".reward" in name)


@pytest.mark.slow
def test_value_and_heldout_roles_with_saved_embeddings(base_folder, tmp_path) -> None:
    """The value's gradients, through checkpointed activations, are those without checkpoints."""
    folder = tmp_path / "reward"
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1),
        LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear",
                   modules_to_save=["score", "embed_tokens", "input_layernorm"]),
    )  # fmt: skip
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder)
    found = []
    for checkpointing in (False, True):
        trainer = make_trainer(
            base_folder, tmp_path / str(checkpointing), folder, value="adapter", heldout_adapter=folder,
            gradient_checkpointing=checkpointing, perturb=False,
        )  # fmt: skip
        assert torch.equal(*(role_scores(trainer.model, name, IDS, MASK) for name in ("reward", HELDOUT)))
        base = trainer.base_model().train()
        now = base(input_ids=IDS, attention_mask=MASK, response_mask=MASK[:, 6:].bool())
        (now["value_estimates"].sum() + now["logprobs"].sum()).backward()
        found.append({n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None})
        with torch.no_grad(), active_adapters(base, ["reward"]):
            states = hidden_states(base, IDS, MASK)[:, 5:-1]
        expected = base.score_heads["reward"](states).squeeze(-1)  # the value starts as the reward model
        torch.testing.assert_close(now["value_estimates"], expected, rtol=0, atol=1e-5)
    assert any(f"modules_to_save.{VALUE}" in name and grad.any() for name, grad in found[0].items())
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_roles_are_saved_where_the_reward_adapter_alone_has_rows_of_its_own(base_folder, tmp_path) -> None:
    """PEFT asks its wrapper of some tokens for those of every adapter that is saved or loaded, and fails."""
    folder = tmp_path / "reward"
    config = lora("tokens", "SEQ_CLS")
    config.modules_to_save = ["score"]
    classifier = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    model = get_peft_model(classifier, config)
    perturb(model)
    model.save_pretrained(folder)
    trainer = make_trainer(base_folder, tmp_path / "out", folder)
    policy, scores = logprobs(trainer.base_model(), [POLICY]), role_scores(trainer.model, "reward", IDS, MASK)
    trainer.save_roles(tmp_path / "roles")
    again = make_trainer(base_folder, tmp_path / "again", folder, perturb=False)
    again.load_roles(tmp_path / "roles")
    assert torch.equal(logprobs(again.base_model(), [POLICY]), policy)
    assert torch.equal(role_scores(again.model, "reward", IDS, MASK), scores)


def test_members_with_embeddings_of_their_own_score_as_each_by_itself(base_folder, tmp_path) -> None:
    folders = [random_reward_adapter(base_folder, tmp_path / "plain")]
    for name, options in (("copied", {"modules_to_save": ["score", "input_layernorm"]}), ("rows", MORE["tokens"])):
        classifier = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
        config = LoraConfig(
            task_type="SEQ_CLS", r=4, target_modules=["q_proj"], **{"modules_to_save": ["score"], **options}
        )
        model = get_peft_model(classifier, config)
        perturb(model)
        model.save_pretrained(tmp_path / name)
        folders.append(tmp_path / name)
    talks = [("who?", "me"), ("where", "(here)"), ("a3", "b")]
    alone = [RewardModel.from_pretrained(folder, base=base_folder).score(talks) for folder in folders]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        together = RewardModel.from_pretrained([folders[i] for i in order], base=base_folder).scores_each(talks)
        for column, i in enumerate(order):
            assert together[:, column].tolist() == pytest.approx(alone[i].tolist(), abs=1e-5)


def test_a_copy_and_some_rows_of_one_module_are_refused(base_folder, tmp_path) -> None:
    for name in MORE:
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), lora(name))
        model.save_pretrained(tmp_path / name)
    for first, second in (("tokens", "embeddings"), ("embeddings", "tokens")):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / first)
        with pytest.raises(
            ValueError, match=rf"adapter at .*{second} and another on this base hold model.embed_tokens"
        ):
            load_beside(model, tmp_path / second, "other")
