"""Every family of architectures as a policy and as a reward model, built tiny from its own configuration class.

The families of FAMILIES go through everything: the joint call against the plain model, the reward role against the
stand-alone sequence classifier, gradients, PPO steps, and reward modelling as the reward stage does it. POLICIES_ONLY
have no sequence-classification class; REFUSED cannot carry the joint call and say so.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset
from model_helpers import random_reward_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from ppo_helpers import fixed_responses, gradients, make_trainer, responses_of, rollout
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from llm_rlhf import RewardModel
from llm_rlhf.data.rows import Origin, Preference
from llm_rlhf.errors import RecipeError
from llm_rlhf.models.adapters import active_adapters
from llm_rlhf.models.base import adapter_config, load_causal_lm, quantization_config
from llm_rlhf.models.encoding import encode_reply
from llm_rlhf.models.inference import left_padded, load_roles, score_ids
from llm_rlhf.models.roles import VALUE, add_reward_role, add_role_forward, role_scores
from llm_rlhf.ppo.rollout import MicroBatch
from llm_rlhf.ppo.trainer import PPOTrainer
from llm_rlhf.recipe.sections import LoraSection, ModelSection, Recipe
from llm_rlhf.reward.adapters import AdapterPlan
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.stages import reward as reward_stage

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96,
}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}  # shorter than the rows
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES,  # biases in attention
    "qwen3": {**SIZES, "head_dim": 8},  # norms of queries and keys
    "gemma2": {**SIZES, **WINDOWS, "head_dim": 8, "final_logit_softcapping": 2.0},  # and scaled embeddings
    "gemma3_text": {**SIZES, **WINDOWS, "head_dim": 8},
    "mistral": {**SIZES, "sliding_window": 8},
    "phi": SIZES,  # attention and MLP side by side, a bias in the LM head
    "phi3": SIZES,  # fused projections
    "gpt2": GPT,  # learned positions, Conv1D
    "gpt_neox": SIZES,  # LM head `embed_out`
    "olmo2": SIZES,
    "smollm3": SIZES,  # layers without positions
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16},  # learned positions, hidden states narrowed at the end
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},  # ALiBi: takes no position_ids
    "qwen3_moe": {**SIZES, **EXPERTS, "head_dim": 8},
    "mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**SIZES, **WINDOWS, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
}
POLICIES_ONLY: dict[str, dict[str, Any]] = {
    "olmoe": {**SIZES, "num_experts": 4, "num_experts_per_tok": 2},
    "granite": {**SIZES, "logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "granitemoe": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 4.0},
    "cohere2": {**SIZES, **WINDOWS, "logit_scale": 4.0},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    # A softcap under another name (`logits_soft_cap`) than TRL's head looks for.
    "recurrent_gemma": (
        {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4},
        r"fused head does not give RecurrentGemmaForCausalLM's log-probabilities",
    ),
    # No attention mask: what is padding is read.
    "rwkv": (
        {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2},
        r"RwkvForCausalLM reads what stands under the left padding",
    ),
    # Positions that nobody can tell it: it counts them over the padding.
    "bart": (
        {
            "d_model": 32,
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 48,
            "is_decoder": True,
            "encoder_layers": 1,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
        },
        r"BartForCausalLM reads a row otherwise under left padding than alone",
    ),
    "llama4_text": (
        {**SIZES, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48},
        r"Llama4ForCausalLM names no trunk",
    ),
}
CLOSE = (
    1e-5  # fp32 noise of another padded width: up to 4e-6 was measured. Of large numbers, 1e-6 of them: 10 roundings
)


class Family(NamedTuple):
    name: str
    base: Path
    reward: Path | None


def tiny_model(name: str, sizes: dict[str, Any], tokenizer: Any, **options: Any) -> Any:
    """Random weights, wide enough that a missing position, scale or bias shows; norms and biases are random too."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        name, vocab_size=len(tokenizer), initializer_range=0.2, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None, pad_token_id=None, **sizes, **options,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def some_score(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    return [float(sum(map(ord, reply["content"])) % 7) for (reply,) in completions]


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Family:
    """One family's base and random reward adapter on disk."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    tiny_model(name, {**FAMILIES, **POLICIES_ONLY}[name], tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    reward = random_reward_adapter(folder / "base", folder / "reward") if name in FAMILIES else None
    return Family(name, folder / "base", reward)


def trainer_of(family: Family, folder: Path, **options: Any) -> PPOTrainer:
    if family.reward is None:
        options["reward_funcs"] = [some_score]
    # A new one every time: PEFT writes the layers that it found into the configuration it is given.
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    return make_trainer(family.base, folder, family.reward, lora=lora, **options)


def rows_of(batch: MicroBatch) -> list[torch.Tensor]:
    """Every row without its padding, shape (1, its own length)."""
    return [ids[mask.bool()][None] for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]


# The families whose code differs most; the others, and training on functions, take a minute and are for `make test`.
DIFFERENT = ("llama", "gemma3_text", "gpt2", "bloom", "qwen3_moe", "granite")


def each_of(*names: str) -> pytest.MarkDecorator:
    families = [name if name in DIFFERENT else pytest.param(name, marks=pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("family", families, indirect=True, scope="module")


everything, both_ways = each_of(*FAMILIES, *POLICIES_ONLY), each_of(*FAMILIES)


@pytest.mark.slow
@everything
def test_joint_call_and_sampling_read_rows_as_the_plain_model_reads_each_alone(family, tmp_path, tokenizer) -> None:
    trainer = trainer_of(family, tmp_path, temperature=0.7)
    fixed_responses(trainer, responses_of(tokenizer.eos_token_id))
    (batch,) = rollout(trainer)
    assert (batch.attention_mask[:, 0] == 0).sum() >= 4  # rows of different length
    plain = AutoModelForCausalLM.from_pretrained(family.base, dtype=torch.float32).eval()
    trainer.save_roles(tmp_path / "roles")
    policy = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(family.base, dtype=torch.float32), tmp_path / "roles" / "policy"
    ).eval()
    for which, model in (("old_logprobs", policy), ("ref_logprobs", plain)):
        for row, ids in enumerate(rows_of(batch)):
            counted = batch.response_mask[row]
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0].float() / 0.7
            expected = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None]).squeeze(1)[-int(counted.sum()) :]
            torch.testing.assert_close(getattr(batch, which)[row][counted], expected, rtol=1e-6, atol=CLOSE)
    assert (batch.old_logprobs - batch.ref_logprobs).abs().max() > 0.1  # the policy is another than the base
    ids = rows_of(batch)[0]
    with torch.no_grad(), active_adapters(trainer.model, []):
        assert torch.equal(trainer.model.eval()(input_ids=ids).logits, plain(input_ids=ids).logits)

    # What is sampled, token by token with a cache, is what is scored.
    prompts, mask = left_padded([[9, 8, 7, 6, 5, 11, 12, 13, 14, 15, 16, 17], [30, 31]], tokenizer.pad_token_id, "cpu")
    with torch.no_grad():
        sampled = trainer.model.generate(
            input_ids=prompts, attention_mask=mask, do_sample=True, top_k=0, temperature=0.7, max_new_tokens=5,
            eos_token_id=None, pad_token_id=tokenizer.pad_token_id, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        scored = trainer.model(
            input_ids=sampled.sequences,
            attention_mask=torch.cat([mask, torch.ones(2, 5, dtype=torch.long)], 1),
            response_mask=torch.ones(2, 5, dtype=torch.bool),
        )["logprobs"]
    at_sampling = (torch.stack(sampled.logits, 1) / 0.7).log_softmax(-1)
    at_sampling = at_sampling.gather(2, sampled.sequences[:, -5:, None]).squeeze(2)
    torch.testing.assert_close(scored, at_sampling, rtol=1e-6, atol=CLOSE)


def alone_scores(base: Path, adapter: Path, rows: list[list[int]]) -> list[float]:
    """Scores by transformers' sequence classifier and PEFT, each row by itself."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    model.config.get_text_config().pad_token_id = None  # one row: its last token is the one to read
    model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).logits[0, 0].item() for row in rows]


@both_ways
def test_reward_role_scores_as_the_sequence_classifier_does(family, tmp_path, tokenizer) -> None:
    rows = [[*range(20, 20 + n), tokenizer.eos_token_id] for n in (2, 15, 7, 11)]
    expected = alone_scores(family.base, family.reward, rows)
    section = ModelSection(base=str(family.base), lora=LoraSection(r=2, alpha=4))
    model = load_roles(family.base, section, tokenizer, {"reward": family.reward, "again": family.reward})
    for name in ("reward", "again"):  # a second reward role beside the first: the held-out one
        assert score_ids(model, name, rows, tokenizer.pad_token_id).tolist() == pytest.approx(expected, abs=CLOSE)
    ids, mask = left_padded(rows, tokenizer.pad_token_id, "cpu")
    wide = torch.full((4, 3), tokenizer.pad_token_id)
    padded = role_scores(
        model, "reward", torch.cat([wide, ids, wide], 1), torch.cat([0 * wide, mask, 0 * wide], 1)
    ).tolist()
    assert padded == pytest.approx(expected, abs=CLOSE)
    assert max(expected) - min(expected) > 0.1


@both_ways
def test_the_public_reward_model_scores_as_the_sequence_classifier_does(family, tokenizer) -> None:
    """Replies that share a prompt and conversations as long as the context, in batches of every size."""
    asked = [(p, r) for p in ("a", "tell me more", "q" * 60) for r in ("", "yes", "yes it is", "z" * 25)]
    rows = [encode_reply(tokenizer, [{"role": "user", "content": p}], r).ids for p, r in asked]
    expected = alone_scores(family.base, family.reward, rows)
    model = RewardModel.from_pretrained(family.reward, base=family.base)
    windowed = "sliding_window" in FAMILIES[family.name]
    assert model.reading == ("rows" if windowed or family.name == "bloom" else "packed")
    for budget in (1, 150, 10_000):
        assert model.score(asked, token_budget=budget).tolist() == pytest.approx(expected, abs=CLOSE)
    assert max(expected) - min(expected) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("value", [pytest.param("shared", marks=pytest.mark.slow), "adapter"])
@both_ways
def test_every_trainable_tensor_gets_the_same_gradient_checkpointed_or_not(family, tmp_path, tokenizer, value) -> None:
    trainer = trainer_of(family, tmp_path, value=value, gradient_checkpointing=True)
    fixed_responses(trainer, responses_of(tokenizer.eos_token_id))
    batches = rollout(trainer)
    _, plain = gradients(trainer, batches)
    assert [name for name, gradient in plain.items() if gradient.abs().sum() == 0] == []
    assert any(".default." in name for name in plain)
    assert "base_model.model.value_head.weight" in plain
    assert any(f".{VALUE}." in name for name in plain) == (value == "adapter")
    trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    recomputed = []
    hook = trainer.model.get_base_model().base_model.register_forward_hook(lambda *_: recomputed.append(0))
    layer = [m for m in trainer.model.modules() if isinstance(m, BaseTunerLayer)][-1]  # in the last block
    layer.register_forward_pre_hook(lambda *_: recomputed.append(1))
    _, checkpointed = gradients(trainer, batches)
    hook.remove()
    assert recomputed.count(1) == 2 * recomputed.count(0)  # a layer runs twice for every pass of the trunk
    for name, gradient in plain.items():
        # The same operations again: 0.0 was measured for every family; kernels may differ in the last digits.
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def train_on_one_rollout(trainer: PPOTrainer, steps: int) -> None:
    """A rollout of the policy's own sampling, then epochs of one mini-batch."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    rollouts = []
    make_rollout = trainer._rollout
    trainer._rollout = lambda *args: rollouts.append(make_rollout(*args)) or rollouts[-1]
    trainer.train()
    assert trainer.state.global_step == steps
    ((batch,),) = rollouts
    assert torch.equal(batch.old_logprobs, batch.ref_logprobs)  # no KL before the first update
    assert batch.old_logprobs.abs().max() > 0
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


SHORT = {
    "rows": 4, "total_episodes": 4, "response_length": 4, "perturb": False, "gradient_checkpointing": True,
}  # fmt: skip


@pytest.mark.parametrize("value", ["shared", "adapter"])
@both_ways
@pytest.mark.slow
def test_ppo_takes_optimizer_steps(family, tmp_path, value) -> None:
    # A fresh adapter's A has no gradient until its B has moved.
    train_on_one_rollout(trainer_of(family, tmp_path, value=value, num_ppo_epochs=2, **SHORT), steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("family", POLICIES_ONLY, indirect=True, scope="module")
def test_ppo_takes_optimizer_steps_with_a_reward_function(family, tmp_path) -> None:
    # Without a reward model the value head starts at zero: first it moves, then its adapter's B, then its A.
    train_on_one_rollout(trainer_of(family, tmp_path, value="adapter", num_ppo_epochs=3, **SHORT), steps=3)


# ---- reward modelling ----------------------------------------------------------------------------------------------


def one_recipe(base: Path, folder: Path) -> Recipe:
    return Recipe(
        name="tiny",
        output_dir=str(folder),
        model=ModelSection(base=str(base), lora=LoraSection(r=2, alpha=4)),
        reward={"per_device_train_batch_size": 3, "max_steps": 1, "learning_rate": 1e-2, "disable_tqdm": True},
    )


PAIRS = [
    Preference([{"role": "user", "content": "why" * n}], "because", "no" * n, "helpful", Origin("here", n))
    for n in (1, 2, 4)
]
PLAN = AdapterPlan("joint", PAIRS, seed=0)


@pytest.mark.slow
@both_ways
def test_reward_stage_trains_an_adapter_and_its_head(family, tmp_path, tokenizer) -> None:
    recipe = one_recipe(family.base, tmp_path)
    reward_stage._train(recipe, RunFolder(tmp_path), family.base, tokenizer, PLAN, tmp_path / "joint")
    rows = [[*range(20, 20 + n), tokenizer.eos_token_id] for n in (3, 9)]
    expected = alone_scores(family.base, tmp_path / "joint", rows)
    model = load_roles(family.base, recipe.model, tokenizer, {"reward": tmp_path / "joint"})
    assert score_ids(model, "reward", rows, tokenizer.pad_token_id).tolist() == pytest.approx(expected, abs=CLOSE)
    moved = [p.abs().sum() > 0 for n, p in model.named_parameters() if ".reward." in n and "lora_B" in n]
    assert moved
    assert all(moved)


@each_of(*POLICIES_ONLY)
def test_a_family_that_cannot_score_is_refused_before_data_is_read(family, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(reward_stage, "splits", lambda *_: pytest.fail("data was read first"))
    with pytest.raises(RecipeError, match=rf"no sequence-classification class for \w+ \(model type '{family.name}'\)"):
        reward_stage.run(one_recipe(family.base, tmp_path), RunFolder(tmp_path), tmp_path)


def test_a_head_called_classifier_is_trained_and_read(tmp_path, tokenizer) -> None:
    base = tmp_path / "base"
    sizes = {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4, "n_positions": 96}
    tiny_model("ctrl", sizes, tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    recipe = one_recipe(base, tmp_path)
    recipe.reward["gradient_checkpointing"] = False  # CTRL has none
    reward_stage._train(recipe, RunFolder(tmp_path), base, tokenizer, PLAN, tmp_path / "joint")
    rows = [[20, 21, 22, tokenizer.eos_token_id]]
    model = load_roles(base, recipe.model, tokenizer, {"reward": tmp_path / "joint"})
    expected = alone_scores(base, tmp_path / "joint", rows)
    assert score_ids(model, "reward", rows, tokenizer.pad_token_id).tolist() == pytest.approx(expected, abs=CLOSE)


def test_a_reward_adapter_of_another_base_is_refused(tmp_path, tokenizer, reward_folder) -> None:
    one_layer = tiny_model("llama", {**SIZES, "intermediate_size": 64, "num_hidden_layers": 1}, tokenizer)
    model = get_peft_model(one_layer, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    with pytest.raises(ValueError, match=r"trained on another base than LlamaForCausalLM: \d+ weights do not fit"):
        add_reward_role(model, reward_folder, "reward")


@pytest.mark.slow
def test_the_text_decoder_of_a_checkpoint_with_an_image_tower(tmp_path, tokenizer) -> None:
    torch.manual_seed(0)
    stop = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    text = {**SIZES, **WINDOWS, **stop, "head_dim": 8, "vocab_size": len(tokenizer)}
    image = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 28, "patch_size": 14}  # fmt: skip
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=image, mm_tokens_per_image=4, **stop)
    base = tmp_path / "base"
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    recipe = one_recipe(base, tmp_path)
    recipe.model.lora.target_modules = ".*language_model.*_proj"  # as docs/architectures.md says
    reward_stage._train(recipe, RunFolder(tmp_path), base, tokenizer, PLAN, tmp_path / "joint")
    lora = adapter_config(recipe.model, "CAUSAL_LM", AutoModelForCausalLM.from_pretrained(base))
    trainer = make_trainer(base, tmp_path, tmp_path / "joint", lora=lora, value="adapter")
    fixed_responses(trainer, responses_of(tokenizer.eos_token_id))
    batches = rollout(trainer)
    _, found = gradients(trainer, batches)
    assert (
        len([name for name in found if "lora_" in name]) == 2 * 2 * 7 * 2
    )  # two adapters' A and B, 7 layers, 2 blocks
    assert all(gradient.abs().sum() > 0 for gradient in found.values())
    expected = alone_scores(base, tmp_path / "joint", [ids[0].tolist() for ids in rows_of(batches[0])])
    assert batches[0].scores.tolist() == pytest.approx(expected, abs=CLOSE)


# ---- logits that are scaled or capped, and padding that is read ----------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_would_be_read_wrong_is_refused(name, tokenizer) -> None:
    sizes, message = REFUSED[name]
    model = tiny_model(name, sizes, tokenizer)
    add_fused_lm_head(model, temperature=0.7)
    with pytest.raises(ValueError, match=message):
        add_role_forward(model)


def test_logits_changed_by_code_that_the_fused_head_cannot_know_are_noticed(tokenizer, monkeypatch) -> None:
    model = tiny_model("llama", SIZES, tokenizer)
    forward = model.forward

    def louder(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.logits = out.logits * 1.5
        return out

    monkeypatch.setattr(model, "forward", louder)
    add_fused_lm_head(model)
    with pytest.raises(ValueError, match="fused head does not give LlamaForCausalLM's log-probabilities"):
        add_role_forward(model)


# ---- mixtures of experts -------------------------------------------------------------------------------------------

ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}
ROUTED = {"mlp.gate", "mlp.experts", "mlp.experts.base_layer"}  # the experts' two parameters, one wrapper in the other


@pytest.mark.parametrize(
    ("name", "sizes", "targets"),
    [
        ("mixtral", FAMILIES["mixtral"], ATTENTION | ROUTED),
        ("qwen3_moe", FAMILIES["qwen3_moe"], ATTENTION | ROUTED),
        ("olmoe", POLICIES_ONLY["olmoe"], ATTENTION | ROUTED),
        # The dense MLP of its first block is left out, though it is made of linear layers.
        ("qwen3_moe", {**FAMILIES["qwen3_moe"], "mlp_only_layers": [1]}, ATTENTION),
        ("gpt_oss", FAMILIES["gpt_oss"], ATTENTION),
        ("granitemoe", POLICIES_ONLY["granitemoe"], ATTENTION),
        # Its router is a Linear that answers with two tensors, which PEFT cannot wrap.
        ("phimoe", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}, ATTENTION),
        (
            "qwen2_moe",
            {**SIZES, **EXPERTS, "shared_expert_intermediate_size": 24},
            ATTENTION | {f"mlp.shared_expert{part}" for part in (".gate_proj", ".up_proj", ".down_proj", "_gate")},
        ),
    ],
)  # fmt: skip
def test_what_all_linear_adapts_in_mixtures_of_experts(name, sizes, targets, tokenizer) -> None:
    section = ModelSection(lora=LoraSection(r=2, alpha=4))
    model = tiny_model(name, sizes, tokenizer)
    model = get_peft_model(model, adapter_config(section, "CAUSAL_LM", model))
    layers = {n.split(".layers.1.")[1]: m for n, m in model.named_modules()
              if isinstance(m, BaseTunerLayer) and ".layers.1." in n}  # fmt: skip
    assert set(layers) == targets
    if "mlp.experts" in targets:
        ranks = {m.parameter_name: (m.r["default"], m.scaling["default"]) for n, m in layers.items() if "experts" in n}
        assert ranks == {"gate_up_proj": (4, 2.0), "down_proj": (2, 2.0)}  # rank per expert, alpha / rank


def test_quantisation_leaves_experts_and_router_as_they_are(tokenizer) -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="there is none for macOS")
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    for name in ("mixtral", "gpt_oss"):
        model = tiny_model(name, FAMILIES[name], tokenizer)
        section = ModelSection(quantization="nf4")
        replace_with_bnb_linear(
            model, modules_to_not_convert=["lm_head"], quantization_config=quantization_config(section)
        )
        quantised = {n.split(".layers.1.")[1] for n, m in model.named_modules()
                     if isinstance(m, bnb.nn.Linear4bit) and ".layers.1." in n}  # fmt: skip
        assert quantised == ATTENTION
        assert model.model.layers[1].mlp.experts.gate_up_proj.dtype == torch.float32


@pytest.mark.slow
@each_of("qwen3_moe", "mixtral", "granitemoe")
def test_routers_have_no_loss_of_their_own_in_ppo_even_where_the_model_asks_for_one(
    family, tmp_path, tokenizer
) -> None:
    found = []
    for asked in (False, True):
        model = AutoModelForCausalLM.from_pretrained(family.base, dtype=torch.float32, output_router_logits=asked)
        model.config.router_aux_loss_coef = 10.0
        trainer = trainer_of(family, tmp_path, model=model)
        fixed_responses(trainer, responses_of(tokenizer.eos_token_id))
        found.append(gradients(trainer, rollout(trainer)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(gradient, found[1][1][name]) for name, gradient in found[0][1].items())


@each_of("qwen3_moe", "gpt_oss")
def test_supervised_fine_tuning_of_experts_balances_the_router_and_merges(family, tmp_path, tokenizer) -> None:
    section = ModelSection(base=str(family.base), lora=LoraSection(r=2, alpha=4))
    rows = Dataset.from_list([{"input_ids": list(range(20, 30)), "labels": list(range(20, 30))}] * 4)
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "bf16": False, "use_cpu": True, "report_to": "none",
               "learning_rate": 1e-2, "save_strategy": "no", "disable_tqdm": True, "max_length": None}  # fmt: skip
    model = load_causal_lm(family.base, section, tokenizer)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(tmp_path), **options),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=adapter_config(section, "CAUSAL_LM", model),
    )
    trainer.train()
    assert trainer.aux_loss_enabled
    assert trainer.router_aux_loss_coef == trainer.model.config.router_aux_loss_coef > 0
    trainer.model.save_pretrained(tmp_path / "adapter")
    base = load_causal_lm(family.base, section, tokenizer)
    ids = torch.arange(20, 32)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits
        expected = trainer.model.eval()(input_ids=ids).logits
        PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().save_pretrained(tmp_path / "merged")
        merged = load_causal_lm(tmp_path / "merged", section, tokenizer)(input_ids=ids).logits
    assert (expected - before).abs().max() > 0.1
    # Added into the weights once, or to the result each time: fp32 noise on logits of about 10.
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-4)
