"""Full fine-tuning as an adapter: a copy of all weights is what plain training makes, and the base stays as it is."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PhiConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from llm_rlhf.ahead import _check_same_kind
from llm_rlhf.errors import RecipeError
from llm_rlhf.models.adapters import POLICY, active_adapters, load_beside
from llm_rlhf.models.base import adapter_config, adapters_in_float32
from llm_rlhf.models.inference import load_roles
from llm_rlhf.models.merged import MergedCopy, can_merge, copied_bytes
from llm_rlhf.models.roles import VALUE, add_reward_role, add_value_role, hidden_states, role_scores
from llm_rlhf.models.whole import CopyInOwnType, copied_modules, empty_config, is_whole, whole_config
from llm_rlhf.ppo.soundness import check_trainable, without_gradient
from llm_rlhf.ppo.vllm import check_ties, policy_weights
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.sections import ModelSection

SMALL: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 12, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": None,
    "eos_token_id": 2,
}  # fmt: skip  # twelve layers: layers.1 is the start of another's name
LLAMA = LlamaConfig(**SMALL, tie_word_embeddings=True)
UNTIED = LlamaConfig(**SMALL, tie_word_embeddings=False)
FAMILIES = {
    "tied": LLAMA,
    "untied": UNTIED,
    "gemma2": Gemma2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL, tie_word_embeddings=True),
    "phi": PhiConfig(**{k: v for k, v in SMALL.items() if k != "head_dim"}, tie_word_embeddings=False),
    "moe": Qwen3MoeConfig(**SMALL | {"num_hidden_layers": 2}, moe_intermediate_size=16, num_experts=4,
                          num_experts_per_tok=2, tie_word_embeddings=False),
}  # fmt: skip
IDS = torch.arange(24).view(2, 12) * 7 % 50 + 3
MASK = torch.ones_like(IDS)
SECTION = ModelSection(dtype="float32", lora="none")


def plain(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype).eval()


def whole(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A base with a policy that is a copy of it, ready to train."""
    base = plain(config, dtype)
    model = get_peft_model(base, adapter_config(SECTION, "CAUSAL_LM", base))
    adapters_in_float32(model)
    return model.eval()


def trained(model: Any, autocast: bool = False) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=IDS.roll(step, 1), labels=IDS.roll(step, 1)).loss
        loss.backward()
        optimizer.step()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_every_weight_is_copied_once(name: str) -> None:
    model = plain(FAMILIES[name])
    named = [model.get_submodule(module) for module in copied_modules(model)]
    copied = [id(p) for module in named for p in module.parameters()]
    assert set(copied) == {id(p) for p in model.parameters()}
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert len(copied) - len(set(copied)) == tied  # the head's weight is the embeddings'
    policy = whole(FAMILIES[name])
    trains = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert trains == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trained_copy_is_what_plain_training_makes(name: str, tmp_path) -> None:
    """To the bit: the same operations on the same numbers. The base is as it was; merged, saved and loaded it is so."""
    config = FAMILIES[name]
    by_hand, policy = plain(config), whole(config)
    before = logits(by_hand)
    trained(by_hand)
    trained(policy)
    assert (logits(by_hand) - before).abs().max() > 0.1
    assert torch.equal(logits(policy), logits(by_hand))
    with active_adapters(policy.get_base_model(), []):
        assert torch.equal(logits(policy), before)
    policy.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(plain(config), tmp_path)
    assert torch.equal(logits(loaded), logits(by_hand))
    merged = loaded.merge_and_unload()
    assert torch.equal(logits(merged), logits(by_hand))
    merged.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(again), logits(by_hand))
    tied = by_hand.lm_head.weight is by_hand.get_input_embeddings().weight
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("autocast", [True, False])
def test_in_bfloat16_a_copy_trains_in_float32_and_begins_as_its_base(name: str, autocast: bool) -> None:
    model = whole(FAMILIES[name], torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        policy = logits(model)
        with active_adapters(model.get_base_model(), []):
            reference = logits(model)
    assert policy.dtype == reference.dtype == torch.bfloat16
    # The sum of experts is kept in the type of their weights, and so are Qwen3's normalised queries and keys; bfloat16
    # holds 8 bits.
    if name in ("moe", "qwen3"):
        torch.testing.assert_close(policy, reference, rtol=0.01, atol=0.01)
    else:
        assert torch.equal(policy, reference)


def test_a_small_step_is_not_lost_in_bfloat16() -> None:
    """1e-5 beside 0.02 or more: less than a tenth of what bfloat16 can tell apart there."""
    model = whole(LLAMA, torch.bfloat16)
    weight = model.get_base_model().model.embed_tokens.modules_to_save[POLICY].weight
    start = weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert weight.grad is not None
    torch.optim.SGD([weight], lr=1e-5 / float(weight.grad.abs().max())).step()
    moved = (weight.detach() - start).abs()
    assert float(moved.max()) == pytest.approx(1e-5, rel=1e-3)
    large = start.abs() > 0.02
    assert torch.equal(weight.detach().bfloat16()[large], start.bfloat16()[large])


def test_the_wrapper_asks_what_is_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's private method: where it is no longer called, bfloat16 bases would meet float32 layers."""
    model = whole(LLAMA, torch.bfloat16)
    wrappers = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    assert wrappers
    assert {type(module) for module in wrappers} == {CopyInOwnType}
    asked: list[Any] = []
    own = CopyInOwnType._forward_wrapped
    monkeypatch.setattr(
        CopyInOwnType, "_forward_wrapped", lambda self, *a, **k: asked.append(self) or own(self, *a, **k)
    )
    logits(model)
    assert len(asked) == len(wrappers)


def test_ties_that_a_copy_would_untie_are_refused() -> None:
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel ties transformer.wte.weight and lm_head.weight"):
        whole_config("CAUSAL_LM", plain(GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2)))
    shared = plain(UNTIED)
    shared.model.layers[3].mlp = shared.model.layers[2].mlp
    with pytest.raises(ValueError, match=r"ties model.layers.2.mlp.gate_proj.weight and model.layers.3"):
        whole_config("CAUSAL_LM", shared)


def reward_adapter(folder: Any, config: Any) -> Any:
    """A whole reward model, of random weights."""
    torch.manual_seed(1)
    scorer = AutoModelForSequenceClassification.from_config(LlamaConfig(**{**config.to_dict(), "num_labels": 1}))
    base = plain(config)
    scorer.load_state_dict(base.state_dict(), strict=False)
    model = get_peft_model(scorer, adapter_config(SECTION, "SEQ_CLS", scorer, modules_to_save=["score"]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("config", [LLAMA, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("value", ["fresh", "from reward", "shared"])
def test_whole_roles_live_on_one_base(config: Any, value: str, tmp_path) -> None:
    """A policy, a reward model and a value function of all weights: each reads as it would alone."""
    scorer = reward_adapter(tmp_path / "reward", config)
    model = whole(config)
    add_reward_role(model, tmp_path / "reward", "reward")
    start = tmp_path / "reward" if value == "from reward" else None
    add_value_role(model, "shared" if value == "shared" else "adapter", start, "reward" if start else None)
    model.set_requires_grad(POLICY, requires_grad=True)
    adapters_in_float32(model)
    base = model.get_base_model()
    with torch.no_grad():
        alone = scorer(input_ids=IDS, attention_mask=MASK).logits[:, 0]
        # one product more: the head's, in another order
        torch.testing.assert_close(role_scores(model, "reward", IDS, MASK), alone, rtol=0, atol=1e-5)
        assert torch.equal(logits(model), logits(plain(config)))
        if value != "shared":
            with active_adapters(base, [VALUE]):
                found = hidden_states(base, IDS, MASK)
            of = scorer.get_base_model() if start else plain(config)
            assert torch.equal(found, hidden_states(of, IDS, MASK))
            assert VALUE not in getattr(base.lm_head, "modules_to_save", {})  # it says no token
    check_trainable(model)
    if value != "shared":
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        assert any(f"modules_to_save.{VALUE}" in name for name in names)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("beside", ["policy", "reward"])
def test_a_second_policy_of_tied_weights_speaks_by_its_own_head(beside: str, tmp_path) -> None:
    """As a snapshot does beside the policy, or beside reward models alone."""
    snapshot = whole(LLAMA)
    trained(snapshot)
    snapshot.save_pretrained(tmp_path / "snapshot")
    reward_adapter(tmp_path / "reward", LLAMA)
    base = plain(LLAMA)
    model = whole(LLAMA) if beside == "policy" else get_peft_model(base, empty_config("CAUSAL_LM"))
    add_reward_role(model, tmp_path / "reward", "reward")
    assert load_beside(model, tmp_path / "snapshot", "snapshot") == []
    with active_adapters(model.get_base_model(), ["snapshot"]):
        assert torch.equal(logits(model), logits(snapshot))
    head, embeddings = model.get_base_model().lm_head, model.get_base_model().model.embed_tokens
    assert head.modules_to_save["snapshot"].weight is embeddings.modules_to_save["snapshot"].weight
    with active_adapters(model.get_base_model(), [POLICY]):
        assert torch.equal(logits(model), logits(plain(LLAMA)))
    model.delete_adapter("snapshot")  # as the next snapshot takes its place
    assert load_beside(model, tmp_path / "snapshot", "snapshot") == []
    with active_adapters(model.get_base_model(), ["snapshot"]):
        assert torch.equal(logits(model), logits(snapshot))


def test_every_trained_weight_gets_a_gradient(tmp_path) -> None:
    """DDP would wait for one that does not: the value function has no language head."""
    from trl.trainer.utils import add_fused_lm_head

    from llm_rlhf.models.roles import add_role_forward

    model = whole(UNTIED)
    add_value_role(model, "adapter", None, None)
    model.set_requires_grad(POLICY, requires_grad=True)
    base = model.get_base_model()
    add_fused_lm_head(base, outputs=("log_probs", "entropy"))
    add_role_forward(base)
    assert without_gradient(model) == []


def test_what_samples_is_the_policy_rounded_as_autocast_rounds_it() -> None:
    model = whole(LLAMA, torch.bfloat16)
    base = model.get_base_model()
    trained(model, autocast=True)
    policy = logits(model)
    assert can_merge(base, POLICY)
    made = MergedCopy(base, POLICY, torch.bfloat16)
    assert copied_bytes(base, POLICY, torch.bfloat16) == 2 * sum(p.numel() for p in plain(LLAMA).parameters())
    with made.refreshed(0) as merged, active_adapters(base, []):  # which it does not know
        assert merged.lm_head.weight is merged.model.embed_tokens.weight
        assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
        found = logits(merged)
    # The norms' products are rounded once more; bfloat16 holds 8 bits.
    torch.testing.assert_close(found, policy, rtol=0.05, atol=0.05)
    assert (policy - logits(plain(LLAMA, torch.bfloat16))).abs().max() > 0.5
    exact = whole(LLAMA)
    trained(exact)
    assert copied_bytes(exact.get_base_model(), POLICY, torch.float32) == 0
    with MergedCopy(exact.get_base_model(), POLICY, torch.float32).refreshed(0) as merged:
        assert torch.equal(logits(merged), logits(exact))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_sent_to_an_engine_is_the_copy_in_the_type_of_its_base(dtype: torch.dtype) -> None:
    by_hand, model = plain(LLAMA), whole(LLAMA, dtype)
    trained(by_hand)
    for name, weight in by_hand.named_parameters():
        parts, base = name.split("."), model.get_base_model()
        at = 3 if "layers" in parts else len(parts) - 1  # model.layers.3, model.norm, lm_head
        copied = ".".join([*parts[:at], f"modules_to_save.{POLICY}", *parts[at:]])
        base.get_parameter(copied).data.copy_(weight.data)
    sent = dict(policy_weights(model))
    assert sent.keys() == dict(by_hand.named_parameters()).keys()
    for name, weight in by_hand.named_parameters():
        assert torch.equal(sent[name], weight.to(dtype)), name


def test_copies_and_lora_do_not_mix(tmp_path) -> None:
    reward_adapter(tmp_path / "whole", LLAMA)
    small = get_peft_model(plain(LLAMA), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    small.save_pretrained(tmp_path / "lora")
    with pytest.raises(
        ValueError, match=r"is a copy of all weights, and what is on this base already is LoRA.*[Mm]erge"
    ):
        add_reward_role(small, tmp_path / "whole", "reward")
    with pytest.raises(
        ValueError, match=r"is LoRA, and what is on this base already is a copy of all weights.*[Mm]erge"
    ):
        load_beside(whole(LLAMA), tmp_path / "lora", "second")
    beside = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["mlp"])
    assert load_beside(get_peft_model(plain(LLAMA), beside), tmp_path / "lora", "second") == []  # LoRA both


def test_a_model_without_a_policy_takes_roles_of_either_kind(tmp_path, base_folder, tokenizer) -> None:
    """What reads SFT's model has an adapter without weights."""
    section = ModelSection(dtype="float32", lora="none")
    model = load_roles(base_folder, section, tokenizer, {})
    alone = AutoModelForCausalLM.from_pretrained(base_folder)
    assert torch.equal(logits(model), logits(alone))
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in alone.parameters())
    assert not is_whole(model.peft_config[POLICY])


def test_what_trains_goes_on_training_when_another_role_is_loaded(tmp_path) -> None:
    """PEFT freezes a copy that is on when it makes another: what learns would learn nothing."""
    reward_adapter(tmp_path / "reward", LLAMA)
    model = whole(LLAMA)
    before = {name for name, p in model.named_parameters() if p.requires_grad}
    add_reward_role(model, tmp_path / "reward", "reward")
    assert before
    assert {name for name, p in model.named_parameters() if p.requires_grad} == before


@pytest.mark.parametrize("copied", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_copies_that_untie_the_head_are_not_sent_to_an_engine(copied: list[str]) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=copied)
    with pytest.raises(ValueError, match=r"untie the head from the embeddings.*leave use_vllm out"):
        check_ties(get_peft_model(plain(LLAMA), config))
    check_ties(get_peft_model(plain(UNTIED), config))
    check_ties(whole(LLAMA))
    check_ties(plain(LLAMA))


def test_a_finished_reward_model_of_the_other_kind_is_refused_before_anything_is_trained(tmp_path) -> None:
    reward_adapter(tmp_path / "whole", LLAMA)
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], modules_to_save=["score"])
    lora.save_pretrained(tmp_path / "lora")
    recipes = {kind: load_recipe(recipe_with(tmp_path, model)) for kind, model in
               {"whole": "{lora: none}", "lora": "{lora: {r: 2}}"}.items()}  # fmt: skip
    for kind, recipe in recipes.items():
        _check_same_kind(recipe, "it", tmp_path / kind)
        other = "lora" if kind == "whole" else "whole"
        with pytest.raises(RecipeError, match=r"'reward.model': the adapter it is .* set (model.lora: none|a mapping)"):
            _check_same_kind(recipe, "it", tmp_path / other)


def recipe_with(tmp_path: Any, model: str) -> Any:
    path = tmp_path / "r.yaml"
    path.write_text(f"name: r\nworld: {{}}\nmodel: {model}\nsft: {{}}\n")
    return path


def test_a_recipe_says_so_and_says_it_again(tmp_path) -> None:
    import yaml

    path = recipe_with(tmp_path, "{lora: none}")
    recipe = load_recipe(path)
    assert recipe.model.lora == "none"
    path.write_text(yaml.safe_dump(recipe.as_dict()))
    assert load_recipe(path).model.lora == "none"
    assert load_recipe(recipe_with(tmp_path, "{lora: {r: 4}}"), ["model.lora=none"]).model.lora == "none"
    assert load_recipe(path, ["model.lora={r: 4}"]).model.lora.r == 4


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            "{lora: non}",
            r"is 'non'; it must be a mapping of r, alpha, target_modules, or 'none'. Did you mean 'none'\?",
        ),
        ("{lora: '{r: 8}'}", r"is '{r: 8}'; it must be a mapping of r, alpha, target_modules, or 'none'.$"),
        ("{lora: }", "'model.lora' is empty; leave it out for its defaults, or set: r, alpha, target_modules"),
        ("{lora: none, quantization: nf4}", "'model.lora' is 'none'.*'model.quantization' is 'nf4'.*remove one"),
        ("{lora: 8}", "'model.lora' is 8; it must be a mapping of r, alpha, target_modules, or 'none'"),
    ],
)
def test_what_is_said_otherwise_is_refused(model: str, told: str, tmp_path) -> None:
    with pytest.raises(RecipeError, match=told):
        load_recipe(recipe_with(tmp_path, model))
