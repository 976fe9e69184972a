"""Rollouts from a vLLM in the trainer's own process: what it is sent and when, against a stand-in for its engine.

No vLLM runs here. TRL's generation is the real one; the import check and vLLM's classes are replaced.
"""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import trl.generation.vllm_generation as generation_module
from colocated_engine import Engine, LoRARequest, SamplingParams
from datasets import Dataset
from model_helpers import quantized, wide_llama
from peft import LoraConfig
from ppo_helpers import PROMPTS, make_trainer, rollout
from transformers import AutoModelForCausalLM

LEAST = 1e-5  # nats; float32, the adapter beside the base in both, rows padded otherwise


@pytest.fixture
def colocated(monkeypatch):
    monkeypatch.setattr(Engine, "made", [])
    monkeypatch.setattr(generation_module, "is_vllm_available", lambda *args, **kwargs: True)
    monkeypatch.setattr("trl.trainer.rloo_trainer.is_vllm_available", lambda *args, **kwargs: True, raising=False)
    monkeypatch.setattr(generation_module, "LLM", Engine, raising=False)
    monkeypatch.setattr(generation_module, "SamplingParams", SamplingParams, raising=False)
    request = ModuleType("vllm.lora.request")
    request.LoRARequest = LoRARequest
    for name, module in {
        "vllm": ModuleType("vllm"),
        "vllm.lora": ModuleType("vllm.lora"),
        request.__name__: request,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # which TRL sets and leaves
        monkeypatch.setenv(name, os.environ.get(name, ""))
        monkeypatch.delenv(name)
    return Engine.made


def trainer_of(base_folder, reward_folder, tmp_path, **options):
    return make_trainer(
        base_folder, tmp_path, reward_folder, use_vllm=True, vllm_mode="colocate", temperature=0.8, **options
    )


def largest_difference(batch) -> float:
    """Nats between the engine's log-probabilities and the policy's own, at most, over counted tokens."""
    assert batch.response_mask.any()
    return float((batch.engine_logprobs - batch.old_logprobs)[batch.response_mask].abs().max())


def move(trainer) -> None:
    """What an optimizer step would do to the policy, and to the step's number."""
    for name, parameter in trainer.model.named_parameters():
        if ".default." in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    trainer.state.global_step += 1


# ---- sleep -----------------------------------------------------------------------------------------------------------


def test_an_engine_that_sleeps_between_rollouts_is_sent_the_policy_before_each(
    colocated, base_folder, reward_folder, tmp_path
) -> None:
    trainer = trainer_of(base_folder, reward_folder, tmp_path, vllm_enable_sleep_mode=True)
    (engine,) = colocated
    names = sorted(name for name, _ in engine.model.named_parameters())  # every weight, no head, no adapter
    assert engine.calls == ["sleep 2"]  # from the start, as long as the roles are loaded
    sent = ["wake weights", "wake kv_cache", "generate", "sleep 2"]
    for moved in (False, True, False):  # the first rollout; after a step; where none was taken, as in evaluation
        if moved:
            move(trainer)
        engine.calls.clear()
        engine.received.clear()
        (batch,) = rollout(trainer)
        assert largest_difference(batch) < LEAST
        assert engine.calls == sent
        assert sorted(engine.received) == names


def test_evaluation_and_training_sample_from_an_engine_that_sleeps(
    colocated, base_folder, reward_folder, tmp_path
) -> None:
    asked = Dataset.from_list([{"prompt": [{"role": "user", "content": p}]} for p in PROMPTS[:4]])
    trainer = trainer_of(
        base_folder, reward_folder, tmp_path, vllm_enable_sleep_mode=True, eval_dataset=asked, eval_rollouts=1
    )
    seen = noted(trainer)
    trainer.train()
    (engine,) = colocated
    # The start is evaluated and sampled from at one step, the end at another: twice two generations, and one between.
    assert engine.calls.count("generate") == 5
    assert engine.calls.count("wake weights") == 5
    assert max(map(largest_difference, seen)) < LEAST


def noted(trainer) -> list:
    """Every micro-batch of a rollout that trains."""
    seen, collect = [], trainer._rollout

    def collect_and_note(rows):
        batches = collect(rows)
        seen.extend(batches)
        return batches

    trainer._rollout = collect_and_note
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"vllm_enable_sleep_mode": True}, {"vllm_weights": "adapter"}], ids=["sleep", "adapter"]
)
def test_a_run_that_resumes_samples_from_the_policy_of_its_checkpoint(
    colocated, base_folder, reward_folder, tmp_path, options
) -> None:
    options = {**options, "total_episodes": 16, "save_strategy": "steps", "save_rollouts": 1, "learning_rate": 0.01}
    trainer_of(base_folder, reward_folder, tmp_path, **options).train()
    checkpoint = min(tmp_path.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    resumed = trainer_of(base_folder, reward_folder, tmp_path, perturb=False, **options)
    seen = noted(resumed)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert len(seen) == 1
    assert largest_difference(seen[0]) < LEAST


def test_replies_end_where_the_trainers_do_whatever_the_engines_files_say(
    colocated, base_folder, reward_folder, tmp_path
) -> None:
    stops = list(range(10, 200))  # most of what a random model says; the engine's files do not name them
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    model.generation_config.eos_token_id = stops
    trainer = trainer_of(
        base_folder, reward_folder, tmp_path, model=model, generation_kwargs={"stop_token_ids": [7], "seed": 1}
    )
    assert trainer.vllm_generation.generation_kwargs == {"stop_token_ids": [*trainer.eos_token_ids, 7], "seed": 1}
    (batch,) = rollout(trainer)
    responses, lengths = batch.input_ids[:, -batch.response_mask.size(1) :], batch.response_mask.sum(1)
    assert not any(int(token) in stops for ids, n in zip(responses, lengths, strict=True) for token in ids[: n - 1])
    assert batch.stopped.any()


# ---- the adapter alone -----------------------------------------------------------------------------------------------


def test_an_engine_that_is_sent_the_adapter_samples_from_the_policy_after_every_step(
    colocated, base_folder, reward_folder, tmp_path
) -> None:
    trainer = trainer_of(base_folder, reward_folder, tmp_path, vllm_weights="adapter")
    (engine,) = colocated
    assert (engine.options["max_lora_rank"], engine.options["max_loras"]) == (8, 1)  # vLLM's next to r = 4
    base = {name: p.clone() for name, p in engine.model.named_parameters()}
    own = {name: p.clone() for name, p in trainer.model.named_parameters() if "lora_" not in name}
    folders: list[Path] = []
    for step in range(3):
        (batch,) = rollout(trainer)
        assert largest_difference(batch) < LEAST
        again = rollout(trainer)[0]  # no step was taken: nothing new is sent
        assert largest_difference(again) < LEAST
        (number,) = engine.cached
        assert number == step + 1
        folders.append(Path(engine.generate.keywords["lora_request"].lora_path))
        assert folders[-1].exists()
        assert not any(folder.exists() for folder in folders[:-1])  # one on the disk at a time
        move(trainer)
    assert engine.received == []  # no weights of the base
    assert all(torch.equal(p, base[name]) for name, p in engine.model.named_parameters())
    now = dict(trainer.model.named_parameters())
    assert all(torch.equal(now[name], p) for name, p in own.items())


def test_training_sends_an_adapter_for_each_rollout(colocated, base_folder, reward_folder, tmp_path) -> None:
    trainer = trainer_of(
        base_folder, reward_folder, tmp_path, vllm_weights="adapter", total_episodes=24, learning_rate=0.01
    )
    seen = noted(trainer)
    trainer.train()
    (engine,) = colocated
    assert engine.calls == ["generate", "remove 1", "generate", "remove 2", "generate"]
    assert max(map(largest_difference, seen)) < LEAST
    assert all(0.99 < line["sampling/importance"] < 1.01
               for line in trainer.state.log_history if "sampling/importance" in line)  # fmt: skip


def test_what_its_kernels_differ_by_becomes_importance_weights(
    colocated, base_folder, reward_folder, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(Engine, "noise", 0.05)
    trainer = trainer_of(base_folder, reward_folder, tmp_path, vllm_weights="adapter", importance_cap=1.02)
    (batch,) = rollout(trainer)
    counted = batch.importance[batch.response_mask]
    assert counted.max() == pytest.approx(1.02)  # the noise made some ratios larger
    assert counted.min() < 1


LORA_ON_Q = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("lora", "options", "said"),
    [
        ({"modules_to_save": ["embed_tokens"]}, {}, r"modules_to_save \['embed_tokens'\].*vllm_weights: merged"),
        ({"rank_pattern": {"q_proj": 2}}, {}, r"rank_pattern \{'q_proj': 2\}.*Take rank_pattern away"),
        ({"alpha_pattern": {"q_proj": 2}}, {}, r"alpha_pattern"),
        ({"use_dora": True}, {}, r"use_dora True"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, {}, r"target_parameters .*stacked experts"),
        ({"r": 513}, {}, r"r 513, and vLLM takes at most 512"),
        (False, {}, r"trains all weights"),
        ({}, {"vllm_mode": "server"}, r"vllm_mode is 'server'.*vllm_mode: colocate"),
        ({}, {"vllm_enable_sleep_mode": True}, r"vllm_enable_sleep_mode is true.*forgets the base"),
        ({}, {"vllm_weights": "lora"}, r"vllm_weights is 'lora'; it must be one of 'merged', 'adapter'"),
    ],
    ids=str,
)
def test_what_cannot_be_sent_as_an_adapter_is_refused_before_anything_is_loaded(
    colocated, base_folder, reward_folder, tmp_path, lora, options, said
) -> None:
    options = {"vllm_mode": "colocate", "vllm_weights": "adapter", **options}
    config = lora if lora is False else LoraConfig(**{**LORA_ON_Q, **lora})
    with pytest.raises(ValueError, match=said):
        make_trainer(base_folder, tmp_path, None, reward_funcs=[length], use_vllm=True, lora=config, **options)
    assert colocated == []


def test_a_vocabulary_that_was_grown_in_memory_is_refused(colocated, base_folder, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    model.resize_token_embeddings(model.config.vocab_size + 2)
    with pytest.raises(ValueError, match=r"goes .*embed_tokens.weight, of which vLLM's base has another"):
        trainer_of(base_folder, None, tmp_path, model=model, reward_funcs=[length], vllm_weights="adapter")


# ---- a quantised base ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory, tokenizer):
    return wide_llama(tmp_path_factory.mktemp("wide"), tokenizer)


def length(completions, **kwargs):
    return [float(len(completion[0]["content"])) for completion in completions]


def test_on_nf4_the_engine_samples_from_the_policy_with_the_adapter_alone(colocated, wide_base, tmp_path) -> None:
    trainer = trainer_of(
        wide_base, None, tmp_path, model=quantized(wide_base, "nf4"), reward_funcs=[length], vllm_weights="adapter"
    )
    (engine,) = colocated
    for _ in range(2):
        (batch,) = rollout(trainer)
        assert largest_difference(batch) < 1e-4  # dequantised blocks are multiplied in another order: fp32 noise
        move(trainer)
    assert engine.received == []


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("nf4", {}, r"vllm_weights is 'merged', but the base is quantised to nf4.*Set vllm_weights: adapter"),
        ("int8", {}, r"quantised to int8.*Set quantization: nf4 and vllm_weights: adapter, or vllm_mode: server"),
        ("int8", {"vllm_weights": "adapter"}, r"quantised to int8"),
    ],
)
def test_what_a_quantised_engine_cannot_take_is_refused(colocated, wide_base, tmp_path, kind, options, said) -> None:
    with pytest.raises(ValueError, match=said):
        trainer_of(wide_base, None, tmp_path, model=quantized(wide_base, kind), reward_funcs=[length], **options)
    assert colocated == []


def test_the_engine_would_indeed_not_take_whole_weights_on_nf4(colocated, wide_base) -> None:
    engine = Engine(str(wide_base), quantization="bitsandbytes", logprobs_mode="processed_logprobs")
    weight = AutoModelForCausalLM.from_pretrained(wide_base).model.layers[0].self_attn.q_proj.weight
    with pytest.raises(AssertionError, match="q_proj"):
        engine.load_weights([("model.layers.0.self_attn.q_proj.weight", weight)])
