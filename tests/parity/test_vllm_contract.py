"""Rollouts from a vLLM server: what PPO asks, sends and makes of the answer, against a stand-in for the server.

No vLLM runs here. TRL's client and generation are the real ones; the import check and the NCCL transport are replaced.
"""

from pathlib import Path

import pytest
import torch
import transformers
import trl.generation.vllm_client as client_module
import trl.generation.vllm_generation as generation_module
from peft import LoraConfig, get_peft_model
from ppo_helpers import PROMPTS, make_trainer, rollout
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from vllm_stand_in import StandIn

from llm_rlhf.models.adapters import active_adapters
from llm_rlhf.models.base import adapter_config
from llm_rlhf.ppo.objectives import importance_weights
from llm_rlhf.ppo.sampling import SamplingError
from llm_rlhf.ppo.vllm import as_in_checkpoints, policy_weights
from llm_rlhf.recipe.sections import LoraSection, ModelSection


@pytest.fixture
def server(base_folder, monkeypatch):
    running = StandIn(AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32),
                      AutoTokenizer.from_pretrained(base_folder), noise=0.05)  # fmt: skip

    def update(self, metadata, named_params):
        names, types, shapes = (list(field) for field in zip(*metadata, strict=True))
        info = {"names": names, "dtype_names": types, "shapes": shapes}
        self._post(f"{self.base_url}/update_weights", json={"update_info": info})
        for name, weight in named_params:
            running.receive(name, weight)

    for module in (client_module, generation_module):
        monkeypatch.setattr(module, "is_vllm_available", lambda *args, **kwargs: True)
    monkeypatch.setattr("trl.trainer.rloo_trainer.is_vllm_available", lambda *args, **kwargs: True, raising=False)
    monkeypatch.setattr(client_module.VLLMClient, "init_communicator", lambda self, device: None)
    monkeypatch.setattr(client_module.VLLMClient, "update_named_params", update)
    yield running
    running.close()


def trainer_on(server, base_folder, reward_folder, tmp_path, temperature=0.8, **options):
    return make_trainer(
        base_folder, tmp_path, reward_folder, use_vllm=True, vllm_mode="server", vllm_server_base_url=server.url,
        temperature=temperature, **options,
    )  # fmt: skip


def test_the_server_gets_prompts_and_the_policys_weights_and_the_base_stays(
    server, base_folder, reward_folder, tmp_path
) -> None:
    trainer = trainer_on(server, base_folder, reward_folder, tmp_path)
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    rollout(trainer)
    assert all(torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())  # no merging and unmerging
    (request,) = [body for path, body in server.requests if path == "/v1/completions"]
    tokenizer = trainer.processing_class
    expected = [
        tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True)["input_ids"]
        for p in PROMPTS
    ]
    assert request["prompt"] == expected
    assert (request["temperature"], request["top_p"], request["max_tokens"]) == (0.8, 1.0, 6)
    assert set(server.announced) == {n for n, _ in server.model.named_parameters()}  # no head, no adapter
    ids = torch.randint(10, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), active_adapters(trainer.model, ["default"]):
        ours = trainer.model(input_ids=ids).logits
        # One product with the merged weight against two with the adapter beside it: fp32 noise.
        torch.testing.assert_close(server.model(input_ids=ids).logits, ours, rtol=0, atol=1e-4)


def test_its_log_probabilities_become_importance_weights(server, base_folder, reward_folder, tmp_path) -> None:
    trainer = trainer_on(server, base_folder, reward_folder, tmp_path, importance_cap=1.02)
    kept = []
    keep = trainer._keep_engine_logprobs
    generation = trainer.vllm_generation.generate

    def note(*args, **kwargs):
        answer = generation(*args, **kwargs)
        kept.extend([token[0] for token in row] for row in answer[2])
        return answer

    trainer.vllm_generation.generate = note
    assert keep is not None
    (batch,) = rollout(trainer)
    for row, logprobs in enumerate(kept):
        n = len(logprobs)
        torch.testing.assert_close(batch.engine_logprobs[row, :n], torch.tensor(logprobs))
        assert not batch.response_mask[row, n:].any()
    expected = importance_weights(batch.old_logprobs, batch.engine_logprobs, batch.response_mask, 1.02)
    assert torch.equal(batch.importance, expected)
    counted = batch.importance[batch.response_mask]
    assert counted.max() == pytest.approx(1.02)  # the noise made some ratios larger
    assert counted.min() < 1


@pytest.mark.slow
def test_it_trains_and_the_server_follows_each_rollout(server, base_folder, reward_folder, tmp_path) -> None:
    trainer = trainer_on(server, base_folder, reward_folder, tmp_path, total_episodes=24, learning_rate=0.01)
    trainer.train()
    paths = [path for path, _ in server.requests]
    assert paths.count("/v1/completions") == 3
    assert paths.count("/update_weights") == 3
    for name, weight in policy_weights(trainer.model):
        if "q_proj" in name:  # the server has the weights of the last rollout, not those the last update left
            assert not torch.equal(dict(server.model.named_parameters())[name], weight)
    logged = [line for line in trainer.state.log_history if "sampling/importance" in line]
    assert len(logged) == 3
    assert all(0.5 < line["sampling/importance"] < 1.5 for line in logged)


def test_a_server_that_keeps_its_log_probabilities_is_refused(server, base_folder, reward_folder, tmp_path) -> None:
    trainer = trainer_on(server, base_folder, reward_folder, tmp_path)
    complete = server.complete
    server.complete = lambda prompt, body: [{**choice, "logprobs": None} for choice in complete(prompt, body)]
    with pytest.raises(SamplingError, match="no log-probabilities"):
        rollout(trainer)


@pytest.mark.parametrize("said", ["raw_logprobs", None])  # vLLM's default
def test_a_server_whose_log_probabilities_are_of_another_temperature_is_refused(
    server, base_folder, reward_folder, tmp_path, said
) -> None:
    server.logprobs_mode = said
    with pytest.raises(ValueError, match=r"reports raw_logprobs.*temperature 0.8.*--logprobs-mode processed_logprobs"):
        trainer_on(server, base_folder, reward_folder, tmp_path)
    trainer_on(server, base_folder, reward_folder, tmp_path, temperature=1.0)  # there the two are the same


@pytest.mark.parametrize("options", [{"use_dora": True}, {"trainable_token_indices": [3]}])
def test_what_is_more_than_lora_cannot_be_sent_and_is_refused(base_folder, reward_folder, tmp_path, options) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"use_vllm is set, but the policy's adapter has {name} .*leave use_vllm out"):
        make_trainer(base_folder, tmp_path, reward_folder, use_vllm=True,
                     lora=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], **options))  # fmt: skip


@pytest.mark.parametrize("saved", [{"modules_to_save": ["embed_tokens", "mlp"]}, {"trainable_token_indices": [3, 4]}])
def test_copies_of_modules_that_other_roles_hold_are_not_sent(base_folder, saved) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    own = {name: weight.clone() for name, weight in model.named_parameters()}
    of_the_base = {id(weight) for weight in model.parameters()}
    policy = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
    policy.add_adapter("reward", LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], **saved))
    for parameter in policy.parameters():
        if id(parameter) not in of_the_base:
            parameter.data = parameter.data + 1
    sent = dict(policy_weights(policy))
    assert sent.keys() == own.keys()
    for name, weight in sent.items():
        assert torch.equal(weight, own[name]) == ("q_proj" not in name), name


EXPERTS = {
    "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts": 4,
    "num_experts_per_tok": 2, "vocab_size": 60, "pad_token_id": None, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "granitemoe", "llama", "gpt2"])
def test_what_is_sent_is_the_policy_as_a_checkpoint_would_hold_it(name, tmp_path) -> None:
    """In memory experts are stacked and wrapped in adapters of parameters; a checkpoint knows nothing of it."""
    torch.manual_seed(0)
    small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60} if name == "gpt2" else EXPERTS
    config = AutoConfig.for_model(name, **small)
    model = AutoModelForCausalLM.from_config(config)
    plain = {n: p.clone() for n, p in model.named_parameters()}
    model.save_pretrained(tmp_path / "base")  # whose names and shapes are those of the hub
    policy = get_peft_model(
        model, adapter_config(ModelSection(lora=LoraSection(r=2, alpha=4)), "CAUSAL_LM", model)
    ).eval()
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.1
    sent = dict(as_in_checkpoints(policy.get_base_model(), policy_weights(policy)))
    stored = {n: list(t.shape) for n, t in load_all(tmp_path / "base").items()}
    assert {n: list(t.shape) for n, t in sent.items()} == stored
    for file in (tmp_path / "base").glob("*.safetensors"):
        file.unlink()
    save_file({n: t.contiguous() for n, t in sent.items()}, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    loaded = getattr(transformers, type(model).__name__).from_pretrained(tmp_path / "base").eval()
    ids = torch.arange(20)[None] + 3
    with torch.no_grad():
        ours = policy(input_ids=ids).logits
        # One product with the merged weight against two with the adapter beside it: fp32 noise.
        torch.testing.assert_close(loaded(input_ids=ids).logits, ours, rtol=0, atol=1e-4)
        with policy.disable_adapter():
            assert (policy(input_ids=ids).logits - ours).abs().max() > 0.01
    for n, p in policy.get_base_model().named_parameters():
        if "lora_" not in n:
            assert torch.equal(p, plain[n.replace(".base_layer", "")]), n


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}
